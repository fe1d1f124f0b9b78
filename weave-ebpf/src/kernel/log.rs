//! Log lines at upcalls and drops, in builds with the feature `log`; nothing in others.

use weave_ebpf::flow::UpcallHeader;

use crate::kernel::skb::Skb;

/// The drop reason is given as its place in `DropReason::ALL`.
#[inline(always)]
#[cfg(feature = "log")]
pub fn dropped(skb: &Skb, reason: u32) {
    aya_log_ebpf::debug!(&skb.ctx, "interface {}: {} bytes dropped, reason {}", skb.raw().ifindex, skb.ctx.len(), reason);
}

/// What the switch is asked.
#[inline(always)]
#[cfg(feature = "log")]
pub fn upcall(skb: &Skb, header: &UpcallHeader) {
    let key = &header.key;
    aya_log_ebpf::debug!(
        &skb.ctx,
        "interface {}: upcall {} of {} bytes, vni {:x}, {:mac} to {:mac}",
        skb.raw().ifindex,
        header.kind,
        header.len,
        key.vni,
        key.src,
        key.dst
    );
}

/// Nothing.
#[inline(always)]
#[cfg(not(feature = "log"))]
pub fn dropped(_: &Skb, _: u32) {}

/// Nothing.
#[inline(always)]
#[cfg(not(feature = "log"))]
pub fn upcall(_: &Skb, _: &UpcallHeader) {}
