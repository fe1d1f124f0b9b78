//! Frame in, verdict out. Generic over the packet and the tables, so that the kernel, the simulator and a test run the
//! same code.

use crate::flow::{
    Bucket, Config, FlowKey, INGRESS_TUNNEL, Ipv4, Mac, PeerSlot, Source, action, feature, port, short_ids, slot, source, upcall, vni,
};
use crate::packet::{ETHERNET, Packet, ethertype, is_ip};
use crate::sleeve::{PREFIX, Prefix};
use crate::stats::{Counter, DropReason};
use crate::vxlan::{self, LONGEST_SAID, OUTER, Other, Outer};

/// One flow found in the table.
pub trait CachedFlow {
    /// The epoch it was decided in.
    fn epoch(&self) -> u32;
    /// One of [`action`].
    fn action(&self) -> u32;
    /// Interface index, short id or drop reason.
    fn target(&self) -> u32;
    /// [`port`] bits when the action is a port.
    fn flags(&self) -> u32;
    /// Counts a match.
    fn count(&self, packets: u32, bytes: u32);
}

/// What the fast path looks things up in: BPF maps in the kernel, plain tables elsewhere.
pub trait Tables {
    /// The flow with this key, whatever its epoch.
    fn flow(&self, key: &FlowKey) -> Option<impl CachedFlow>;
    /// How a peer is reached.
    fn peer(&self, short: u32) -> Option<PeerSlot>;
    /// The neighbour with this outer address.
    fn source(&self, address: Ipv4) -> Option<Source>;
    /// The outer source that floods of this origin must come from.
    fn parent(&self, origin: u32) -> Option<Ipv4>;
    /// Takes a token for an upcall; the bucket is a port's interface index, `NEIGHBOUR_BUCKET | short id` or
    /// `HEARTBEAT_BUCKET | short id`.
    fn admit(&self, bucket: u32, config: &Config) -> bool;
    /// Counts something that is not a drop.
    fn count(&self, counter: Counter);
    /// Counts what the stack will drop.
    fn refuse(&self, reason: DropReason);
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours, or better left to the stack.
    Pass,
    /// Drop and count under this index of the counter map ([`DropReason::index`]).
    Drop(u32),
    /// Deliver to a local port, with [`port`] bits.
    Port {
        /// Interface index.
        ifindex: u32,
        /// [`port`] bits.
        flags: u32,
    },
    /// Into the tunnel of peer `to`, with `origin` as source half of the VNI.
    Peer {
        /// Short id of the destination.
        to: u32,
        /// Short id of the peer whose container sent it.
        origin: u32,
    },
    /// To all local ports but the ingress and along the tree of `origin`.
    Flood {
        /// Short id of the peer whose container sent it.
        origin: u32,
    },
    /// To the switch.
    Upcall {
        /// [`upcall`].
        kind: u32,
        /// What missed.
        key: FlowKey,
    },
    /// A heartbeat request: turn it round.
    Reply {
        /// The requester's short id.
        to: u32,
    },
}

impl Verdict {
    #[inline(always)]
    const fn drop(reason: DropReason) -> Self {
        Self::Drop(reason.index())
    }
}

/// Where, in a heartbeat's inner frame, its kind stands: after the Ethernet header and a version byte.
pub const HEARTBEAT_KIND: usize = ETHERNET + 1;
/// A heartbeat that wants an answer.
pub const HEARTBEAT_REQUEST: u8 = 1;
/// The answer.
pub const HEARTBEAT_REPLY: u8 = 2;

pub(crate) const NO_MAC: Mac = [0; 6];
const PROTOCOL_TCP: u8 = 6;
const UDP_HEADER: u32 = 8;

/// What the tunnel header said of a frame that came out of the vxlan device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelKey {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Outer source.
    pub remote: Ipv4,
}

/// A frame from the container at port `ifindex`.
#[inline(always)]
pub fn from_port<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, ifindex: u32) -> Verdict {
    let Some([dst, src]) = macs(packet, 0) else {
        return Verdict::drop(DropReason::Malformed);
    };
    let key = FlowKey { ingress: ifindex, vni: 0, outer_src: [0; 4], src, dst };
    look_up(packet, tables, config, key, Arrival { bucket: ifindex, bytes: packet.len(), on_underlay: false })
}

/// A frame from a port that the path to its peer does not take ([`DropReason::TooBig`]): the switch tells its sender, or
/// cuts it.
#[inline(always)]
pub fn too_big<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, ifindex: u32) -> Verdict {
    let ip = matches!(ethertype(packet, 0), Some(kind) if is_ip(kind));
    match macs(packet, 0) {
        Some([dst, src]) if ip && !packet.is_tagged() && tables.admit(ifindex, config) => {
            tables.count(Counter::Upcalls);
            let key = FlowKey { ingress: ifindex, vni: 0, outer_src: [0; 4], src, dst };
            Verdict::Upcall { kind: upcall::TOO_BIG, key }
        }
        _ => Verdict::drop(DropReason::TooBig),
    }
}

