//! Carrying verdicts out: redirects, headers on and off, copies, upcalls.

use aya_ebpf::bindings::{
    BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX,
    TC_ACT_OK, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_tunnel_key,
};
use aya_ebpf::helpers::generated::{bpf_get_hash_recalc, bpf_redirect, bpf_redirect_peer, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use weave_ebpf::fastpath::{
    HEARTBEAT_KIND, HEARTBEAT_REPLY, Tables, TunnelKey, Verdict, delivers_directly, egress, encapsulates, tunnel_vni,
};
use weave_ebpf::flow::{Config, EXECUTE_MARK, FlowKey, Ipv4, MAX_FANOUT, MAX_UPCALL, PeerSlot, UpcallHeader, short_ids, slot};
use weave_ebpf::packet::{ETHERNET, Packet, ethertype};
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, OUTER, OUTER_SOURCE, TTL};

use crate::kernel::maps::{FLOOD_PORTS, Maps, TREES, UPCALLS, count};
use crate::kernel::skb::Skb;

/// A frame that came from a local port has no neighbour to send it back to.
const NO_UPSTREAM: Ipv4 = [0; 4];

const ENCAPSULATE: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | (ETHERNET as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;

const DECAPSULATE: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// What `from_port` does with its verdict.
#[inline(always)]
pub fn from_port(skb: &Skb, config: &Config, ingress: u32, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop(reason) => drop(reason),
        Verdict::Port { ifindex, flags } => deliver(ifindex, flags),
        Verdict::Peer { to, origin } => match egress(&Maps, to, NO_UPSTREAM) {
            Ok(slot) => send(skb, config, &slot, tunnel_vni(to, origin)),
            Err(reason) => drop(reason.index()),
        },
        Verdict::Flood { origin } => flood_from_port(skb, config, ingress, origin),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, 0),
        Verdict::Reply { .. } => drop(DropReason::Malformed.index()),
    }
}

/// What `from_underlay` does with its verdict.
#[inline(always)]
pub fn from_underlay(skb: &Skb, config: &Config, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop(reason) => drop(reason),
        Verdict::Port { ifindex, flags } if delivers_directly(flags) => match decapsulate(skb) {
            true => deliver(ifindex, flags),
            false => drop(DropReason::Kernel.index()),
        },
        Verdict::Port { .. } => TC_ACT_OK,
        Verdict::Peer { to, origin } => relay(skb, to, origin),
        Verdict::Flood { origin } => flood_from_underlay(skb, config, origin),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, OUTER as u32),
        Verdict::Reply { to } => reply(skb, config, to),
    }
}

/// The vxlan device's frames: the tunnel key beside them, then as ever.
#[inline(always)]
pub fn from_vxlan(skb: &Skb, config: &Config) -> i32 {
    let mut key = EMPTY_KEY;
    // SAFETY: the context and a local of the size given.
    let error = unsafe { bpf_skb_get_tunnel_key(skb.pointer(), &mut key, size_of::<bpf_tunnel_key>() as u32, 0) };
    if error != 0 {
        return drop(DropReason::Malformed.index());
    }
    // SAFETY: without BPF_F_TUNINFO_IPV6 the kernel filled the IPv4 arm, in host order.
    let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    let tunnel = TunnelKey { vni: key.tunnel_id & 0xff_ffff, remote };
    let verdict = weave_ebpf::fastpath::from_vxlan(skb, &Maps, config, &tunnel);
    match verdict {
        Verdict::Drop(reason) => drop(reason),
        // Not redirect_peer: the stack took this frame for another host's (its MAC is not the vxlan device's).
        Verdict::Port { ifindex, .. } => redirect(ifindex),
        Verdict::Peer { to, origin } => relay_by_stack(skb, config, to, origin, remote, key.tunnel_ttl),
        Verdict::Flood { origin } => flood_from_vxlan(skb, config, origin, remote, key.tunnel_ttl),
        Verdict::Upcall { kind, key } => upcall(skb, kind, key, 0),
        Verdict::Pass | Verdict::Reply { .. } => TC_ACT_OK,
    }
}

