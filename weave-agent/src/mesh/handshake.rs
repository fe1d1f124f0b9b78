//! What a hello leads to: a link in use, or one of the ways to be refused.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::dialler::End;
use super::link::State;
use super::machine::Mesh;
use super::message::{Hello, Reject, kind};
use super::topology::PeerRecord;
use super::{LinkId, Neighbour, Output};
use crate::Time;
use crate::peer::{PeerName, PeerUid};

/// What an earlier incarnation had sent may still come so long after its successor's hello.
const RESIDUE: Duration = Duration::from_secs(1);
/// How long a collision is shown after it was last seen.
const SHOWN: Duration = Duration::from_secs(120);
/// Collisions remembered.
const MAX_COLLISIONS: usize = 64;

/// Two agents with one name.
#[derive(Clone, Debug)]
pub(crate) struct Collision {
    pub(crate) address: Option<SocketAddrV4>,
    pub(crate) text: String,
    pub(crate) at: Time,
}

/// By name.
#[derive(Debug, Default)]
pub(crate) struct Collisions(BTreeMap<PeerName, Collision>);

impl Collisions {
    fn add(&mut self, name: PeerName, collision: Collision) {
        let now = collision.at;
        self.0.retain(|_, old| now.saturating_sub(old.at) < SHOWN);
        if self.0.len() < MAX_COLLISIONS || self.0.contains_key(&name) {
            self.0.insert(name, collision);
        }
    }

    pub(crate) fn recent(&self, now: Time) -> impl Iterator<Item = (PeerName, &Collision)> {
        self.0.iter().filter(move |(_, old)| now.saturating_sub(old.at) < SHOWN).map(|(name, old)| (*name, old))
    }
}

fn collision_text(name: PeerName, one: PeerUid, other: PeerUid) -> String {
    format!(
        "two agents are named {name} (uids {:016x} and {:016x}), as after cloning a machine: run `weave-agent reset` on the copy",
        one.0.min(other.0),
        one.0.max(other.0)
    )
}