/// A packet on an underlay interface; everything that is not plainly ours passes.
#[inline(always)]
pub fn from_underlay<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config) -> Verdict {
    let outer = match vxlan::parse(packet, config.port as u16) {
        Ok(outer) => outer,
        Err(Other::Elsewhere) => return Verdict::Pass,
        // It may be for somebody behind us, so it passes; if it is for us, nobody else counts it.
        Err(Other::Malformed) => {
            tables.refuse(DropReason::Malformed);
            return Verdict::Pass;
        }
    };
    let Some(source) = tables.source(outer.src) else {
        return Verdict::Pass;
    };
    // Not to the address this neighbour uses for us: perhaps we are only its router.
    if source.local != outer.dst {
        return Verdict::Pass;
    }
    if source.flags & (source::SEALED | source::ESP) != 0 {
        return Verdict::drop(DropReason::Unsealed);
    }
    let Some([dst, src]) = macs(packet, OUTER) else {
        return Verdict::Pass;
    };
    let (to, _) = short_ids(outer.vni);
    if to == config.short && src == NO_MAC && dst == NO_MAC {
        return heartbeat(packet, tables, config, &outer, &source);
    }
    let key = tunnel_key(outer.vni, outer.src, src, dst, config);
    let bytes = packet.len() - OUTER as u32;
    from_neighbour(packet, tables, config, key, Arrival { bucket: bucket_of(&source), bytes, on_underlay: true })
}

/// A frame that the stack took out of a VXLAN packet, on the vxlan device.
#[inline(always)]
pub fn from_vxlan<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, tunnel: &TunnelKey) -> Verdict {
    tables.count(Counter::VxlanIn);
    let Some(source) = tables.source(tunnel.remote) else {
        return Verdict::drop(DropReason::Stranger);
    };
    if source.flags & source::SEALED != 0 {
        return Verdict::drop(DropReason::Unsealed);
    }
    let Some([dst, src]) = macs(packet, 0) else {
        return Verdict::drop(DropReason::Malformed);
    };
    let (to, from) = short_ids(tunnel.vni);
    let key = tunnel_key(tunnel.vni, tunnel.remote, src, dst, config);
    if to == config.short && src == NO_MAC && dst == NO_MAC {
        // Under ESP all of them come here, and are answered here.
        let [kind] = packet.read::<1>(HEARTBEAT_KIND).unwrap_or([0]);
        // One with a tag is a reply of the openvswitch module's, whatever its kind says.
        let is_request = kind == HEARTBEAT_REQUEST && !packet.is_tagged();
        if source.flags & source::ESP != 0 && from == source.short && is_request {
            tables.count(Counter::Heartbeats);
            return Verdict::Reply { to: from };
        }
        return ask(tables, config, upcall::HEARTBEAT, key, heartbeat_bucket(&source));
    }
    from_neighbour(packet, tables, config, key, Arrival { bucket: bucket_of(&source), bytes: packet.len(), on_underlay: false })
}

/// A frame that user space opened, with its prefix still before it, on the sleeve's TAP device.
#[inline(always)]
pub fn from_sleeve<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, prefix: &Prefix) -> Verdict {
    tables.count(Counter::SleeveIn);
    let Some(source) = tables.source(prefix.neighbour) else {
        return Verdict::drop(DropReason::Stranger);
    };
    let Some([dst, src]) = macs(packet, PREFIX) else {
        return Verdict::drop(DropReason::Malformed);
    };
    let key = tunnel_key(prefix.vni, prefix.neighbour, src, dst, config);
    let bytes = packet.len() - PREFIX as u32;
    from_neighbour(packet, tables, config, key, Arrival { bucket: bucket_of(&source), bytes, on_underlay: false })
}

/// The slot of peer `to`, if a frame that came from `upstream` (zero for a local port) may go there.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, to: u32, upstream: Ipv4) -> Result<PeerSlot, DropReason> {
    let slot = tables.peer(to).ok_or(DropReason::NoRoute)?;
    may_go(&slot, upstream, 0).map(|()| slot)
}

/// As [`egress`], for a frame of this [`network_size`].
#[inline(always)]
pub fn egress_of<T: Tables>(size: u32, tables: &T, to: u32, upstream: Ipv4) -> Result<PeerSlot, DropReason> {
    let slot = tables.peer(to).ok_or(DropReason::NoRoute)?;
    may_go(&slot, upstream, size).map(|()| slot)
}