/// A frame that user space executes: its mark names the VNI, the VNI the peer.
#[inline(always)]
pub fn to_vxlan(skb: &Skb) -> i32 {
    let mark = skb.raw().mark;
    if mark & EXECUTE_MARK == 0 {
        return TC_ACT_OK;
    }
    let vni = mark & 0xff_ffff;
    skb.ctx.set_mark(0);
    match egress(&Maps, short_ids(vni).0, NO_UPSTREAM) {
        Ok(slot) if set_tunnel_key(skb, &slot, vni, TTL) => TC_ACT_OK,
        Ok(_) => drop(DropReason::Kernel.index()),
        Err(reason) => drop(reason.index()),
    }
}

#[inline(always)]
fn drop(reason: u32) -> i32 {
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
    if too_big(skb, slot) {
        return drop(DropReason::TooBig.index());
    }
    if !takes_headers(skb, slot) {
        Maps.count(Counter::ViaStack);
        skb.ctx.set_mark(0);
        return match set_tunnel_key(skb, slot, vni, TTL) {
            true => redirect(config.vxlan_ifindex),
            false => drop(DropReason::Kernel.index()),
        };
    }
    match encapsulate(skb, slot, vni) {
        true => redirect(slot.ifindex),
        false => drop(DropReason::Kernel.index()),
    }
}

/// A GSO packet is cut to size later, segment by segment.
#[inline(always)]
fn too_big(skb: &Skb, slot: &PeerSlot) -> bool {
    let gso = skb.raw().gso_size;
    let size = if gso == 0 { skb.len() - ETHERNET as u32 } else { gso };
    size > slot.mtu
}

/// A VLAN tag that the kernel keeps beside the packet would end up on the outer frame.
#[inline(always)]
fn takes_headers(skb: &Skb, slot: &PeerSlot) -> bool {
    skb.raw().vlan_present == 0 && encapsulates(slot, ethertype(skb, 0))
}

#[inline(always)]
fn encapsulate(skb: &Skb, slot: &PeerSlot, vni: u32) -> bool {
    let Some(inner) = skb.read::<ETHERNET>(0) else {
        return false;
    };
    let len = skb.len();
    // SAFETY: the context.
    let hash = unsafe { bpf_get_hash_recalc(skb.pointer()) };
    if skb.ctx.adjust_room(OUTER as i32, BPF_ADJ_ROOM_MAC, ENCAPSULATE).is_err() {
        return false;
    }
    let outer = vxlan::headers(slot, vni, Fields::new(len, hash));
    skb.ctx.store(0, &outer, 0).is_ok() && skb.ctx.store(OUTER, &inner, 0).is_ok()
}

#[inline(always)]
fn decapsulate(skb: &Skb) -> bool {
    let Some(inner) = skb.read::<ETHERNET>(OUTER) else {
        return false;
    };
    let ipv6 = inner[12] == 0x86;
    let flags = if ipv6 { DECAPSULATE | BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64 } else { DECAPSULATE };
    skb.ctx.adjust_room(-(OUTER as i32), BPF_ADJ_ROOM_MAC, flags).is_ok() && skb.ctx.store(0, &inner, 0).is_ok()
}

/// A VXLAN packet for another peer, passed on without opening it.
#[inline(always)]
fn relay(skb: &Skb, to: u32, origin: u32) -> i32 {
    let Some(upstream) = skb.read::<4>(OUTER_SOURCE) else {
        return drop(DropReason::Malformed.index());
    };
    let slot = match egress(&Maps, to, upstream) {
        Ok(slot) => slot,
        Err(reason) => return drop(reason.index()),
    };
    // The stack hands it to the vxlan device, whose program sends it on.
    if slot.flags & slot::DIRECT == 0 {
        return TC_ACT_OK;
    }
    let Some(fields) = Fields::relay(skb) else {
        return drop(DropReason::HopLimit.index());
    };
    match skb.ctx.store(0, &vxlan::headers(&slot, tunnel_vni(to, origin), fields), 0) {
        Ok(()) => redirect(slot.ifindex),
        Err(_) => drop(DropReason::Kernel.index()),
    }
}

