//! The replica as one machine: dispatch, timers, output queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::entry::{Key, MAX_VERSION, Owner, Value};
use super::name::{Domain, Name};
use super::replica::Replica;
use super::status::{Counters, EntryStatus, Status};
use super::zone::Zone;
use super::{Config, Input, Kept, Output};
use crate::Time;
use crate::mesh::View;
use crate::peer::PeerName;

/// Changes this close together go in one message; zones are at least so far apart.
pub(super) const BATCH: Time = Time::from_millis(20);
/// Making a zone takes some time per entry: a large one is made less often, so that it never takes more than a small part of a core.
const ZONE_PER_ENTRY: Time = Time::from_micros(10);
/// Between two times that everything is told.
const FULL: Time = Time::from_secs(30);
/// Between looks at tombstones and strangers.
const SWEEP: Time = Time::from_secs(60);

/// The name store of one peer. Pure: effects come out of [`poll_output`](Self::poll_output), time is an argument.
#[derive(Debug)]
pub struct Dns {
    pub(super) config: Config,
    pub(super) view: Option<Arc<View>>,
    pub(super) replica: Replica,
    /// Entries of ours from before a restart, as others told: alive until [`Input::Settled`] unless registered again.
    pub(super) inherited: BTreeSet<Key>,
    /// When that is at the latest; `None` once it was.
    pub(super) settles: Option<Time>,
    /// Origins that have entries and are not in the mesh, and since when.
    pub(super) strangers: BTreeMap<PeerName, Time>,
    /// Ours that changed, and what was learned from a state: not told yet.
    pub(super) delta: BTreeSet<Key>,
    pub(super) news: BTreeSet<Key>,
    /// What somebody has missed.
    pub(super) insisted: BTreeSet<Key>,
    pub(super) tell: Option<Time>,
    /// When to make the next zone, and when the last one was made.
    zone: Option<Time>,
    made: Option<Time>,
    answered: Option<Arc<Zone>>,
    full: Time,
    sweep: Time,
    pub(super) started: Option<Time>,
    /// What the last [`Output::Keep`] said, and what of it is in another domain.
    kept: Vec<Kept>,
    unserved: Vec<Kept>,
    pub(super) counters: Counters,
    pub(super) out: VecDeque<Output>,
}

impl Dns {
    /// A replica that knows what was kept, and nobody. Its [`grace`](Config::grace) begins with the first input.
    pub fn new(config: Config) -> Self {
        Self {
            view: None,
            replica: Replica::default(),
            inherited: BTreeSet::new(),
            settles: None,
            strangers: BTreeMap::new(),
            delta: BTreeSet::new(),
            news: BTreeSet::new(),
            insisted: BTreeSet::new(),
            tell: None,
            zone: None,
            made: None,
            answered: None,
            full: Time::ZERO,
            sweep: Time::ZERO,
            started: None,
            kept: Vec::new(),
            unserved: Vec::new(),
            counters: Counters::default(),
            out: VecDeque::new(),
            config,
        }
    }

    /// What names are in: [`Domain::qualify`] makes the names that inputs want.
    pub fn domain(&self) -> &Domain {
        &self.config.domain
    }

