//! Carrying verdicts out: redirects, headers on and off, upcalls. Floods are in [`flood`].

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use weave_ebpf::fastpath::{
    HEARTBEAT_KIND, HEARTBEAT_REPLY, Tables, TunnelKey, Verdict, delivers_directly, encapsulates, network_size, tunnel_vni,
};
use weave_ebpf::flow::{Config, Ipv4, PeerSlot, executed, short_ids, slot};
use weave_ebpf::packet::{Packet, ethertype, is_ip};
use weave_ebpf::sleeve::{PREFIX, Prefix};
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, Headers, OUTER, OUTER_SOURCE, TTL};

use crate::kernel::flood;
use crate::kernel::log;
use crate::kernel::maps::{Maps, count, egress};
use crate::kernel::skb::Skb;
use crate::kernel::tunnel::{self, add_prefix, decapsulate, encapsulate, meant_for_who_gets_it, remove_prefix, set_tunnel_key, tunnel_key};
use crate::kernel::upcall::upcall;

/// A frame that came from a local port has no neighbour to send it back to.
pub const NO_UPSTREAM: Ipv4 = [0; 4];

/// What `from_port` does with its verdict.
#[inline(always)]
pub fn from_port(skb: &Skb, config: &Config, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Port { ifindex, flags } => {
            meant_for_who_gets_it(skb);
            deliver(ifindex, flags)
        }
        Verdict::Peer { to, origin } => match egress(network_size(skb, 0), to, NO_UPSTREAM) {
            Ok(slot) => send(skb, config, slot, tunnel_vni(to, origin)),
            Err(DropReason::TooBig) => too_big(skb, config),
            Err(reason) => drop(skb, reason.index()),
        },
        Verdict::Flood { origin } => flood::from_port(skb, origin),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, 0),
        Verdict::Reply { .. } => drop(skb, DropReason::Malformed.index()),
    }
}

#[inline(always)]
fn too_big(skb: &Skb, config: &Config) -> i32 {
    match weave_ebpf::fastpath::too_big(skb, &Maps, config, skb.raw().ifindex) {
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, 0),
        _ => drop(skb, DropReason::TooBig.index()),
    }
}

/// What `from_underlay` does with its verdict.
#[inline(always)]
pub fn from_underlay(skb: &Skb, config: &Config, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Port { ifindex, flags } => match decapsulate(skb) {
            true => deliver(ifindex, flags),
            false => drop(skb, DropReason::Kernel.index()),
        },
        Verdict::Peer { to, origin } => relay(skb, to, origin),
        Verdict::Flood { origin } => flood::from_underlay(skb, origin),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, OUTER as u32),
        Verdict::Reply { to } => reply(skb, config, to),
    }
}

/// The vxlan device's frames: the tunnel key beside them, then as ever.
#[inline(always)]
pub fn from_vxlan(skb: &Skb, config: &Config) -> i32 {
    let Some((tunnel, ttl)) = tunnel_key(skb) else {
        return drop(skb, DropReason::Malformed.index());
    };
    let verdict = weave_ebpf::fastpath::from_vxlan(skb, &Maps, config, &tunnel);
    match verdict {
        Verdict::Drop(reason) => drop(skb, reason),
        // Not redirect_peer: the stack took this frame for another host's (its MAC is not the vxlan device's).
        Verdict::Port { ifindex, .. } => redirect(ifindex),
        Verdict::Peer { to, origin } => relay_by_stack(skb, config, &tunnel, ttl, to, origin),
        Verdict::Flood { origin } => flood::from_vxlan(skb, origin),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, 0),
        Verdict::Reply { to } => reply_by_stack(skb, config, tunnel.remote, to),
        Verdict::Pass => TC_ACT_OK,
    }
}

/// What user space opened: its prefix off, then as a frame from the vxlan device.
#[inline(always)]
pub fn from_sleeve(skb: &Skb, config: &Config) -> i32 {
    let Some(prefix) = Prefix::parse(skb) else {
        return drop(skb, DropReason::Malformed.index());
    };
    let verdict = weave_ebpf::fastpath::from_sleeve(skb, &Maps, config, &prefix);
    match verdict {
        Verdict::Drop(reason) => return drop(skb, reason),
        Verdict::Upcall { kind, key } => return upcall(skb, kind, key, PREFIX as u32),
        Verdict::Pass | Verdict::Reply { .. } => return TC_ACT_OK,
        _ => {}
    }
    let ip = matches!(ethertype(skb, PREFIX), Some(kind) if is_ip(kind));
    if !remove_prefix(skb) {
        return drop(skb, DropReason::Kernel.index());
    }
    let tunnel = TunnelKey { vni: prefix.vni, remote: prefix.neighbour };
    match verdict {
        // Through the port's own interface the kernel sees anew what kind of frame it is.
        Verdict::Port { ifindex, flags } => deliver(ifindex, if ip { flags } else { 0 }),
        Verdict::Peer { to, origin } => relay_by_stack(skb, config, &tunnel, prefix.ttl, to, origin),
        Verdict::Flood { origin } => flood::from_sleeve(skb, origin, &prefix),
        _ => TC_ACT_SHOT,
    }
}

/// A frame that user space executes, or a flood's copy for the sleeve: its mark names the VNI, the VNI the peer.
#[inline(always)]
pub fn to_vxlan(skb: &Skb) -> i32 {
    let Some((vni, ttl)) = executed(skb.raw().mark) else {
        return TC_ACT_OK;
    };
    match egress(0, short_ids(vni).0, NO_UPSTREAM) {
        Ok(slot) if slot.flags & slot::SLEEVE != 0 => into_sleeve(skb, slot, vni, ttl),
        Ok(slot) if set_tunnel_key(skb, slot, vni, ttl) => TC_ACT_OK,
        Ok(_) => drop(skb, DropReason::Kernel.index()),
        Err(reason) => drop(skb, reason.index()),
    }
}

