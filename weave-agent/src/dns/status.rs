//! What `status dns` shows.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::entry::Owner;
use super::name::{Domain, Name};
use crate::peer::PeerName;

/// The replica, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What names are in.
    pub domain: Domain,
    /// How long resolvers may keep an answer, seconds.
    pub ttl: u32,
    /// Everybody's, by origin and name, tombstones included.
    pub entries: Vec<EntryStatus>,
    /// What happened since the start.
    pub counters: Counters,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryStatus {
    /// Full name.
    pub name: Name,
    /// Its address.
    pub address: IpAddr,
    /// The container, or `weave:…`.
    pub owner: Owner,
    /// Whose container it is.
    pub origin: PeerName,
    /// What people call that peer; empty if it is not known (any more).
    pub nickname: String,
    /// Goes up with every change.
    pub version: u64,
    /// A tombstone.
    pub dead: bool,
    /// Its origin is this peer, or can be reached.
    pub reachable: bool,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Messages from peers.
    pub received: u64,
    /// Messages that made no sense.
    pub malformed: u64,
    /// Entries that were new to us.
    pub learned: u64,
    /// Entries that were not taken because there are too many.
    pub refused: u64,
    /// Entries of ours that others had wrong.
    pub corrected: u64,
    /// Tombstones whose time was over.
    pub expired: u64,
    /// Origins whose entries were dropped because they left the mesh.
    pub forgotten: u64,
    /// Messages sent.
    pub sent: u64,
}
