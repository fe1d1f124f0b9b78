//! Floods: copies to all local ports and along the broadcast tree.
//!
//! The functions here that have C names are what the kernel calls global: the verifier looks at each of them by itself,
//! once, with any arguments (Linux 5.6). A loop over 128 neighbours costs it next to nothing so; inlined into the
//! programs it cost hundreds of thousands of instructions, because each path through one round met each of the next.
//! Their arguments are the context and up to four numbers.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::programs::TcContext;
use weave_ebpf::fastpath::{Tables, network_size, tunnel_vni};
use weave_ebpf::flow::{Ipv4, MAX_FANOUT, PeerSlot, execute_mark, slot};
use weave_ebpf::packet::{ETHERNET, Packet, ethertype, is_ip};
use weave_ebpf::sleeve::Prefix;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, Headers, LONGEST_SAID, OUTER, OUTER_SOURCE};

use crate::kernel::carry::{NO_UPSTREAM, drop};
use crate::kernel::maps::{CONFIG, FLOOD_PORTS, Maps, TREES, count, egress};
use crate::kernel::skb::Skb;
use crate::kernel::tunnel::{decapsulate, encapsulate, set_tunnel_key, tunnel_key};

/// A container's flood: to the ports and the vxlan device first, which want the frame without outer headers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_from_port(ctx: *mut __sk_buff, origin: u32) -> i32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    skb.linearize(ETHERNET as u32);
    Maps.count(Counter::Flooded);
    copy_to_ports(ctx);
    // Only these take headers; the vxlan device carries the rest, those with a tag beside them, and those that it must cut.
    let ip = !skb.is_tagged() && skb.len() <= LONGEST_SAID && matches!(ethertype(&skb, 0), Some(kind) if is_ip(kind));
    let fields = Fields::new(skb.len(), skb.hash());
    let hops = Hops { origin, upstream: NO_UPSTREAM, size: network_size(&skb, 0), fields };
    if hops.copy_by_stack(ctx, ip) == 0 {
        return TC_ACT_SHOT;
    }
    if !encapsulate(&skb, &PeerSlot::default(), 0) {
        return drop(&skb, DropReason::Kernel.index());
    }
    hops.copy_directly(ctx);
    TC_ACT_SHOT
}

/// A neighbour's flood: on to direct hops while the outer headers are there, then the rest.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_from_underlay(ctx: *mut __sk_buff, origin: u32) -> i32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    skb.linearize((OUTER + ETHERNET) as u32);
    Maps.count(Counter::Flooded);
    let Some(upstream) = skb.read::<4>(OUTER_SOURCE) else {
        return drop(&skb, DropReason::Malformed.index());
    };
    let hops = Hops { origin, upstream, size: network_size(&skb, OUTER), fields: Fields::relay(&skb).unwrap_or(Fields::NONE) };
    hops.copy_directly(ctx);
    if !decapsulate(&skb) {
        return drop(&skb, DropReason::Kernel.index());
    }
    hops.copy_by_stack(ctx, true);
    copy_to_ports(ctx);
    TC_ACT_SHOT
}

/// A flood that the stack decapsulated: it sends all of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_from_vxlan(ctx: *mut __sk_buff, origin: u32) -> i32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    skb.linearize(ETHERNET as u32);
    Maps.count(Counter::Flooded);
    let Some((tunnel, ttl)) = tunnel_key(&skb) else {
        return drop(&skb, DropReason::Malformed.index());
    };
    let fields = Fields { ttl: vxlan::relay_ttl(ttl).unwrap_or(0), ..Fields::NONE };
    let hops = Hops { origin, upstream: tunnel.remote, size: network_size(&skb, 0), fields };
    hops.copy_by_stack(ctx, false);
    copy_to_ports(ctx);
    TC_ACT_SHOT
}

/// A flood that the sleeve brought, without its prefix.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_from_sleeve(ctx: *mut __sk_buff, origin: u32, upstream: u32, ttl: u32) -> i32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    skb.linearize(ETHERNET as u32);
    Maps.count(Counter::Flooded);
    let fields = Fields { ttl: vxlan::relay_ttl(ttl as u8).unwrap_or(0), ..Fields::NONE };
    let hops = Hops { origin, upstream: upstream.to_ne_bytes(), size: network_size(&skb, 0), fields };
    hops.copy_by_stack(ctx, false);
    copy_to_ports(ctx);
    TC_ACT_SHOT
}

/// Goes on with a flood.
pub fn from_port(skb: &Skb, origin: u32) -> i32 {
    flood_from_port(skb.pointer(), origin)
}

/// Goes on with a flood.
pub fn from_underlay(skb: &Skb, origin: u32) -> i32 {
    flood_from_underlay(skb.pointer(), origin)
}

/// Goes on with a flood.
pub fn from_vxlan(skb: &Skb, origin: u32) -> i32 {
    flood_from_vxlan(skb.pointer(), origin)
}

