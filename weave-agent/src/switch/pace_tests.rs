//! How often tunnels are probed, told from outside.

use super::bench::{Bench, address, full_mesh, local, mac, name, neighbour, remote, short};
use super::{Input, Output};
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Op, PortId, TunnelKind};
use crate::sleeve;

#[test]
fn among_many_neighbours_only_those_that_flows_go_to_are_probed_often() {
    let mut bench = Bench::new(|_| {});
    bench.input(Input::PortAdded(PortId(11)));
    let peers: Vec<u16> = (2..=101).collect();
    for &n in &peers {
        bench.answering.insert(address(n), 1450);
        bench.sleeves.insert(address(n), 1472);
        bench.input(Input::LinkUp(neighbour(n)));
    }
    bench.view(full_mesh(&peers));
    bench.pass(40_000);
    bench.miss(remote(2, 2, mac(9), Mac::BROADCAST));
    let unused = |bench: &mut Bench| {
        bench.pass(130_000);
        bench.input(bench.list(Some(Time::from_secs(125))));
        assert!(bench.flows.is_empty());
        bench.pass(5_000);
        bench.outputs.clear();
    };
    unused(&mut bench);
    let probes = |bench: &Bench, n: u16| {
        let to = |output: &&Output| match output {
            Output::Op(Op::Heartbeat { remote, .. }) | Output::Sleeve(sleeve::Op::Probe { neighbour: remote, .. }) => *remote == address(n),
            _ => false,
        };
        bench.outputs.iter().filter(to).count()
    };
    bench.pass(30_000);
    // Two ways, each small every 10 s and of full size every 20 s.
    assert!((8..=10).contains(&probes(&bench, 2)), "{}", probes(&bench, 2));
    bench.outputs.clear();
    bench.miss(local(11, mac(1), mac(9)));
    bench.pass(301);
    assert!(probes(&bench, 2) > 0, "whether it works must be known soon");
    bench.pass(29_699);
    // The kernel's tunnel as ever; the sleeve is not what carries.
    assert!((150..=158).contains(&probes(&bench, 2)) && probes(&bench, 3) <= 10, "{} {}", probes(&bench, 2), probes(&bench, 3));
    bench.answering.remove(&address(3));
    bench.answering.remove(&address(4));
    bench.input(Input::LinkDown(name(4)));
    bench.pass(1_300);
    assert_eq!(bench.slots[&short(4)].tunnel, TunnelKind::Sleeve, "who ended its link is looked after at once");
    bench.pass(9_700);
    assert_eq!(bench.slots[&short(3)].tunnel, TunnelKind::Sleeve);
    unused(&mut bench);
    bench.pass(30_000);
    assert!(probes(&bench, 2) <= 10, "{}", probes(&bench, 2));
}
