//! The mesh as one machine: takes inputs apart, watches the clock, and draws the conclusions from what changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::adjacency::Edge;
use super::barred::Failures;
use super::channels::Channels;
use super::collision::Collisions;
use super::dialler::{Dialler, Ending, Linked};
use super::expulsion::Suspects;
use super::link::{Due, Link};
use super::message::{Heartbeat, MAX_NICKNAME, MAX_PEERS, Message, Record};
use super::publisher::Publisher;
use super::ration::Ration;
use super::routes::Routes;
use super::topology::Topology;
use super::{Counters, Input, LinkId, Output, PeerView, Psk, Target, View, short_ids};
use crate::Time;
use crate::peer::{PeerName, PeerUid, ShortId};

/// Peers that nobody reaches are forgotten so long after a change: what comes and goes within it costs nothing.
const GARBAGE: Time = Time::from_secs(1);

/// Routes are computed at once, but not more often than this, and in a large mesh not more often than this for each peer: in a full
/// mesh of 200 it takes some 10 ms, and what follows from it as long; when a host dies or comes all others say so.
const BREATH: Time = Time::from_millis(50);
const BREATH_OF_EACH: Time = Time::from_micros(2500);

/// Who we are and how we meet others.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name, from the state directory.
    pub name: PeerName,
    /// This incarnation.
    pub uid: PeerUid,
    /// Free text, for people; control characters are left out, and what is beyond 255 bytes.
    pub nickname: String,
    /// The short id of our last incarnation, so that flows that name it stay right.
    pub short: Option<ShortId>,
    /// TCP port we accept links on (6783).
    pub port: u16,
    /// UDP port of our tunnels (6784).
    pub tunnel_port: u16,
    /// UDP port of our sleeve (6783).
    pub sleeve_port: u16,
    /// Our CPU has AES instructions.
    pub aes: bool,
    /// Our kernel can seal its tunnel.
    pub esp: bool,
    /// We take segments longer than an IPv4 packet can be off the tunnel, and may send them (BIG TCP).
    pub big_tcp: bool,
    /// The network's passwords, stretched: the first is what we dial with, all are accepted. Without any, links are in clear.
    pub passwords: Vec<Psk>,
    /// Neighbours in these may be sent frames in clear, if they say the same of us.
    pub trusted_subnets: Vec<Ipv4Net>,
    /// Dial peers that other peers are connected to.
    pub discovery: bool,
    /// Most links at a time; 0 is no limit. The default is 200.
    pub connection_limit: usize,
    /// What to dial.
    pub targets: Vec<Target>,
}

/// The control plane of one agent.
#[derive(Debug)]
pub struct Mesh {
    pub(super) config: Config,
    pub(super) rng: StdRng,
    pub(super) outputs: VecDeque<Output>,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// Our own edges, by neighbour.
    pub(super) edges: BTreeMap<PeerName, Edge>,
    /// Neighbours whose tunnel works.
    pub(super) tunnels: BTreeSet<PeerName>,
    pub(super) topology: Topology,
    /// The topology changed since routes were computed.
    pub(super) stale: bool,
    /// When they were.
    computed: Option<Time>,
    /// Links, targets or others' connections changed since the dialler looked.
    pub(super) redial: bool,
    pub(super) linked: Linked,
    pub(super) reachable: BTreeSet<PeerName>,
    /// Established edges.
    pub(super) data: Routes,
    /// Edges with a link.
    pub(super) gossip: Routes,
    pub(super) view: Option<Arc<View>>,
    pub(super) publisher: Publisher,
    pub(super) garbage: Option<Time>,
    pub(super) channels: Channels,
    pub(super) dialler: Dialler,
    pub(super) collisions: Collisions,
    /// Of who dialled us with another password.
    pub(super) failures: Failures,
    /// Neighbours that may not have the passwords any more.
    pub(super) suspects: Suspects,
    pub(super) counters: Counters,
    pub(super) ration: Ration,
}

