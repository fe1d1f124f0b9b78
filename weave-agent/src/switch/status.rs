//! What the switch shows of itself; serialised as it is for the control API.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

use super::Switch;
use super::flows::Source;
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{PeerRoute, PortId, TunnelKind};
use crate::peer::{PeerName, ShortId};

/// Names and addresses are shown as people write them.
fn text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Where a MAC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    /// Behind a local port.
    Port(PortId),
    /// At another peer.
    Peer(#[serde(serialize_with = "text")] PeerName),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {}", port.0),
            Self::Peer(name) => write!(f, "peer {name}"),
        }
    }
}

/// Everything the switch shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Our own name.
    #[serde(serialize_with = "text")]
    pub name: PeerName,
    /// Our own short id.
    pub short: ShortId,
    /// Local ports, in order.
    pub ports: Vec<PortStatus>,
    /// Every peer that is known or probed, by name.
    pub peers: Vec<PeerStatus>,
    /// Known MACs, in order.
    pub fdb: Vec<FdbStatus>,
    /// Installed flows by what they do.
    pub flows: FlowCounts,
    /// What happened since the start.
    pub counters: Counters,
}

/// One local port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortStatus {
    /// Interface index of its host side.
    pub port: PortId,
    /// MACs behind it.
    pub macs: usize,
    /// Flows that begin at it.
    pub flows: usize,
}

/// One entry of the fdb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FdbStatus {
    /// The address.
    #[serde(serialize_with = "text")]
    pub mac: Mac,
    /// Where it is.
    pub at: Location,
    /// Milliseconds since it was last seen (flows are looked at every few seconds).
    pub idle_ms: u64,
    /// It moved too often and is held where it is.
    pub contested: bool,
}

/// How frames get to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// By the tunnel to the peer itself.
    Direct,
    /// Through this neighbour.
    Relay(#[serde(serialize_with = "text")] PeerName),
    /// By a way that no tunnel vouches for now: what was last known, or nothing.
    Stale,
}

/// State of the tunnel to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    /// No answer yet, or the path MTU is still being sought.
    Starting,
    /// Heartbeats of full size are answered.
    Up,
    /// Heartbeats stay unanswered.
    Down,
}

/// One other peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its name.
    #[serde(serialize_with = "text")]
    pub peer: PeerName,
    /// Its short id, if it has one.
    pub short: Option<ShortId>,
    /// How frames get to it.
    pub kind: Kind,
    /// Where its slot points.
    pub route: Option<PeerRoute>,
    /// The tunnel to it, if it is a neighbour.
    pub tunnel: Option<TunnelStatus>,
}

/// The tunnel to a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TunnelStatus {
    /// Whether frames get through.
    pub state: TunnelState,
    /// What carries frames.
    pub by: Option<TunnelKind>,
    /// Why that is not the kernel's tunnel, for people.
    pub why: Option<String>,
    /// Whether there is a link beside it.
    pub linked: bool,
    /// Largest inner packet proven to get through, bytes; 0 before any was.
    pub mtu: u16,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: Option<u64>,
    /// Milliseconds since a heartbeat was last answered.
    pub last_answer_ms: Option<u64>,
    /// Small heartbeats never answered.
    pub lost: u64,
}

/// Installed flows by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowCounts {
    /// To a local port.
    pub port: usize,
    /// To a peer, relayed ones too.
    pub peer: usize,
    /// Floods.
    pub flood: usize,
    /// Drops.
    pub drop: usize,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Misses the fast path asked about.
    pub misses: u64,
    /// Flows installed.
    pub installed: u64,
    /// Flows removed, for whatever reason.
    pub removed: u64,
    /// Flows removed because their port or neighbour had too many.
    pub flow_evictions: u64,
    /// Flows of an earlier agent taken over.
    pub adopted: u64,
    /// MACs learned that were not known.
    pub learned: u64,
    /// MACs that moved.
    pub moves: u64,
    /// MACs forgotten because their port or peer had too many.
    pub fdb_evictions: u64,
    /// Times a MAC moved too often and was held.
    pub contests: u64,
    /// MACs announced to the other peers.
    pub announced: u64,
    /// MACs not announced because there were too many.
    pub unannounced: u64,
    /// Frames larger than their path takes whose senders were told so.
    pub too_big: u64,
    /// Frames larger than their path takes that were cut.
    pub fragmented: u64,
    /// Frames dropped by a decision that is not cached.
    pub dropped: u64,
    /// Heartbeats that were no answer to ours, or nonsense.
    pub bad_heartbeats: u64,
}

impl Switch {
    /// For people and for the control API.
    pub fn status(&self, now: Time) -> Status {
        let port = |&port: &PortId| PortStatus {
            port,
            macs: self.fdb.count_at(Location::Port(port)),
            flows: self.flows.count_from(Source::Port(port)),
        };
        let known = self.view.iter().flat_map(|view| view.peers.keys());
        let peers: BTreeSet<PeerName> = known.chain(self.tunnels.keys()).copied().collect();
        Status {
            name: self.config.name,
            short: self.short,
            ports: self.ports.iter().map(port).collect(),
            peers: peers.into_iter().map(|peer| self.peer_status(now, peer)).collect(),
            fdb: self.fdb.status(now),
            flows: self.flows.counts(),
            counters: self.counters,
        }
    }

    fn peer_status(&self, now: Time, peer: PeerName) -> PeerStatus {
        let short = self.directory.short(peer);
        let way = self.view.as_ref().and_then(|view| self.way(view, peer));
        PeerStatus {
            peer,
            short,
            kind: match way {
                Some(way) if way == peer => Kind::Direct,
                Some(way) => Kind::Relay(way),
                None => Kind::Stale,
            },
            route: short.and_then(|short| self.told.slots.get(&short)).copied(),
            tunnel: self.tunnels.get(&peer).map(|tunnel| tunnel.status(now)),
        }
    }
}