/// Goes on with a flood.
pub fn from_sleeve(skb: &Skb, origin: u32, prefix: &Prefix) -> i32 {
    flood_from_sleeve(skb.pointer(), origin, u32::from_ne_bytes(prefix.neighbour), prefix.ttl as u32)
}

/// The neighbours that get copies and what these carry.
#[derive(Clone, Copy)]
struct Hops {
    origin: u32,
    /// The neighbour it came from gets none.
    upstream: Ipv4,
    /// Of the frame; see [`network_size`].
    size: u32,
    /// A TTL of zero: the flood goes no further than our own ports.
    fields: Fields,
}

impl Hops {
    /// Copies through the vxlan device to all hops, or (`apart`) to those that the program cannot write headers for, and
    /// counts the hops that can have none. Says how many were left out.
    #[inline(always)]
    fn copy_by_stack(&self, ctx: *mut __sk_buff, apart: bool) -> u32 {
        let apart = if apart { APART } else { 0 };
        self.for_each(true, |to| flood_by_stack(ctx, self.pair(to) | apart, self.upstream(), self.size, self.fields.ttl as u32))
    }

    /// Copies to the direct hops; outer headers are on, and each copy's are written over them.
    #[inline(always)]
    fn copy_directly(&self, ctx: *mut __sk_buff) {
        self.for_each(false, |to| flood_directly(ctx, self.pair(to), self.upstream(), self.size, self.fields.pack()));
    }

    /// Sums up what `copy` says.
    #[inline(always)]
    fn for_each(&self, counted: bool, copy: impl Fn(u16) -> u32) -> u32 {
        let mut sum = 0;
        let Some(tree) = TREES.get(self.origin) else {
            return sum;
        };
        if self.fields.ttl == 0 {
            if counted && tree.len != 0 {
                count(DropReason::HopLimit.index());
            }
            return sum;
        }
        for i in 0..MAX_FANOUT {
            if i as u32 >= tree.len {
                break;
            }
            sum += copy(tree.hops[i]);
        }
        sum
    }

    /// Destination and origin in one number.
    #[inline(always)]
    fn pair(&self, to: u16) -> u32 {
        (to as u32 & 0xfff) << 12 | self.origin & 0xfff
    }

    #[inline(always)]
    fn upstream(&self) -> u32 {
        u32::from_ne_bytes(self.upstream)
    }
}

/// In the pair given to [`flood_by_stack`]: direct hops get their copies at another time.
const APART: u32 = 1 << 31;

/// One copy through the vxlan device. 1 if that was not the way.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_by_stack(ctx: *mut __sk_buff, pair: u32, upstream: u32, size: u32, ttl: u32) -> u32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    let (to, origin) = weave_ebpf::flow::short_ids(pair);
    let slot = match egress(size, to, upstream.to_ne_bytes()) {
        Ok(slot) => slot,
        Err(reason) => {
            count(reason.index());
            return 0;
        }
    };
    if pair & APART != 0 && slot.flags & slot::DIRECT != 0 {
        return 1;
    }
    match CONFIG.get(0) {
        // The copy, and not this packet, gets the prefix: by the program on the vxlan device's way out.
        Some(config) if slot.flags & slot::SLEEVE != 0 => {
            skb.ctx.set_mark(execute_mark(tunnel_vni(to, origin), ttl as u8));
            copy(&skb, config.vxlan_ifindex);
            skb.ctx.set_mark(0);
        }
        Some(config) if set_tunnel_key(&skb, slot, tunnel_vni(to, origin), ttl as u8) => copy(&skb, config.vxlan_ifindex),
        _ => count(DropReason::Kernel.index()),
    }
    0
}

/// One copy with outer headers written here, if that is the way. The hops that can have none are counted elsewhere.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn flood_directly(ctx: *mut __sk_buff, pair: u32, upstream: u32, size: u32, fields: u64) -> u32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    let (to, origin) = weave_ebpf::flow::short_ids(pair);
    let Ok(slot) = egress(size, to, upstream.to_ne_bytes()) else {
        return 0;
    };
    if slot.flags & slot::DIRECT == 0 {
        return 0;
    }
    let headers = Headers::new(slot, tunnel_vni(to, origin), Fields::unpack(fields));
    match skb.ctx.store(0, headers.outer(), 0) {
        Ok(()) => copy(&skb, slot.ifindex),
        Err(_) => count(DropReason::Kernel.index()),
    }
    0
}

/// Copies to the local ports but the one it came from.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn copy_to_ports(ctx: *mut __sk_buff) -> i32 {
    let skb = Skb { ctx: TcContext::new(ctx) };
    let ingress = skb.raw().ifindex;
    let Some(list) = FLOOD_PORTS.get(0) else {
        return 0;
    };
    for i in 0..MAX_FANOUT {
        if i as u32 >= list.len {
            break;
        }
        if list.ports[i] != ingress {
            copy(&skb, list.ports[i]);
        }
    }
    0
}

#[inline(always)]
fn copy(skb: &Skb, ifindex: u32) {
    if skb.ctx.clone_redirect(ifindex, 0).is_err() {
        count(DropReason::Kernel.index());
    }
}
