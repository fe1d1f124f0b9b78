//! Peers, by their slots, and neighbours, by their outer addresses.

use weave_agent::datapath::{Action, Frame, Op, Source, TunnelKind, Upcall};
use weave_ebpf::flow::vni;
use weave_ebpf::vxlan::{OUTER, RELAY_TTL, TTL};

use crate::frames::{BROADCAST, address, container, is_finished, kinds, outgoing, tcp, tunnelled, udp, udp_of};
use crate::host::{Host, MTU, NEIGHBOURS, OWN, short};
use crate::wires::LOCAL;

pub(crate) async fn a_frame_for_a_peer_is_on_the_wire_as_vxlan(mut host: Host) {
    for peer in NEIGHBOURS {
        let mut frames = kinds(1, container(2));
        frames.push(udp_of(1, container(2), usize::from(MTU) + 14));
        for frame in frames {
            host.cache(0, &frame, Action::Peer(short(peer)));
            host.send_from(0, &frame);
            let packet = outgoing(host.wires.underlay_mac, peer, vni(peer.into(), OWN.into()), TTL, &frame);
            host.expect(vec![host.on_wire(peer, packet)]);
            assert_eq!(host.matched(), 1);
        }
    }
}

/// Who sent it should be told, or it be cut: of IP, that is.
pub(crate) async fn a_frame_too_big_for_the_way_comes_up_or_is_counted(mut host: Host) {
    let frame = udp_of(1, container(2), usize::from(MTU) + 15);
    host.cache(0, &frame, Action::Peer(short(2)));
    host.send_from(0, &frame);
    let (key, bytes) = (host.port_key(0, &frame), frame.clone().into());
    assert_eq!(host.upcalls(1).await, [Upcall::TooBig { key, frame: Frame { bytes, gso_size: 0 } }]);
    assert_eq!(host.count("too-big"), 0);
    let mut frame = frame;
    frame[12..14].copy_from_slice(&[0x88, 0xb6]);
    host.send_from(0, &frame);
    host.counts("too-big", 1);
    host.expect(vec![]);
    // What counts is the segment that is going to be made of it: 40 bytes of headers and the payload.
    let large = tcp(1, container(2), 30_000);
    host.send_large_from(0, &large, MTU - 39);
    if host.kind.asks_whole() {
        let seen = host.upcalls(1).await;
        assert!(matches!(seen.as_slice(), [Upcall::TooBig { frame, .. }] if frame.gso_size == MTU - 39), "{} upcalls", seen.len());
    } else {
        let seen = host.upcalls(4).await;
        assert!(matches!(&seen[0], Upcall::TooBig { frame, .. } if frame.bytes.len() == usize::from(MTU) + 15), "{} upcalls", seen.len());
    }
}

pub(crate) async fn a_frame_without_a_way_is_counted(mut host: Host) {
    let frame = udp(1, container(2));
    host.cache(0, &frame, Action::Peer(short(77)));
    host.send_from(0, &frame);
    host.counts("no-route", 1);
    host.cache(0, &frame, Action::Peer(short(2)));
    host.op(Op::SetPeer(short(2), None));
    host.send_from(0, &frame);
    host.counts("no-route", 2);
    host.expect(vec![]);
}

/// By 3 instead of 2: what is for 2 takes another wire, and 2's number along.
pub(crate) async fn a_changed_slot_moves_traffic_and_touches_no_flow(mut host: Host) {
    let frame = udp(1, container(2));
    host.cache(0, &frame, Action::Peer(short(2)));
    for by in [2, 3, 4, 2] {
        host.set_peer(2, by);
        host.send_from(0, &frame);
        let packet = outgoing(host.wires.underlay_mac, by, vni(2, OWN.into()), TTL, &frame);
        host.expect(vec![host.on_wire(by, packet)]);
    }
    assert_eq!((host.matched(), host.count("upcalls")), (4, 0));
}

