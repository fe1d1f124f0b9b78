//! What holds whatever happens.

use proptest::prelude::*;
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL};
use weave_ebpf::stats::DropReason;

use super::bench::{Bench, address, full_mesh, local, mac, name, neighbour, remote, short, transit};
use super::{Input, Output};
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, Egress, FlowEntry, Op, PortId};

#[derive(Clone, Debug)]
enum Step {
    Local { port: u32, src: u8, dst: u8 },
    Remote { by: u16, origin: u16, src: u8, dst: u8 },
    Transit { by: u16, origin: u16, to: u16 },
    Port { port: u32, there: bool },
    Peers { peers: Vec<u16>, swap: bool },
    Link { peer: u16, up: bool },
    Answering { peer: u16, mtu: Option<u16> },
    Announced { peer: u16, mac: u8 },
    List { keep: bool, idle: u64 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let peer = 2..5u16;
    let mac = 0..8u8;
    prop_oneof![
        6 => (11..14u32, mac.clone(), mac.clone()).prop_map(|(port, src, dst)| Step::Local { port, src, dst }),
        6 => (peer.clone(), peer.clone(), mac.clone(), mac.clone()).prop_map(|(by, origin, src, dst)| Step::Remote { by, origin, src, dst }),
        2 => (peer.clone(), peer.clone(), peer.clone()).prop_map(|(by, origin, to)| Step::Transit { by, origin, to }),
        1 => (11..14u32, any::<bool>()).prop_map(|(port, there)| Step::Port { port, there }),
        1 => (proptest::sample::subsequence(vec![2, 3, 4], 0..=3), any::<bool>()).prop_map(|(peers, swap)| Step::Peers { peers, swap }),
        1 => (peer.clone(), any::<bool>()).prop_map(|(peer, up)| Step::Link { peer, up }),
        1 => (peer.clone(), proptest::option::of(500..1500u16)).prop_map(|(peer, mtu)| Step::Answering { peer, mtu }),
        1 => (peer, mac).prop_map(|(peer, mac)| Step::Announced { peer, mac }),
        1 => (any::<bool>(), 0..200u64).prop_map(|(keep, idle)| Step::List { keep, idle }),
        2 => (0..15_000u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// 0 is everyone, 7 nobody: not a station's address.
fn station(n: u8) -> Mac {
    match n {
        0 => Mac::BROADCAST,
        7 => Mac::ZERO,
        n => mac(n),
    }
}

fn carry_out(bench: &mut Bench, step: Step) {
    match step {
        Step::Local { port, src, dst } => check_ways(bench, local(port, station(src), station(dst))),
        Step::Remote { by, origin, src, dst } => check_ways(bench, remote(by, origin, station(src), station(dst))),
        Step::Transit { by, origin, to } => check_ways(bench, transit(by, origin, to)),
        Step::Port { port, there: true } => bench.input(Input::PortAdded(PortId(port))),
        Step::Port { port, there: false } => bench.input(Input::PortRemoved(PortId(port))),
        Step::Peers { peers, swap } => {
            let mut view = full_mesh(&peers);
            if swap && let [first, .., last] = peers[..] {
                for (n, other) in [(first, last), (last, first)] {
                    let peer = view.peers.get_mut(&name(n)).unwrap();
                    (peer.short, peer.next_hop, peer.hops) = (Some(short(other)), Some(name(other)), vec![name(other)]);
                }
            }
            bench.view(view);
        }
        Step::Link { peer, up: true } => bench.input(Input::LinkUp(neighbour(peer))),
        Step::Link { peer, up: false } => bench.input(Input::LinkDown(name(peer))),
        Step::Answering { peer, mtu: Some(mtu) } => drop(bench.answering.insert(address(peer), mtu)),
        Step::Answering { peer, mtu: None } => drop(bench.answering.remove(&address(peer))),
        Step::Announced { peer, mac: n } => bench.input(Input::Announced { peer: name(peer), macs: vec![station(n)] }),
        Step::List { keep, idle } => list(bench, keep, Time::from_secs(idle)),
        Step::Pass { ms } => bench.pass(ms),
    }
}

fn list(bench: &mut Bench, keep: bool, idle: Time) {
    if !keep {
        // The datapath lost one and has one that nobody asked for.
        bench.flows.pop_first();
        bench.flows.insert(local(11, mac(1), mac(6)), Action::Port(PortId(13)));
    }
    let entry = |(key, action): (&FlowKey, &Action)| FlowEntry { key: *key, action: *action, packets: 1, bytes: 60, idle: Some(idle) };
    let listed = bench.flows.iter().map(entry).collect();
    bench.input(Input::Flows(listed));
}

/// A frame never leaves by the way it came, and never twice by one way.
fn check_ways(bench: &mut Bench, key: FlowKey) {
    let ways = bench.miss(key);
    for (i, way) in ways.iter().enumerate() {
        assert!(!ways[..i].contains(way), "twice by {way:?}");
        match way {
            Egress::Port(port) => assert!(port.0 != key.ingress && bench.switch.ports.contains(port)),
            Egress::Peer { to, origin } => {
                assert_ne!(to, origin);
                let back = bench.slots.get(to).is_some_and(|route| route.remote.octets() == key.outer_src);
                assert!(!back, "{key:?} went back by {way:?}");
            }
        }
    }
}

/// The mirror is what the datapath has (but for what it lost itself), and every flow is what would be decided again.
fn check_flows(bench: &Bench) {
    for (key, action) in bench.switch.flows.iter() {
        if bench.flows.contains_key(&key) {
            assert_eq!(bench.flows[&key], action);
        }
        let contested = action == Action::Drop(DropReason::Contested);
        let relayed = key.ingress == INGRESS_TUNNEL && Mac(key.src) == Mac::ZERO && Mac(key.dst) == Mac::ZERO;
        if !contested && !relayed {
            assert_eq!(bench.switch.decide(&key).action, action, "{key:?}");
            assert_eq!(bench.switch.source(&key), bench.switch.source(&key).and(bench.switch.fdb.find(Mac(key.src))), "{key:?}");
        }
    }
}

fn check_tables(bench: &Bench) {
    let told = &bench.switch.told;
    assert_eq!(bench.slots, told.slots);
    assert_eq!(bench.sources, told.sources);
    assert_eq!(bench.flood_ports, told.flood_ports.iter().copied().collect::<Vec<_>>());
    for (origin, (parent, hops)) in &bench.trees {
        assert_eq!((parent, &hops[..]), (&told.parent(*origin), told.hops(*origin)));
    }
}

proptest! {
    #[test]
    fn whatever_happens_flows_agree_with_what_is_known_and_no_frame_goes_back(steps in proptest::collection::vec(step(), 1..120), grace: bool) {
        let mut bench = Bench::new(|config| {
            config.port_macs = 3;
            config.peer_macs = 4;
            config.source_flows = 6;
            config.flows = 15;
            config.grace = if grace { config.grace } else { Time::ZERO };
        });
        for peer in 2..5 {
            bench.answering.insert(address(peer), 1450);
        }
        let mut lost = false;
        for step in steps {
            lost |= matches!(step, Step::List { keep: false, .. });
            carry_out(&mut bench, step);
            check_flows(&bench);
            check_tables(&bench);
            if !lost {
                prop_assert_eq!(bench.switch.flows.iter().collect::<std::collections::BTreeMap<_, _>>(), bench.flows.clone());
            }
            prop_assert!(bench.flows.len() <= 17);
            bench.outputs.clear();
        }
    }
}

#[test]
fn a_flood_of_macs_from_one_port_costs_bounded_memory_and_no_one_else_anything() {
    let mut bench = Bench::settled();
    bench.miss(local(12, mac(2), Mac::BROADCAST));
    for n in 0..40_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        bench.miss(local(11, Mac([2, 0, 1, a, b, c]), Mac([2, 0, 2, a, b, c])));
        assert!(bench.outputs.len() < 8);
        bench.outputs.clear();
        bench.now += Time::from_micros(100);
    }
    let status = bench.switch.status(bench.now);
    assert_eq!((status.ports[0].macs, status.ports[1].macs), (1024, 1));
    assert!(bench.flows.len() <= 1025);
    assert!(bench.flows.contains_key(&local(12, mac(2), Mac::BROADCAST)));
    assert_eq!(status.counters.fdb_evictions, 40_000 - 1024);
}

#[test]
fn a_flood_of_destinations_costs_bounded_memory() {
    let mut bench = Bench::settled();
    for n in 0..40_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        bench.miss(remote(2, 2, mac(1), Mac([2, 0, 2, a, b, c])));
        bench.outputs.clear();
    }
    assert_eq!(bench.flows.len(), 16_384);
    assert_eq!(bench.switch.flows.iter().count(), 16_384);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut bench = Bench::settled();
        for n in 0..50 {
            bench.miss(local(11 + n % 2, mac(n as u8 % 5 + 1), mac(3)));
            bench.pass(100);
        }
        bench.outputs
    };
    let outputs: Vec<Output> = run();
    assert_eq!(outputs, run());
    assert!(outputs.iter().any(|output| matches!(output, Output::Op(Op::Heartbeat { .. }))));
}
