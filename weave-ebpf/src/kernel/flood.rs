//! Floods: copies to all local ports and along the broadcast tree, in programs of their own. A unicast packet pays
//! nothing for them, and the verifier meets each loop once instead of at the end of every path through a program.
//!
//! ```text
//! from_underlay ──► flood_direct ──► flood_stack ──► flood_ports ──► flood_direct
//!                   headers on       headers off                     headers on again
//!                     from_port, from_vxlan ─┘            └─ from_port with direct hops only
//! ```

use aya_ebpf::bindings::TC_ACT_SHOT;
use weave_ebpf::fastpath::{TunnelKey, network_size, tunnel_vni};
use weave_ebpf::flow::{Ipv4, MAX_FANOUT, PeerSlot, slot};
use weave_ebpf::packet::{Packet, ethertype, is_ip};
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, Headers, OUTER, OUTER_SOURCE};

use crate::kernel::carry::{NO_UPSTREAM, drop};
use crate::kernel::maps::{CONFIG, FLOOD_PORTS, FLOODS, TREES, count, egress};
use crate::kernel::skb::Skb;
use crate::kernel::tunnel::{decapsulate, encapsulate, set_tunnel_key};

/// The programs, by their place in [`FLOODS`].
#[derive(Clone, Copy)]
enum Stage {
    /// To neighbours whose headers the program writes; outer headers are on.
    Direct = 0,
    /// To the others, through the vxlan device; outer headers are off.
    Stack = 1,
    /// To the local ports.
    Ports = 2,
}

/// Where the flood came in by, in [`Progress::flags`].
const FROM_PORT: u32 = 1;
const FROM_UNDERLAY: u32 = 2;
/// Direct hops have a stage of their own.
const DIRECT_APART: u32 = 4;
/// There are some.
const DIRECT_SEEN: u32 = 8;

/// What one program leaves for the next, in the packet's control block.
#[derive(Clone, Copy)]
struct Progress {
    origin: u32,
    flags: u32,
    /// The neighbour it came from gets no copy.
    upstream: Ipv4,
    /// Of the frame; see [`network_size`].
    size: u32,
    /// Of the copies. A TTL of zero: the flood goes no further than our own ports.
    fields: Fields,
}

impl Progress {
    #[inline(always)]
    fn save(&self, skb: &Skb) {
        skb.set_cb(0, self.origin | self.flags << 16);
        skb.set_cb(1, u32::from_ne_bytes(self.upstream));
        skb.set_cb(2, self.size);
        skb.set_cb(3, self.fields.ip_len as u32 | (self.fields.source_port as u32) << 16);
        skb.set_cb(4, self.fields.ttl as u32);
    }

    #[inline(always)]
    fn load(skb: &Skb) -> Self {
        let [first, upstream, size, lengths, ttl] = skb.raw().cb;
        Self {
            origin: first & 0xffff,
            flags: first >> 16,
            upstream: upstream.to_ne_bytes(),
            size,
            fields: Fields { ip_len: lengths as u16, source_port: (lengths >> 16) as u16, ttl: ttl as u8 },
        }
    }

    /// Begins a flood. Copies for a TTL of zero would have been made, but for the way it came.
    #[inline(always)]
    fn start(self, skb: &Skb, stage: Stage) -> i32 {
        count(Counter::Flooded.index());
        if self.fields.ttl == 0 && TREES.get(self.origin).is_some_and(|tree| tree.len != 0) {
            count(DropReason::HopLimit.index());
        }
        self.save(skb);
        go_on(skb, stage)
    }

    /// Calls `copy` with the slot of each hop that may have the frame, and the VNI of its copy.
    #[inline(always)]
    fn for_each_hop(&self, mut refuse: impl FnMut(DropReason), mut copy: impl FnMut(&PeerSlot, u32)) {
        let Some(tree) = TREES.get(self.origin) else {
            return;
        };
        if self.fields.ttl == 0 {
            return;
        }
        for i in 0..MAX_FANOUT {
            if i as u32 >= tree.len {
                break;
            }
            let to = tree.hops[i] as u32;
            match egress(self.size, to, self.upstream) {
                Ok(slot) => copy(slot, tunnel_vni(to, self.origin)),
                Err(reason) => refuse(reason),
            }
        }
    }
}