/// By the datapath, or by the driver of a wire that can: that the stack is told so is seen as a frame left as it was.
pub(crate) async fn an_unfinished_checksum_is_finished_before_the_wire(mut host: Host) {
    let frame = tcp(1, container(2), 700);
    host.cache(0, &frame, Action::Peer(short(2)));
    host.send_large_from(0, &frame, 0);
    let seen = host.arrivals(1);
    let [seen] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(is_finished(&seen.bytes[OUTER..]) || seen.bytes[OUTER..] == frame);
    assert_eq!(seen.bytes[..OUTER + 50], outgoing(host.wires.underlay_mac, 2, vni(2, OWN.into()), TTL, &frame)[..OUTER + 50]);
}

pub(crate) async fn a_frame_from_a_peer_goes_into_its_port(mut host: Host) {
    for peer in NEIGHBOURS {
        let mut frames = kinds(9, container(1));
        frames.push(udp_of(9, container(1), 8_900));
        for frame in frames {
            host.op(Op::BumpEpoch);
            host.cache_peer(peer, &frame, Action::Port(host.port(0)));
            let underlay = usize::from(address(peer).octets()[1]);
            host.arrive(underlay, &tunnelled(host.wires.underlay_mac, peer, vni(OWN.into(), peer.into()), TTL, &frame));
            host.expect(vec![host.at_container(0, &frame)]);
            assert_eq!(host.matched(), 1);
        }
    }
    assert_eq!(host.count("upcalls"), 0);
}

pub(crate) async fn what_comes_from_strangers_or_for_nobody_goes_nowhere(mut host: Host) {
    let (frame, macs) = (udp(9, container(1)), host.wires.underlay_mac);
    host.cache_peer(2, &frame, Action::Port(host.port(0)));
    // No neighbour of ours, with a number that one has.
    host.arrive(0, &tunnelled(macs, 5, vni(OWN.into(), 2), TTL, &frame));
    host.counts("stranger", 1);
    // A neighbour, with the number of nobody, or with ours.
    for from in [99, u32::from(OWN)] {
        host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), from), TTL, &frame));
    }
    host.counts("unknown-peer", 2);
    host.op(Op::SetSource { remote: address(2), neighbour: None });
    host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 2), TTL, &frame));
    host.counts("stranger", 2);
    host.op(Op::SetSource {
        remote: address(2),
        neighbour: Some(Source { short: short(2), local: LOCAL[0].into(), least: TunnelKind::Vxlan }),
    });
    host.arrive(0, &tunnelled(macs, 2, vni(OWN.into(), 2), TTL, &frame));
    host.expect(vec![host.at_container(0, &frame)]);
}

pub(crate) async fn what_is_no_vxlan_is_counted(mut host: Host) {
    let good = tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), TTL, &udp(9, BROADCAST));
    for (number, (at, value)) in [(42, 0), (42, 0x0c), (49, 1)].into_iter().enumerate() {
        let mut bad = good.clone();
        bad[at] = value;
        host.arrive(0, &bad);
        host.counts("malformed", number as u64 + 1);
    }
    host.expect(vec![]);
    assert_eq!(host.count("upcalls"), 0);
}

/// From 2 for 3 and for 4, by us; and back to where it came from, which is nowhere.
pub(crate) async fn a_frame_in_transit_goes_on_with_a_smaller_hop_limit_until_it_is_used_up(mut host: Host) {
    let macs = host.wires.underlay_mac;
    for to in [3, 4] {
        let vni = vni(to.into(), 2);
        host.op(Op::Install(host.transit_key(2, vni), Action::Peer(short(to))));
        for frame in kinds(9, container(1)) {
            for ttl in [TTL, RELAY_TTL + 1] {
                host.arrive(0, &tunnelled(macs, 2, vni, ttl, &frame));
                host.expect(vec![host.on_wire(to, outgoing(macs, to, vni, ttl - RELAY_TTL, &frame))]);
            }
        }
    }
    assert_eq!((host.matched(), host.count("upcalls")), (20, 0));
    let frame = udp(9, container(1));
    host.arrive(0, &tunnelled(macs, 2, vni(3, 2), RELAY_TTL, &frame));
    host.counts("hop-limit", 1);
    host.set_peer(3, 2);
    host.arrive(0, &tunnelled(macs, 2, vni(3, 2), TTL, &frame));
    host.counts("reflected", 1);
    host.expect(vec![]);
}
