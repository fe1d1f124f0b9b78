//! The openvswitch module by its verbs, without the datapath above them; and what is its datapath's alone.

use std::io::ErrorKind;

use weave_agent::addr::Mac;
use weave_agent::datapath::{Action, Op};
use weave_agent::io::datapath::odp::kernel::{Kernel, Wanted};
use weave_agent::io::datapath::odp::socket::Socket;
use weave_agent::io::datapath::odp::wire::{Act, Fields, Flow, Packet, PacketCommand, VportKind};
use weave_agent::io::datapath::odp::{self, DATAPATH, Odp};
use weave_ebpf::flow::vni;
use weave_ebpf::vxlan::{RELAY_TTL, TTL};

use crate::frames::{address, container, kinds, outgoing, tunnelled, udp, with_tag};
use crate::host::{Host, Kind, OWN, short};
use crate::place::{ip, private, private_async};
use crate::run;
use crate::wires::{TUNNEL_PORT, Wires, index_of, make_vxlan};

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

#[test]
fn a_vxlan_vport_is_made_found_and_deleted_where_the_module_has_them() {
    private(|_| {
        let Some(kernel) = module() else { return };
        let datapath = kernel.add_datapath("tunnels").unwrap();
        let there = || kernel.vports(datapath.ifindex).unwrap().into_iter().find(|port| port.name == "vx0");
        match kernel.add_vport(datapath.ifindex, VportKind::Vxlan, "vx0", Some(4791), &[0]) {
            Ok(made) => {
                let found = there().unwrap();
                assert_eq!((found.kind, found.number, found.udp_port), (VportKind::Vxlan, made.number, Some(4791)));
                assert!(kernel.delete_vport(datapath.ifindex, made.number).unwrap());
            }
            // Linux 7.3 took them out.
            Err(error) => assert!(vm_tests::kernel::is_at_least(7, 3) && error.raw_os_error() == Some(libc::EAFNOSUPPORT), "{error}"),
        }
        assert_eq!(there(), None);
        assert!(kernel.delete_datapath("tunnels").unwrap());
    });
}

/// What the module has in our datapath, without the flow for heartbeats.
fn in_module() -> Vec<Flow> {
    let kernel = module().unwrap();
    let datapath = kernel.find_datapath(DATAPATH).unwrap().unwrap();
    let flows = kernel.flows(datapath.ifindex, false).unwrap().into_iter();
    flows.filter(|flow| !matches!(flow.actions.as_slice(), [Act::Userspace { .. }, ..])).collect()
}

/// A frame that came up is carried on, and then a flow is made of it: waits until there are so many.
fn until_there_are(flows: usize) {
    vm_tests::wait_for(&format!("{flows} flows"), crate::host::SOON, || Ok(in_module().len() == flows)).unwrap();
}

#[test]
fn each_kind_of_frame_of_a_flow_goes_by_a_flow_of_the_module_s_own() {
    run(Kind::Odp, |mut host| async move {
        let plain = udp(1, container(2));
        host.cache(0, &plain, Action::Port(host.port(1)));
        for (flows, frame) in [(1, &plain), (2, &with_tag(&plain))] {
            for _ in 0..3 {
                host.send_from(0, frame);
                host.expect(vec![host.at_container(1, frame)]);
                until_there_are(flows);
            }
        }
        let packets: Vec<_> = in_module().iter().map(|flow| flow.packets).collect();
        // The first tagged one came up.
        assert!(packets.len() == 2 && packets.contains(&3) && packets.contains(&2), "{packets:?}");
        assert_eq!((host.matched(), host.count("upcalls")), (6, 0));
        assert_eq!(in_module().iter().filter(|flow| flow.key.vlan.is_some()).count(), 1);
    });
}

#[test]
fn what_is_relayed_goes_by_a_flow_for_its_hop_limit_and_does_not_come_up() {
    run(Kind::Odp, |mut host| async move {
        let (macs, vni) = (host.wires.underlay_mac, vni(3, 2));
        host.op(Op::Install(host.transit_key(2, vni), Action::Peer(short(3))));
        for (flows, ttl) in [(1, TTL), (2, 40)] {
            // Whatever their addresses.
            for number in [1, 2, 3] {
                let frame = udp(number, container(4));
                host.arrive(0, &tunnelled(macs, 2, vni, ttl, &frame));
                host.expect(vec![host.on_wire(3, outgoing(macs, 3, vni, ttl - RELAY_TTL, &frame))]);
                until_there_are(flows);
            }
        }
        let mut packets: Vec<_> = in_module().iter().map(|flow| flow.packets).collect();
        packets.sort_unstable();
        // The switch's order made the first, for the usual hop limit.
        assert_eq!(packets, [2, 3]);
        assert_eq!((host.matched(), host.count("upcalls")), (6, 0));
    });
}

