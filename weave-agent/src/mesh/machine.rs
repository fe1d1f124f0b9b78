//! The machine: takes inputs, keeps time, says outputs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::dialler::{Dialler, End, World};
use super::link::{HEARTBEAT, Link, State};
use super::message::{self, Hello, MAX_NICKNAME, MAX_PEERS, Message, Reject, kind};
use super::status::Counters;
use super::topology::{Edge, PeerRecord, Topology};
use super::{Input, LinkId, Output, Target, View, routes, short_ids};
use crate::Time;
use crate::peer::{PeerName, PeerUid, ShortId};

/// Local changes wait so long for others.
const ANNOUNCE: Duration = Duration::from_millis(10);
/// Between full states to all neighbours.
const FULL: Duration = Duration::from_secs(30);
/// Connections accepted whose handshake is not done.
const MAX_PENDING: usize = 64;
/// Discovered addresses considered.
const MAX_DISCOVERED: usize = 2 * MAX_PEERS;

/// What a mesh is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name, from the state directory.
    pub name: PeerName,
    /// Random at every start.
    pub uid: PeerUid,
    /// Free text, for people.
    pub nickname: String,
    /// From the state directory; chosen if there is none.
    pub short: Option<ShortId>,
    /// Where we accept links, and what addresses without a port mean.
    pub port: u16,
    /// UDP port of our tunnels.
    pub tunnel_port: u16,
    /// Whether to dial peers' peers.
    pub discovery: bool,
    /// The most links; 0 for no limit.
    pub connection_limit: usize,
    /// What to dial.
    pub targets: Vec<Target>,
}

/// The control plane of one agent.
#[derive(Debug)]
pub struct Mesh {
    pub(super) config: Config,
    pub(super) rng: StdRng,
    pub(super) now: Time,
    pub(super) short: ShortId,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// The one link in use with each neighbour.
    pub(super) neighbours: BTreeMap<PeerName, LinkId>,
    /// Neighbours whose tunnels work, as we were told last.
    pub(super) tunnels: BTreeSet<PeerName>,
    pub(super) topology: Topology,
    pub(super) dialler: Dialler,
    pub(super) seen: super::gossip::Seen,
    pub(super) impostors: super::gossip::Impostors,
    pub(super) collisions: super::handshake::Collisions,
    pub(super) counters: Counters,
    pub(super) outputs: VecDeque<Output>,
    pub(super) view: Option<Arc<View>>,
    pub(super) announce_at: Option<Time>,
    full_at: Time,
    started: bool,
    /// The topology or our neighbours changed.
    pub(super) dirty: bool,
    /// Something that decides whom to dial changed.
    pub(super) redial: bool,
}