impl Mesh {
    pub(super) fn hello(&mut self, now: Time, id: LinkId, hello: Hello) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (outbound, remote, connection) = (link.outbound, link.remote, link.id_with(&hello));
        if hello.name == self.config.name {
            if hello.uid == self.config.uid {
                self.reject(now, id, kind::OURSELVES, "we dialled ourselves");
            } else {
                let text = self.collided(now, hello.name, Some(remote), hello.uid, self.config.uid);
                self.reject(now, id, kind::COLLISION, &text);
            }
            return;
        }
        if outbound && self.topology.get(hello.name).is_none() && !self.dialler.is_target(remote) {
            let text = format!("somebody else is there now, {} named {}", hello.nickname, hello.name);
            self.close(now, id, End::Failed, &text);
            return;
        }
        if let Some(&other) = self.neighbours.get(&hello.name)
            && let Some((uid, theirs)) = self.links.get(&other).and_then(|other| other.up().map(|hello| (hello.uid, other.id_with(hello))))
        {
            if uid != hello.uid {
                if let Some(link) = self.links.get_mut(&id) {
                    link.state = State::Parked { hello, since: now };
                }
                return;
            }
            self.counters.duplicates += 1;
            // Both ends compute the same ids and so agree which link stays.
            if connection <= theirs {
                self.reject(now, other, kind::DUPLICATE, "another link between us stays");
            }
            if connection >= theirs {
                if let Some(link) = self.links.get(&id)
                    && link.outbound
                {
                    self.dialler.up(now, remote, hello.name);
                }
                self.refuse(now, id, hello, kind::DUPLICATE, "another link between us stays");
                return;
            }
        }
        let limit = self.config.connection_limit;
        if limit != 0 && self.neighbours.len() >= limit {
            self.counters.over_limit += 1;
            self.reject(now, id, kind::LIMIT, &format!("connection limit reached ({limit})"));
            return;
        }
        self.link_up(now, id, hello);
    }

    /// Rejects a link but remembers who is there.
    fn refuse(&mut self, now: Time, id: LinkId, hello: Hello, kind: u8, reason: &str) {
        if let Some(link) = self.links.get_mut(&id) {
            link.state = State::Parked { hello, since: now };
        }
        self.reject(now, id, kind, reason);
    }

    fn link_up(&mut self, now: Time, id: LinkId, hello: Hello) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let peer = hello.name;
        let neighbour = Neighbour {
            name: peer,
            short: hello.short,
            connection: link.id_with(&hello),
            local: *link.local.ip(),
            remote: *link.remote.ip(),
            port: hello.tunnel_port,
        };
        self.topology.meet(PeerRecord {
            name: peer,
            nickname: hello.nickname.clone(),
            uid: hello.uid,
            version: 0,
            short: Some(hello.short),
            connections: BTreeMap::new(),
        });
        link.decoder.trust();
        link.state = State::Up { hello };
        let (outbound, remote) = (link.outbound, link.remote);
        if outbound {
            self.dialler.up(now, remote, peer);
        }
        self.neighbours.insert(peer, id);
        self.counters.links_up += 1;
        self.outputs.push_back(Output::LinkUp(neighbour));
        self.update_edge(now, peer);
        self.dirty = true;
        self.full_state(id);
    }

    /// A neighbour is alive: whoever waits for its place is a clone.
    pub(super) fn heard_from_neighbour(&mut self, now: Time, id: LinkId) {
        let Some(hello) = self.links.get(&id).and_then(|link| link.up()) else { return };
        let (name, uid) = (hello.name, hello.uid);
        let clones: Vec<(LinkId, PeerUid)> = self
            .links
            .iter()
            .filter_map(|(clone, link)| match &link.state {
                State::Parked { hello, since } if hello.name == name && hello.uid != uid && now >= *since + RESIDUE => {
                    Some((*clone, hello.uid))
                }
                _ => None,
            })
            .collect();
        let Some((_, other)) = clones.first() else { return };
        let address = self.links.get(&id).map(|link| link.remote);
        let text = self.collided(now, name, address, uid, *other);
        for clone in clones.iter().map(|(clone, _)| *clone).chain([id]) {
            self.reject(now, clone, kind::COLLISION, &text);
        }
    }

    /// A parked link has waited enough: what was there before is dead.
    pub(super) fn replace_silent(&mut self, now: Time, id: LinkId) {
        let Some(State::Parked { hello, .. }) = self.links.get(&id).map(|link| &link.state) else { return };
        if let Some(old) = self.neighbours.get(&hello.name).copied() {
            self.counters.silent += 1;
            self.close(now, old, End::Failed, "silent, and restarted meanwhile");
        }
        self.unpark(now);
    }

    /// Takes up parked links whose place is free.
    pub(super) fn unpark(&mut self, now: Time) {
        loop {
            let free = self.links.iter().find_map(|(id, link)| match &link.state {
                State::Parked { hello, .. } if !self.neighbours.contains_key(&hello.name) => Some((*id, hello.clone())),
                _ => None,
            });
            let Some((id, hello)) = free else { return };
            if let Some(link) = self.links.get_mut(&id) {
                link.state = State::Handshake;
            }
            self.hello(now, id, hello);
            self.drain(now, id);
        }
    }

    pub(super) fn rejected(&mut self, now: Time, id: LinkId, reject: &Reject) {
        self.counters.rejected += 1;
        let end = match reject.kind {
            kind::COLLISION => {
                let address = self.links.get(&id).map(|link| link.remote);
                self.collisions.add(self.config.name, Collision { address, text: reject.reason.clone(), at: now });
                End::Collision
            }
            kind::DUPLICATE => End::Duplicate,
            _ => End::Failed,
        };
        self.close(now, id, end, &format!("rejected: {}", reject.reason));
    }

    /// Notes a collision; the text is for both.
    pub(super) fn collided(&mut self, now: Time, name: PeerName, address: Option<SocketAddrV4>, one: PeerUid, other: PeerUid) -> String {
        let text = collision_text(name, one, other);
        self.counters.collisions += 1;
        self.collisions.add(name, Collision { address, text: text.clone(), at: now });
        text
    }
}
