//! What the kernel's tables hold: flows, peer slots, sources, trees, ports, and the header of an upcall.
//!
//! Every structure is `#[repr(C)]` without padding (the zerocopy derives refuse it), because the verifier refuses to
//! read bytes nobody wrote and user space compares these as bytes.

use crate::vxlan::Template;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An Ethernet address, in wire order.
pub type Mac = [u8; 6];

/// An IPv4 address, in wire order.
pub type Ipv4 = [u8; 4];

/// `FlowKey::ingress` of a frame that came out of a tunnel, whichever interface carried it.
pub const INGRESS_TUNNEL: u32 = 0;

/// How many short ids there are: they are 12 bits of the VNI.
pub const SHORT_IDS: u32 = 1 << 12;

/// Most peers one flood is copied to, and most local ports, in the kernel. More than that is flooded by user space.
pub const MAX_FANOUT: usize = 128;

/// Most addresses of the host's own that the kernel's table has; strangers' packets to others go the long way.
pub const MAX_LOCALS: u32 = 1 << 10;

/// Exact match on where a frame came in and which two addresses it carries: OVS flow-cache semantics.
///
/// A frame in transit (a tunnel frame whose destination peer is not us) is keyed with both MACs zero, so that one flow
/// relays everything between two peers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey {
    /// Interface index of the port, or [`INGRESS_TUNNEL`].
    pub ingress: u32,
    /// VXLAN network identifier: destination short id << 12 | source short id. Zero on a local port.
    pub vni: u32,
    /// Outer IPv4 source, zero on a local port.
    pub outer_src: Ipv4,
    /// Inner source MAC.
    pub src: Mac,
    /// Inner destination MAC.
    pub dst: Mac,
}

/// What to do with a frame that matches, in `Flow::action`.
pub mod action {
    /// Drop it; `Flow::target` is the [`DropReason`](crate::stats::DropReason).
    pub const DROP: u32 = 0;
    /// Deliver to the port with interface index `Flow::target`.
    pub const PORT: u32 = 1;
    /// Send to the peer with short id `Flow::target`.
    pub const PEER: u32 = 2;
    /// Copy to all local ports and along the broadcast tree of the peer with short id `Flow::target`.
    pub const FLOOD: u32 = 3;
}

/// A cached decision of the switch and its counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// The epoch it was decided in; any other than [`Config::epoch`] makes it a miss.
    pub epoch: u32,
    /// One of [`action`].
    pub action: u32,
    /// Interface index, short id or reason, as the action says.
    pub target: u32,
    /// Reserved, zero.
    pub flags: u32,
    /// Frames matched (GSO segments counted one by one).
    pub packets: u64,
    /// Inner bytes matched.
    pub bytes: u64,
    /// `bpf_ktime_get_ns` of the last match, as of the timer tick before it; 0 for never.
    pub used_ns: u64,
}

/// [`PeerSlot::flags`].
pub mod slot {
    /// The peer can be reached: `remote` and `local` are set.
    pub const VALID: u32 = 1;
    /// The next hop's interface and MACs are known: the program may write the outer headers itself.
    /// Without it frames go through the collect-metadata vxlan device, and the kernel finds the way.
    pub const DIRECT: u32 = 2;
    /// User space carries the peer's frames: they go to the TAP device `ifindex` with a [`crate::sleeve::Prefix`].
    pub const SLEEVE: u32 = 4;
    /// What goes there the stack seals with ESP (RFC 4303): never with `DIRECT`, which would go past it.
    pub const ESP: u32 = 8;
    /// A segment longer than an IPv4 packet can be (BIG TCP) may go there with headers written by the program: who takes it off
    /// the tunnel does not read the lengths in them.
    pub const BIG: u32 = 16;
}

/// How one peer is reached. A changed route is one write of this; [`crate::vxlan::slot`] makes one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PeerSlot {
    /// [`slot`] bits.
    pub flags: u32,
    /// Interface the outer packet leaves by (with `DIRECT`).
    pub ifindex: u32,
    /// Largest inner frame without its Ethernet header, bytes.
    pub mtu: u32,
    /// Sum of the 16-bit words of the template's IPv4 header, for the checksum.
    pub sum: u32,
    /// Outer destination: the neighbour that takes frames for this peer (itself, or a relay).
    pub remote: Ipv4,
    /// Outer source.
    pub local: Ipv4,
    /// Outer headers but for lengths, checksum, TTL, source port and VNI, which are zero.
    pub template: Template,
}

/// A neighbour whose outer source address may send us tunnel frames; keyed by that address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Source {
    /// Our address that it sends to.
    pub local: Ipv4,
    /// Its short id.
    pub short: u32,
    /// [`source`] bits.
    pub flags: u32,
}

/// [`Source::flags`].
pub mod source {
    /// Only the sleeve may bring its frames.
    pub const SEALED: u32 = 1;
    /// VXLAN may, too, if the stack took it out of ESP: on the vxlan device, and not on an underlay interface, where it is in clear.
    pub const ESP: u32 = 2;
}

/// The broadcast tree of one origin peer, seen from here; indexed by the origin's short id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tree {
    /// The neighbour this origin's floods must come from; any other copy would be a second one. Zero for our own tree.
    pub parent: Ipv4,
    /// How many of `hops` are used.
    pub len: u32,
    /// Short ids of the neighbours that get a copy.
    pub hops: [u16; MAX_FANOUT],
}

