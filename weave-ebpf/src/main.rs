//! The BPF object: one program per hook, each three lines around the shared fast path.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the programs are entry points, not an API; the classifier macro makes undocumented items"
)]
#![expect(internal_features, reason = "atomic_xadd: see kernel::maps::add")]
#![feature(asm_experimental_arch, core_intrinsics)]

mod kernel;

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use weave_ebpf::fastpath::{self, HEARTBEAT_KIND};
use weave_ebpf::packet::ETHERNET;
use weave_ebpf::sleeve::PREFIX;
use weave_ebpf::stranger;
use weave_ebpf::vxlan::OUTER;

use crate::kernel::carry;
use crate::kernel::frame::Frame;
use crate::kernel::maps::{CONFIG, Maps, count, is_ours};
use crate::kernel::skb::Skb;

/// TC ingress of a port's host side: frames from its container.
#[classifier]
pub fn from_port(ctx: TcContext) -> i32 {
    let skb = Skb { ctx };
    let Some(config) = CONFIG.get(0) else {
        return TC_ACT_OK;
    };
    skb.linearize(ETHERNET as u32);
    let ifindex = skb.raw().ifindex;
    let verdict = fastpath::from_port(&skb, &Maps, config, ifindex);
    carry::from_port(&skb, config, verdict)
}

/// TC ingress of an underlay interface.
#[classifier]
pub fn from_underlay(ctx: TcContext) -> i32 {
    let skb = Skb { ctx };
    let Some(config) = CONFIG.get(0) else {
        return TC_ACT_OK;
    };
    // A heartbeat's kind is behind the inner header.
    skb.linearize((OUTER + HEARTBEAT_KIND + 1) as u32);
    let verdict = fastpath::from_underlay(&skb, &Maps, config);
    carry::from_underlay(&skb, config, verdict)
}

/// TC ingress of the vxlan device: frames the stack decapsulated.
#[classifier]
pub fn from_vxlan(ctx: TcContext) -> i32 {
    let skb = Skb { ctx };
    let Some(config) = CONFIG.get(0) else {
        return TC_ACT_OK;
    };
    skb.linearize(ETHERNET as u32);
    carry::from_vxlan(&skb, config)
}

/// TC ingress of the sleeve's TAP device: frames that user space opened, each behind its prefix.
#[classifier]
pub fn from_sleeve(ctx: TcContext) -> i32 {
    let skb = Skb { ctx };
    let Some(config) = CONFIG.get(0) else {
        return TC_ACT_OK;
    };
    skb.linearize((PREFIX + ETHERNET) as u32);
    carry::from_sleeve(&skb, config)
}

/// TC egress of the vxlan device: frames that user space executes carry the VNI in their mark.
#[classifier]
pub fn to_vxlan(ctx: TcContext) -> i32 {
    carry::to_vxlan(&Skb { ctx })
}

/// XDP on an underlay interface: strangers' packets end before an skb is made of them. It reads headers only, so packets may be in
/// several pieces (Linux 5.18).
#[xdp(frags)]
pub fn strangers(ctx: XdpContext) -> u32 {
    refuse(&Frame { ctx })
}

/// The same for kernels that know of no pieces.
#[xdp]
pub fn strangers_whole(ctx: XdpContext) -> u32 {
    refuse(&Frame { ctx })
}

#[inline(always)]
fn refuse(frame: &Frame) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return XDP_PASS;
    };
    match stranger::refuse(frame, &Maps, config, is_ours) {
        Some(reason) => {
            count(reason.index());
            XDP_DROP
        }
        None => XDP_PASS,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
