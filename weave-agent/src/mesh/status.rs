//! What people want to know about the mesh. Names and numbers that may exceed 2^53 are text, for readers in JavaScript.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::Serialize;

use super::admission::FEATURES;
use super::barred::Failure;
use super::collision::Report;
use super::dialler::{Attempt, State};
use super::link::{Link, Phase};
use super::message::{Connection, Hello, Record};
use super::{Mesh, PeerView, Target};
use crate::Time;
use crate::peer::{PeerName, PeerUid};

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
    pub short: u16,
    /// Of weave-agent.
    pub version: String,
    /// Version of our own topology record.
    pub record_version: u64,
    /// The network has a password.
    pub encrypted: bool,
    /// What we were told to connect to.
    pub targets: Vec<TargetStatus>,
    /// Links, dials and addresses to retry.
    pub connections: Vec<ConnectionStatus>,
    /// Every peer known, ourselves included.
    pub peers: Vec<PeerStatus>,
    /// The data plane's routes to and from every other peer.
    pub routes: Vec<RouteStatus>,
    /// Events since the start.
    pub counters: Counters,
    /// Peers that share a name: ours, or that of a neighbour.
    pub collisions: Vec<CollisionStatus>,
}

/// A target and what it means now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetStatus {
    /// As given.
    pub name: String,
    /// What it resolves to.
    pub addresses: Vec<SocketAddrV4>,
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
    /// What protects the link and its tunnel, if there is a password.
    pub encryption: Option<Encryption>,
}

/// What a password does for a neighbour. The link itself is encrypted in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Frames are encrypted, too.
    Encrypted,
    /// Frames may go in clear: both ends trust the network between them.
    Trusted,
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

/// A peer that has another's name.
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
    /// Links that somebody opened and that ended because the two do not agree on a password.
    pub wrong_passwords: u64,
    /// Links closed at once because too many from their source had ended so.
    pub barred: u64,
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

impl Mesh {
    /// What people want to know.
    pub fn status(&self, now: Time) -> Status {
        let me = self.topology.me();
        Status {
            name: me.name.to_string(),
            uid: me.uid.0.to_string(),
            nickname: me.nickname.clone(),
            short: me.short.get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            record_version: me.version,
            encrypted: self.secret(),
            targets: self.dialler.all().map(TargetStatus::new).collect(),
            connections: self.connection_status(now),
            peers: self.topology.records().map(|record| self.peer_status(record)).collect(),
            routes: self.view.iter().flat_map(|view| &view.peers).map(|(name, peer)| RouteStatus::new(*name, peer)).collect(),
            counters: self.counters.clone(),
            collisions: self.collisions.reports(now).map(|(uid, report)| CollisionStatus::new(now, uid, report)).collect(),
        }
    }

    fn connection_status(&self, now: Time) -> Vec<ConnectionStatus> {
        let links = self.links.values().map(|link| self.link_status(link));
        let open = self.dialler.open(&self.linked).map(|(address, attempt)| self.attempt_status(now, address, attempt));
        links.chain(open).chain(self.failures.recent(now).map(Self::failure_status)).collect()
    }

    fn link_status(&self, link: &Link) -> ConnectionStatus {
        let tunnel = link.peer().is_some_and(|peer| self.edges.get(&peer.name).is_some_and(|edge| edge.tunnel));
        let (state, info) = match &link.phase {
            Phase::Preamble | Phase::Keys(..) | Phase::Keyed | Phase::Hello | Phase::Welcomed(_) => {
                (ConnectionState::Pending, "handshake".to_owned())
            }
            Phase::Held(_) => (ConnectionState::Pending, "asking whether an older link lives".to_owned()),
            Phase::Up(..) if !tunnel => (ConnectionState::Pending, "no tunnel yet".to_owned()),
            Phase::Up(hello, _) => (ConnectionState::Established, missing_features(hello)),
        };
        ConnectionStatus {
            address: link.remote,
            outbound: link.outbound,
            state,
            info,
            retry_in: None,
            peer: link.claimed().map(|hello| hello.name.to_string()),
            nickname: link.claimed().map(|hello| hello.nickname.clone()),
            encryption: link.peer().filter(|_| link.is_sealed()).map(|hello| match self.both_trust(link, hello) {
                true => Encryption::Trusted,
                false => Encryption::Encrypted,
            }),
        }
    }

    /// Whoever dialled us last and has another password.
    fn failure_status(failure: &Failure) -> ConnectionStatus {
        ConnectionStatus {
            address: failure.remote,
            outbound: false,
            state: ConnectionState::Failed,
            info: failure.text.clone(),
            retry_in: None,
            peer: None,
            nickname: None,
            encryption: None,
        }
    }

    fn attempt_status(&self, now: Time, address: SocketAddrV4, attempt: &Attempt) -> ConnectionStatus {
        let state = match attempt.state {
            State::Dialling | State::Linked(_) => ConnectionState::Connecting,
            State::Waiting(_) => ConnectionState::Retrying,
            State::Refused(_) | State::Myself => ConnectionState::Failed,
        };
        ConnectionStatus {
            address,
            outbound: true,
            state,
            info: attempt.error.clone().unwrap_or_default(),
            retry_in: attempt.due().map(|due| due.saturating_sub(now).as_secs_f64()),
            peer: attempt.peer.map(|peer| peer.to_string()),
            nickname: attempt.nickname.clone(),
            encryption: None,
        }
    }

    fn nickname(&self, peer: PeerName) -> String {
        self.topology.get(peer).map(|record| record.nickname.clone()).unwrap_or_default()
    }

    fn peer_status(&self, record: &Record) -> PeerStatus {
        let edge = |(name, edge): (&PeerName, &Connection)| EdgeStatus {
            name: name.to_string(),
            nickname: self.nickname(*name),
            address: edge.address,
            outbound: edge.outbound,
            linked: edge.linked,
            established: edge.established,
        };
        PeerStatus {
            name: record.name.to_string(),
            nickname: record.nickname.clone(),
            uid: record.uid.0.to_string(),
            short: record.short.get(),
            version: record.version,
            connections: record.connections.iter().map(edge).collect(),
        }
    }
}

impl TargetStatus {
    fn new(target: &Target) -> Self {
        Self { name: target.name.clone(), addresses: target.addresses.clone() }
    }
}

impl RouteStatus {
    fn new(peer: PeerName, view: &PeerView) -> Self {
        let text = |name: PeerName| name.to_string();
        Self {
            peer: text(peer),
            next_hop: view.next_hop.map(text),
            parent: view.parent.map(text),
            hops: view.hops.iter().copied().map(text).collect(),
        }
    }
}

impl CollisionStatus {
    fn new(now: Time, uid: PeerUid, report: &Report) -> Self {
        Self { uid: uid.0.to_string(), text: report.text.clone(), seen: now.saturating_sub(report.seen).as_secs_f64() }
    }
}

/// What we can do and the neighbour cannot; nothing, most often.
fn missing_features(hello: &Hello) -> String {
    let names: Vec<&str> = FEATURES.into_iter().filter(|name| !hello.has(name)).collect();
    if names.is_empty() { String::new() } else { format!("does not know: {}", names.join(", ")) }
}
