//! Floods along trees.

use weave_agent::datapath::{Action, Op};
use weave_ebpf::flow::vni;
use weave_ebpf::vxlan::{RELAY_TTL, TTL};

use crate::frames::{BROADCAST, address, kinds, outgoing, tunnelled, udp};
use crate::host::{Host, NEIGHBOURS, OWN, short};

pub(crate) async fn a_flood_reaches_every_port_but_its_own_and_every_hop_of_the_tree_once(mut host: Host) {
    for (number, frame) in kinds(1, BROADCAST).into_iter().enumerate() {
        host.cache(0, &frame, Action::Flood(short(OWN)));
        host.send_from(0, &frame);
        let on_wire = |peer: u16| host.on_wire(peer, outgoing(host.wires.underlay_mac, peer, vni(peer.into(), OWN.into()), TTL, &frame));
        host.expect((1..4).map(|port| host.at_container(port, &frame)).chain(NEIGHBOURS.map(on_wire)).collect());
        assert_eq!((host.matched(), host.count("flooded")), (1, number as u64 + 1));
    }
}

/// Not back to where it came from, though the tree says so.
pub(crate) async fn a_neighbour_s_flood_goes_to_every_port_and_on_along_its_tree(mut host: Host) {
    host.op(Op::SetTree { origin: short(2), parent: Some(address(2)), hops: [3, 4, 2].map(short).to_vec() });
    for frame in kinds(9, BROADCAST) {
        host.cache_peer(2, &frame, Action::Flood(short(2)));
        host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), TTL, &frame));
        let onward = |peer: u16| host.on_wire(peer, outgoing(host.wires.underlay_mac, peer, vni(peer.into(), 2), TTL - RELAY_TTL, &frame));
        host.expect((0..4).map(|port| host.at_container(port, &frame)).chain([3, 4].map(onward)).collect());
        assert_eq!(host.matched(), 1);
    }
    assert_eq!(host.count("reflected"), 5);
}

/// A copy that comes from another neighbour than the tree says is a second one.
pub(crate) async fn a_flood_from_the_wrong_neighbour_goes_nowhere(mut host: Host) {
    let frame = udp(9, BROADCAST);
    host.op(Op::SetTree { origin: short(2), parent: Some(address(3)), hops: vec![short(4)] });
    host.cache_peer(2, &frame, Action::Flood(short(2)));
    host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), TTL, &frame));
    host.counts("wrong-upstream", 1);
    host.expect(vec![]);
}

pub(crate) async fn a_flood_that_was_relayed_too_often_ends_at_our_own_ports(mut host: Host) {
    let frame = udp(9, BROADCAST);
    host.op(Op::SetTree { origin: short(2), parent: Some(address(2)), hops: vec![short(4)] });
    host.cache_peer(2, &frame, Action::Flood(short(2)));
    host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), RELAY_TTL, &frame));
    host.expect((0..4).map(|port| host.at_container(port, &frame)).collect());
    host.counts("hop-limit", 1);
}