/// The local ports a flood is copied to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FloodPorts {
    /// How many of `ports` are used.
    pub len: u32,
    /// Interface indexes.
    pub ports: [u32; MAX_FANOUT],
}

/// [`Port::flags`].
pub mod port {
    /// The other end lives in another namespace: `redirect_peer` may deliver straight into it.
    pub const REDIRECT_PEER: u32 = 1;
}

/// A local port; keyed by interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Port {
    /// [`port`] bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// A token bucket for upcalls; one per port (keyed by interface index) and two per neighbour ([`NEIGHBOUR_BUCKET`] and
/// [`HEARTBEAT_BUCKET`] | short id).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bucket {
    /// Time of the last refill, `bpf_ktime_get_ns`.
    pub refilled_ns: u64,
    /// Upcalls that may still be made.
    pub tokens: u64,
}

/// Set in the key of a neighbour's [`Bucket`].
pub const NEIGHBOUR_BUCKET: u32 = 1 << 31;

/// A neighbour asks for all its containers: it may as often as so many ports.
pub const NEIGHBOUR_SHARES: u32 = 4;

/// Set in the key of the [`Bucket`] for a neighbour's heartbeats: what its containers flood must not starve them.
pub const HEARTBEAT_BUCKET: u32 = 3 << 30;

/// [`Config::features`].
pub mod feature {
    /// `bpf_skb_adjust_room` can set the protocol to IPv6 on decapsulation (Linux 6.3).
    pub const DECAP_IPV6: u32 = 1;
}

/// What every program needs to know of its agent; one entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// Flows of any other epoch are misses.
    pub epoch: u32,
    /// Our own short id.
    pub short: u32,
    /// Interface index of the collect-metadata vxlan device.
    pub vxlan_ifindex: u32,
    /// UDP port of the tunnel, host order.
    pub port: u32,
    /// [`feature`] bits.
    pub features: u32,
    /// Upcalls per second and port.
    pub upcall_rate: u32,
    /// Upcalls a port may make at once.
    pub upcall_burst: u32,
    /// Zero.
    pub reserved: u32,
}

impl Config {
    /// Upcalls per second, and at once, of the bucket with this key.
    #[inline(always)]
    pub const fn upcall_limits(&self, bucket: u32) -> (u64, u64) {
        let shares = if bucket & HEARTBEAT_BUCKET == NEIGHBOUR_BUCKET { NEIGHBOUR_SHARES } else { 1 };
        (self.upcall_rate as u64 * shares as u64, self.upcall_burst as u64 * shares as u64)
    }
}

/// [`UpcallHeader::kind`].
pub mod upcall {
    /// No flow matched.
    pub const MISS: u32 = 1;
    /// A vxlan heartbeat (both inner MACs zero) that the kernel did not answer itself.
    pub const HEARTBEAT: u32 = 2;
    /// A port's IP packet is larger than the path to its peer takes.
    pub const TOO_BIG: u32 = 3;
}

/// Precedes the frame in a perf sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UpcallHeader {
    /// [`upcall`].
    pub kind: u32,
    /// The key that missed.
    pub key: FlowKey,
    /// Bytes of packet that follow (the sample itself is padded).
    pub len: u32,
    /// Where the inner frame begins in them: 0, or after the outer headers.
    pub offset: u32,
    /// TCP or UDP payload per segment if this is a GSO packet, else 0.
    pub gso_size: u32,
    /// VLAN tag that the kernel keeps beside the packet: TPID << 16 | TCI (IEEE 802.1Q 9.4), or 0.
    pub vlan: u32,
}

/// Largest packet an upcall carries: a perf sample's size is 16 bits and counts its own headers.
pub const MAX_UPCALL: u32 = 65_400;

/// Set in the mark of a frame that user space, or a program, sends into the vxlan device for a peer. The low 24 bits are
/// its VNI; the seven between, if not zero, the TTL of its outer headers.
pub const EXECUTE_MARK: u32 = 1 << 31;

/// The mark of a frame with this VNI and TTL; see [`EXECUTE_MARK`].
#[inline(always)]
pub const fn execute_mark(vni: u32, ttl: u8) -> u32 {
    EXECUTE_MARK | (ttl as u32 & 0x7f) << 24 | vni & 0xff_ffff
}

/// VNI and TTL of an [`execute_mark`]; `None` if the mark is somebody else's.
#[inline(always)]
pub const fn executed(mark: u32) -> Option<(u32, u8)> {
    if mark & EXECUTE_MARK == 0 {
        return None;
    }
    let ttl = (mark >> 24) as u8 & 0x7f;
    Some((mark & 0xff_ffff, if ttl == 0 { crate::vxlan::TTL } else { ttl }))
}

/// A VNI from the two short ids, as Weave Net has it.
#[inline(always)]
pub const fn vni(dst: u32, src: u32) -> u32 {
    (dst & 0xfff) << 12 | (src & 0xfff)
}

/// (destination, source) short ids of a VNI.
#[inline(always)]
pub const fn short_ids(vni: u32) -> (u32, u32) {
    ((vni >> 12) & 0xfff, vni & 0xfff)
}
