//! The control plane: peers, links, topology gossip, routes, short ids.

mod dialler;
mod gossip;
mod handshake;
mod link;
mod machine;
mod message;
mod routes;
mod short_ids;
pub mod status;
mod topology;
mod view;

#[cfg(test)]
mod harness;
#[cfg(test)]
mod tests;

pub use machine::{Config, Mesh};
pub use status::Status;
pub use view::{Neighbour, PeerView, View};

use std::net::SocketAddrV4;

use bytes::Bytes;

use crate::peer::PeerName;

/// How long a link waits until it is clear whether its peer restarted or has a clone.
pub(crate) const PARKED: std::time::Duration = std::time::Duration::from_secs(5);

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
    /// Open a TCP connection; answered by `Dialled` or `DialFailed`.
    Dial(SocketAddrV4),
    /// Send bytes on a link.
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
    /// Something another peer broadcast on a channel that belongs to the agent's other parts.
    Delivered {
        /// Gossip channel.
        channel: Channel,
        /// Who said it first.
        from: PeerName,
        /// What.
        payload: Bytes,
    },
    /// The target list changed: to be kept in the state directory.
    Targets(Vec<String>),
    /// Our short id changed: to be kept in the state directory.
    ShortId(crate::peer::ShortId),
}
