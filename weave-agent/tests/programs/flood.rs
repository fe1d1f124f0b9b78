//! Real floods: one copy for each port and neighbour, with the right headers, and never a second.

use weave_agent::datapath::{Action, Op};
use weave_ebpf::flow::vni;

use crate::capture::Seen;
use crate::host::{BROADCAST, BY_STACK, DIRECT, Host, OWN, address, arp, decapsulates_ipv6, ipv6, short, tunnelled, udp, with_tag};
use crate::outside::Outside;
use crate::place::private_async;

/// A container's flood by whichever way each neighbour is reached.
#[test]
fn a_container_s_flood_reaches_every_port_and_neighbour_once() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let (plain, arp) = (udp(1, BROADCAST), arp(1, BROADCAST));
        for frame in [ipv6(1, BROADCAST), with_tag(&plain), with_tag(&arp), plain, arp] {
            host.cache(0, &frame, Action::Flood(short(OWN)));
            outside.clear();
            outside.send_from(0, &frame);
            let mut expected = to_ports(&outside, &frame, 1..4);
            for peer in [DIRECT[0], DIRECT[1], BY_STACK] {
                let underlay = usize::from(address(peer).octets()[1]);
                expected.push(Seen { ifindex: outside.wire(underlay), bytes: host.sent_to(peer, &frame) });
            }
            expected.sort();
            assert_eq!(outside.arrivals(6), expected);
        }
        assert_eq!(host.count("flooded"), 5);
        assert_eq!(host.count("kernel"), 0);
    });
}

/// The same from a neighbour: on to the tree's hops, but not back, and to all ports.
#[test]
fn a_neighbour_s_flood_goes_to_all_ports_and_on_along_its_tree() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let (parent, origin) = (address(2), short(2));
        host.op(Op::SetTree { origin, parent: Some(parent), hops: vec![short(3), short(BY_STACK), short(2)] });
        for frame in [udp(9, BROADCAST), ipv6(9, BROADCAST), arp(9, BROADCAST), with_tag(&udp(9, BROADCAST))] {
            host.cache_tunnel(2, &frame, Action::Flood(origin));
            outside.clear();
            outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
            let mut expected = to_ports(&outside, &frame, 0..4);
            for peer in [3, BY_STACK] {
                expected.push(Seen { ifindex: outside.wire(usize::from(address(peer).octets()[1])), bytes: onward(&host, peer, &frame) });
            }
            expected.sort();
            assert_eq!(outside.arrivals(6), expected);
            // On the interface and on the vxlan device together.
            assert_eq!(host.matched(), 1);
        }
        // Two of the four are not IP, or tagged: the stack takes their headers off.
        assert_eq!(host.count("vxlan-in"), if decapsulates_ipv6() { 2 } else { 3 });
        assert_eq!(host.count("reflected"), 4);
    });
}

/// A copy that comes from another neighbour than the tree says is a second one.
#[test]
fn a_flood_from_the_wrong_neighbour_goes_nowhere() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let frame = udp(9, BROADCAST);
        host.op(Op::SetTree { origin: short(2), parent: Some(address(3)), hops: vec![short(BY_STACK)] });
        host.cache_tunnel(2, &frame, Action::Flood(short(2)));
        outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
        assert_eq!(outside.arrivals(0), []);
        assert_eq!(host.count("wrong-upstream"), 1);
    });
}

fn to_ports(outside: &Outside, frame: &[u8], ports: std::ops::Range<usize>) -> Vec<Seen> {
    ports.map(|port| Seen { ifindex: outside.container(port), bytes: frame.to_vec() }).collect()
}

/// A relayed copy: from peer 2 by us, one relay older.
fn onward(host: &Host, to: u16, frame: &[u8]) -> Vec<u8> {
    let mut packet = host.sent_to(to, frame);
    packet[22] -= weave_ebpf::vxlan::RELAY_TTL;
    packet[46..49].copy_from_slice(&vni(to.into(), 2).to_be_bytes()[1..]);
    packet
}
