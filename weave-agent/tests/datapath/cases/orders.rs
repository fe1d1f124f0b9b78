//! What user space sends, and what is answered without it.

use std::net::Ipv4Addr;

use weave_agent::datapath::{Egress, Frame, Op, Upcall};
use weave_ebpf::fastpath::{HEARTBEAT_KIND, HEARTBEAT_REPLY, HEARTBEAT_REQUEST};
use weave_ebpf::flow::{FlowKey, vni};
use weave_ebpf::vxlan::{TTL, vxlan_header};

use crate::frames::{address, container, kinds, outgoing, tcp, tunnelled};
use crate::host::{Host, Kind, OWN, short};
use crate::wires::{LOCAL, TUNNEL_PORT};

pub(crate) async fn an_executed_frame_goes_by_every_way_it_was_told(mut host: Host) {
    let origin = short(OWN);
    for frame in kinds(1, container(2)) {
        let ways = vec![Egress::Port(host.port(2)), Egress::Peer { to: short(2), origin }, Egress::Peer { to: short(4), origin: short(3) }];
        host.op(Op::Execute(Frame { bytes: frame.clone().into(), gso_size: 0 }, ways));
        let macs = host.wires.underlay_mac;
        let wire = |to: u16, from: u16| host.on_wire(to, outgoing(macs, to, vni(to.into(), from.into()), TTL, &frame));
        host.expect(vec![host.at_container(2, &frame), wire(2, OWN), wire(4, 3)]);
    }
    let large = tcp(1, container(2), 54 + 20 * 1_400);
    host.op(Op::Execute(Frame { bytes: large.clone().into(), gso_size: 1_400 }, vec![Egress::Port(host.port(2))]));
    host.expect(vec![host.at_container(2, &large)]);
    // What was never looked up matches nothing.
    assert_eq!(host.matched(), 0);
}

/// A heartbeat's inner frame: no addresses, a version, its kind, and padding.
fn heartbeat(kind: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    (frame[12], frame[13], frame[HEARTBEAT_KIND - 1], frame[HEARTBEAT_KIND]) = (0x88, 0xb5, 1, kind);
    frame
}

/// Of any size, and only for the neighbour itself.
pub(crate) async fn a_heartbeat_is_answered_without_the_switch(mut host: Host) {
    let macs = host.wires.underlay_mac;
    for (peer, len) in [(2, 60), (2, 8_900), (3, 60), (4, 60)] {
        let underlay = usize::from(address(peer).octets()[1]);
        let request = heartbeat(HEARTBEAT_REQUEST, len);
        host.arrive(underlay, &tunnelled(macs, peer, vni(OWN.into(), peer.into()), TTL, &request));
        let reply = heartbeat(HEARTBEAT_REPLY, len);
        let on_wire = |frame: &[u8]| host.on_wire(peer, outgoing(macs, peer, vni(peer.into(), OWN.into()), TTL, frame));
        // The openvswitch module answers as well, in its own way: user space may be gone.
        let turned = [&request[..12], &[0x81, 0, 1, HEARTBEAT_REPLY], &request[12..60]].concat();
        let by_module = (host.kind == Kind::Odp).then(|| on_wire(&turned));
        host.expect([on_wire(&reply)].into_iter().chain(by_module).collect());
    }
    host.counts("heartbeats", 4);
    // In 3's name, from 2: the switch shall know.
    host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 3), TTL, &heartbeat(HEARTBEAT_REQUEST, 60)));
    host.expect(vec![]);
    assert_eq!((host.upcalls(1).await.len(), host.count("heartbeats")), (1, 4));
}

pub(crate) async fn an_answer_to_a_heartbeat_comes_up(mut host: Host) {
    let reply = heartbeat(HEARTBEAT_REPLY, 1_000);
    host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), TTL, &reply));
    let key = FlowKey { src: [0; 6], dst: [0; 6], ..host.peer_key(2, &reply) };
    assert_eq!(host.upcalls(1).await, [Upcall::Heartbeat { key, frame: reply.into() }]);
    host.counts("heartbeat-replies", 1);
}

pub(crate) async fn a_heartbeat_leaves_as_it_was_told(mut host: Host) {
    let (request, vni) = (heartbeat(HEARTBEAT_REQUEST, 1_000), vni(2, OWN.into()));
    let datagram = [vxlan_header(vni).as_slice(), &request].concat().into();
    host.op(Op::Heartbeat { local: Ipv4Addr::from(LOCAL[0]), remote: address(2), port: TUNNEL_PORT, datagram });
    host.expect(vec![host.on_wire(2, outgoing(host.wires.underlay_mac, 2, vni, TTL, &request))]);
}