#[inline(always)]
fn relay_by_stack(skb: &Skb, config: &Config, to: u32, origin: u32, upstream: Ipv4, ttl: u8) -> i32 {
    let Some(ttl) = vxlan::relay_ttl(ttl) else {
        return drop(DropReason::HopLimit.index());
    };
    match egress(&Maps, to, upstream) {
        Ok(slot) if set_tunnel_key(skb, &slot, tunnel_vni(to, origin), ttl) => redirect(config.vxlan_ifindex),
        Ok(_) => drop(DropReason::Kernel.index()),
        Err(reason) => drop(reason.index()),
    }
}

/// A heartbeat request goes back as its reply, out of the interface it came in by.
#[inline(always)]
fn reply(skb: &Skb, config: &Config, to: u32) -> i32 {
    let Some(outer) = skb.outer() else {
        return drop(DropReason::Malformed.index());
    };
    let outer = vxlan::turn_round(&outer, tunnel_vni(to, config.short), config.port as u16);
    let stored = skb.ctx.store(0, &outer, 0).is_ok() && skb.ctx.store(OUTER + HEARTBEAT_KIND, &HEARTBEAT_REPLY, 0).is_ok();
    match stored {
        true => redirect(skb.raw().ifindex),
        false => drop(DropReason::Kernel.index()),
    }
}

#[inline(always)]
fn upcall(skb: &Skb, kind: u32, key: FlowKey, offset: u32) -> i32 {
    let raw = skb.raw();
    let len = skb.len();
    if len > MAX_UPCALL {
        return drop(DropReason::UpcallLost.index());
    }
    let vlan = if raw.vlan_present == 0 { 0 } else { (raw.vlan_proto as u16).swap_bytes() as u32 };
    let header = UpcallHeader { kind, key, len, offset, gso_size: raw.gso_size, vlan: vlan << 16 | raw.vlan_tci & 0xffff };
    UPCALLS.output(&skb.ctx, &header, len);
    TC_ACT_SHOT
}

const EMPTY_KEY: bpf_tunnel_key = bpf_tunnel_key {
    tunnel_id: 0,
    __bindgen_anon_1: aya_ebpf::bindings::bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [0; 4] },
    tunnel_tos: 0,
    tunnel_ttl: 0,
    __bindgen_anon_2: aya_ebpf::bindings::bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
    tunnel_label: 0,
    __bindgen_anon_3: aya_ebpf::bindings::bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [0; 4] },
};

/// Tells the vxlan device where a frame goes.
#[inline(always)]
fn set_tunnel_key(skb: &Skb, slot: &PeerSlot, vni: u32, ttl: u8) -> bool {
    let mut key = EMPTY_KEY;
    key.tunnel_id = vni;
    key.tunnel_ttl = ttl;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(slot.remote);
    key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(slot.local);
    let flags = BPF_F_ZERO_CSUM_TX as u64 | BPF_F_DONT_FRAGMENT as u64;
    // SAFETY: the context and a local of the size given.
    unsafe { bpf_skb_set_tunnel_key(skb.pointer(), &mut key, size_of::<bpf_tunnel_key>() as u32, flags) == 0 }
}

