//! Which records go to whom and when.
//!
//! A change of our own record goes to all neighbours, coalesced for [`COALESCE`]; what is new from others goes on to a
//! random subset of them (all, if they are few), likewise; everything goes to every new neighbour. Against whatever got
//! lost it is compared with a random subset of them every [`PERIOD`] (`repair`). Only peers that we reach are spoken of: else those that some have
//! forgotten already would be brought back by those that have not.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, RngExt};

use super::message::{Message, Record, Topology};
use super::{LinkId, Mesh};
use crate::Time;
use crate::peer::PeerName;

/// A fail-over has to be through within 3 s, of which detection takes 1.5; a burst of changes is over in less than this.
const COALESCE: Time = Time::from_millis(20);
/// What is known is compared as often.
pub(super) const PERIOD: Time = Time::from_secs(30);
/// As many neighbours are always told all.
const FEW: usize = 8;
/// A message is cut when it is estimated to be longer: far from the limit of a frame, and others get a word in between.
const CHUNK: usize = 256 << 10;

/// What is to be told.
#[derive(Debug)]
pub(super) struct Publisher {
    own: bool,
    /// Records that arrived since routes were computed, and which neighbour they came from.
    arrived: BTreeMap<PeerName, PeerName>,
    /// Records to pass on, and which neighbour has them already.
    pending: BTreeMap<PeerName, Option<PeerName>>,
    at: Option<Time>,
    compare: Time,
}

impl Publisher {
    pub(super) fn new(rng: &mut impl Rng) -> Self {
        let compare = PERIOD.mul_f64(rng.random_range(0.0..1.0));
        Self { own: false, arrived: BTreeMap::new(), pending: BTreeMap::new(), at: None, compare }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        Some(self.at.map_or(self.compare, |at| at.min(self.compare)))
    }

    pub(super) fn own_changed(&mut self, now: Time) {
        self.own = true;
        self.at.get_or_insert(now + COALESCE);
    }

    pub(super) fn arrived(&mut self, peers: &BTreeSet<PeerName>, from: PeerName) {
        self.arrived.extend(peers.iter().map(|peer| (*peer, from)));
    }

    /// The set of peers that we reach was computed anew. What is new and reached is passed on, and so is what had arrived
    /// earlier and is reached only now.
    pub(super) fn reached(&mut self, now: Time, before: &BTreeSet<PeerName>, after: &BTreeSet<PeerName>) {
        let arrived = std::mem::take(&mut self.arrived);
        for peer in after.iter().filter(|peer| arrived.contains_key(peer) || !before.contains(peer)) {
            self.pending.insert(*peer, arrived.get(peer).copied());
            self.at.get_or_insert(now + COALESCE);
        }
    }
}

impl Mesh {
    /// Sends what is due.
    pub(super) fn publish_due(&mut self, now: Time) {
        if self.publisher.at.is_some_and(|at| at <= now) {
            self.publish(now);
        }
        if self.publisher.compare <= now {
            self.publisher.compare = now + PERIOD;
            for (id, _) in self.some_neighbours(None) {
                self.repair(now, id);
            }
        }
    }

    /// Sends what is new, due or not.
    pub(super) fn publish(&mut self, now: Time) {
        if self.publisher.at.take().is_none() {
            return;
        }
        let own = std::mem::take(&mut self.publisher.own).then_some(self.config.name);
        let pending = std::mem::take(&mut self.publisher.pending);
        let some: BTreeSet<_> = self.some_neighbours(None).into_iter().map(|(id, _)| id).collect();
        for (id, neighbour) in self.neighbours() {
            let others = pending.iter().filter(|(peer, from)| some.contains(&id) && **from != Some(neighbour) && **peer != neighbour);
            let peers: BTreeSet<_> = others.map(|(peer, _)| *peer).chain(own).collect();
            self.send_records(now, id, &peers);
        }
    }

