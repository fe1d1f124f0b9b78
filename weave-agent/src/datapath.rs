//! The contract between the switch and whatever carries frames for it: a flow cache with ports, peers and trees.
//!
//! The switch says [`Op`]s; the datapath says [`Upcall`]s and, when asked, lists its flows. The kernel's tables are a
//! cache of the switch's decisions and never the truth.

use std::net::Ipv4Addr;

use bytes::Bytes;
use weave_ebpf::flow::FlowKey;
use weave_ebpf::stats::DropReason;

use crate::Time;
use crate::peer::ShortId;

/// A port of the virtual switch: the interface index of its host side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PortId(pub u32);

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop and count.
    Drop(DropReason),
    /// Deliver to a local port.
    Port(PortId),
    /// Send to a peer, through its slot.
    Peer(ShortId),
    /// Copy to every local port but the ingress, and along the origin's tree (our own short id for local frames).
    Flood(ShortId),
}

/// How a peer is reached: the neighbour that takes frames for it. The datapath finds the kernel's next hop by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeerRoute {
    /// Outer destination address.
    pub remote: Ipv4Addr,
    /// Outer source address.
    pub local: Ipv4Addr,
    /// UDP port of the neighbour's tunnel.
    pub port: u16,
    /// Largest inner packet (without Ethernet header) that the path takes; what is larger the sleeve cuts.
    pub mtu: u16,
    /// What carries the frames.
    pub tunnel: TunnelKind,
}

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelKind {
    /// VXLAN, by the kernel.
    Vxlan,
    /// Sealed datagrams, by user space.
    Sleeve,
}

/// A neighbour as a source of tunnel frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its short id.
    pub short: ShortId,
    /// The address of ours it sends to.
    pub local: Ipv4Addr,
    /// Only the sleeve may bring its frames: VXLAN from its address is dropped.
    pub sealed: bool,
}

/// Where one copy of an executed frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// To a local port.
    Port(PortId),
    /// Into the tunnel of `to`'s slot with VNI (`to`, `origin`).
    Peer {
        /// Whose slot; the destination half of the VNI.
        to: ShortId,
        /// The source half of the VNI.
        origin: ShortId,
    },
}

/// A frame with what is needed to send it again as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet header on. Checksums may be unfinished (CHECKSUM_PARTIAL); the datapath finishes them.
    pub bytes: Bytes,
    /// Payload per segment of a GSO frame, else 0.
    pub gso_size: u16,
}

/// An order to the datapath. All are idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Our own short id; the source half of the VNI of everything local.
    SetSelf(ShortId),
    /// Cache a decision.
    Install(FlowKey, Action),
    /// Forget one.
    Remove(FlowKey),
    /// Forget all, at once.
    BumpEpoch,
    /// Send a frame now, by each of the ways.
    Execute(Frame, Vec<Egress>),
    /// Point a peer's slot somewhere, or nowhere.
    SetPeer(ShortId, Option<PeerRoute>),
    /// Accept tunnel frames from this outer source (a neighbour), or no longer.
    SetSource {
        /// The neighbour's outer address.
        remote: Ipv4Addr,
        /// Who that is; `None` forgets it.
        neighbour: Option<Source>,
    },
    /// The broadcast tree of `origin` seen from here.
    SetTree {
        /// Whose floods.
        origin: ShortId,
        /// The outer source they must come from; `None` for our own tree or when there is none.
        parent: Option<Ipv4Addr>,
        /// The neighbours that get a copy.
        hops: Vec<ShortId>,
    },
    /// The local ports that floods are copied to.
    SetFloodPorts(Vec<PortId>),
    /// Send a vxlan heartbeat: a UDP datagram from `local` to `remote:port` with DF set.
    Heartbeat {
        /// From here.
        local: Ipv4Addr,
        /// To the neighbour's tunnel.
        remote: Ipv4Addr,
        /// Its UDP port.
        port: u16,
        /// VXLAN header, zero-MAC inner frame, padding: see [`crate::switch`].
        datagram: Bytes,
    },
}

/// What the datapath tells the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upcall {
    /// No flow for this frame.
    Miss {
        /// What was looked up.
        key: FlowKey,
        /// The inner frame, whole.
        frame: Frame,
    },
    /// A frame from a port is larger than the path to its peer takes: its sender should be told, or it be cut.
    TooBig {
        /// What was looked up.
        key: FlowKey,
        /// The frame, whole.
        frame: Frame,
    },
    /// A vxlan heartbeat for us from a known source.
    Heartbeat {
        /// VNI and outer source of the datagram.
        key: FlowKey,
        /// The inner frame, zero MACs first.
        frame: Bytes,
    },
}

/// A flow as the datapath has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// What it matches.
    pub key: FlowKey,
    /// What it does.
    pub action: Action,
    /// Frames matched.
    pub packets: u64,
    /// Inner bytes matched.
    pub bytes: u64,
    /// Time since the last match; `None` if never matched.
    pub idle: Option<Time>,
}
