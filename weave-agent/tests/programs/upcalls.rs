//! Real misses: what comes up, how often, and what is counted when it cannot.

use tokio::time::timeout;
use weave_agent::datapath::{Action, Frame, Upcall};
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, MAX_UPCALL, vni};

use crate::host::{Host, OWN, SOON, address, arp, container, short, tcp, tunnelled, udp, with_tag};
use crate::outside::Outside;
use crate::place::private_async;

/// Upcalls that a port may make at once (the loader's `UPCALL_BURST`).
const BURST: usize = 4_096;

#[test]
fn a_miss_comes_up_with_the_whole_frame() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let mut large = udp(1, container(2));
        large.resize(8_900, 5);
        for frame in [udp(1, container(2)), arp(1, container(2)), with_tag(&udp(1, container(2))), large.clone()] {
            outside.send_from(0, &frame);
            let key = host.port_key(0, &frame);
            let frame = Frame { bytes: frame.into(), gso_size: 0 };
            assert_eq!(upcalls(&mut host, 1).await, [Upcall::Miss { key, frame }]);
        }
        outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &large));
        let key = FlowKey { outer_src: address(2).octets(), vni: vni(OWN.into(), 2), ..host.port_key(0, &large) };
        let frame = Frame { bytes: large.into(), gso_size: 0 };
        assert_eq!(upcalls(&mut host, 1).await, [Upcall::Miss { key: FlowKey { ingress: INGRESS_TUNNEL, ..key }, frame }]);
    });
}

/// A sample has room for 65,400 bytes of packet; the largest IPv4 packet is longer.
#[test]
fn a_large_segment_comes_up_in_one_piece_and_the_largest_is_counted() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        for len in [20_000, MAX_UPCALL as usize] {
            let frame = tcp(1, container(2), len);
            outside.send_large_from(0, &frame, 1_400);
            let [Upcall::Miss { frame: seen, .. }] = &upcalls(&mut host, 1).await[..] else { panic!("no upcall of {len} bytes") };
            // But for the checksum, which the sender began.
            assert_eq!((seen.gso_size, seen.bytes.len(), &seen.bytes[54..]), (1_400, len, &frame[54..]));
        }
        outside.send_large_from(0, &tcp(1, container(2), MAX_UPCALL as usize + 1), 1_400);
        assert_eq!(upcalls(&mut host, usize::MAX).await, []);
        assert_eq!((host.count("upcalls"), host.count("upcall-lost")), (3, 1));
    });
}

/// What counts is the segment that is going to be made of it: 40 bytes of headers and the payload.
#[test]
fn a_large_segment_is_too_big_if_its_pieces_are() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let frame = tcp(1, container(2), 30_000);
        host.cache(0, &frame, Action::Peer(short(2)));
        outside.send_large_from(0, &frame, 8_950 - 40);
        assert_eq!((outside.arrivals(1).len(), host.count("upcalls")), (1, 0));
        outside.send_large_from(0, &frame, 8_950 - 39);
        assert_eq!((outside.arrivals(0).len(), host.count("upcalls")), (0, 1));
        let seen = upcalls(&mut host, 1).await;
        let key = host.port_key(0, &frame);
        assert!(matches!(&seen[..], [Upcall::TooBig { key: told, .. }] if *told == key), "{seen:?}");
        // Four segments each time.
        assert_eq!(host.matched(), 8);
    });
}

/// The bucket of a port is its own.
#[test]
fn a_port_that_floods_the_agent_takes_nothing_from_the_others() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let (flood, other) = (udp(1, container(9)), udp(2, container(9)));
        for _ in 0..4 {
            (0..BURST).for_each(|_| outside.send_from(0, &flood));
        }
        // Out of the way, so that the bucket and not the ring is what the other port meets.
        let mut seen = upcalls(&mut host, usize::MAX).await;
        (0..BURST).for_each(|_| outside.send_from(0, &flood));
        seen.extend(upcalls(&mut host, usize::MAX).await);
        (0..100).for_each(|_| outside.send_from(1, &other));
        let others = upcalls(&mut host, 100).await;
        let key = host.port_key(1, &other);
        assert!(others.iter().all(|upcall| matches!(upcall, Upcall::Miss { key: missed, .. } if *missed == key)));
        assert_eq!(others.len(), 100);
        // Every frame came up or was counted.
        let (refused, lost) = (host.count("upcall-rate"), host.count("upcall-lost"));
        assert!(refused > 0, "{lost} lost, {} came up", seen.len());
        assert_eq!(seen.len() as u64 + refused + lost, 5 * BURST as u64);
    });
}

/// Nobody reads: the ring takes what it has room for, and the rest is counted.
#[test]
fn an_upcall_that_finds_the_ring_full_is_counted() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let mut frame = udp(1, container(9));
        frame.resize(4_000, 0);
        (0..1_000).for_each(|_| outside.send_from(0, &frame));
        let lost = host.count("upcall-lost");
        let seen = upcalls(&mut host, usize::MAX).await;
        assert!(lost > 0 && !seen.is_empty(), "{lost} lost, {} came up", seen.len());
        assert_eq!(lost + seen.len() as u64, 1_000);
        assert_eq!(host.count("upcall-lost"), lost);
    });
}

/// Upcalls until there are as many as wanted, or no more come.
async fn upcalls(host: &mut Host, wanted: usize) -> Vec<Upcall> {
    let mut seen = Vec::new();
    while seen.len() < wanted {
        let patience = if wanted == usize::MAX { SOON / 20 } else { SOON };
        match timeout(patience, host.upcalls.recv()).await {
            Ok(Some(batch)) => seen.extend(batch),
            _ => break,
        }
    }
    seen
}
