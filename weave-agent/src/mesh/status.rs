//! What `weave-agent status` shows of the mesh.

use std::net::SocketAddrV4;

use serde::Serialize;

use super::dialler::Phase;
use super::link::State;
use super::machine::Mesh;
use super::message::Counts;
use crate::Time;
use crate::peer::{PeerName, ShortId};

/// The mesh at one moment. Names are text, as people see them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Our name.
    pub name: String,
    /// Our uid, in hexadecimal.
    pub uid: String,
    /// Our nickname.
    pub nickname: String,
    /// Our short id.
    pub short: ShortId,
    /// Where we accept links.
    pub port: u16,
    /// Whether we dial peers' peers.
    pub discovery: bool,
    /// What the user told us to connect to.
    pub targets: Vec<TargetStatus>,
    /// Links, and addresses that are dialled.
    pub connections: Vec<ConnectionStatus>,
    /// All known peers, with ourselves.
    pub peers: Vec<PeerStatus>,
    /// What happened how often.
    pub counters: Counters,
    /// Peers that have another's name.
    pub collisions: Vec<CollisionStatus>,
}

/// A target as it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// As given.
    pub name: String,
    /// What it resolves to.
    pub addresses: Vec<SocketAddrV4>,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// The link and its tunnel work.
    Established,
    /// The link works, its tunnel does not (yet).
    Pending,
    /// Dialling, or the handshake is under way.
    Connecting,
    /// The link is gone, its tunnel still works.
    Unlinked,
    /// To be dialled again.
    Retrying,
    /// Never dialled again: it is ourselves.
    Failed,
}

/// A link, or an address that is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    /// The other end.
    pub address: SocketAddrV4,
    /// Whether we dialled.
    pub outbound: bool,
    /// How far it is.
    pub state: ConnectionState,
    /// The last error, if any.
    pub info: String,
    /// Who is there, if known.
    pub peer: Option<String>,
    /// Its nickname.
    pub nickname: String,
    /// Seconds to the next attempt.
    pub retry_in: Option<u64>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its nickname.
    pub nickname: String,
    /// Its uid, in hexadecimal.
    pub uid: String,
    /// The version of its record.
    pub version: u64,
    /// The short id it claims.
    pub short: Option<ShortId>,
    /// The neighbour through which the data plane reaches it.
    pub next_hop: Option<String>,
    /// Its connections.
    pub connections: Vec<EdgeStatus>,
}

/// One end of a connection between peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EdgeStatus {
    /// The other peer.
    pub peer: String,
    /// Its nickname.
    pub nickname: String,
    /// Where it accepts links.
    pub address: SocketAddrV4,
    /// Whether the owner dialled.
    pub outbound: bool,
    /// Whether the tunnel works.
    pub established: bool,
    /// Whether there is a link.
    pub linked: bool,
}

/// Two agents with one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CollisionStatus {
    /// The name.
    pub name: String,
    /// Where one of them is, if it has a link.
    pub address: Option<SocketAddrV4>,
    /// What to do about it.
    pub text: String,
    /// Seconds since it was last seen.
    pub seconds_ago: u64,
}

/// What happened how often since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Dials begun.
    pub dials: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed because too many handshakes were under way.
    pub too_many_handshakes: u64,
    /// Links that came up.
    pub links_up: u64,
    /// Links that went down.
    pub links_down: u64,
    /// Links closed because we already had a better one.
    pub duplicates: u64,
    /// Links closed for want of room.
    pub over_limit: u64,
    /// Peers that sent a reject.
    pub rejected: u64,
    /// Links on which nothing came for too long.
    pub silent: u64,
    /// Handshakes that took too long.
    pub slow_handshakes: u64,
    /// Name collisions seen.
    pub collisions: u64,
    /// Links closed for nonsense, by kind.
    pub garbage: Counts,
    /// Records of other peers that were new to us.
    pub records: u64,
    /// Records refused because there are too many peers.
    pub records_refused: u64,
    /// Broadcasts of our own.
    pub broadcasts_sent: u64,
    /// Broadcasts of others.
    pub broadcasts_received: u64,
    /// Broadcasts that came twice.
    pub broadcasts_repeated: u64,
    /// Broadcasts too long to send.
    pub broadcasts_too_long: u64,
    /// Views told to the switch.
    pub views: u64,
}