#[test]
fn a_changed_slot_changes_the_flows_of_that_peer_and_leaves_their_counters() {
    run(Kind::Odp, |mut host| async move {
        let (to_2, to_3) = (udp(1, container(2)), udp(1, container(3)));
        host.cache(0, &to_2, Action::Peer(short(2)));
        host.cache(0, &to_3, Action::Peer(short(3)));
        host.send_from(0, &to_2);
        assert_eq!(host.arrivals(1).len(), 1);
        let before = in_module();
        host.set_peer(2, 4);
        let after = in_module();
        let changed = |flow: &&Flow| before.iter().all(|before| before.actions != flow.actions);
        assert_eq!((before.len(), after.iter().filter(changed).count()), (2, 1));
        assert_eq!(after.iter().map(|flow| flow.packets).sum::<u64>(), 1);
    });
}

/// The agent dies; frames go on; the next one finds everything as it was.
#[test]
fn what_an_agent_left_goes_on_and_is_the_next_one_s() {
    if !Kind::Odp.is_there() {
        return;
    }
    private_async(|_| async move {
        let kept = tempfile::tempdir().unwrap();
        let kept = Some(kept.path().join("odp"));
        let open = |vxlan: &str| Odp::open(&odp::Options { tunnel_port: TUNNEL_PORT, vxlan_ifindex: index_of(vxlan), kept: kept.clone() });
        let mut host = Host::with(Kind::Odp, |vxlan| {
            let (datapath, upcalls) = open(vxlan).unwrap();
            (Box::new(datapath), upcalls)
        });
        let (to_port, to_peer) = (udp(1, container(2)), udp(1, container(9)));
        host.cache(0, &to_port, Action::Port(host.port(1)));
        host.cache(0, &to_peer, Action::Peer(short(2)));
        let macs = host.wires.underlay_mac;
        let on_wire = outgoing(macs, 2, vni(2, OWN.into()), TTL, &to_peer);
        host.close();
        for _ in 0..2 {
            host.send_from(0, &to_port);
            host.send_from(0, &to_peer);
        }
        let seen = [host.at_container(1, &to_port), host.on_wire(2, on_wire.clone())];
        host.expect([seen.clone(), seen.clone()].concat());
        // Nobody is there to answer a heartbeat, but the module.
        let mut request = vec![0; 500];
        request[12..16].copy_from_slice(&[0x88, 0xb5, 1, 1]);
        host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 2), TTL, &request));
        let turned = [&request[..12], &[0x81, 0, 1, 2], &request[12..60]].concat();
        host.expect(vec![host.on_wire(2, outgoing(macs, 2, vni(2, OWN.into()), TTL, &turned))]);
        // Somebody else's flow in our datapath, and a datapath of somebody else's.
        let kernel = module().unwrap();
        let ours = kernel.find_datapath(DATAPATH).unwrap().unwrap().ifindex;
        let key = Fields { in_port: Some(99), ethernet: Some([Mac([2; 6]); 2]), ..Fields::default() };
        let mask = Fields { in_port: Some(u32::MAX), ethernet: Some([Mac([0xff; 6]); 2]), ..Fields::default() };
        kernel.add_plain_flow(ours, &key, &mask, &[Act::Output(1)]).unwrap();
        kernel.add_datapath("theirs").unwrap();
        let (datapath, upcalls) = open("vx").unwrap();
        host.reopen(Box::new(datapath), upcalls);
        let flows = host.datapath.flows().unwrap();
        assert_eq!(flows.iter().map(|flow| (flow.packets, flow.idle.is_some())).collect::<Vec<_>>(), [(2, true); 2], "{flows:?}");
        let adopted = host.datapath.adopted().unwrap().unwrap();
        assert_eq!(
            (adopted.short, adopted.slots.len(), adopted.sources.len(), adopted.flood_ports),
            (Some(short(OWN)), 3, 3, host.ports())
        );
        assert!(adopted.sources.iter().any(|(remote, _)| *remote == address(2)));
        host.send_from(0, &to_peer);
        host.expect(vec![seen[1].clone()]);
        assert_eq!((host.matched(), host.count("upcalls")), (5, 0));
        assert!(in_module().iter().any(|flow| flow.ufid.is_none()));
        host.close();
        assert!(odp::leave().unwrap() && !odp::leave().unwrap());
        assert!(kernel.find_datapath("theirs").unwrap().is_some() && kernel.find_datapath(DATAPATH).unwrap().is_none());
    });
}