#[inline(always)]
fn flood_from_port(skb: &Skb, config: &Config, ingress: u32, origin: u32) -> i32 {
    Maps.count(Counter::Flooded);
    copy_to_ports(skb, ingress);
    skb.ctx.set_mark(0);
    let ip = raw_ip(skb);
    // The vxlan device first: it wants the frame without headers.
    copy_by_stack(skb, config, origin, NO_UPSTREAM, TTL, ip);
    if ip && has_direct(origin, NO_UPSTREAM) {
        copy_encapsulated(skb, origin);
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn flood_from_underlay(skb: &Skb, config: &Config, origin: u32) -> i32 {
    Maps.count(Counter::Flooded);
    let Some(upstream) = skb.read::<4>(OUTER_SOURCE) else {
        return drop(DropReason::Malformed.index());
    };
    let fields = Fields::relay(skb);
    if let Some(fields) = fields {
        copy_with_headers(skb, origin, upstream, fields);
    }
    if !decapsulate(skb) {
        return drop(DropReason::Kernel.index());
    }
    if let Some(fields) = fields {
        copy_by_stack(skb, config, origin, upstream, fields.ttl, true);
    }
    copy_to_ports(skb, 0);
    TC_ACT_SHOT
}

#[inline(always)]
fn flood_from_vxlan(skb: &Skb, config: &Config, origin: u32, upstream: Ipv4, ttl: u8) -> i32 {
    Maps.count(Counter::Flooded);
    if let Some(ttl) = vxlan::relay_ttl(ttl) {
        copy_by_stack(skb, config, origin, upstream, ttl, false);
    }
    copy_to_ports(skb, 0);
    TC_ACT_SHOT
}

/// Whether the frame, without outer headers, is one that `adjust_room` takes.
#[inline(always)]
fn raw_ip(skb: &Skb) -> bool {
    skb.raw().vlan_present == 0 && matches!(ethertype(skb, 0), Some(kind) if weave_ebpf::packet::is_ip(kind))
}

#[inline(always)]
fn copy_to_ports(skb: &Skb, ingress: u32) {
    let Some(list) = FLOOD_PORTS.get(0) else {
        return;
    };
    for i in 0..MAX_FANOUT {
        if i as u32 >= list.len {
            break;
        }
        let port = list.ports[i];
        if port != ingress {
            let _ = skb.ctx.clone_redirect(port, 0);
        }
    }
}

/// Calls `copy` with each usable hop of the origin's tree: its slot and the VNI of its copy.
#[inline(always)]
fn for_each_hop(origin: u32, upstream: Ipv4, mut copy: impl FnMut(&PeerSlot, u32)) {
    let Some(tree) = TREES.get(origin) else {
        return;
    };
    for i in 0..MAX_FANOUT {
        if i as u32 >= tree.len {
            break;
        }
        let to = tree.hops[i] as u32;
        match egress(&Maps, to, upstream) {
            Ok(slot) => copy(&slot, tunnel_vni(to, origin)),
            Err(reason) => count(reason.index()),
        }
    }
}

#[inline(always)]
fn has_direct(origin: u32, upstream: Ipv4) -> bool {
    let mut any = false;
    for_each_hop(origin, upstream, |slot, _| any |= slot.flags & slot::DIRECT != 0);
    any
}

/// Copies through the vxlan device to the hops that the program cannot write headers for.
#[inline(always)]
fn copy_by_stack(skb: &Skb, config: &Config, origin: u32, upstream: Ipv4, ttl: u8, direct_later: bool) {
    for_each_hop(origin, upstream, |slot, vni| {
        if (!direct_later || slot.flags & slot::DIRECT == 0) && set_tunnel_key(skb, slot, vni, ttl) {
            let _ = skb.ctx.clone_redirect(config.vxlan_ifindex, 0);
        }
    });
}

/// Puts outer headers on once and rewrites them for each direct hop.
#[inline(always)]
fn copy_encapsulated(skb: &Skb, origin: u32) {
    let len = skb.len();
    // SAFETY: the context.
    let hash = unsafe { bpf_get_hash_recalc(skb.pointer()) };
    if !encapsulate(skb, &PeerSlot::default(), 0) {
        return count(DropReason::Kernel.index());
    }
    copy_with_headers(skb, origin, NO_UPSTREAM, Fields::new(len, hash));
}

/// Copies to the direct hops, writing each one's outer headers over those that are there.
#[inline(always)]
fn copy_with_headers(skb: &Skb, origin: u32, upstream: Ipv4, fields: Fields) {
    for_each_hop(origin, upstream, |slot, vni| {
        if slot.flags & slot::DIRECT != 0 && skb.ctx.store(0, &vxlan::headers(slot, vni, fields), 0).is_ok() {
            let _ = skb.ctx.clone_redirect(slot.ifindex, 0);
        }
    });
}
