//! Addresses for containers, without a central store: this host's replica of who owns which part of the range.
//!
//! A pure machine like [`mesh`](crate::mesh) and [`switch`](crate::switch). What it rests on:
//!
//! - **The ring** (`ring`) says for every address which peer may hand it out. Only that peer changes this, so that merging
//!   what peers say is a maximum at each address: nothing can conflict, and no order of messages matters. Space moves when its owner
//!   gives it (`asks`), when its owner leaves, or by `rmpeer`.
//! - **Nothing is said before it is on disk.** Answers and messages wait in the outbox until the snapshot with all that they
//!   depend on is stored. One store is under way at a time, and the next one covers all that came meanwhile.
//! - **A state that may be old is not believed.** After a start with one ([`Config::trusted`]) our own free space is in quarantine
//!   until every other owner has told what it knows: we may have given some of it away. In the same way `rmpeer` takes space over
//!   only when every other owner has told what it got from the removed peer (`exchange`), else the jump of the version would
//!   take away what others hold rightfully. Two dead hosts do not block each other: nobody waits for a peer that `rmpeer` was run for.
//!   What this cannot see is a peer that owned nothing before, got space, and then was heard by nobody but the giver; and an old
//!   state in which we owned everything.
//! - **The first ring** comes from a list, or from a vote (`votes`, `founding`). Rings of other ranges or seeds are never merged: such
//!   messages are ignored, counted, and shown with both sides' names.
//! - **Every request is answered by its deadline**, also if the disk is the reason why it cannot be fulfilled. An allocation that
//!   was not stored in time stays with its owner, who gets the same address when asking again.
//!
//! A snapshot is everything, rewritten as a whole: simple, and small next to what a disk writes in the same time.

mod asks;
mod block;
mod config;
mod error;
mod exchange;
mod founding;
mod intervals;
mod machine;
mod message;
mod outbox;
mod replica;
mod requests;
mod ring;
#[cfg(test)]
mod sim;
mod snapshot;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod votes;

pub use block::Family;
pub use config::{Config, ConfigError, DEFAULT_RANGE, Init, MAX_SEEDS};
pub use error::{Error, Named};
pub use machine::Ipam;
pub use message::DecodeError;
pub use ring::RingError;
pub use snapshot::{Snapshot, SnapshotError, StoredToken};
pub use status::{Conflict, Counters, Foreign, OwnStatus, OwnerStatus, PendingStatus, RangeStatus, RingState, Status};
pub use votes::{Accepted, Ballot, Vote};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use crate::Time;
use crate::mesh::View;
use crate::peer::PeerName;

/// What happens to a replica. Requests have numbers of the caller's choice, and exactly one [`Output::Answer`] each, at the
/// latest when their deadline has come.
#[derive(Clone, Debug)]
pub enum Input {
    /// An address of each subnet for an owner; one that it has already is given again. Answered with [`Answer::Addresses`].
    Allocate {
        /// Number of the request.
        request: u64,
        /// Opaque; a port's interface name.
        owner: String,
        /// From what; empty: from the default subnet of each range.
        subnets: Vec<IpNet>,
        /// When to give up.
        deadline: Time,
    },
    /// This address for an owner. Outside the range anything goes, and nothing is recorded. Answered with [`Answer::Addresses`].
    Claim {
        /// Number of the request.
        request: u64,
        /// Opaque; a port's interface name.
        owner: String,
        /// The address, with the prefix of its subnet.
        address: IpNet,
        /// When to give up.
        deadline: Time,
    },
    /// An owner is gone: so are its addresses and its requests.
    Free {
        /// As it was given.
        owner: String,
    },
    /// An owner does not use an address any more.
    FreeAddress {
        /// As it was given.
        owner: String,
        /// Which.
        address: IpAddr,
    },
    /// All owners there are, each with the addresses found in use: others are freed, and what is in use is recorded, whoever may
    /// own it (that is then asked to hand it over, again and again, and shown as a conflict if it does not). To be given at the
    /// start before anything is allocated; later, owners whose requests are under way must be among them.
    Reconcile {
        /// Addresses in use, by owner.
        present: BTreeMap<String, Vec<IpNet>>,
    },
    /// `rmpeer`: takes over the space of a peer that is gone for good. Answered with [`Answer::Count`] of addresses.
    Remove {
        /// Number of the request.
        request: u64,
        /// Name or nickname.
        peer: String,
        /// When to give up.
        deadline: Time,
    },
    /// `reset`: hands all space to a reachable peer and forgets all addresses. Answered with [`Answer::Count`] of addresses
    /// handed on, once this is on disk; it is sent in the same moment.
    Leave {
        /// Number of the request.
        request: u64,
        /// When to give up waiting for the disk.
        deadline: Time,
    },
    /// Answered with [`Answer::Done`] when there is a ring.
    Prime {
        /// Number of the request.
        request: u64,
        /// When to give up.
        deadline: Time,
    },
    /// Who is there changed.
    View(Arc<View>),
    /// How many other hosts this one was told to connect to: a majority is at least one of these and ourselves.
    Targets(usize),
    /// Another replica said something.
    Delivered {
        /// Who.
        from: PeerName,
        /// What.
        payload: Bytes,
    },
    /// The snapshot of [`Output::Store`] with this number, or a later one, is on disk.
    Stored(u64),
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Addresses, with the prefixes of their subnets.
    Addresses(Vec<IpNet>),
    /// So many addresses.
    Count(u128),
    /// It is so.
    Done,
}

/// What a replica wants done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// The answer to a request.
    Answer {
        /// Number of the request.
        request: u64,
        /// What it came to.
        result: Result<Answer, Error>,
    },
    /// Write this to disk and say [`Input::Stored`]. There is one at a time.
    Store {
        /// Counts up.
        number: u64,
        /// All there is to keep.
        snapshot: Arc<Snapshot>,
    },
    /// Tell every peer.
    Broadcast(Bytes),
    /// Tell one peer.
    Unicast {
        /// Whom.
        to: PeerName,
        /// What.
        payload: Bytes,
    },
    /// Tell some neighbours, who pass on what they had not seen lately.
    Gossip(Bytes),
}