/// Whether a frame of this [`network_size`] that came from `upstream` may go where the slot says.
#[inline(always)]
pub fn may_go(slot: &PeerSlot, upstream: Ipv4, size: u32) -> Result<(), DropReason> {
    if slot.flags & slot::VALID == 0 {
        return Err(DropReason::NoRoute);
    }
    // Back to where it came from is a loop in the making.
    if u32::from_ne_bytes(slot.remote) == u32::from_ne_bytes(upstream) {
        return Err(DropReason::Reflected);
    }
    if size > slot.mtu { Err(DropReason::TooBig) } else { Ok(()) }
}

/// What the frame at `offset` of the packet, cut into segments if it is to be, needs of an MTU.
#[inline(always)]
pub fn network_size<P: Packet + ?Sized>(packet: &P, offset: usize) -> u32 {
    let tag = if packet.is_tagged() { 4 } else { 0 };
    let size = match packet.gso_size() {
        0 => packet.len().saturating_sub((offset + ETHERNET) as u32),
        payload => payload + segment_headers(packet, offset + ETHERNET),
    };
    size + tag
}

/// Bytes of network and transport header on each segment of a GSO packet.
#[inline(always)]
fn segment_headers<P: Packet + ?Sized>(packet: &P, network: usize) -> u32 {
    let (len, protocol) = match packet.read::<10>(network) {
        Some(ip) if ip[0] >> 4 == 6 => (40, ip[6]),
        Some(ip) => (4 * (ip[0] & 0xf) as usize, ip[9]),
        None => return 0,
    };
    // Two bytes: of a comparison for one the verifier learns nothing.
    let transport = match packet.read::<2>(network + len + 12) {
        Some([offset, _]) if protocol == PROTOCOL_TCP => 4 * (offset >> 4) as u32,
        _ => UDP_HEADER,
    };
    len as u32 + transport
}

/// Takes a token of a bucket that refills at a rate (per second) up to a burst. Concurrent callers may lose an update:
/// the limit is approximate, as a limit may be.
#[inline(always)]
pub fn take_token(bucket: &mut Bucket, now_ns: u64, (rate, burst): (u64, u64)) -> bool {
    let elapsed = now_ns.saturating_sub(bucket.refilled_ns);
    // Below a millisecond nothing is added, so that rounding does not eat the refill.
    if elapsed >= 1_000_000 {
        let milliseconds = elapsed / 1_000_000;
        let tokens = bucket.tokens + milliseconds * rate / 1000;
        bucket.tokens = if tokens > burst { burst } else { tokens };
        bucket.refilled_ns = now_ns;
    }
    if bucket.tokens == 0 {
        return false;
    }
    bucket.tokens -= 1;
    true
}

#[inline(always)]
pub(crate) fn macs<P: Packet + ?Sized>(packet: &P, offset: usize) -> Option<[Mac; 2]> {
    let header = packet.read::<ETHERNET>(offset)?;
    Some([
        [header[0], header[1], header[2], header[3], header[4], header[5]],
        [header[6], header[7], header[8], header[9], header[10], header[11]],
    ])
}

/// Transit frames are keyed by tunnel alone.
#[inline(always)]
fn tunnel_key(vni: u32, outer_src: Ipv4, src: Mac, dst: Mac, config: &Config) -> FlowKey {
    let (to, _) = short_ids(vni);
    if to == config.short {
        FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src, src, dst }
    } else {
        FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src, src: NO_MAC, dst: NO_MAC }
    }
}

#[inline(always)]
const fn bucket_of(source: &Source) -> u32 {
    crate::flow::NEIGHBOUR_BUCKET | source.short
}

#[inline(always)]
const fn heartbeat_bucket(source: &Source) -> u32 {
    crate::flow::HEARTBEAT_BUCKET | source.short
}

/// Whether the program can take the outer headers off itself.
#[inline(always)]
fn decapsulates<P: Packet + ?Sized>(packet: &P, config: &Config) -> bool {
    match ethertype(packet, OUTER) {
        Some(ethertype::IPV4) => true,
        Some(ethertype::IPV6) => config.features & feature::DECAP_IPV6 != 0,
        _ => false,
    }
}

#[inline(always)]
fn heartbeat<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, outer: &Outer, source: &Source) -> Verdict {
    let (_, from) = short_ids(outer.vni);
    // A definite value: the verifier refuses what the compiler makes of comparing an `Option`'s payload.
    let [kind] = packet.read::<1>(OUTER + HEARTBEAT_KIND).unwrap_or([0]);
    // Only the neighbour itself is answered: a heartbeat is never relayed.
    if from == source.short && kind == HEARTBEAT_REQUEST {
        tables.count(Counter::Heartbeats);
        return Verdict::Reply { to: from };
    }
    let key = FlowKey { ingress: INGRESS_TUNNEL, vni: outer.vni, outer_src: outer.src, src: NO_MAC, dst: NO_MAC };
    ask(tables, config, upcall::HEARTBEAT, key, heartbeat_bucket(source))
}