/// A container's flood.
#[inline(always)]
pub fn from_port(skb: &Skb, origin: u32) -> i32 {
    // Only these take headers; the vxlan device carries the rest, and those with a tag beside them.
    let ip = !skb.is_tagged() && matches!(ethertype(skb, 0), Some(kind) if is_ip(kind));
    let flags = if ip { FROM_PORT | DIRECT_APART } else { FROM_PORT };
    let fields = Fields::new(skb.len(), skb.hash());
    Progress { origin, flags, upstream: NO_UPSTREAM, size: network_size(skb, 0), fields }.start(skb, Stage::Stack)
}

/// A neighbour's flood.
#[inline(always)]
pub fn from_underlay(skb: &Skb, origin: u32) -> i32 {
    let Some(upstream) = skb.read::<4>(OUTER_SOURCE) else {
        return drop(DropReason::Malformed.index());
    };
    let fields = Fields::relay(skb).unwrap_or(Fields::NONE);
    let flags = FROM_UNDERLAY | DIRECT_APART;
    Progress { origin, flags, upstream, size: network_size(skb, OUTER), fields }.start(skb, Stage::Direct)
}

/// A flood that the stack decapsulated: it sends all of it.
#[inline(always)]
pub fn from_vxlan(skb: &Skb, tunnel: &TunnelKey, ttl: u8, origin: u32) -> i32 {
    let fields = Fields { ttl: vxlan::relay_ttl(ttl).unwrap_or(0), ..Fields::NONE };
    Progress { origin, flags: 0, upstream: tunnel.remote, size: network_size(skb, 0), fields }.start(skb, Stage::Stack)
}

#[inline(always)]
fn go_on(skb: &Skb, stage: Stage) -> i32 {
    // SAFETY: the map holds programs of this object only, which take the same context.
    unsafe { FLOODS.tail_call(&skb.ctx, stage as u32) };
    // Returns only if the loader left the place empty.
    drop(DropReason::Kernel.index())
}

/// Copies to the direct hops, writing each one's outer headers over those that are there.
#[inline(always)]
pub fn direct(skb: &Skb) -> i32 {
    let progress = Progress::load(skb);
    let uncounted = |_| {};
    progress.for_each_hop(uncounted, |slot, vni| {
        if slot.flags & slot::DIRECT == 0 {
            return;
        }
        match skb.ctx.store(0, Headers::new(slot, vni, progress.fields).outer(), 0) {
            Ok(()) => copy(skb, slot.ifindex),
            Err(_) => count(DropReason::Kernel.index()),
        }
    });
    if progress.flags & FROM_UNDERLAY == 0 {
        return TC_ACT_SHOT;
    }
    match decapsulate(skb) {
        true => go_on(skb, Stage::Stack),
        false => drop(DropReason::Kernel.index()),
    }
}

/// Copies through the vxlan device, and counts the hops that can have none.
#[inline(always)]
pub fn stack(skb: &Skb) -> i32 {
    let Some(config) = CONFIG.get(0) else {
        return TC_ACT_SHOT;
    };
    let mut progress = Progress::load(skb);
    let mut flags = progress.flags;
    progress.for_each_hop(
        |reason| count(reason.index()),
        |slot, vni| {
            if progress.flags & DIRECT_APART != 0 && slot.flags & slot::DIRECT != 0 {
                flags |= DIRECT_SEEN;
            } else if set_tunnel_key(skb, slot, vni, progress.fields.ttl) {
                copy(skb, config.vxlan_ifindex);
            } else {
                count(DropReason::Kernel.index());
            }
        },
    );
    progress.flags = flags;
    progress.save(skb);
    go_on(skb, Stage::Ports)
}

/// Copies to the local ports but the one it came from.
#[inline(always)]
pub fn ports(skb: &Skb) -> i32 {
    let ingress = skb.raw().ifindex;
    let Some(list) = FLOOD_PORTS.get(0) else {
        return TC_ACT_SHOT;
    };
    for i in 0..MAX_FANOUT {
        if i as u32 >= list.len {
            break;
        }
        if list.ports[i] != ingress {
            copy(skb, list.ports[i]);
        }
    }
    if Progress::load(skb).flags & (FROM_PORT | DIRECT_SEEN) != FROM_PORT | DIRECT_SEEN {
        return TC_ACT_SHOT;
    }
    match encapsulate(skb, &PeerSlot::default(), 0) {
        true => go_on(skb, Stage::Direct),
        false => drop(DropReason::Kernel.index()),
    }
}

#[inline(always)]
fn copy(skb: &Skb, ifindex: u32) {
    if skb.ctx.clone_redirect(ifindex, 0).is_err() {
        count(DropReason::Kernel.index());
    }
}