    /// Takes in what happened; what follows from it comes out of [`poll_output`](Self::poll_output).
    pub fn handle(&mut self, now: Time, input: Input) {
        self.start(now);
        match input {
            Input::Register { owner, name, addresses } => self.register(now, &owner, &name, &addresses),
            Input::Unregister { owner, name, address } => self.unregister(now, owner.as_ref(), name.as_ref(), address),
            Input::Settled => self.settle(now),
            Input::View(view) => self.view_changed(now, view),
            Input::Delivered { from, payload } => self.delivered(now, from, &payload),
        }
    }

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; earlier or later does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.start(now);
        if self.settles.is_some_and(|settles| settles <= now) {
            self.settle(now);
        }
        if self.sweep <= now {
            self.sweep = now + SWEEP;
            self.counters.expired += self.replica.expire(now) as u64;
            self.forget_strangers(now);
        }
        if self.tell.is_some_and(|due| due <= now) {
            self.tell = None;
            self.tell_changes(now);
        }
        if self.full <= now {
            self.full = now + FULL;
            for payload in self.everything(now) {
                self.send(Output::Gossip(payload));
            }
        }
        if self.zone.is_some_and(|due| due <= now) {
            self.zone = None;
            self.made = Some(now);
            self.make_zone();
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None` before the first input.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timers = [self.settles, self.tell, self.zone, Some(self.full), Some(self.sweep)];
        self.started.and(timers.into_iter().flatten().min())
    }

    /// For people.
    pub fn status(&self) -> Status {
        let entries = self.replica.iter().map(|(key, held)| EntryStatus {
            name: key.name.clone(),
            address: key.address,
            owner: key.owner.clone(),
            origin: key.origin,
            nickname: self.peer(key.origin).map(|peer| peer.nickname.clone()).unwrap_or_default(),
            version: held.value.version,
            dead: held.value.dead,
            reachable: self.reaches(key.origin),
        });
        Status { domain: self.config.domain.clone(), ttl: self.config.ttl, entries: entries.collect(), counters: self.counters }
    }

    fn start(&mut self, now: Time) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(now);
        self.settles = Some(now + self.config.grace);
        self.full = now + FULL;
        self.sweep = now + SWEEP;
        self.zone = Some(now);
        for kept in std::mem::take(&mut self.config.kept) {
            self.restore(now, kept);
        }
        self.kept = self.by_hand();
    }

    fn restore(&mut self, now: Time, kept: Kept) {
        match self.config.domain.qualify(&kept.name) {
            Ok(name) => self.add(now, &Owner::external(), &name, &[kept.address]),
            // It was added under another --dns-domain, and may be wanted under that again.
            Err(error) => {
                tracing::warn!(%error, "a name that was added by hand is not served");
                self.unserved.push(kept);
            }
        }
    }

    fn register(&mut self, now: Time, owner: &Owner, name: &Name, addresses: &[IpAddr]) {
        self.add(now, owner, name, addresses);
        self.keep();
    }

    fn add(&mut self, now: Time, owner: &Owner, name: &Name, addresses: &[IpAddr]) {
        for address in addresses {
            let key = Key { origin: self.config.name, name: name.clone(), address: *address, owner: owner.clone() };
            self.inherited.remove(&key);
            match self.replica.get(&key) {
                Some(value) if !value.dead => {}
                value => self.decide(now, key, value.map_or(0, |value| value.version + 1), false),
            }
        }
    }

    fn unregister(&mut self, now: Time, owner: Option<&Owner>, name: Option<&Name>, address: Option<IpAddr>) {
        let ours = self.ours().filter(|key| owner.is_none_or(|owner| *owner == key.owner));
        let ours = ours.filter(|key| name.is_none_or(|name| *name == key.name));
        let dead: Vec<Key> = ours.filter(|key| address.is_none_or(|address| address == key.address)).cloned().collect();
        self.kill(now, dead);
        self.keep();
    }

    fn settle(&mut self, now: Time) {
        self.settles = None;
        let dead = std::mem::take(&mut self.inherited);
        self.counters.corrected += dead.len() as u64;
        self.kill(now, dead);
        self.keep();
    }

    /// Live entries of ours.
    fn ours(&self) -> impl Iterator<Item = &Key> {
        self.replica.live().filter(|key| key.origin == self.config.name)
    }

    fn kill(&mut self, now: Time, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.inherited.remove(&key);
            let version = self.replica.get(&key).map_or(0, |value| value.version + 1);
            self.decide(now, key, version, true);
        }
    }

    /// An entry of ours is so from now on, whatever others think.
    pub(super) fn decide(&mut self, now: Time, key: Key, version: u64, dead: bool) {
        self.replica.set(now, key.clone(), Value { version: version.min(MAX_VERSION), dead });
        self.delta.insert(key);
        self.tell.get_or_insert(now + BATCH);
        self.renew(now);
    }

    /// The zone is out of date: there is another at once, unless the last one is too young.
    pub(super) fn renew(&mut self, now: Time) {
        let entries = u32::try_from(self.replica.iter().len()).unwrap_or(u32::MAX);
        let rested = self.made.map_or(now, |made| made + BATCH + ZONE_PER_ENTRY * entries);
        self.zone.get_or_insert(rested.max(now));
    }

    fn by_hand(&self) -> Vec<Kept> {
        let external = Owner::external();
        let inherited = |key: &Key| self.inherited.contains(key);
        let ours = self.ours().filter(|key| key.owner == external && !inherited(key));
        let served = ours.map(|key| Kept { name: key.name.as_str().to_owned(), address: key.address });
        served.chain(self.unserved.iter().cloned()).collect()
    }

    fn keep(&mut self) {
        let kept = self.by_hand();
        if kept != self.kept {
            self.kept.clone_from(&kept);
            self.out.push_back(Output::Keep(kept));
        }
    }

    fn make_zone(&mut self) {
        let known = || self.replica.live().filter(|key| self.knows(key.origin));
        let reached: BTreeSet<&Name> = known().filter(|key| self.reaches(key.origin)).map(|key| &key.name).collect();
        let entries = known().filter(|key| self.reaches(key.origin) || !reached.contains(&key.name));
        let entries = entries.map(|key| (key.name.clone(), key.address));
        let zone = Arc::new(Zone::new(self.config.domain.clone(), self.config.ttl, entries).giving_out(self.config.ranges.clone()));
        if self.answered.as_ref() != Some(&zone) {
            self.answered = Some(zone.clone());
            self.out.push_back(Output::Zone(zone));
        }
    }

    fn peer(&self, name: PeerName) -> Option<&crate::mesh::PeerView> {
        self.view.as_ref()?.peers.get(&name)
    }

    pub(super) fn knows(&self, name: PeerName) -> bool {
        name == self.config.name || self.peer(name).is_some()
    }

    fn reaches(&self, name: PeerName) -> bool {
        name == self.config.name || self.peer(name).is_some_and(|peer| peer.next_hop.is_some())
    }
}