/// A peer nobody told us of, or ourselves, sends nothing here.
#[inline(always)]
pub(crate) fn is_anybodys<T: Tables>(tables: &T, config: &Config, vni: u32) -> bool {
    let (_, origin) = short_ids(vni);
    matches!(tables.peer(origin), Some(slot) if slot.flags & slot::VALID != 0 && origin != config.short)
}

#[inline(always)]
fn from_neighbour<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, key: FlowKey, arrival: Arrival) -> Verdict {
    if !is_anybodys(tables, config, key.vni) {
        return Verdict::drop(DropReason::UnknownPeer);
    }
    look_up(packet, tables, config, key, arrival)
}

/// A frame to look up.
#[derive(Clone, Copy)]
struct Arrival {
    /// Whose upcall it would be.
    bucket: u32,
    /// Bytes of the frame itself.
    bytes: u32,
    /// Whether the stack may still get it.
    on_underlay: bool,
}

#[inline(always)]
fn look_up<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, key: FlowKey, arrival: Arrival) -> Verdict {
    let Some(flow) = tables.flow(&key) else {
        return ask(tables, config, upcall::MISS, key, arrival.bucket);
    };
    if flow.epoch() != config.epoch {
        return ask(tables, config, upcall::MISS, key, arrival.bucket);
    }
    let (action, target, flags) = (flow.action(), flow.target(), flow.flags());
    // Not counted: it is met again, and counted, on the vxlan device.
    if arrival.on_underlay && needs_stack(packet, tables, config, action, target, flags) {
        return Verdict::Pass;
    }
    flow.count(packet.segments(), arrival.bytes);
    obey(tables, config, &key, action, target, flags)
}

/// Whether a tunnel packet must meet the stack: for a port that cannot be delivered to directly, for a peer whose next
/// hop is not known, and if its headers have to come off but the program cannot take them off.
#[inline(always)]
fn needs_stack<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, config: &Config, action: u32, target: u32, flags: u32) -> bool {
    match action {
        action::PORT => !delivers_directly(flags) || !decapsulates(packet, config),
        action::PEER => matches!(tables.peer(target), Some(slot) if slot.flags & (slot::VALID | slot::DIRECT) == slot::VALID),
        action::FLOOD => !decapsulates(packet, config),
        _ => false,
    }
}

#[inline(always)]
fn obey<T: Tables>(tables: &T, config: &Config, key: &FlowKey, action: u32, target: u32, flags: u32) -> Verdict {
    let origin = if key.ingress == INGRESS_TUNNEL { short_ids(key.vni).1 } else { config.short };
    match action {
        action::PORT if target == key.ingress => Verdict::drop(DropReason::Reflected),
        action::PORT => Verdict::Port { ifindex: target, flags },
        action::PEER => Verdict::Peer { to: target, origin },
        action::FLOOD if key.ingress != INGRESS_TUNNEL => Verdict::Flood { origin },
        // Reverse path: a second copy of a flood always comes from another neighbour.
        action::FLOOD if tables.parent(origin) == Some(key.outer_src) => Verdict::Flood { origin },
        action::FLOOD => Verdict::drop(DropReason::WrongUpstream),
        _ => Verdict::Drop(target),
    }
}

#[inline(always)]
fn ask<T: Tables>(tables: &T, config: &Config, kind: u32, key: FlowKey, bucket: u32) -> Verdict {
    if !tables.admit(bucket, config) {
        return Verdict::drop(DropReason::UpcallRate);
    }
    tables.count(if kind == upcall::HEARTBEAT { Counter::HeartbeatReplies } else { Counter::Upcalls });
    Verdict::Upcall { kind, key }
}

/// Whether a port may be delivered to straight from the underlay: its container is in another namespace. The rest
/// (the host's own port) must meet the stack, which undoes the tunnel's GSO marks.
#[inline(always)]
pub const fn delivers_directly(flags: u32) -> bool {
    flags & port::REDIRECT_PEER != 0
}

/// Whether the program may write outer headers onto a frame of `len` bytes: `adjust_room` takes IP only. What is longer than an IPv4
/// packet can be the vxlan device's stack cuts first, unless the other end takes it whole.
#[inline(always)]
pub fn encapsulates(slot: &PeerSlot, inner_ethertype: Option<u16>, len: u32) -> bool {
    let fits = len <= LONGEST_SAID || slot.flags & slot::BIG != 0;
    fits && slot.flags & slot::DIRECT != 0 && matches!(inner_ethertype, Some(kind) if is_ip(kind))
}

/// VNI of a frame of `origin` for `to`.
#[inline(always)]
pub const fn tunnel_vni(to: u32, origin: u32) -> u32 {
    vni(to, origin)
}
