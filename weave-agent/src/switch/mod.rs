//! The virtual switch: upcall -> decision, fdb, ports, tunnels.

use std::sync::Arc;

use crate::Time;
use crate::addr::Mac;
use crate::datapath::{FlowEntry, Op, PortId, Upcall};
use crate::mesh::{Neighbour, View};
use crate::peer::PeerName;

/// What happens to the switch.
#[derive(Clone, Debug)]
pub enum Input {
    /// The fast path asks.
    Upcall(Upcall),
    /// A port was attached (or found again after a restart).
    PortAdded(PortId),
    /// A port is gone.
    PortRemoved(PortId),
    /// The datapath's flows with their counters, every few seconds: for ageing and for what was adopted.
    Flows(Vec<FlowEntry>),
    /// Routes, peers or short ids changed.
    View(Arc<View>),
    /// A link is up: probe the tunnel beside it.
    LinkUp(Neighbour),
    /// A link is down; its tunnel lives as long as heartbeats are answered.
    LinkDown(PeerName),
    /// The largest inner packet that the underlay's route to a neighbour takes.
    RouteMtu {
        /// Its outer address.
        remote: std::net::Ipv4Addr,
        /// Bytes, without the inner Ethernet header.
        mtu: u16,
    },
    /// Another peer learned a MAC on one of its ports ([`Output::Announce`] there).
    Announced {
        /// Who.
        peer: PeerName,
        /// Which address.
        macs: Vec<Mac>,
    },
}

/// What the switch wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An order to the datapath.
    Op(Op),
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

/// Timer of the switch: see `handle_timeout`.
pub type Timeout = Option<Time>;
