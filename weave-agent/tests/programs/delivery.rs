//! Real unicast frames: where they come out, as what, and how often they are counted.

use std::net::Ipv4Addr;

use weave_agent::datapath::{Action, Op, PeerRoute, PortId, TunnelKind};
use weave_ebpf::flow::{EXECUTE_MARK, FlowKey, INGRESS_TUNNEL, vni};
use weave_ebpf::vxlan::RELAY_TTL;

use crate::capture::{Capture, Seen};
use crate::host::{
    BY_STACK, DIRECT, Host, OWN, address, arp, container, decapsulates_ipv6, ipv6, short, tunnelled, udp, with_tag, writes_headers,
};
use crate::outside::{Outside, Sender};
use crate::place::private_async;
use crate::wires::{LOCAL, TUNNEL_PORT};

#[test]
fn a_frame_between_two_ports_arrives_as_it_was() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        for frame in [udp(1, container(2)), arp(1, container(2)), with_tag(&udp(1, container(2)))] {
            host.cache(0, &frame, Action::Port(PortId(host.wires.ports[1])));
            outside.send_from(0, &frame);
            assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(1), bytes: frame }]);
            assert_eq!(host.matched(), 1);
        }
    });
}

/// IP with headers that the program writes; what `adjust_room` does not take, and what has no next hop, by the stack.
#[test]
fn a_frame_for_a_peer_leaves_with_the_same_headers_whoever_writes_them() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let mut by_stack = 0;
        for peer in [DIRECT[0], DIRECT[1], BY_STACK] {
            for frame in frames() {
                host.cache(0, &frame, Action::Peer(short(peer)));
                outside.send_from(0, &frame);
                let wire = outside.wire(usize::from(address(peer).octets()[1]));
                assert_eq!(outside.arrivals(1), [Seen { ifindex: wire, bytes: host.sent_to(peer, &frame) }]);
                by_stack += u64::from(!writes_headers() || peer == BY_STACK || !matches!(frame[12..14], [8, 0] | [0x86, 0xdd]));
                assert_eq!((host.count("via-stack"), host.matched()), (by_stack, 1));
            }
        }
    });
}

fn frames() -> [Vec<u8>; 5] {
    let (there, tagged) = (container(2), with_tag(&udp(1, container(2))));
    [udp(1, there), ipv6(1, there), arp(1, there), tagged, with_tag(&arp(1, there))]
}

/// `redirect_peer` puts the frame into the container's namespace without passing the port.
#[test]
fn a_frame_from_a_peer_goes_straight_into_the_container() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let (outside, capture) = (Outside::open(&host.wires), Capture::open());
        let frames = [udp(9, container(1)), ipv6(9, container(1))];
        let ipv6 = vm_tests::kernel::has_for("IPv6 from a peer straight into a container", "DECAP_L3_IPV6", (6, 3));
        for frame in frames.into_iter().take(if ipv6 { 2 } else { 1 }) {
            host.cache_tunnel(2, &frame, Action::Port(PortId(host.wires.ports[0])));
            outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
            assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(0), bytes: frame }]);
            assert_eq!(capture.sent(), []);
            assert_eq!((host.matched(), host.count("vxlan-in")), (1, 0));
        }
    });
}

/// ARP and tagged frames, and any frame for a port without `redirect_peer`, meet the vxlan device. So does IPv6 below Linux 6.3.
#[test]
fn a_frame_that_the_stack_decapsulates_is_delivered_and_counted_once() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        host.ebpf.attach_port(PortId(host.wires.ports[1]), false).unwrap();
        let (there, own) = (container(1), container(2));
        let mut frames = vec![(0, arp(9, there)), (0, with_tag(&udp(9, there))), (1, udp(9, own)), (1, arp(9, own))];
        if !decapsulates_ipv6() {
            frames.push((0, ipv6(9, there)));
        }
        for (number, (port, frame)) in frames.into_iter().enumerate() {
            host.op(Op::BumpEpoch);
            host.cache_tunnel(2, &frame, Action::Port(PortId(host.wires.ports[port])));
            outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
            assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(port), bytes: frame }]);
            assert_eq!((host.matched(), host.count("vxlan-in")), (1, number as u64 + 1));
        }
    });
}