impl Mesh {
    /// The mesh as it is now.
    pub fn status(&self, now: Time) -> Status {
        let target = |target: &super::Target| TargetStatus { name: target.name.clone(), addresses: target.addresses.clone() };
        let collision = |(name, collision): (PeerName, &super::handshake::Collision)| CollisionStatus {
            name: name.to_string(),
            address: collision.address,
            text: collision.text.clone(),
            seconds_ago: now.saturating_sub(collision.at).as_secs(),
        };
        Status {
            name: self.config.name.to_string(),
            uid: format!("{:016x}", self.config.uid.0),
            nickname: self.config.nickname.clone(),
            short: self.short,
            port: self.config.port,
            discovery: self.config.discovery,
            targets: self.dialler.targets().iter().map(target).collect(),
            connections: self.connections(now),
            peers: self.topology.records().map(|record| self.peer(record)).collect(),
            counters: self.counters.clone(),
            collisions: self.collisions.recent(now).map(collision).collect(),
        }
    }

    fn connections(&self, now: Time) -> Vec<ConnectionStatus> {
        let mut connections = Vec::new();
        for link in self.links.values() {
            let (hello, state) = match &link.state {
                State::Handshake => (None, ConnectionState::Connecting),
                State::Parked { hello, .. } => (Some(hello), ConnectionState::Connecting),
                State::Up { hello } if self.tunnels.contains(&hello.name) => (Some(hello), ConnectionState::Established),
                State::Up { hello } => (Some(hello), ConnectionState::Pending),
            };
            connections.push(ConnectionStatus {
                address: link.remote,
                outbound: link.outbound,
                state,
                info: String::new(),
                peer: hello.map(|hello| hello.name.to_string()),
                nickname: hello.map(|hello| hello.nickname.clone()).unwrap_or_default(),
                retry_in: None,
            });
        }
        for (peer, edge) in self.topology.get(self.config.name).iter().flat_map(|own| &own.connections) {
            if !edge.linked {
                connections.push(ConnectionStatus {
                    address: edge.address,
                    outbound: edge.outbound,
                    state: ConnectionState::Unlinked,
                    info: "the link is gone, the tunnel works".to_owned(),
                    peer: Some(peer.to_string()),
                    nickname: self.topology.nickname(*peer).to_owned(),
                    retry_in: None,
                });
            }
        }
        for (address, attempt) in self.dialler.attempts() {
            if self.links.values().any(|link| link.outbound && link.remote == address)
                || attempt.peer.is_some_and(|peer| self.neighbours.contains_key(&peer))
                || self.links.values().any(|link| link.up().is_some_and(|hello| link.listens_at(hello) == address))
            {
                continue;
            }
            let (state, retry_in) = match attempt.phase {
                Phase::Waiting(at) => (ConnectionState::Retrying, Some(at.saturating_sub(now).as_secs())),
                Phase::Attempting | Phase::Up(_) => (ConnectionState::Connecting, None),
                Phase::Never => (ConnectionState::Failed, None),
            };
            connections.push(ConnectionStatus {
                address,
                outbound: true,
                state,
                info: attempt.error.clone(),
                peer: attempt.peer.map(|peer| peer.to_string()),
                nickname: attempt.peer.map(|peer| self.topology.nickname(peer).to_owned()).unwrap_or_default(),
                retry_in,
            });
        }
        connections
    }

    fn peer(&self, record: &super::topology::PeerRecord) -> PeerStatus {
        let hop = self.view.as_ref().and_then(|view| view.peers.get(&record.name)?.next_hop);
        let edge = |(peer, edge): (&PeerName, &super::topology::Edge)| EdgeStatus {
            peer: peer.to_string(),
            nickname: self.topology.nickname(*peer).to_owned(),
            address: edge.address,
            outbound: edge.outbound,
            established: edge.established,
            linked: edge.linked,
        };
        PeerStatus {
            name: record.name.to_string(),
            nickname: record.nickname.clone(),
            uid: format!("{:016x}", record.uid.0),
            version: record.version,
            short: record.short,
            next_hop: hop.map(|hop| hop.to_string()),
            connections: record.connections.iter().map(edge).collect(),
        }
    }
}