    pub(super) fn send_everything(&mut self, now: Time, link: LinkId) {
        let mut peers = self.reachable.clone();
        peers.insert(self.config.name);
        self.send_records(now, link, &peers);
    }

    pub(super) fn send_records(&mut self, now: Time, link: LinkId, peers: &BTreeSet<PeerName>) {
        let records: Vec<_> = peers.iter().filter_map(|peer| self.topology.get(*peer).cloned()).collect();
        for records in chunks(records) {
            self.send(now, link, &Message::Topology(Topology { records }));
        }
    }

    /// Links that are up, and who is there.
    pub(super) fn neighbours(&self) -> Vec<(LinkId, PeerName)> {
        self.links.iter().filter_map(|(id, link)| Some((*id, link.peer()?.name))).collect()
    }

    /// All neighbours if they are few, else about twice the logarithm of the number of peers, preferring those that many
    /// peers are behind.
    pub(super) fn some_neighbours(&mut self, except: Option<PeerName>) -> Vec<(LinkId, PeerName)> {
        let mut left: Vec<_> = self.neighbours().into_iter().filter(|(_, peer)| Some(*peer) != except).collect();
        let count = FEW.max(2 * self.gossip.next_hops.len().checked_ilog2().unwrap_or_default() as usize);
        if left.len() <= count {
            return left;
        }
        let mut behind: BTreeMap<PeerName, u64> = BTreeMap::new();
        for hop in self.gossip.next_hops.values() {
            *behind.entry(*hop).or_default() += 1;
        }
        let weight = |peer: &PeerName| behind.get(peer).copied().unwrap_or_default().max(1);
        (0..count).filter_map(|_| draw(&mut left, weight, &mut self.rng)).collect()
    }
}

/// Takes one element out, each as likely as its weight says.
fn draw<T: Copy>(from: &mut Vec<(T, PeerName)>, weight: impl Fn(&PeerName) -> u64, rng: &mut impl Rng) -> Option<(T, PeerName)> {
    let total = from.iter().map(|(_, peer)| weight(peer)).sum();
    let mut left = if total == 0 { return None } else { rng.random_range(0..total) };
    let drawn = from.iter().position(|(_, peer)| match left.checked_sub(weight(peer)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })?;
    Some(from.remove(drawn))
}

/// Merging works record by record, so a long list can be cut anywhere.
fn chunks(records: Vec<Record>) -> Vec<Vec<Record>> {
    let (mut chunks, mut size) = (Vec::new(), CHUNK);
    for record in records {
        if size >= CHUNK {
            chunks.push(Vec::new());
            size = 0;
        }
        size += 320 + 20 * record.connections.len();
        chunks.last_mut().into_iter().for_each(|chunk| chunk.push(record.clone()));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn name(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn only_what_is_reached_is_passed_on_and_later_what_is_reached_later() {
        let mut publisher = Publisher::new(&mut StdRng::from_seed([0; 32]));
        publisher.arrived(&[name(2), name(3)].into(), name(9));
        publisher.reached(Time::ZERO, &[name(1)].into(), &[name(1), name(2)].into());
        assert_eq!(publisher.pending, BTreeMap::from([(name(2), Some(name(9)))]));
        publisher.reached(Time::ZERO, &[name(1), name(2)].into(), &[name(1), name(2), name(3)].into());
        assert_eq!(publisher.pending, BTreeMap::from([(name(2), Some(name(9))), (name(3), None)]));
    }

    #[test]
    fn neighbours_with_many_behind_them_are_drawn_more_often() {
        let mut rng = StdRng::from_seed([0; 32]);
        let weight = |peer: &PeerName| if *peer == name(1) { 9 } else { 1 };
        let draws = (0..1000).filter_map(|_| draw(&mut vec![((), name(0)), ((), name(1))], weight, &mut rng));
        let often = draws.filter(|(_, peer)| *peer == name(1)).count();
        assert!((850..950).contains(&often), "{often}");
        assert_eq!(draw(&mut Vec::<((), _)>::new(), weight, &mut rng), None);
    }
}