impl Mesh {
    /// A mesh without links. `seed` is all the randomness it ever uses.
    pub fn new(mut config: Config, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        config.nickname = clean(&config.nickname);
        let short = config.short.or_else(|| short_ids::pick(&BTreeMap::new(), &mut rng)).unwrap_or(short_ids::LOWEST);
        let announce = (config.short != Some(short)).then_some(Output::ShortId(short));
        let record = Record {
            name: config.name,
            version: 1,
            uid: config.uid,
            short,
            nickname: config.nickname.clone(),
            connections: BTreeMap::new(),
        };
        let publisher = Publisher::new(&mut rng);
        Self {
            dialler: Dialler::new(std::mem::take(&mut config.targets)),
            channels: Channels::new(rng.next_u64()),
            reachable: BTreeSet::from([config.name]),
            config,
            rng,
            outputs: announce.into_iter().collect(),
            links: BTreeMap::new(),
            edges: BTreeMap::new(),
            tunnels: BTreeSet::new(),
            topology: Topology::new(record),
            stale: true,
            computed: None,
            redial: true,
            linked: Linked::default(),
            data: Routes::default(),
            gossip: Routes::default(),
            view: None,
            publisher,
            garbage: None,
            collisions: Collisions::default(),
            failures: Failures::default(),
            suspects: Suspects::default(),
            counters: Counters::default(),
            ration: Ration::default(),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Accepted { link, local, remote } => self.accepted(now, link, local, remote),
            Input::Dialled { link, local, remote } => self.dialled(now, link, local, remote),
            Input::DialFailed { remote, error } => {
                self.dialler.ended(now, remote, None, Ending::Failed, &error, &mut self.rng);
            }
            Input::Received { link, bytes } => self.received(now, link, &bytes),
            Input::Closed { link, error } => self.closed(now, link, &error),
            Input::AddressGone(address) => self.address_gone(now, address),
            Input::Connect { targets, replace } => self.retarget(|dialler| dialler.connect(now, targets, replace)),
            Input::Forget { targets } => self.retarget(|dialler| dialler.forget(&targets)),
            Input::Resolved(target) => self.retarget(|dialler| dialler.resolved(target)),
            Input::Passwords(passwords) => self.passwords(now, passwords),
            Input::Tunnel { peer, up } => self.tunnel(now, peer, up),
            Input::Broadcast { channel, payload } => self.broadcast(now, channel, payload),
            Input::Unicast { channel, to, payload } => self.unicast(now, channel, to, payload),
            Input::Tell { peer, payload } => self.tell(now, peer, payload),
            Input::Gossip { channel, payload } => self.spread(now, channel, payload),
        }
        self.settle(now);
    }