/// Drops the packet and counts it.
#[inline(always)]
pub fn drop(skb: &Skb, reason: u32) -> i32 {
    log::dropped(skb, reason);
    count(reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn redirect(ifindex: u32) -> i32 {
    // SAFETY: takes no pointers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

#[inline(always)]
fn deliver(ifindex: u32, flags: u32) -> i32 {
    if delivers_directly(flags) {
        // SAFETY: takes no pointers.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    } else {
        redirect(ifindex)
    }
}

/// Into a peer's tunnel: headers written here where possible, else by the vxlan device.
#[inline(always)]
fn send(skb: &Skb, config: &Config, slot: &PeerSlot, vni: u32) -> i32 {
    if slot.flags & slot::SLEEVE != 0 {
        return into_sleeve(skb, slot, vni, TTL);
    }
    // A VLAN tag that the kernel keeps beside the packet would end up on the outer frame.
    if skb.is_tagged() || !encapsulates(slot, ethertype(skb, 0), skb.len()) {
        Maps.count(Counter::ViaStack);
        return through_device(skb, config, slot, vni, TTL);
    }
    match encapsulate(skb, slot, vni) {
        true => redirect(slot.ifindex),
        false => drop(skb, DropReason::Kernel.index()),
    }
}

/// To user space, which carries it.
#[inline(always)]
fn into_sleeve(skb: &Skb, slot: &PeerSlot, vni: u32, ttl: u8) -> i32 {
    // A tag that the kernel keeps beside the packet would be put into the prefix: better none than a broken frame.
    if skb.is_tagged() {
        return drop(skb, DropReason::Kernel.index());
    }
    Maps.count(Counter::SleeveOut);
    match add_prefix(skb, &Prefix { ttl, neighbour: slot.remote, vni }) {
        true => redirect(slot.ifindex),
        false => drop(skb, DropReason::Kernel.index()),
    }
}

#[inline(always)]
fn through_device(skb: &Skb, config: &Config, slot: &PeerSlot, vni: u32, ttl: u8) -> i32 {
    match set_tunnel_key(skb, slot, vni, ttl) {
        true => redirect(config.vxlan_ifindex),
        false => drop(skb, DropReason::Kernel.index()),
    }
}

/// A VXLAN packet for another peer, passed on without opening it.
#[inline(always)]
fn relay(skb: &Skb, to: u32, origin: u32) -> i32 {
    let Some(upstream) = skb.read::<4>(OUTER_SOURCE) else {
        return drop(skb, DropReason::Malformed.index());
    };
    let slot = match egress(network_size(skb, OUTER), to, upstream) {
        Ok(slot) => slot,
        Err(reason) => return drop(skb, reason.index()),
    };
    // Changed since the fast path looked: the stack hands it to the vxlan device, whose program sends it on.
    if slot.flags & slot::DIRECT == 0 {
        return TC_ACT_OK;
    }
    let Some(fields) = Fields::relay(skb) else {
        return drop(skb, DropReason::HopLimit.index());
    };
    match skb.ctx.store(0, Headers::new(slot, tunnel_vni(to, origin), fields).outer(), 0) {
        Ok(()) => redirect(slot.ifindex),
        Err(_) => drop(skb, DropReason::Kernel.index()),
    }
}

#[inline(always)]
fn relay_by_stack(skb: &Skb, config: &Config, tunnel: &TunnelKey, ttl: u8, to: u32, origin: u32) -> i32 {
    let slot = match egress(network_size(skb, 0), to, tunnel.remote) {
        Ok(slot) => slot,
        Err(reason) => return drop(skb, reason.index()),
    };
    match vxlan::relay_ttl(ttl) {
        Some(ttl) if slot.flags & slot::SLEEVE != 0 => into_sleeve(skb, slot, tunnel_vni(to, origin), ttl),
        Some(ttl) => through_device(skb, config, slot, tunnel_vni(to, origin), ttl),
        None => drop(skb, DropReason::HopLimit.index()),
    }
}

/// A heartbeat request that came under ESP goes back as its reply, under ESP: the kernel's policy is by address.
#[inline(always)]
fn reply_by_stack(skb: &Skb, config: &Config, remote: Ipv4, to: u32) -> i32 {
    // Not by the peer's slot, which may lead elsewhere.
    let stored = skb.ctx.store(HEARTBEAT_KIND, &HEARTBEAT_REPLY, 0).is_ok();
    match stored && tunnel::address(skb, remote, NO_UPSTREAM, tunnel_vni(to, config.short), TTL) {
        true => redirect(config.vxlan_ifindex),
        false => drop(skb, DropReason::Kernel.index()),
    }
}

/// A heartbeat request goes back as its reply, out of the interface it came in by.
#[inline(always)]
fn reply(skb: &Skb, config: &Config, to: u32) -> i32 {
    let Some(outer) = skb.outer() else {
        return drop(skb, DropReason::Malformed.index());
    };
    let outer = vxlan::turn_round(&outer, tunnel_vni(to, config.short), config.port as u16);
    let stored = skb.ctx.store(0, &outer, 0).is_ok() && skb.ctx.store(OUTER + HEARTBEAT_KIND, &HEARTBEAT_REPLY, 0).is_ok();
    match stored {
        true => redirect(skb.raw().ifindex),
        false => drop(skb, DropReason::Kernel.index()),
    }
}