/// As many as a user's own Open vSwitch may have: what is not known is listed, and does not end the list.
#[test]
fn flows_with_actions_that_we_do_not_know_are_listed() {
    private(|_| {
        let Some(kernel) = module() else { return };
        let datapath = kernel.add_datapath("theirs").unwrap().ifindex;
        for (number, frame) in kinds(1, container(2)).iter().enumerate() {
            let key = Fields { in_port: Some(number as u32), ethernet: Some([Mac(container(1)), Mac(container(2))]), ..Fields::default() };
            let mask = Fields { in_port: Some(u32::MAX), ethernet: Some([Mac([0xff; 6]); 2]), ..Fields::default() };
            // POP_VLAN, and TRUNC to 60 bytes.
            let actions = [Act::Other(5, Vec::new()), Act::Truncate(60), Act::Output(frame.len() as u32)];
            kernel.add_plain_flow(datapath, &key, &mask, &actions).unwrap();
        }
        let flows = kernel.flows(datapath, false).unwrap();
        assert_eq!(flows.len(), 5);
        assert!(
            flows.iter().all(|flow| matches!(flow.actions.as_slice(), [Act::Other(5, _), Act::Truncate(60), Act::Output(_)])),
            "{flows:?}"
        );
        assert!(kernel.delete_flow(datapath, &flows[0]).unwrap() && !kernel.delete_flow(datapath, &flows[0]).unwrap());
        assert_eq!(kernel.flows(datapath, false).unwrap().len(), 4);
    });
}

/// Open vSwitch's tools change a datapath's features when they open it; anybody may take the tunnel's interface from it.
#[test]
fn what_others_do_to_our_datapath_is_undone() {
    run(Kind::Odp, |mut host| async move {
        let kernel = module().unwrap();
        let before = kernel.find_datapath(DATAPATH).unwrap().unwrap();
        // Without several sockets per port: what every kernel lets be taken away.
        kernel.set_features(DATAPATH, before.features & !2).unwrap();
        let is_as_before = || Ok(kernel.find_datapath(DATAPATH).unwrap().unwrap().features == before.features);
        vm_tests::wait_for("the features", crate::host::SOON, is_as_before).unwrap();
        let frame = udp(1, container(2));
        host.cache(0, &frame, Action::Peer(short(2)));
        let back = udp(9, container(1));
        host.cache_peer(2, &back, Action::Port(host.port(0)));
        let tunnel = || Ok::<_, std::io::Error>(kernel.vports(before.ifindex)?.into_iter().find(|port| port.name == "vx"));
        let taken = tunnel().unwrap().unwrap();
        assert!(kernel.delete_vport(before.ifindex, taken.number).unwrap());
        vm_tests::wait_for("the tunnel's port", crate::host::SOON, || Ok(tunnel()?.is_some())).unwrap();
        expect_both_ways(&mut host, &frame, &back);
        // Its device as well: the agent makes another one, as the next that comes would be told.
        ip("link del vx");
        host.datapath.set_vxlan(make_vxlan("vx")).unwrap();
        let there = tunnel().unwrap().unwrap();
        assert_ne!(there.ifindex, taken.ifindex);
        expect_both_ways(&mut host, &frame, &back);
        // It was set up again, and is what it was.
        host.datapath.set_vxlan(index_of("vx")).unwrap();
        assert_eq!(tunnel().unwrap().unwrap().number, there.number);
    });
}

