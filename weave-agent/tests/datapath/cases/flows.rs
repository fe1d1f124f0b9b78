//! The flow cache.

use std::time::Instant;

use vm_tests::vm::console::LEFT_OUT;
use weave_agent::datapath::{Action, Op, Upcall};
use weave_agent::io::datapath::{UPCALL_BURST, UPCALL_RATE};
use weave_ebpf::flow::vni;
use weave_ebpf::stats::DropReason;

use crate::frames::{container, kinds, tcp, tunnelled, udp};
use crate::host::{Host, OWN};
use crate::place::is_emulated;

pub(crate) async fn a_miss_comes_up_whole_and_what_is_installed_for_it_hits_and_counts(mut host: Host) {
    for (number, frame) in kinds(1, container(2)).into_iter().enumerate() {
        host.op(Op::BumpEpoch);
        host.send_from(0, &frame);
        let (key, seen) = host.miss().await;
        assert_eq!((key, &seen.bytes[..], seen.gso_size), (host.port_key(0, &frame), &frame[..], 0));
        host.cache(0, &frame, Action::Port(host.port(1)));
        assert_eq!(host.flow(key).unwrap().idle, None);
        host.send_from(0, &frame);
        host.expect(vec![host.at_container(1, &frame)]);
        let flow = host.flow(key).unwrap();
        assert_eq!((flow.action, flow.packets), (Action::Port(host.port(1)), 1));
        // A tag may stand beside the frame.
        assert!(flow.idle.is_some() && [frame.len() as u64, frame.len() as u64 - 4].contains(&flow.bytes));
        host.counts("upcalls", number as u64 + 1);
    }
    let large = tcp(3, container(4), 54 + 20 * 1_400);
    host.send_large_from(0, &large, 1_400);
    if host.kind.asks_whole() {
        let (_, seen) = host.miss().await;
        assert_eq!((&seen.bytes[..], seen.gso_size), (&large[..], 1_400));
    } else {
        let seen = host.upcalls(20).await;
        let is_segment = |upcall: &Upcall| matches!(upcall, Upcall::Miss { frame, .. } if frame.bytes.len() == 54 + 1_400);
        assert!(seen.len() == 20 && seen.iter().all(is_segment), "{} upcalls", seen.len());
    }
    let frame = udp(9, container(1));
    host.arrive(0, &tunnelled(host.wires.underlay_mac, 2, vni(OWN.into(), 2), 64, &frame));
    let (key, seen) = host.miss().await;
    assert_eq!((key, &seen.bytes[..]), (host.peer_key(2, &frame), &frame[..]));
}

pub(crate) async fn after_an_epoch_bump_every_flow_is_a_miss_and_none_is_listed(mut host: Host) {
    let frame = udp(1, container(2));
    host.cache(0, &frame, Action::Port(host.port(1)));
    host.send_from(0, &frame);
    host.expect(vec![host.at_container(1, &frame)]);
    host.op(Op::BumpEpoch);
    assert_eq!(host.datapath.flows().unwrap(), []);
    host.send_from(0, &frame);
    host.miss().await;
    host.expect(vec![]);
}

pub(crate) async fn a_removed_flow_is_a_miss(mut host: Host) {
    let frame = udp(1, container(2));
    host.cache(0, &frame, Action::Port(host.port(1)));
    let key = host.port_key(0, &frame);
    host.op(Op::Remove(key));
    // Again: it is no error.
    host.op(Op::Remove(key));
    host.send_from(0, &frame);
    assert_eq!(host.miss().await.0, key);
}

pub(crate) async fn what_a_flow_drops_is_counted_under_its_reason(mut host: Host) {
    for reason in [DropReason::Switch, DropReason::Contested, DropReason::Reserved] {
        let frame = udp(1, container(2));
        host.cache(0, &frame, Action::Drop(reason));
        host.send_from(0, &frame);
        host.counts(reason.name(), 1);
        assert_eq!(host.flow(host.port_key(0, &frame)).unwrap().packets, 1);
    }
    host.expect(vec![]);
}

pub(crate) async fn a_frame_for_the_port_it_came_from_is_reflected(mut host: Host) {
    let frame = udp(1, container(2));
    host.cache(0, &frame, Action::Port(host.port(0)));
    host.send_from(0, &frame);
    host.counts("reflected", 1);
    host.expect(vec![]);
}

/// And another port is heard all the same.
pub(crate) async fn a_port_that_asks_too_often_is_refused_and_no_frame_is_uncounted(mut host: Host) {
    let (frame, other) = (udp(1, container(9)), udp(2, container(9)));
    let sent = 4 * u64::from(UPCALL_BURST);
    #[expect(clippy::disallowed_methods, reason = "how fast this machine is, no virtual time tells")]
    let begun = Instant::now();
    (0..sent).for_each(|_| host.send_from(0, &frame));
    let seen = host.upcalls(usize::MAX).await.len() as u64;
    // What a port may ask meanwhile; an emulated processor that others want, too, neither sends nor looks any faster.
    let allowed = u64::from(UPCALL_BURST) + u64::from(UPCALL_RATE) * (begun.elapsed().as_secs() + 1);
    host.send_from(1, &other);
    assert_eq!(host.miss().await.0, host.port_key(1, &other));
    let (refused, lost, overrun) = (host.count("upcall-rate"), host.count("upcall-lost"), host.count("overrun"));
    if is_emulated() && allowed + lost >= sent {
        println!("{LEFT_OUT}that a port is refused: needs a processor that sends more than it may ask");
    } else {
        assert!(refused > 0, "{seen} came up, {lost} were lost, {overrun} were never seen");
    }
    assert_eq!(seen + refused + lost + overrun, sent);
}