    /// Does what is due; call it when [`Mesh::poll_timeout`] says so. Harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time) {
        let due: Vec<_> = self.links.iter().filter_map(|(id, link)| Some((*id, link.due(now)?))).collect();
        for (id, due) in due {
            match due {
                Due::Heartbeat => self.send(now, id, &Message::Heartbeat(Heartbeat::Idle)),
                Due::Dead(why) => self.close(now, id, why),
            }
        }
        if self.topology.release(now) {
            self.changed(now);
        }
        if self.garbage.take_if(|at| *at <= now).is_some() {
            self.collect_garbage();
        }
        self.expel(now);
        self.ration.close(now);
        self.settle(now);
        self.publish_due(now);
    }

    /// The next thing wanted done. To be drained after every `handle` and `handle_timeout`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Mesh::handle_timeout`] wants to be called; a time that has passed means at once.
    pub fn poll_timeout(&self) -> Option<Time> {
        let links = self.links.values().filter_map(Link::deadline).min();
        let first =
            self.redial.then_some(Time::ZERO).or_else(|| self.stale.then(|| self.computed.map_or(Time::ZERO, |at| at + self.breath())));
        let dial = self.room().and_then(|_| self.dialler.deadline(&self.linked));
        let suspects = self.suspects.deadline();
        [links, first, dial, self.topology.hold_until(), self.garbage, self.publisher.deadline(), suspects].into_iter().flatten().min()
    }

    fn address_gone(&mut self, now: Time, address: Ipv4Addr) {
        let bound: Vec<_> = self.links.iter().filter(|(_, link)| *link.local.ip() == address).map(|(id, _)| *id).collect();
        for id in bound {
            self.close(now, id, &format!("our address {address} is gone"));
        }
    }

    fn retarget(&mut self, change: impl FnOnce(&mut Dialler)) {
        let before = self.dialler.targets();
        change(&mut self.dialler);
        let after = self.dialler.targets();
        self.redial = true;
        if before != after {
            self.outputs.push_back(Output::Targets(after));
        }
    }

    /// The record of somebody changed. Whom to dial is looked for when routes are, which is as much work.
    pub(super) fn changed(&mut self, now: Time) {
        self.stale = true;
        self.garbage.get_or_insert(now + GARBAGE);
    }

    fn collect_garbage(&mut self) {
        let gone = self.topology.retain(&self.topology.reachable());
        if gone.is_empty() {
            return;
        }
        for peer in &gone {
            tracing::info!(%peer, "forgot a peer that nobody reaches");
        }
        self.channels.forget(&gone);
        self.edges.retain(|peer, edge| edge.counts() || !gone.contains(peer));
        self.stale = true;
    }

    /// Draws the conclusions from whatever changed.
    fn settle(&mut self, now: Time) {
        if self.computed.is_none_or(|at| at + self.breath() <= now) {
            self.refresh_routes(now);
        }
        self.dial(now);
    }

    fn breath(&self) -> Time {
        let peers = u32::try_from(self.topology.len()).unwrap_or(u32::MAX);
        BREATH.max(BREATH_OF_EACH * peers)
    }

    /// Brings routes, view and short id in line with the topology.
    pub(super) fn refresh_routes(&mut self, now: Time) {
        // A lost short id changes our record, which is a change itself; the new one is free, so there is no third turn.
        while std::mem::take(&mut self.stale) {
            self.recompute(now);
            self.keep_short_id(now);
        }
    }

    fn recompute(&mut self, now: Time) {
        self.computed = Some(now);
        let reachable = self.topology.reachable();
        self.publisher.reached(now, &self.reachable, &reachable);
        self.reachable = reachable;
        self.redial = true;
        self.data = Routes::new(&self.topology.data_graph(), self.config.name);
        self.gossip = Routes::new(&self.topology.gossip_graph(), self.config.name);
        let view = self.make_view();
        if self.view.as_deref() != Some(&view) {
            let view = Arc::new(view);
            self.view = Some(Arc::clone(&view));
            self.outputs.push_back(Output::View(view));
        }
    }

    fn owners(&self) -> BTreeMap<ShortId, PeerName> {
        short_ids::owners(self.topology.records().map(|record| (record.name, record.short)))
    }

    fn make_view(&self) -> View {
        let owners = self.owners();
        let others = self.topology.records().filter(|record| record.name != self.config.name);
        let peer = |record: &Record| {
            let branch = self.data.branches.get(&record.name);
            let view = PeerView {
                nickname: record.nickname.clone(),
                short: Some(record.short).filter(|short| owners.get(short) == Some(&record.name)),
                next_hop: self.data.next_hops.get(&record.name).copied(),
                linked: self.gossip.next_hops.contains_key(&record.name),
                parent: branch.and_then(|branch| branch.parent),
                hops: branch.map(|branch| branch.hops.clone()).unwrap_or_default(),
            };
            (record.name, view)
        };
        let hops = self.data.hops(self.config.name).to_vec();
        View { name: self.config.name, short: self.topology.me().short, peers: others.map(peer).collect(), hops }
    }

    fn keep_short_id(&mut self, now: Time) {
        let (owners, short) = (self.owners(), self.topology.me().short);
        if owners.get(&short) == Some(&self.config.name) {
            return;
        }
        // With all 4,096 taken we stay without one until a peer is forgotten.
        let Some(new) = short_ids::pick(&owners, &mut self.rng) else { return };
        tracing::info!(%short, %new, "a peer with a lower name has our short id: taking another");
        self.edit_me(now, |me| me.short = new);
        self.outputs.push_back(Output::ShortId(new));
    }

    /// Changes our own record and tells everyone.
    pub(super) fn edit_me(&mut self, now: Time, edit: impl FnOnce(&mut Record)) {
        self.topology.edit_me(edit);
        self.publisher.own_changed(now);
        self.changed(now);
    }

    /// How many more links we may have; `None` if no more.
    fn room(&self) -> Option<usize> {
        let limit = if self.config.connection_limit == 0 { MAX_PEERS } else { self.config.connection_limit };
        let links = self.links.values().filter(|link| link.outbound || link.peer().is_some()).count();
        limit.checked_sub(links + self.dialler.dialling()).filter(|room| *room > 0)
    }

    fn dial(&mut self, now: Time) {
        if std::mem::take(&mut self.redial) {
            self.linked = self.linked();
            let discovered = if self.config.discovery { self.discover(now) } else { BTreeMap::new() };
            self.dialler.refresh(now, discovered);
        }
        let Some(room) = self.room() else { return };
        let addresses = self.dialler.dial(now, &self.linked, room);
        self.outputs.extend(addresses.into_iter().map(Output::Dial));
    }
}

fn clean(nickname: &str) -> String {
    let mut text: String = nickname.chars().filter(|c| !c.is_control()).collect();
    text.truncate(text.floor_char_boundary(MAX_NICKNAME));
    text
}

/// A number that names a connection: its end's half.
pub(super) fn connection_id(rng: &mut StdRng) -> u64 {
    rng.random()
}
