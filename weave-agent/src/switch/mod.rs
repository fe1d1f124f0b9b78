//! The virtual switch: upcall -> decision, fdb, ports, tunnels.

mod ageing;
mod announce;
mod choice;
mod config;
mod decide;
mod directory;
mod fdb;
mod flows;
mod heartbeat;
mod learn;
mod liveness;
mod machine;
mod neighbours;
mod path_mtu;
mod recency;
mod routes;
mod status;
mod tables;
mod too_big;
mod tunnel;
mod way;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod esp_tests;
#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use machine::Switch;
pub use status::{Counters, FdbStatus, FlowCounts, Kind, Location, PeerStatus, PortStatus, Status, TunnelState, TunnelStatus};

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::addr::Mac;
use crate::datapath::{FlowEntry, Op, PeerRoute, PortId, Source, Upcall};
use crate::mesh::{Neighbour, View};
use crate::peer::{PeerName, ShortId};
use crate::sleeve;

/// What happens to the switch.
#[derive(Clone, Debug)]
pub enum Input {
    /// The fast path asks.
    Upcall(Upcall),
    /// A port was attached (or found again after a restart).
    PortAdded(PortId),
    /// A port is gone.
    PortRemoved(PortId),
    /// What an earlier agent left in the datapath's tables, before any other input; not sent when they are new.
    Adopted(Adopted),
    /// The datapath's flows with their counters, every few seconds: for ageing and for what was adopted.
    Flows(Vec<FlowEntry>),
    /// The same in parts, so that nothing else waits for all of them; [`FlowsEnd`](Self::FlowsEnd) comes last.
    FlowsPart(Vec<FlowEntry>),
    /// The parts since the last time were all there is.
    FlowsEnd,
    /// Routes, peers or short ids changed.
    View(Arc<View>),
    /// What must be sealed is other than [`Config::sealed_but_for`] said: the passwords were changed.
    SealedButFor(Option<Vec<Ipv4Net>>),
    /// The kernel lets no VXLAN to or from this address through in clear from now on; or it may, from when this is handled.
    Protected {
        /// The neighbour's outer address.
        remote: Ipv4Addr,
        /// Whether it does.
        protected: bool,
    },
    /// A link is up: probe the tunnel beside it.
    LinkUp(Neighbour),
    /// A link is down; its tunnel lives as long as heartbeats are answered.
    LinkDown(PeerName),
    /// The largest inner packet that the underlay's route to a neighbour takes.
    RouteMtu {
        /// Its outer address.
        remote: Ipv4Addr,
        /// Bytes, without the inner Ethernet header.
        mtu: u16,
    },
    /// The sleeve heard of a neighbour.
    Sleeve(sleeve::Heard),
    /// Another peer learned a MAC on one of its ports ([`Output::Announce`] there).
    Announced {
        /// Who.
        peer: PeerName,
        /// Which address.
        macs: Vec<Mac>,
    },
}

/// A broadcast tree: origin, parent, hops.
pub type Tree = (ShortId, Option<Ipv4Addr>, Vec<ShortId>);

/// The tables that a datapath kept over a restart, except for the flows ([`Input::Flows`]).
///
/// The switch changes them to what it wants by differences, and takes nothing away until [`Config::grace`] is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The short id that the flows were made with; if it is not ours they are forgotten.
    pub short: Option<ShortId>,
    /// Valid peer slots.
    pub slots: Vec<(ShortId, PeerRoute)>,
    /// Neighbours by outer address.
    pub sources: Vec<(Ipv4Addr, Source)>,
    /// Broadcast trees: origin, parent, hops; empty ones may be left out.
    pub trees: Vec<Tree>,
    /// Ports that get copies of floods.
    pub flood_ports: Vec<PortId>,
}

/// What the switch wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An order to the datapath.
    Op(Op),
    /// An order to the sleeve.
    Sleeve(sleeve::Op),
    /// The tunnel to a neighbour began to work or stopped.
    Tunnel {
        /// Which neighbour.
        peer: PeerName,
        /// Whether frames get through.
        up: bool,
    },
    /// Tell all peers that these MACs are here now, so that one that moved is found at once.
    Announce(Vec<Mac>),
}
