//! Headers on, headers off, and what the vxlan device is told of a frame.

use core::mem::offset_of;

use aya_ebpf::bindings::{
    BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1, bpf_tunnel_key__bindgen_ty_2,
    bpf_tunnel_key__bindgen_ty_3,
};
use aya_ebpf::helpers::generated::{bpf_skb_change_head, bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use weave_ebpf::fastpath::TunnelKey;
use weave_ebpf::flow::{Ipv4, PeerSlot};
use weave_ebpf::packet::{ETHERNET, Packet, ethertype};
use weave_ebpf::sleeve::{PREFIX, Prefix};
use weave_ebpf::vxlan::{Fields, Headers, OUTER};

use crate::kernel::skb::Skb;

const ENCAPSULATE: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | (ETHERNET as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;

const DECAPSULATE: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Puts the outer headers of a slot before the frame.
#[inline(always)]
pub fn encapsulate(skb: &Skb, slot: &PeerSlot, vni: u32) -> bool {
    let Some(inner) = skb.read::<ETHERNET>(0) else {
        return false;
    };
    // Made before the helper is called, so that the slot is read from the map and never copied.
    let headers = Headers::new(slot, vni, Fields::new(skb.len(), skb.hash())).before(inner);
    skb.ctx.adjust_room(OUTER as i32, BPF_ADJ_ROOM_MAC, ENCAPSULATE).is_ok() && skb.ctx.store(0, headers.bytes(), 0).is_ok()
}

/// Takes the outer headers off.
#[inline(always)]
pub fn decapsulate(skb: &Skb) -> bool {
    let Some(inner) = skb.read::<ETHERNET>(OUTER) else {
        return false;
    };
    let ipv6 = inner[12] == 0x86;
    let flags = if ipv6 { DECAPSULATE | BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64 } else { DECAPSULATE };
    skb.ctx.adjust_room(-(OUTER as i32), BPF_ADJ_ROOM_MAC, flags).is_ok() && skb.ctx.store(0, &inner, 0).is_ok()
}

/// `linux/if_packet.h`: for this host.
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// Puts the prefix before a frame that goes to the sleeve.
#[inline(always)]
pub fn add_prefix(skb: &Skb, prefix: &Prefix) -> bool {
    let kind = ethertype(skb, 0).unwrap_or(0);
    // A mark of ours has been obeyed.
    skb.ctx.set_mark(0);
    // SAFETY: the context.
    let grown = unsafe { bpf_skb_change_head(skb.pointer(), PREFIX as u32, 0) == 0 };
    grown && skb.ctx.store(0, &prefix.bytes(kind), 0).is_ok()
}

/// Takes it off a frame that came from there. The kernel took it for another host's: its MAC is not the TAP device's.
#[inline(always)]
pub fn remove_prefix(skb: &Skb) -> bool {
    let Some(inner) = skb.read::<ETHERNET>(PREFIX) else {
        return false;
    };
    let shrunk = skb.ctx.adjust_room(-(PREFIX as i32), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO as u64).is_ok();
    // SAFETY: the context.
    shrunk && skb.ctx.store(0, &inner, 0).is_ok() && unsafe { bpf_skb_change_type(skb.pointer(), PACKET_HOST) == 0 }
}

/// The kernel took a container's frame for another host's: its MAC is not that of the port's near end. `redirect_peer` does not
/// look again, and the stack at the other end drops what is another host's (seen on Linux 5.10).
#[inline(always)]
pub fn meant_for_who_gets_it(skb: &Skb) {
    if skb.raw().pkt_type == PACKET_OTHERHOST {
        // SAFETY: the context. It cannot fail between two kinds that a frame that came in may be of.
        unsafe { bpf_skb_change_type(skb.pointer(), PACKET_HOST) };
    }
}

const EMPTY_KEY: bpf_tunnel_key = bpf_tunnel_key {
    tunnel_id: 0,
    __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: [0; 4] },
    tunnel_tos: 0,
    tunnel_ttl: 0,
    __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
    tunnel_label: 0,
    __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: [0; 4] },
};

/// Whether a tunnel key has room for the local address (Linux 6.0, commit 26101f5ab6bd); the loader says. Without, the
/// kernel takes the address that its routes say.
#[unsafe(no_mangle)]
static LOCAL_IN_KEY: u32 = 1;

/// As much of a tunnel key as the kernel knows: of more it takes nothing.
#[inline(always)]
fn key_size() -> u32 {
    // SAFETY: reads a global; volatile, because the loader changes it.
    match unsafe { (&raw const LOCAL_IN_KEY).read_volatile() } {
        0 => offset_of!(bpf_tunnel_key, __bindgen_anon_3) as u32,
        _ => size_of::<bpf_tunnel_key>() as u32,
    }
}

/// What the vxlan device says of a frame it decapsulated, and the outer TTL.
#[inline(always)]
pub fn tunnel_key(skb: &Skb) -> Option<(TunnelKey, u8)> {
    let mut key = EMPTY_KEY;
    // SAFETY: the context and a local of no less than the size given.
    let error = unsafe { bpf_skb_get_tunnel_key(skb.pointer(), &mut key, key_size(), 0) };
    if error != 0 {
        return None;
    }
    // SAFETY: without BPF_F_TUNINFO_IPV6 the kernel filled the IPv4 arm, in host order.
    let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    Some((TunnelKey { vni: key.tunnel_id & 0xff_ffff, remote }, key.tunnel_ttl))
}

/// Tells the vxlan device where a frame goes.
#[inline(always)]
pub fn set_tunnel_key(skb: &Skb, slot: &PeerSlot, vni: u32, ttl: u8) -> bool {
    address(skb, slot.remote, slot.local, vni, ttl)
}

/// The same without a slot; the zero address as `local`: the one that the kernel's routes say.
#[inline(always)]
pub fn address(skb: &Skb, remote: Ipv4, local: Ipv4, vni: u32, ttl: u8) -> bool {
    // A mark of someone else's would be an order to `to_vxlan`.
    skb.ctx.set_mark(0);
    let mut key = EMPTY_KEY;
    key.tunnel_id = vni;
    key.tunnel_ttl = ttl;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(remote);
    key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(local);
    let flags = BPF_F_ZERO_CSUM_TX as u64 | BPF_F_DONT_FRAGMENT as u64;
    // SAFETY: the context and a local of no less than the size given.
    unsafe { bpf_skb_set_tunnel_key(skb.pointer(), &mut key, key_size(), flags) == 0 }
}
