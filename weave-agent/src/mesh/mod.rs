//! The control plane: peers, links, topology gossip, routes, short ids.

mod adjacency;
mod admission;
mod barred;
mod channels;
mod collision;
mod dialler;
mod expulsion;
mod forest;
mod frame;
#[cfg(test)]
mod harness;
mod link;
mod machine;
mod message;
mod noise;
mod password;
mod publisher;
mod ration;
mod receiver;
mod repair;
mod routes;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod secret_scenarios;
mod short_ids;
mod status;
mod topology;
mod view;

pub use machine::{Config, Mesh};
pub use password::Psk;
pub use status::{
    CollisionStatus, ConnectionState, ConnectionStatus, Counters, EdgeStatus, Encryption, PeerStatus, RouteStatus, Status, TargetStatus,
};
pub use view::{Neighbour, PeerView, View};

use std::net::SocketAddrV4;

use bytes::Bytes;

use crate::peer::PeerName;

/// A TCP connection, numbered by `io` when it is accepted or dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What happens to the mesh.
#[derive(Clone, Debug)]
pub enum Input {
    /// A TCP connection was accepted.
    Accepted {
        /// Its number.
        link: LinkId,
        /// Our end.
        local: SocketAddrV4,
        /// The other end.
        remote: SocketAddrV4,
    },
    /// A dial we asked for succeeded.
    Dialled {
        /// Its number.
        link: LinkId,
        /// Our end.
        local: SocketAddrV4,
        /// What we dialled.
        remote: SocketAddrV4,
    },
    /// A dial we asked for failed.
    DialFailed {
        /// What we dialled.
        remote: SocketAddrV4,
        /// Why, for status.
        error: String,
    },
    /// Bytes from the stream, split anyhow.
    Received {
        /// Which link.
        link: LinkId,
        /// The bytes.
        bytes: Bytes,
    },
    /// The stream ended (also as the answer to [`Output::Close`]).
    Closed {
        /// Which link.
        link: LinkId,
        /// Why, for status.
        error: String,
    },
    /// A local address went away: links bound to it are dead.
    AddressGone(std::net::Ipv4Addr),
    /// `weave-agent connect`.
    Connect {
        /// What to dial from now on.
        targets: Vec<Target>,
        /// Forget all earlier targets first.
        replace: bool,
    },
    /// `weave-agent forget`: existing links stay.
    Forget {
        /// As they were given to `connect`.
        targets: Vec<String>,
    },
    /// A target's name was resolved again, perhaps to other addresses.
    Resolved(Target),
    /// Other passwords from now on (see [`Config::passwords`]): links whose password is none of them are closed and dialled again.
    Passwords(Vec<Psk>),
    /// The tunnel to a neighbour began to work (or stopped): its edge is (not) part of the data plane.
    Tunnel {
        /// Which neighbour.
        peer: PeerName,
        /// Whether frames get through.
        up: bool,
    },
    /// Tell every peer something, along our broadcast tree.
    Broadcast {
        /// Gossip channel.
        channel: Channel,
        /// The message.
        payload: Bytes,
    },
    /// Tell one peer something, hop by hop; lost (and counted) when there is no way to it.
    Unicast {
        /// Gossip channel.
        channel: Channel,
        /// Who is to get it.
        to: PeerName,
        /// The message.
        payload: Bytes,
    },
    /// Tell a direct neighbour something over our link with it; lost (and counted) when there is none.
    Tell {
        /// Which neighbour.
        peer: PeerName,
        /// The message, 4 KiB at most.
        payload: Bytes,
    },
    /// Hand state (all or a delta) to a random subset of the neighbours, each of which passes on what it had not seen lately.
    Gossip {
        /// Gossip channel.
        channel: Channel,
        /// The message.
        payload: Bytes,
    },
}

/// A gossip channel; peers that do not know one pass its messages on all the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Channel(pub String);

/// What the user told us to connect to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Target {
    /// As given: `host`, `host:port`, address.
    pub name: String,
    /// What it resolves to now; empty if it does not.
    pub addresses: Vec<SocketAddrV4>,
}

/// What the mesh wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Open a TCP connection; always answered by `Dialled` or `DialFailed`, within some 10 s: the address is not dialled
    /// again before.
    Dial(SocketAddrV4),
    /// Send bytes on a link. The queue is the caller's: it must bound it and close a link that does not drain.
    Send {
        /// Which link.
        link: LinkId,
        /// The bytes.
        bytes: Bytes,
    },
    /// Close a link, after what was sent has gone out.
    Close {
        /// Which link.
        link: LinkId,
    },
    /// A link's handshake is done.
    LinkUp(Neighbour),
    /// The link to a neighbour is gone. Its tunnel may well go on (the data plane outlives the agent).
    LinkDown {
        /// Which neighbour.
        peer: PeerName,
    },
    /// Routes, peers or short ids changed.
    View(std::sync::Arc<View>),
    /// Something another peer broadcast (or sent to us, or gossiped) on a channel that belongs to the agent's other parts.
    Delivered {
        /// Gossip channel.
        channel: Channel,
        /// Who said it first.
        from: PeerName,
        /// What.
        payload: Bytes,
    },
    /// A direct neighbour told us something over our link with it.
    Told {
        /// Which neighbour.
        peer: PeerName,
        /// What.
        payload: Bytes,
    },
    /// The target list changed: to be kept in the state directory.
    Targets(Vec<String>),
    /// Our short id changed: to be kept in the state directory.
    ShortId(crate::peer::ShortId),
}