/// Whatever is heard of it, or not, and also if it can only be mended later.
#[test]
fn ports_that_others_take_come_back() {
    run(Kind::Odp, |mut host| async move {
        let kernel = module().unwrap();
        let datapath = kernel.find_datapath(DATAPATH).unwrap().unwrap().ifindex;
        let (frame, to_port) = (udp(1, container(2)), udp(1, container(3)));
        let back = udp(9, container(1));
        host.cache(0, &frame, Action::Peer(short(2)));
        host.cache(0, &to_port, Action::Port(host.port(1)));
        host.cache_peer(2, &back, Action::Port(host.port(0)));
        let all = || kernel.vports(datapath).unwrap().len();
        let before = all();
        for name in ["p0", "p1"] {
            let port = kernel.vports(datapath).unwrap().into_iter().find(|port| port.name == name).unwrap();
            assert!(kernel.delete_vport(datapath, port.number).unwrap());
        }
        vm_tests::wait_for("the ports", crate::host::SOON, || Ok(all() == before)).unwrap();
        expect_both_ways(&mut host, &frame, &back);
        host.send_from(0, &to_port);
        host.expect(vec![host.at_container(1, &to_port)]);

        // Datapath and device at once: the ports do not wait for the tunnel.
        ip("link del vx");
        assert!(kernel.delete_datapath(DATAPATH).unwrap());
        let there = || -> anyhow::Result<usize> {
            Ok(kernel.find_datapath(DATAPATH)?.map_or(0, |found| kernel.vports(found.ifindex).map_or(0, |ports| ports.len())))
        };
        vm_tests::wait_for("the ports without the tunnel", crate::host::SOON, || Ok(there()? == before - 1)).unwrap();
        assert!(!host.datapath.mend().unwrap());
        host.send_from(0, &to_port);
        host.expect(vec![host.at_container(1, &to_port)]);
        // Somebody else has the new device first, and later lets it go.
        ip("link add theirs type bridge");
        let vxlan = make_vxlan("vx");
        ip("link set vx master theirs");
        assert!(format!("{:#}", host.datapath.set_vxlan(vxlan).unwrap_err()).contains("vx"));
        assert!(host.datapath.mend().is_err());
        ip("link set vx nomaster");
        assert!(host.datapath.mend().unwrap() && !host.datapath.mend().unwrap());
        assert_eq!(there().unwrap(), before);
        expect_both_ways(&mut host, &frame, &back);
    });
}

/// To 2 and back from it.
fn expect_both_ways(host: &mut Host, frame: &[u8], back: &[u8]) {
    // Once the next order is carried out, all that follows from what became of the tunnel has been done.
    host.set_peer(2, 2);
    let macs = host.wires.underlay_mac;
    host.send_from(0, frame);
    host.expect(vec![host.on_wire(2, outgoing(macs, 2, vni(2, OWN.into()), TTL, frame))]);
    host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 2), TTL, back));
    host.expect(vec![host.at_container(0, back)]);
}

/// As Open vSwitch's daemon does to all datapaths that it did not make, when it starts.
#[test]
fn a_datapath_that_somebody_deletes_is_made_anew() {
    run(Kind::Odp, |mut host| async move {
        let (to_port, to_peer, back) = (udp(1, container(2)), udp(1, container(3)), udp(9, container(1)));
        host.cache(0, &to_port, Action::Port(host.port(1)));
        host.cache(0, &to_peer, Action::Peer(short(2)));
        host.cache_peer(2, &back, Action::Port(host.port(0)));
        let (kernel, macs) = (module().unwrap(), host.wires.underlay_mac);
        let before = kernel.find_datapath(DATAPATH).unwrap().unwrap();
        let ports = kernel.vports(before.ifindex).unwrap().len();
        assert!(kernel.delete_datapath(DATAPATH).unwrap());
        assert_eq!(
            kernel.flows(before.ifindex, false).map_err(|error| error.raw_os_error()).unwrap_err(),
            Some(nix::errno::Errno::ENODEV as i32)
        );
        vm_tests::wait_for("the datapath with its ports", crate::host::SOON, || {
            let Some(now) = kernel.find_datapath(DATAPATH)? else { return Ok(false) };
            Ok(now.features == before.features && kernel.vports(now.ifindex)?.len() == ports)
        })
        .unwrap();
        // Once the orders that come next are carried out, all of it is there.
        host.set_peer(2, 2);
        for _ in 0..2 {
            host.send_from(0, &to_port);
            host.expect(vec![host.at_container(1, &to_port)]);
            host.send_from(0, &to_peer);
            host.expect(vec![host.on_wire(2, outgoing(macs, 2, vni(2, OWN.into()), TTL, &to_peer))]);
            host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 2), TTL, &back));
            host.expect(vec![host.at_container(0, &back)]);
        }
        // The first of each came up, and was carried on.
        until_there_are(3);
        assert_eq!(host.count("upcalls"), 0);
    });
}
