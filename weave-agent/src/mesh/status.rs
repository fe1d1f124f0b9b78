//! What people want to know about the mesh. Names and numbers that may exceed 2^53 are text, for readers in JavaScript.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::Serialize;

/// The mesh at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// Our name.
    pub name: String,
    /// This incarnation, decimal.
    pub uid: String,
    /// Free text.
    pub nickname: String,
    /// Our short id.
    pub short: Option<u16>,
    /// Of weave-agent.
    pub version: String,
    /// Version of our own topology record.
    pub record_version: u64,
    /// What we were told to connect to, as given.
    pub targets: Vec<String>,
    /// Links, dials and addresses to retry.
    pub connections: Vec<ConnectionStatus>,
    /// Every peer known, ourselves included.
    pub peers: Vec<PeerStatus>,
    /// The data plane's routes to and from every other peer.
    pub routes: Vec<RouteStatus>,
    /// Events since the start.
    pub counters: Counters,
    /// Peers that use our name.
    pub collisions: Vec<CollisionStatus>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// The tunnel works.
    Established,
    /// TCP is up; handshake or tunnel not yet.
    Pending,
    /// Dialling.
    Connecting,
    /// Waiting to dial again.
    Retrying,
    /// Not dialled again, or only slowly: our own address, a name collision.
    Failed,
}

/// One link, dial or address to retry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionStatus {
    /// The other end.
    pub address: SocketAddrV4,
    /// We dialled.
    pub outbound: bool,
    /// How far it has come.
    pub state: ConnectionState,
    /// What is going on, or the last error.
    pub info: String,
    /// Seconds until it is dialled again.
    pub retry_in: Option<f64>,
    /// Who it is, once known.
    pub peer: Option<String>,
    /// Its nickname.
    pub nickname: Option<String>,
}

/// A peer and what it says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Free text.
    pub nickname: String,
    /// Its incarnation, decimal.
    pub uid: String,
    /// Its short id.
    pub short: u16,
    /// Version of its record.
    pub version: u64,
    /// Its edges.
    pub connections: Vec<EdgeStatus>,
}

/// One edge of a peer's record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EdgeStatus {
    /// The neighbour's name.
    pub name: String,
    /// Its nickname, if its record is known.
    pub nickname: String,
    /// Where it listens, as that peer sees it.
    pub address: SocketAddrV4,
    /// That peer dialled.
    pub outbound: bool,
    /// The TCP link is up.
    pub linked: bool,
    /// The tunnel is up.
    pub established: bool,
}

/// The data plane's ways to and from one other peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteStatus {
    /// The peer.
    pub peer: String,
    /// The neighbour that unicast goes through.
    pub next_hop: Option<String>,
    /// The neighbour its floods come from.
    pub parent: Option<String>,
    /// The neighbours its floods are passed on to.
    pub hops: Vec<String>,
}

/// Another peer that uses our name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CollisionStatus {
    /// Its uid, decimal.
    pub uid: String,
    /// What happened and what to do about it.
    pub text: String,
    /// Seconds since it was last seen.
    pub seen: f64,
}

/// Events since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Links that ended, our own address not counted.
    pub terminations: u64,
    /// Messages with a tag we do not know.
    pub unknown_messages: u64,
    /// Messages longer than we know them.
    pub trailing_bytes: u64,
    /// Links closed for what was received on them.
    pub bad_input: u64,
    /// Links closed at once because their source had too many unfinished ones.
    pub refused: u64,
    /// Unicasts and broadcasts without a way, or too long.
    pub undeliverable: u64,
    /// Copies of broadcasts and gossip that had come before.
    pub duplicates: u64,
    /// Records refused for want of room.
    pub refused_records: u64,
    /// Messages delivered to us by channel; the channels beyond the first 64 are counted as `other`.
    pub delivered: BTreeMap<String, u64>,
    /// Messages passed on by channel, likewise.
    pub relayed: BTreeMap<String, u64>,
}
