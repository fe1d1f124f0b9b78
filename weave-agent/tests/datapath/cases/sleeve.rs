//! Peers that the sleeve carries frames for, by its TAP device.

use weave_agent::datapath::{Action, Egress, Frame, Op, PeerRoute, Source, TunnelKind};
use weave_ebpf::flow::vni;
use weave_ebpf::packet::ethertype;
use weave_ebpf::sleeve::{PREFIX, Prefix};
use weave_ebpf::vxlan::{RELAY_TTL, TTL};

use crate::frames::{BROADCAST, address, container, is_finished, kinds, outgoing, tcp, tunnelled, udp};
use crate::host::{Host, OWN, short};
use crate::tap::Tap;
use crate::wires::LOCAL;

/// The host, with peer 2 behind the sleeve, by way of itself.
fn sleeved(host: &mut Host) -> Tap {
    let tap = Tap::make();
    host.datapath.set_sleeve(tap.ifindex).unwrap();
    let route = PeerRoute { remote: address(2), local: LOCAL[0].into(), port: 6783, mtu: 1_400, tunnel: TunnelKind::Sleeve, big: false };
    host.op(Op::SetPeer(short(2), Some(route)));
    tap
}

/// Without tags: the programs' kernel keeps those beside the frame, and puts them back before the prefix.
fn untagged(src: u8, dst: [u8; 6]) -> Vec<Vec<u8>> {
    kinds(src, dst).into_iter().filter(|frame| frame[12..14] != [0x81, 0]).collect()
}

fn prefixed(ttl: u8, vni: u32, frame: &[u8]) -> Vec<u8> {
    let prefix = Prefix { ttl, neighbour: address(2).octets(), vni };
    [prefix.bytes(ethertype(frame, 0).unwrap()).as_slice(), frame].concat()
}

pub(crate) async fn a_frame_for_a_sleeved_peer_comes_out_of_the_device_with_its_prefix(mut host: Host) {
    let mut tap = sleeved(&mut host);
    for frame in untagged(1, container(2)) {
        host.cache(0, &frame, Action::Peer(short(2)));
        host.send_from(0, &frame);
        assert_eq!(tap.read().1, prefixed(TTL, vni(2, OWN.into()), &frame));
        host.op(Op::Execute(Frame { bytes: frame.clone().into(), gso_size: 0 }, vec![Egress::Peer { to: short(2), origin: short(OWN) }]));
        assert_eq!(tap.read().1, prefixed(TTL, vni(2, OWN.into()), &frame));
    }
    // In one piece, or in its segments.
    let large = tcp(1, container(2), 54 + 30 * 1_400);
    host.cache(0, &large, Action::Peer(short(2)));
    host.send_large_from(0, &large, 1_400);
    let mut payload = 0;
    while payload < 30 * 1_400 {
        let (virtio, packet) = tap.read();
        assert_eq!(packet[..PREFIX + 14], prefixed(TTL, vni(2, OWN.into()), &large)[..PREFIX + 14]);
        payload += packet.len() - PREFIX - 54;
        assert!(is_finished(&packet[PREFIX..]) || virtio[0] == 1);
    }
    assert_eq!(payload, 30 * 1_400);
    host.expect(vec![]);
}

pub(crate) async fn a_flood_has_a_copy_for_the_sleeve(mut host: Host) {
    let mut tap = sleeved(&mut host);
    for frame in untagged(1, BROADCAST) {
        host.cache(0, &frame, Action::Flood(short(OWN)));
        host.send_from(0, &frame);
        assert_eq!(tap.read().1, prefixed(TTL, vni(2, OWN.into()), &frame));
        let on_wire = |peer: u16| host.on_wire(peer, outgoing(host.wires.underlay_mac, peer, vni(peer.into(), OWN.into()), TTL, &frame));
        host.expect((1..4).map(|port| host.at_container(port, &frame)).chain([3, 4].map(on_wire)).collect());
    }
}

pub(crate) async fn what_the_sleeve_brings_goes_where_it_would_from_a_tunnel(mut host: Host) {
    let mut tap = sleeved(&mut host);
    let to_us = vni(OWN.into(), 2);
    host.op(Op::SetTree { origin: short(2), parent: Some(address(2)), hops: vec![short(3)] });
    for frame in kinds(9, container(1)) {
        host.cache_peer(2, &frame, Action::Port(host.port(0)));
        tap.write([0; 10], &prefixed(TTL, to_us, &frame));
        host.expect(vec![host.at_container(0, &frame)]);
        let in_transit = vni(3, 2);
        host.op(Op::Install(host.transit_key(2, in_transit), Action::Peer(short(3))));
        tap.write([0; 10], &prefixed(TTL, in_transit, &frame));
        host.expect(vec![host.on_wire(3, outgoing(host.wires.underlay_mac, 3, in_transit, TTL - RELAY_TTL, &frame))]);
    }
    for frame in kinds(9, BROADCAST) {
        host.cache_peer(2, &frame, Action::Flood(short(2)));
        tap.write([0; 10], &prefixed(TTL, to_us, &frame));
        let onward = host.on_wire(3, outgoing(host.wires.underlay_mac, 3, vni(3, 2), TTL - RELAY_TTL, &frame));
        host.expect((0..4).map(|port| host.at_container(port, &frame)).chain([onward]).collect());
    }
    let unknown = udp(5, container(1));
    tap.write([0; 10], &prefixed(TTL, to_us, &unknown));
    let (key, seen) = host.miss().await;
    assert_eq!((key, &seen.bytes[..]), (host.peer_key(2, &unknown), &unknown[..]));
}

/// A large segment is what a container had, and what it gets.
pub(crate) async fn a_large_segment_from_the_sleeve_arrives_in_one_piece(mut host: Host) {
    let mut tap = sleeved(&mut host);
    let large = tcp(9, container(1), 54 + 30 * 1_400);
    host.cache_peer(2, &large, Action::Port(host.port(0)));
    let words = [54 + PREFIX as u16, 1_400, 34 + PREFIX as u16, 16].map(u16::to_ne_bytes).concat();
    let virtio: Vec<u8> = [1, 1].into_iter().chain(words).collect();
    tap.write(virtio.try_into().unwrap(), &prefixed(TTL, vni(OWN.into(), 2), &large));
    let seen = host.arrivals(1);
    let [seen] = seen.as_slice() else { panic!("{} packets", seen.len()) };
    assert!(seen.bytes == large || is_finished(&seen.bytes));
    assert!(host.matched() > 0);
}

pub(crate) async fn vxlan_from_a_neighbour_whose_frames_must_be_sealed_is_refused(mut host: Host) {
    let frame = udp(9, container(1));
    host.cache_peer(2, &frame, Action::Port(host.port(0)));
    host.op(Op::SetSource {
        remote: address(2),
        neighbour: Some(Source { short: short(2), local: LOCAL[0].into(), least: TunnelKind::Sleeve }),
    });
    host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), TTL, &frame));
    host.counts("unsealed", 1);
    host.expect(vec![]);
}