/// From 2 for 3 and for 4, by us: by the program, and by the stack where no next hop is known.
#[test]
fn a_packet_in_transit_goes_on_once_and_is_counted_once() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        for (to, frame) in [(3, udp(9, container(1))), (3, arp(9, container(1))), (BY_STACK, udp(9, container(1)))] {
            let vni = vni(to.into(), 2);
            let key = FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src: address(2).octets(), src: [0; 6], dst: [0; 6] };
            host.op(Op::BumpEpoch);
            host.op(Op::Install(key, Action::Peer(short(to))));
            outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni, &frame));
            let mut expected = host.sent_to(to, &frame);
            expected[22] -= RELAY_TTL;
            expected[46..49].copy_from_slice(&vni.to_be_bytes()[1..]);
            let wire = outside.wire(usize::from(address(to).octets()[1]));
            assert_eq!(outside.arrivals(1), [Seen { ifindex: wire, bytes: expected }]);
            assert_eq!(host.matched(), 1);
        }
    });
}

/// What user space executes: a frame into the vxlan device, its VNI in the mark.
#[test]
fn a_marked_frame_leaves_for_the_peer_of_its_vni() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let device = Sender::open("vx");
        for (peer, frame) in [(2, udp(1, container(2))), (BY_STACK, arp(1, container(2)))] {
            device.mark(EXECUTE_MARK | vni(peer.into(), OWN.into()));
            device.send(&frame);
            let wire = outside.wire(usize::from(address(peer).octets()[1]));
            assert_eq!(outside.arrivals(1), [Seen { ifindex: wire, bytes: host.sent_to(peer, &frame) }]);
        }
        // No such peer, and no order at all.
        for mark in [EXECUTE_MARK | vni(77, OWN.into()), 0] {
            device.mark(mark);
            device.send(&udp(1, container(2)));
        }
        assert_eq!(outside.arrivals(0), []);
        assert_eq!(host.count("no-route"), 1);
        host.op(Op::SetPeer(short(2), None));
        device.mark(EXECUTE_MARK | vni(2, OWN.into()));
        device.send(&udp(1, container(2)));
        assert_eq!(host.count("no-route"), 2);
    });
}

/// One write of a slot, and the next packet goes elsewhere.
#[test]
fn a_changed_route_or_next_hop_holds_for_the_next_packet() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let frame = udp(1, container(2));
        host.cache(0, &frame, Action::Peer(short(2)));
        // Without its next hop: the stack finds the same way.
        host.ebpf.set_next_hop(address(2), None).unwrap();
        outside.send_from(0, &frame);
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.wire(0), bytes: host.sent_to(2, &frame) }]);
        assert_eq!(host.count("via-stack"), 1);
        // By way of 3.
        let route = PeerRoute {
            remote: address(3),
            local: Ipv4Addr::from(LOCAL[1]),
            port: TUNNEL_PORT,
            mtu: 8_950,
            tunnel: TunnelKind::Vxlan,
            big: false,
        };
        host.op(Op::SetPeer(short(2), Some(route)));
        outside.send_from(0, &frame);
        let mut expected = host.sent_to(3, &frame);
        expected[46..49].copy_from_slice(&vni(2, OWN.into()).to_be_bytes()[1..]);
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.wire(1), bytes: expected }]);
        assert_eq!((host.count("via-stack"), host.matched()), (if writes_headers() { 1 } else { 2 }, 2));
    });
}

/// VXLAN of someone who is no neighbour, to our address and with a VNI that would be right.
#[test]
fn a_stranger_gets_nothing_through() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let frame = udp(9, container(1));
        host.cache_tunnel(9, &frame, Action::Port(PortId(host.wires.ports[0])));
        outside.send_to_underlay(0, &tunnelled(&host.wires, 9, vni(OWN.into(), 2), &frame));
        outside.send_to_underlay(0, &tunnelled(&host.wires, 9, vni(OWN.into(), 9), &frame));
        assert_eq!(outside.arrivals(0), []);
        assert_eq!((host.count("stranger"), host.count("upcalls"), host.matched()), (2, 0, 0));
    });
}
