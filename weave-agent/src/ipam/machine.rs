//! The replica as one machine: dispatch, and what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::asks::{Goal, Want};
use super::block::Block;
use super::exchange::Exchange;
use super::outbox::Outbox;
use super::requests::Pending;
use super::ring::Ring;
use super::snapshot::{Snapshot, SnapshotError, store};
use super::space::Space;
use super::status::{Conflict, Counters, Foreign};
use super::votes::Votes;
use super::{Config, Init, Input, Output};
use crate::Time;
use crate::mesh::{PeerView, View};
use crate::peer::PeerName;

/// This host's replica. Pure: effects come out of [`poll_output`](Self::poll_output), time is an argument.
#[derive(Debug)]
pub struct Ipam {
    pub(super) config: Config,
    pub(super) rng: StdRng,
    pub(super) view: Option<Arc<View>>,
    /// Hosts we were told of.
    pub(super) targets: usize,
    /// One per range.
    pub(super) spaces: Vec<Space>,
    /// From whom the first ring was made; empty if there is none.
    pub(super) seeds: Vec<PeerName>,
    /// Addresses in use here.
    pub(super) owned: BTreeMap<String, Vec<ipnet::IpNet>>,
    /// The same the other way round.
    pub(super) users: BTreeMap<IpAddr, String>,
    /// Those of them that lie in other peers' space.
    pub(super) displaced: BTreeSet<IpAddr>,
    /// Those of them that others use too, or may.
    pub(super) conflicts: BTreeMap<IpAddr, Conflict>,
    pub(super) nicknames: BTreeMap<PeerName, String>,
    pub(super) votes: Votes,
    /// When to begin or repeat a ballot (or, as an observer, to ask for one).
    pub(super) ballot: Option<Time>,
    /// Somebody else wants a ring.
    pub(super) urged: bool,
    /// Replicas heard since they came into reach, and whether they have no vote.
    pub(super) heard: BTreeMap<PeerName, bool>,
    /// Since when peers are in reach.
    pub(super) reached: BTreeMap<PeerName, Time>,
    /// We go on from a snapshot with a ring, whose owners we have not met yet.
    pub(super) resumed: bool,
    /// When it was that we began.
    pub(super) began: Option<Time>,
    /// Until when our own space waits for other owners' word.
    pub(super) held: Option<Time>,
    /// Until when peers that have just come into reach may still bring news.
    pub(super) expected: Option<Time>,
    /// Bits of their numbers of free addresses, by range.
    pub(super) levels: BTreeMap<PeerName, Vec<u8>>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) wants: BTreeMap<Goal, Want>,
    pub(super) next_ask: u64,
    /// Peers that are gone for good, as somebody said, and until when that is believed.
    pub(super) removals: BTreeMap<PeerName, Time>,
    pub(super) exchange: Option<Exchange>,
    /// Addresses (range by index) that others use, in our quarantined space or in that of peers to be removed.
    pub(super) reserved: BTreeMap<(usize, u128), PeerName>,
    /// Our own free space is not believed to be.
    pub(super) quarantined: bool,
    /// Whom to tell our state, and when.
    pub(super) owed: BTreeMap<PeerName, Time>,
    /// When to tell everybody; `None` if there is no news.
    pub(super) announce: Option<Time>,
    /// When everybody was told last.
    pub(super) announced: Option<Time>,
    /// When to gossip next; `None` before the first input.
    pub(super) gossip: Option<Time>,
    pub(super) foreign: BTreeMap<PeerName, Foreign>,
    /// Why the snapshot was not used.
    pub(super) discarded: Option<SnapshotError>,
    /// Requests may have become possible (or hopeless).
    pub(super) stirred: bool,
    pub(super) left: bool,
    pub(super) counters: Counters,
    pub(super) out: Outbox,
}

impl Ipam {
    /// A replica that goes on from a snapshot, if it can. `config` must be [checked](Config::checked), `seed` is all the
    /// randomness it ever uses.
    pub fn new(config: Config, snapshot: Option<Snapshot>, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let spaces = config.ranges.iter().map(|range| Space::new(*range, config.subnet(*range))).collect();
        let mut ipam = Self {
            next_ask: rng.random(),
            rng,
            view: None,
            targets: 0,
            spaces,
            seeds: Vec::new(),
            owned: BTreeMap::new(),
            users: BTreeMap::new(),
            displaced: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            nicknames: BTreeMap::new(),
            votes: Votes::default(),
            ballot: None,
            urged: false,
            heard: BTreeMap::new(),
            reached: BTreeMap::new(),
            resumed: false,
            began: None,
            held: None,
            expected: None,
            levels: BTreeMap::new(),
            pending: BTreeMap::new(),
            wants: BTreeMap::new(),
            removals: BTreeMap::new(),
            exchange: None,
            reserved: BTreeMap::new(),
            quarantined: false,
            owed: BTreeMap::new(),
            announce: None,
            announced: None,
            gossip: None,
            foreign: BTreeMap::new(),
            discarded: None,
            stirred: false,
            left: false,
            counters: Counters::default(),
            out: Outbox::default(),
            config,
        };
        ipam.begin(snapshot);
        ipam
    }

    fn begin(&mut self, snapshot: Option<Snapshot>) {
        if let Some(snapshot) = snapshot {
            match snapshot.rings(self.config.name, &self.config.ranges) {
                Ok(rings) => self.restore(snapshot, rings),
                Err(error) => {
                    tracing::warn!(%error, "the stored address state cannot be used: starting without");
                    self.discarded = Some(error);
                }
            }
        }
        let seeds = match &self.config.init {
            Init::Seed(seeds) if !self.has_ring() => seeds.clone(),
            _ => return,
        };
        self.found(&seeds);
    }

