//! The openvswitch module by its verbs, without the datapath above them.

use std::io::ErrorKind;

use weave_agent::addr::Mac;
use weave_agent::io::datapath::odp::kernel::{Kernel, Wanted};
use weave_agent::io::datapath::odp::socket::Socket;
use weave_agent::io::datapath::odp::wire::{Act, Fields, Packet, PacketCommand, VportKind};

use crate::frames::{container, udp};
use crate::place::private;
use crate::wires::Wires;

/// The module; without it a test is skipped, and says so.
pub(crate) fn module() -> Option<Kernel> {
    match Kernel::open() {
        Ok(kernel) => Some(kernel),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: this kernel has no openvswitch module");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_frame_that_missed_comes_up_and_the_next_one_goes_by_the_flow() {
    private(|_| {
        let Some(kernel) = module() else { return };
        let wires = Wires::make();
        let datapath = kernel.add_datapath("slice").unwrap();
        let upcalls = Socket::open().unwrap();
        let pids = [upcalls.pid().unwrap()];
        let [from, to] = ["p0", "p1"].map(|name| kernel.add_vport(datapath.ifindex, VportKind::Netdev, name, None, &pids).unwrap());
        let capture = wires.outside.enter(crate::capture::Capture::open);
        let sender = wires.outside.enter(|| weave_agent::io::net::RawSender::new().unwrap());
        let ifindex = wires.outside.enter(|| crate::wires::index_of("c0"));
        let frame = udp(1, container(2));
        let sent = weave_agent::datapath::Frame { bytes: frame.clone().into(), gso_size: 0 };
        sender.send(ifindex, None, &sent).unwrap();
        let seen = |answer: &weave_agent::io::datapath::odp::wire::Answer<'_>| {
            let (command, _, attributes) = answer.of_datapath()?;
            let packet = Packet::read(command, attributes)?;
            Some((packet.command, packet.frame.to_vec(), packet.key))
        };
        let (command, up, key) = upcalls.receive(seen).unwrap().unwrap();
        assert_eq!((command, up, key.in_port), (PacketCommand::Miss, frame.clone(), Some(from.number)));
        let key = Fields { in_port: key.in_port, ethernet: key.ethernet, ..Fields::default() };
        let mask = Fields { in_port: Some(u32::MAX), ethernet: Some([Mac([0xff; 6]); 2]), ..Fields::default() };
        let actions = [Act::Output(to.number)];
        let wanted = Wanted { ufid: [7; 16], key: &key, mask: &mask, actions: &actions };
        assert!(kernel.add_flows(datapath.ifindex, [wanted.clone()]).unwrap().iter().all(Result::is_ok));
        assert!(kernel.add_flows(datapath.ifindex, [wanted]).unwrap().iter().all(Result::is_err));
        sender.send(ifindex, None, &sent).unwrap();
        let arrived = || Ok(capture.received().iter().any(|seen| seen.bytes == frame));
        vm_tests::wait_for("the second frame", crate::host::SOON, arrived).unwrap();
        let flows = kernel.flows(datapath.ifindex, false).unwrap();
        assert_eq!((flows.len(), flows[0].packets, &flows[0].actions[..]), (1, 1, &actions[..]), "{flows:?}");
        assert_eq!((flows[0].key.in_port, flows[0].key.ethernet), (key.in_port, key.ethernet));
        let told = kernel.delete_flows(datapath.ifindex, &[[7; 16], [8; 16]]).unwrap();
        assert!(told[0].as_ref().is_some_and(|flow| flow.packets == 1) && told[1].is_none(), "{told:?}");
        assert!(kernel.delete_datapath("slice").unwrap() && !kernel.delete_datapath("slice").unwrap());
    });
}
