//! Asking the switch: header and whole packet over the perf ring.

use aya_ebpf::bindings::TC_ACT_SHOT;
use weave_ebpf::flow::{FlowKey, MAX_UPCALL, UpcallHeader};
use weave_ebpf::packet::Packet;
use weave_ebpf::stats::DropReason;

use crate::kernel::carry::drop;
use crate::kernel::log;
use crate::kernel::maps::send_upcall;
use crate::kernel::skb::Skb;

/// The switch sends the frame on, or not; here it ends. `offset`: where the inner frame begins.
#[inline(always)]
pub fn upcall(skb: &Skb, kind: u32, key: FlowKey, offset: u32) -> i32 {
    let len = skb.len();
    let header = UpcallHeader { kind, key, len, offset, gso_size: skb.gso_size(), vlan: skb.vlan() };
    log::upcall(skb, &header);
    if len <= MAX_UPCALL && send_upcall(skb, &header) {
        return TC_ACT_SHOT;
    }
    // Too long for a sample, the ring is full, or no agent reads it.
    drop(skb, DropReason::UpcallLost.index())
}