    fn restore(&mut self, snapshot: Snapshot, rings: Vec<Ring>) {
        for (owner, addresses) in snapshot.owned {
            for address in addresses {
                self.record(&owner, address);
            }
        }
        self.nicknames = snapshot.nicknames.into_iter().collect();
        if let Some(vote) = snapshot.vote {
            self.votes.merge(self.config.name, vote);
        }
        self.config.trusted &= !snapshot.quarantined;
        if !rings.is_empty() {
            self.resumed = true;
            self.seeds = snapshot.seeds;
            self.adopt(rings);
        }
    }

    /// The first rings we see, wherever they come from.
    pub(super) fn adopt(&mut self, rings: Vec<Ring>) {
        let me = self.config.name;
        for (space, ring) in self.spaces.iter_mut().zip(rings) {
            space.ring = Some(ring);
        }
        if !self.config.trusted && self.owners().iter().any(|owner| *owner != me) {
            self.quarantined = true;
            self.spaces.iter_mut().for_each(|space| space.fresh = Some(Vec::new()));
            self.compare_notes();
        }
        self.ring_changed();
    }

    /// Takes in what happened; what follows from it comes out of [`poll_output`](Self::poll_output).
    pub fn handle(&mut self, now: Time, input: Input) {
        self.hold(now);
        match input {
            Input::Allocate { request, owner, subnets, deadline } => self.allocate(now, request, owner, subnets, deadline),
            Input::Claim { request, owner, address, deadline } => self.claim(now, request, owner, address, deadline),
            Input::Free { owner } => self.free(&owner),
            Input::FreeAddress { owner, address } => self.free_address(&owner, address),
            Input::Reconcile { present } => self.reconcile(present),
            Input::Remove { request, peer, deadline } => self.remove(now, request, peer, deadline),
            Input::Leave { request, deadline } => self.leave(request, deadline),
            Input::Prime { request, deadline } => self.prime(now, request, deadline),
            Input::View(view) => self.view_changed(now, view),
            Input::Targets(count) => self.targets = count,
            Input::Delivered { from, payload } => self.delivered(now, from, &payload),
            Input::Stored(number) => self.out.stored(number),
        }
        self.settle(now);
    }

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; earlier or later does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.settle(now);
    }

    /// The next thing to do, in order. To be drained after every `handle` and `handle_timeout`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; a time that has passed means at once.
    pub fn poll_timeout(&self) -> Option<Time> {
        let pending = self.pending.values().map(|pending| pending.hopes.unwrap_or(pending.deadline).min(pending.deadline));
        let wants = self.wants.values().map(Want::due);
        let exchange = self.exchange.as_ref().map(|exchange| exchange.due);
        let single = [self.held, self.expected, self.ballot, self.announce, self.gossip, exchange, self.out.deadline()];
        pending.chain(wants).chain(self.owed.values().copied()).chain(single.into_iter().flatten()).min()
    }

    /// Does what follows from whatever happened, and what is due.
    fn settle(&mut self, now: Time) {
        self.hold(now);
        self.agree(now);
        self.conclude(now);
        self.expire(now);
        if std::mem::take(&mut self.stirred) {
            self.advance();
        }
        self.pursue(now);
        self.speak(now);
        self.out.expire(now);
        self.commit();
    }

    /// Hands out a snapshot if one is due.
    fn commit(&mut self) {
        if let Some(number) = self.out.due() {
            self.counters.stores += 1;
            let snapshot = Arc::new(self.snapshot());
            self.out.store(Output::Store { number, snapshot });
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            name: Some(self.config.name),
            ranges: self.config.ranges.clone(),
            seeds: self.seeds.clone(),
            rings: self.spaces.iter().filter_map(|space| Some(store(space.family, space.ring.as_ref()?))).collect(),
            owned: self.owned.clone(),
            nicknames: self.nicknames.clone().into_iter().collect(),
            quarantined: self.quarantined,
            vote: if self.has_ring() { None } else { self.votes.of(self.config.name).cloned() },
        }
    }

    pub(super) fn has_ring(&self) -> bool {
        self.spaces.iter().all(|space| space.ring.is_some())
    }

    /// The rings, if there are any.
    pub(super) fn rings(&self) -> impl Iterator<Item = &Ring> + Clone {
        self.spaces.iter().filter_map(|space| space.ring.as_ref())
    }

    /// All peers that own something, ourselves included.
    pub(super) fn owners(&self) -> BTreeSet<PeerName> {
        self.rings().flat_map(Ring::owners).collect()
    }

    pub(super) fn reachable(&self, peer: PeerName) -> bool {
        self.seen(peer).is_some_and(PeerView::answers)
    }

    pub(super) fn seen(&self, peer: PeerName) -> Option<&PeerView> {
        self.view.as_ref()?.peers.get(&peer)
    }

    /// Some time up to `limit`, so that not all do the same thing at the same time.
    pub(super) fn jitter(&mut self, limit: Time) -> Time {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Time::from_millis(self.rng.random_range(0..=millis))
    }

    /// The range (by index) that an address is in.
    pub(super) fn space_of(&self, address: IpAddr) -> Option<usize> {
        self.spaces.iter().position(|space| space.contains(address))
    }

    /// The range (by index) that has addresses in common with a subnet, and which.
    pub(super) fn part_of(&self, subnet: ipnet::IpNet) -> Option<(usize, Block)> {
        let index = self.spaces.iter().position(|space| super::config::overlap(space.range, subnet))?;
        let part = Block::hosts(subnet).and(self.spaces[index].block());
        Some((index, part)).filter(|_| !part.is_empty())
    }
}
