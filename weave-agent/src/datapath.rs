//! The contract between the switch and whatever carries frames for it: a flow cache with ports, peers and trees.
//!
//! The switch says [`Op`]s; the datapath says [`Upcall`]s and, when asked, lists its flows. The datapath's tables are a
//! cache of the switch's decisions and never the truth. `tests/datapath` holds every datapath to what follows.
//!
//! **Frames in.** A frame comes from an attached port, or from a neighbour: as VXLAN (RFC 7348) on the tunnel's UDP port, or
//! through the sleeve's device. It is looked up under its [`FlowKey`]; a frame for another peer (the destination half of its
//! VNI is not us) with both MACs zero. The host's own stack hears nothing of a port. VXLAN counts as from a neighbour only
//! if its outer source is one ([`Op::SetSource`]), else it is a `stranger`'s; what came in clear and must be sealed is refused as
//! `unsealed` (or was, by the kernel's policy, before it came here); the source half of the VNI must be a peer that has a slot, and not us, or it is of an `unknown-peer`.
//!
//! **Hit.** A flow of the current epoch is obeyed and counts the frame: segments of a large one each, and its inner bytes.
//! (The openvswitch module counts a large one once, and cuts it into its segments when it comes up.)
//! **Miss.** The frame comes up whole as [`Upcall::Miss`] and goes nowhere. A token bucket per port, and two per neighbour (the
//! second for heartbeats), limit how often: `upcall-rate`. Every frame comes up, is carried on, or is counted under a
//! [`DropReason`]; what came faster than a datapath in user space takes it is its counter `overrun`.
//!
//! **To a port**: as it came, large segments whole and checksums as unfinished as they were; never to the port it came from
//! (`reflected`). **To a peer**: what its slot says at that moment, so that a changed slot moves traffic without a flow
//! being touched. VXLAN with the VNI (peer, origin), DF, the TTL 64 and checksums finished; UDP checksum zero, except on
//! datagrams that user space lets the kernel cut (Linux cuts no others). A frame that came from a neighbour never goes
//! back there (`reflected`); the next TTL is 8 less than it had, and at 8 it ends (`hop-limit`). A frame larger than the slot's
//! MTU comes up as [`Upcall::TooBig`] if it is IP and of a port, else it is counted (`too-big`).
//!
//! **Floods** go to all flood ports but the ingress and to the hops of the origin's tree. One from a neighbour counts only
//! if it comes from the tree's parent (`wrong-upstream`). More than `MAX_FANOUT` hops or ports are the switch's to copy.
//!
//! **Heartbeats** (both inner MACs zero, VNI for us): a request from the neighbour itself is answered at once, whether
//! anybody listens to upcalls or not; all else comes up as [`Upcall::Heartbeat`]. (The module answers in a form of its own,
//! which `switch::heartbeat` tells of; user space, as long as it is there, answers besides.)
//!
//! **After a restart** of the agent a datapath either still has all it was told (`Adopted`), or nothing.

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
    /// The neighbour is the peer itself, and takes segments longer than an IPv4 packet can be (BIG TCP).
    pub big: bool,
}

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelKind {
    /// VXLAN, by the kernel.
    Vxlan,
    /// The same, sealed by the kernel's IPsec: ESP (RFC 4303) in transport mode.
    Esp,
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
    /// The least protected tunnel that may bring its frames. If that is ESP, so may the sleeve, but VXLAN that comes in clear
    /// is dropped; if it is the sleeve, all VXLAN is.
    pub least: TunnelKind,
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