impl Mesh {
    /// A mesh of one.
    pub fn new(mut config: Config, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let mut outputs = VecDeque::new();
        let mut end = config.nickname.len().min(MAX_NICKNAME);
        while !config.nickname.is_char_boundary(end) {
            end -= 1;
        }
        config.nickname.truncate(end);
        let chosen = config.short.or_else(|| short_ids::choose(&mut rng, &BTreeMap::new()));
        // With no claims at all one is always free.
        let short = chosen.or(ShortId::new(0)).unwrap_or_else(|| unreachable!("0 fits 12 bits"));
        if config.short.is_none() {
            outputs.push_back(Output::ShortId(short));
        }
        let own = PeerRecord {
            name: config.name,
            nickname: config.nickname.clone(),
            uid: config.uid,
            version: 1,
            short: Some(short),
            connections: BTreeMap::new(),
        };
        let mut mesh = Self {
            dialler: Dialler::new(config.port, std::mem::take(&mut config.targets)),
            topology: Topology::new(own),
            config,
            rng,
            now: Time::ZERO,
            short,
            links: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            tunnels: BTreeSet::new(),
            seen: super::gossip::Seen::default(),
            impostors: super::gossip::Impostors::default(),
            collisions: super::handshake::Collisions::default(),
            counters: Counters::default(),
            outputs,
            view: None,
            announce_at: None,
            full_at: FULL,
            started: false,
            dirty: true,
            redial: true,
        };
        mesh.update_view();
        mesh
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.now = now;
        match input {
            Input::Accepted { link, local, remote } => self.accepted(now, link, local, remote),
            Input::Dialled { link, local, remote } => self.open(now, link, local, remote, true),
            Input::DialFailed { remote, error } => {
                self.counters.dials_failed += 1;
                self.dialler.ended(now, &mut self.rng, remote, End::Failed, &error, None);
                self.redial = true;
            }
            Input::Received { link, bytes } => self.received(now, link, &bytes),
            Input::Closed { link, error } => self.ended(now, link, End::Failed, &error),
            Input::AddressGone(address) => {
                let bound: Vec<LinkId> = self.links.iter().filter(|(_, link)| *link.local.ip() == address).map(|(id, _)| *id).collect();
                for id in bound {
                    self.close(now, id, End::Failed, &format!("our address {address} is gone"));
                }
            }
            Input::Connect { targets, replace } => self.change_targets(|dialler| dialler.connect(targets, replace)),
            Input::Forget { targets } => self.change_targets(|dialler| dialler.forget(&targets)),
            Input::Resolved(target) => self.change_targets(|dialler| dialler.resolved(target)),
            Input::Tunnel { peer, up } => {
                if up {
                    self.tunnels.insert(peer);
                } else {
                    self.tunnels.remove(&peer);
                }
                self.update_edge(now, peer);
            }
            Input::Broadcast { channel, payload } => self.broadcast(channel, &payload),
        }
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        self.started = true;
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        for id in ids {
            self.link_timeout(now, id);
        }
        if self.topology.handle_timeout(now) {
            self.dirty = true;
        }
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            let own = self.topology.get(self.config.name).cloned();
            self.gossip(own, None);
        }
        if self.full_at <= now {
            self.full_at = now + FULL;
            let all: Vec<PeerRecord> = self.topology.records().cloned().collect();
            self.gossip(all, None);
        }
        self.redial |= self.dialler.attempts().any(|(_, attempt)| attempt.is_due(now));
        self.settle(now);
    }

    /// What the mesh wants done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Mesh::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        if !self.started {
            return Some(Time::ZERO);
        }
        let links = self.links.values().map(|link| match link.state {
            State::Handshake => link.deadline(),
            _ => link.deadline().min(link.heartbeat),
        });
        links
            .chain(self.topology.poll_timeout())
            .chain(self.announce_at)
            .chain([self.full_at])
            .chain(self.dialler.poll_timeout(self.now))
            .min()
    }

    fn change_targets(&mut self, change: impl FnOnce(&mut Dialler)) {
        let before = self.dialler.names();
        change(&mut self.dialler);
        let after = self.dialler.names();
        if before != after {
            self.outputs.push_back(Output::Targets(after));
        }
        self.redial = true;
    }

    fn accepted(&mut self, now: Time, link: LinkId, local: SocketAddrV4, remote: SocketAddrV4) {
        self.counters.accepted += 1;
        if self.links.values().filter(|link| link.up().is_none() && !link.outbound).count() >= MAX_PENDING {
            self.counters.too_many_handshakes += 1;
            self.outputs.push_back(Output::Close { link });
            return;
        }
        self.open(now, link, local, remote, false);
    }

    fn open(&mut self, now: Time, id: LinkId, local: SocketAddrV4, remote: SocketAddrV4, outbound: bool) {
        let connection = self.rng.next_u64();
        self.links.insert(id, Link::new(now, local, remote, outbound, connection));
        self.outputs.push_back(Output::Send { link: id, bytes: Bytes::copy_from_slice(&message::header()) });
        let hello = Hello {
            name: self.config.name,
            uid: self.config.uid,
            nickname: self.config.nickname.clone(),
            short: self.short,
            connection,
            port: self.config.port,
            tunnel_port: self.config.tunnel_port,
        };
        self.send(id, &Message::Hello(hello));
    }

    pub(super) fn send(&mut self, link: LinkId, message: &Message) {
        if let Some(bytes) = message.frame() {
            self.outputs.push_back(Output::Send { link, bytes });
        }
    }

    fn received(&mut self, now: Time, id: LinkId, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.heard = now;
        link.decoder.push(bytes);
        self.heard_from_neighbour(now, id);
        self.drain(now, id);
    }

    /// Handles what a link has to say, until it ends or is parked.
    pub(super) fn drain(&mut self, now: Time, id: LinkId) {
        loop {
            let Some(link) = self.links.get_mut(&id) else { return };
            if matches!(link.state, State::Parked { .. }) {
                if link.decoder.waiting() > message::MAX_FRAME {
                    self.garbage(now, id, &message::Garbage::Flooded);
                }
                return;
            }
            let up = link.up().is_some();
            let next = link.decoder.next();
            let result = match next {
                Ok(None) => return,
                Err(garbage) => Err(garbage),
                Ok(Some(message)) => match message {
                    Message::Hello(_) if up => Err(message::Garbage::SecondHello),
                    Message::Hello(hello) => {
                        self.hello(now, id, hello);
                        Ok(())
                    }
                    Message::Reject(reject) => {
                        self.rejected(now, id, &reject);
                        Ok(())
                    }
                    message if !up => Err(message::Garbage::TooEarly(message.name())),
                    Message::Heartbeat => Ok(()),
                    Message::Topology(records) => {
                        self.learn(now, id, records);
                        Ok(())
                    }
                    Message::Broadcast(broadcast) => {
                        self.relay(id, broadcast);
                        Ok(())
                    }
                },
            };
            if let Err(garbage) = result {
                self.garbage(now, id, &garbage);
            }
        }
    }

    fn garbage(&mut self, now: Time, id: LinkId, garbage: &message::Garbage) {
        *self.counters.garbage.entry(garbage.name()).or_default() += 1;
        self.close(now, id, End::Failed, &garbage.to_string());
    }

    fn link_timeout(&mut self, now: Time, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.deadline() <= now {
            match link.state {
                State::Handshake => {
                    self.counters.slow_handshakes += 1;
                    self.close(now, id, End::Failed, "no hello in time");
                }
                State::Parked { .. } => self.replace_silent(now, id),
                State::Up { .. } => {
                    self.counters.silent += 1;
                    self.close(now, id, End::Failed, "silent for too long");
                }
            }
            return;
        }
        if link.heartbeat <= now && !matches!(link.state, State::Handshake) {
            link.heartbeat = now + HEARTBEAT;
            self.send(id, &Message::Heartbeat);
        }
    }

    /// Closes a link and says why if the other end should know.
    pub(super) fn reject(&mut self, now: Time, id: LinkId, kind: u8, reason: &str) {
        let end = match kind {
            kind::COLLISION => End::Collision,
            kind::OURSELVES => End::Ourselves,
            kind::DUPLICATE => End::Duplicate,
            _ => End::Failed,
        };
        self.send(id, &Message::Reject(Reject { kind, reason: reason.to_owned() }));
        self.close(now, id, end, reason);
    }

    pub(super) fn close(&mut self, now: Time, id: LinkId, end: End, error: &str) {
        if self.links.contains_key(&id) {
            self.outputs.push_back(Output::Close { link: id });
            self.ended(now, id, end, error);
        }
    }

    fn ended(&mut self, now: Time, id: LinkId, end: End, error: &str) {
        let Some(link) = self.links.remove(&id) else { return };
        let peer = link.up().map(|hello| hello.name);
        if link.outbound {
            let known = match &link.state {
                State::Up { hello } | State::Parked { hello, .. } => Some(hello.name),
                State::Handshake => None,
            };
            self.dialler.ended(now, &mut self.rng, link.remote, end, error, known);
        }
        self.redial = true;
        if let Some(peer) = peer.filter(|peer| self.neighbours.get(peer) == Some(&id)) {
            self.neighbours.remove(&peer);
            self.counters.links_down += 1;
            self.outputs.push_back(Output::LinkDown { peer });
            self.update_edge(now, peer);
        }
    }

    /// Makes our edge to `peer` what link and tunnel say.
    pub(super) fn update_edge(&mut self, now: Time, peer: PeerName) {
        let established = self.tunnels.contains(&peer);
        let link = self.neighbours.get(&peer).and_then(|id| self.links.get(id));
        let linked = link.and_then(|link| {
            let hello = link.up()?;
            Some(Edge { address: link.listens_at(hello), outbound: link.outbound, established, linked: true })
        });
        let changed = self.topology.change_own(now, |own| {
            let earlier = own.connections.get(&peer).copied();
            let edge = linked.or_else(|| earlier.filter(|_| established).map(|edge| Edge { linked: false, established, ..edge }));
            match edge {
                Some(edge) => own.connections.insert(peer, edge),
                None => own.connections.remove(&peer),
            };
            edge != earlier
        });
        if changed {
            self.announce(now);
        }
    }

    /// Tells all neighbours about ourselves, soon.
    pub(super) fn announce(&mut self, now: Time) {
        self.announce_at.get_or_insert(now + ANNOUNCE);
        self.dirty = true;
    }

    /// Draws the consequences.
    fn settle(&mut self, now: Time) {
        self.unpark(now);
        if std::mem::take(&mut self.dirty) {
            self.arbitrate(now);
            self.dirty = false;
            self.update_view();
            self.redial = true;
        }
        if self.started && std::mem::take(&mut self.redial) {
            self.dial(now);
        }
    }

    /// Gives way if our short id is another's.
    fn arbitrate(&mut self, now: Time) {
        let owners = short_ids::owners(self.topology.records());
        if owners.get(&self.short) == Some(&self.config.name) {
            return;
        }
        let Some(short) = short_ids::choose(&mut self.rng, &owners) else { return };
        self.short = short;
        self.topology.change_own(now, |own| {
            own.short = Some(short);
            true
        });
        self.outputs.push_back(Output::ShortId(short));
        self.announce(now);
    }

    fn update_view(&mut self) {
        let view = routes::view(&self.topology, self.config.name, self.short);
        if self.view.as_deref() != Some(&view) {
            let view = Arc::new(view);
            self.view = Some(view.clone());
            self.counters.views += 1;
            self.outputs.push_back(Output::View(view));
        }
    }

    fn dial(&mut self, now: Time) {
        let linked: BTreeSet<PeerName> = self.neighbours.keys().copied().collect();
        let addresses: BTreeSet<SocketAddrV4> =
            self.links.values().filter_map(|link| link.up().map(|hello| link.listens_at(hello))).collect();
        let discovered = if self.config.discovery { self.discovered() } else { BTreeSet::new() };
        let room = match self.config.connection_limit {
            0 => usize::MAX,
            limit => limit.saturating_sub(self.neighbours.len()),
        };
        let world = World { linked: &linked, addresses: &addresses, discovered: &discovered, room };
        for address in self.dialler.dial(now, &world) {
            self.counters.dials += 1;
            self.outputs.push_back(Output::Dial(address));
        }
    }

    /// Where peers that are not our neighbours listen, as others say.
    fn discovered(&self) -> BTreeSet<SocketAddrV4> {
        let mut discovered = BTreeSet::new();
        for record in self.topology.records() {
            for (name, edge) in &record.connections {
                if *name != self.config.name && !self.neighbours.contains_key(name) && discovered.len() < MAX_DISCOVERED {
                    discovered.insert(self.dialler.complete(edge.address));
                }
            }
        }
        discovered
    }

    /// A random number for a broadcast.
    pub(super) fn random_id(&mut self) -> u64 {
        self.rng.random()
    }
}
