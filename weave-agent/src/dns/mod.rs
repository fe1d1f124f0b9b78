//! Names of containers: a replica over gossip, and answers to queries about it.
//!
//! [`Dns`] merges what every peer says of its own containers and hands out a [`Zone`], a snapshot that [`answer()`] answers from without
//! asking anybody. What decides which addresses a name has:
//!
//! - Only the peer whose container it is (the *origin*) changes an entry. What others hold of an origin that differs from what it knows
//!   (it was restarted, or its state is an old copy) it corrects with a higher version.
//! - Entries of an origin that left the mesh are dropped. Those of one that is known but out of reach are answered only for names of which
//!   nobody in reach has any: a container behind a partition cannot be talked to, yet a name should not vanish for a blip.
//! - A dead entry is kept as a tombstone for 30 minutes after its death, by monotonic clocks only: a tombstone travels with its age, so
//!   it ends everywhere at about the same time and is not taught again by those who learned it late.

mod answer;
mod entry;
mod gossip;
mod machine;
mod message;
mod name;
mod replica;
mod reverse;
mod status;
#[cfg(test)]
mod tests;
mod zone;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use answer::{Answer, MAX_UDP, Transport, answer, servfail, truncated, udp_room};
pub use entry::{MAX_OWNER, Owner, OwnerError};
pub use machine::Dns;
pub use message::{DecodeError, MAX_MESSAGE};
pub use name::{DEFAULT_DOMAIN, Domain, Name, NameError};
pub use status::{Counters, EntryStatus, Status};
pub use zone::Zone;

use crate::Time;
use crate::mesh::{Channel, View};
use crate::peer::PeerName;

/// The gossip channel that [`Dns`] talks on.
pub fn channel() -> Channel {
    Channel("dns".to_owned())
}

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ourselves.
    pub name: PeerName,
    /// The domain that names are in.
    pub domain: Domain,
    /// How long resolvers may keep an answer, seconds.
    pub ttl: u32,
    /// How long entries of ours that others still hold from before a restart may wait for [`Input::Settled`].
    pub grace: Time,
    /// Which addresses are given out here: nobody else can know what they are called.
    pub ranges: Vec<IpNet>,
    /// What the last [`Output::Keep`] said.
    pub kept: Vec<Kept>,
}

impl Config {
    /// The defaults: `weave.local.`, 1 s, 10 s of grace, no range, nothing kept.
    pub fn new(name: PeerName) -> Self {
        Self { name, domain: Domain::default(), ttl: 1, grace: Time::from_secs(10), ranges: Vec::new(), kept: Vec::new() }
    }
}

/// An entry made by hand (its owner is [`Owner::external`]), which outlives the agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kept {
    /// Full name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// What happens to the replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A container (or a person) has a name. Repeating it changes nothing.
    Register {
        /// Whose: with it the name dies.
        owner: Owner,
        /// What it is called.
        name: Name,
        /// Where it is.
        addresses: Vec<IpAddr>,
    },
    /// Entries of ours that match all that is given are dead: with only `owner` given, those of a container that died.
    Unregister {
        /// Of this owner.
        owner: Option<Owner>,
        /// Of this name.
        name: Option<Name>,
        /// Of this address.
        address: Option<IpAddr>,
    },
    /// Every container that runs has been registered since the start: what others still hold of ours besides is dead.
    Settled,
    /// Peers came, went, or are (not) in reach.
    View(Arc<View>),
    /// A message on our [`channel`].
    Delivered {
        /// Who said it first.
        from: PeerName,
        /// What.
        payload: Bytes,
    },
}

/// What the replica wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tell every peer.
    Broadcast(Bytes),
    /// Tell some neighbours, which pass on what is new to them.
    Gossip(Bytes),
    /// Tell one peer: a neighbour that has just come into reach gets everything.
    Unicast {
        /// Who.
        to: PeerName,
        /// What.
        payload: Bytes,
    },
    /// What is answered from now on.
    Zone(Arc<Zone>),
    /// What is to be on disk of entries made by hand: all of them, whenever they change.
    Keep(Vec<Kept>),
}
