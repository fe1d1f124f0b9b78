//! What every peer says of itself, merged from everyone's gossip.
//!
//! A peer's record is written by that peer alone, whole, under a version that goes up; of two records the greater
//! (version, then uid, then the rest) is kept. That is a maximum, so merging commutes, associates and may be repeated.
//!
//! **Hold-down.** A restarted agent announces a record with a new uid and few edges, while the data plane of its last
//! incarnation still carries frames. So a record that replaces one with another uid inherits its established edges, as
//! far as routes go, for [`HOLD_DOWN`]. An inherited edge ends early when the new incarnation announces it as
//! established: from then on its own word counts. This is local and never gossiped. An edge needs both ends, so one that
//! really died is gone as soon as the other end says so.

use std::collections::{BTreeMap, BTreeSet};

use super::message::{Connection, MAX_PEERS, Record};
use super::routes::Graph;
use crate::Time;
use crate::peer::PeerName;

/// How long a restarted peer has to find its neighbours again: a tunnel is probed every 0.5 s once the link is there, and a
/// link that broke is dialled again within 3 s, or within some 10 s if the peer was down for that long.
pub(super) const HOLD_DOWN: Time = Time::from_secs(15);

/// Records beyond this version are not believed: nobody gets there by counting, and we could not outbid them.
const MAX_VERSION: u64 = 1 << 48;

/// All records.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    me: PeerName,
    peers: BTreeMap<PeerName, Record>,
    /// Of those that restarted a moment ago.
    held: BTreeMap<PeerName, Held>,
}

/// Edges of the last incarnation.
#[derive(Clone, Debug)]
struct Held {
    edges: BTreeSet<PeerName>,
    until: Time,
}

/// What a merge brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    /// Peers whose record is new.
    pub(super) changed: BTreeSet<PeerName>,
    /// Records of our own name that beat ours: an earlier incarnation's, or a clone's.
    pub(super) claims: Vec<Record>,
    /// Records for which there was no room, or that nobody can have made.
    pub(super) refused: u64,
}

impl Topology {
    pub(super) fn new(me: Record) -> Self {
        Self { me: me.name, peers: BTreeMap::from([(me.name, me)]), held: BTreeMap::new() }
    }

    pub(super) fn me(&self) -> &Record {
        &self.peers[&self.me]
    }

    /// How many peers there are, ourselves included.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Changes our own record; the version goes up with it.
    pub(super) fn edit_me(&mut self, edit: impl FnOnce(&mut Record)) {
        if let Some(me) = self.peers.get_mut(&self.me) {
            edit(me);
            me.version = me.version.saturating_add(1);
            self.trim(self.me);
        }
    }

    /// We are who restarted, and others still have what our last incarnation said: its edges count for us, too.
    pub(super) fn inherit(&mut self, now: Time, last: &Record) {
        if !self.held.contains_key(&self.me) && self.me().uid != last.uid {
            self.held.insert(self.me, Held { edges: established(last).collect(), until: now + HOLD_DOWN });
            self.trim(self.me);
        }
    }

    pub(super) fn get(&self, name: PeerName) -> Option<&Record> {
        self.peers.get(&name)
    }

    /// Whether somebody calls it a neighbour, or itself a peer.
    pub(super) fn mentions(&self, name: PeerName) -> bool {
        self.peers.contains_key(&name) || self.records().any(|record| record.connections.contains_key(&name))
    }

    /// By ascending name, our own included.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.peers.values()
    }

    pub(super) fn merge(&mut self, now: Time, records: Vec<Record>) -> Merged {
        let mut merged = Merged::default();
        for record in records {
            if record.version > MAX_VERSION {
                merged.refused += 1;
            } else if record.name != self.me {
                self.merge_one(now, record, &mut merged);
            } else if record > *self.me() {
                merged.claims.push(record);
            }
        }
        merged
    }

    fn merge_one(&mut self, now: Time, record: Record, merged: &mut Merged) {
        let (name, full) = (record.name, self.peers.len() >= MAX_PEERS);
        match self.peers.get_mut(&name) {
            Some(old) if record > *old => {
                let old = std::mem::replace(old, record);
                self.replaced(now, &old);
                merged.changed.insert(name);
            }
            Some(_) => {}
            None if full => merged.refused += 1,
            None => {
                self.peers.insert(name, record);
                merged.changed.insert(name);
            }
        }
    }

    /// This record has given way to a later one.
    fn replaced(&mut self, now: Time, old: &Record) {
        if self.get(old.name).is_some_and(|new| new.uid != old.uid) {
            // A second restart within the hold-down: the first had no time to announce what still works.
            let mut edges = self.held.remove(&old.name).map(|held| held.edges).unwrap_or_default();
            edges.extend(established(old));
            self.held.insert(old.name, Held { edges, until: now + HOLD_DOWN });
        }
        self.trim(old.name);
    }

    /// What is announced as established needs not be held.
    fn trim(&mut self, name: PeerName) {
        let (Some(record), Some(held)) = (self.peers.get(&name), self.held.get_mut(&name)) else { return };
        held.edges.retain(|to| !record.connections.get(to).is_some_and(|edge| edge.established));
        if held.edges.is_empty() {
            self.held.remove(&name);
        }
    }

    /// To whom a peer's last incarnation had edges that still count.
    fn held(&self, name: PeerName) -> impl Iterator<Item = PeerName> {
        self.held.get(&name).into_iter().flat_map(|held| held.edges.iter().copied())
    }

    /// When the next hold-down ends.
    pub(super) fn hold_until(&self) -> Option<Time> {
        self.held.values().map(|held| held.until).min()
    }

    /// Ends hold-downs that are due; says whether there were any.
    pub(super) fn release(&mut self, now: Time) -> bool {
        let before = self.held.len();
        self.held.retain(|_, held| held.until > now);
        self.held.len() < before
    }

    /// Everyone that we reach over any edge, held-down ones included; and ourselves.
    pub(super) fn reachable(&self) -> BTreeSet<PeerName> {
        // Whoever is behind a restarted peer that has not found it again yet is still there.
        let edges = self.peers.iter().map(|(name, record)| (*name, record.connections.keys().copied().chain(self.held(*name))));
        Graph::new(edges).reachable(self.me).into_iter().collect()
    }

    /// Forgets all but these (and never ourselves); answers with who was forgotten.
    pub(super) fn retain(&mut self, keep: &BTreeSet<PeerName>) -> Vec<PeerName> {
        let forget = |name: &&PeerName| **name != self.me && !keep.contains(name);
        let forgotten: Vec<_> = self.peers.keys().filter(forget).copied().collect();
        for name in &forgotten {
            self.peers.remove(name);
            self.held.remove(name);
        }
        forgotten
    }

    /// Edges that frames can take: established, held-down ones included, as both ends see it.
    pub(super) fn data_graph(&self) -> Graph {
        Graph::new(self.peers.iter().map(|(name, record)| (*name, established(record).chain(self.held(*name))))).mutual()
    }

    /// Edges that gossip can take: those with a link, as the sending end sees it. A neighbour of ours is there from the
    /// first moment, even if its record still is on its way.
    pub(super) fn gossip_graph(&self) -> Graph {
        let unheard = self.me().connections.keys().filter(|name| !self.peers.contains_key(name));
        let mut all: Vec<_> =
            self.peers.iter().map(|(name, record)| (*name, Some(record))).chain(unheard.map(|name| (*name, None))).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        Graph::new(all.into_iter().map(|(name, record)| (name, record.into_iter().flat_map(linked))))
    }
}

fn established(record: &Record) -> impl Iterator<Item = PeerName> {
    ends(record, |edge| edge.established)
}

fn linked(record: &Record) -> impl Iterator<Item = PeerName> {
    ends(record, |edge| edge.linked)
}

fn ends(record: &Record, keep: impl Fn(&Connection) -> bool) -> impl Iterator<Item = PeerName> {
    record.connections.iter().filter(move |(_, edge)| keep(edge)).map(|(to, _)| *to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mesh::short_ids::LOWEST;
    use crate::peer::{PeerUid, ShortId};

    fn name(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    fn edge(established: bool) -> Connection {
        Connection { address: "192.0.2.1:6783".parse().unwrap(), outbound: true, linked: true, established }
    }

    fn record(peer: u8, version: u64, uid: u64, edges: &[(u8, bool)]) -> Record {
        let connections = edges.iter().map(|(to, established)| (name(*to), edge(*established))).collect();
        Record { name: name(peer), version, uid: PeerUid(uid), short: LOWEST, nickname: String::new(), connections }
    }

    fn topology(edges: &[(u8, bool)]) -> Topology {
        Topology::new(record(0, 1, 1, edges))
    }

    /// Whether frames go both ways between ourselves and peer 1.
    fn adjacent(topology: &Topology) -> bool {
        topology.data_graph().reachable(name(0)).contains(&name(1))
    }

    #[test]
    fn an_edge_carries_frames_only_if_both_ends_say_so() {
        for (ours, theirs) in [(true, true), (true, false), (false, true)] {
            let mut topology = topology(&[(1, ours)]);
            topology.merge(Time::ZERO, vec![record(1, 1, 1, &[(0, theirs)])]);
            assert_eq!(adjacent(&topology), ours && theirs);
        }
    }

    #[test]
    fn a_restarted_peer_keeps_its_edges_for_fifteen_seconds() {
        let mut topology = topology(&[(1, true)]);
        topology.merge(Time::ZERO, vec![record(1, 9, 1, &[(0, true)])]);
        topology.merge(Time::from_secs(10), vec![record(1, 10, 2, &[])]);
        assert!(adjacent(&topology));
        assert_eq!(topology.hold_until(), Some(Time::from_secs(25)));
        assert!(!topology.release(Time::from_secs(24)) && adjacent(&topology));
        assert!(topology.release(Time::from_secs(25)) && !adjacent(&topology));
        assert_eq!(topology.hold_until(), None);
    }

    #[test]
    fn the_word_of_the_new_incarnation_counts_once_it_has_one() {
        let mut topology = topology(&[(1, true)]);
        topology.merge(Time::ZERO, vec![record(1, 9, 1, &[(0, true)])]);
        topology.merge(Time::ZERO, vec![record(1, 10, 2, &[(0, false)])]);
        assert!(adjacent(&topology));
        topology.merge(Time::ZERO, vec![record(1, 11, 2, &[(0, true)])]);
        assert_eq!((adjacent(&topology), topology.hold_until()), (true, None));
        topology.merge(Time::ZERO, vec![record(1, 12, 2, &[(0, false)])]);
        assert!(!adjacent(&topology));
    }

    #[test]
    fn the_other_end_of_an_edge_held_down_still_has_its_say() {
        let mut topology = topology(&[(1, true)]);
        topology.merge(Time::ZERO, vec![record(1, 9, 1, &[(0, true)])]);
        topology.merge(Time::ZERO, vec![record(1, 10, 2, &[])]);
        topology.edit_me(|me| me.connections.clear());
        assert!(!adjacent(&topology));
    }

    #[test]
    fn whoever_is_behind_a_restarted_peer_is_still_reached() {
        let mut topology = topology(&[(1, true)]);
        topology.merge(Time::ZERO, vec![record(1, 9, 1, &[(0, true), (2, true)]), record(2, 1, 1, &[(1, true)])]);
        topology.merge(Time::ZERO, vec![record(1, 10, 2, &[(0, true)])]);
        assert!(topology.reachable().contains(&name(2)) && topology.data_graph().reachable(name(0)).contains(&name(2)));
        topology.release(HOLD_DOWN);
        assert!(!topology.reachable().contains(&name(2)));
    }

    #[test]
    fn what_others_remember_of_our_last_incarnation_counts_until_we_know_better() {
        let mut topology = topology(&[]);
        topology.merge(Time::ZERO, vec![record(1, 1, 1, &[(0, true)])]);
        topology.inherit(Time::ZERO, &record(0, 9, 9, &[(1, true), (2, false)]));
        assert!(adjacent(&topology) && topology.reachable().contains(&name(1)));
        topology.edit_me(|me| me.connections.extend([(name(1), edge(true))]));
        assert_eq!(topology.hold_until(), None);
        topology.edit_me(|me| me.connections.clear());
        assert!(!adjacent(&topology));
    }

    #[test]
    fn only_a_greater_record_of_ours_is_a_claim() {
        let mut topology = topology(&[]);
        let merged =
            topology.merge(Time::ZERO, vec![record(0, 1, 1, &[]), record(0, 0, 7, &[]), record(0, 1, 7, &[]), record(0, 2, 0, &[])]);
        assert_eq!(merged.claims.iter().map(|claim| (claim.version, claim.uid.0)).collect::<Vec<_>>(), [(1, 7), (2, 0)]);
        assert!(merged.changed.is_empty());
    }

    #[test]
    fn records_beyond_belief_and_beyond_room_are_refused() {
        let mut topology = topology(&[]);
        assert_eq!(topology.merge(Time::ZERO, vec![record(1, u64::MAX, 1, &[]), record(0, u64::MAX, 2, &[])]).refused, 2);
        let many = (0..MAX_PEERS).map(|n| Record { name: PeerName([4, 0, 0, 0, (n >> 8) as u8, n as u8]), ..record(1, 1, 1, &[]) });
        assert_eq!(topology.merge(Time::ZERO, many.collect()).refused, 1);
    }

    #[test]
    fn those_not_to_be_kept_are_forgotten_but_never_ourselves() {
        let mut topology = topology(&[(1, false)]);
        topology.merge(Time::ZERO, vec![record(1, 1, 1, &[(2, false)]), record(2, 1, 1, &[]), record(3, 1, 1, &[(0, true)])]);
        let reachable = topology.reachable();
        assert_eq!(reachable, [name(0), name(1), name(2)].into());
        assert_eq!(topology.retain(&reachable), [name(3)]);
        assert_eq!(topology.retain(&BTreeSet::new()), [name(1), name(2)]);
        assert_eq!(topology.me().name, name(0));
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let edges = prop::collection::vec((0..5_u8, any::<bool>()), 0..4);
        let one = (1..5_u8, 0..3_u64, 0..3_u64, 0..3_u16, edges).prop_map(|(peer, version, uid, short, edges)| Record {
            short: ShortId::new(short).unwrap(),
            ..record(peer, version, uid, &edges)
        });
        prop::collection::vec(one, 0..8)
    }

    fn merged(batches: &[&[Record]]) -> Vec<Record> {
        let mut topology = topology(&[]);
        for batch in batches {
            topology.merge(Time::ZERO, batch.to_vec());
        }
        topology.records().cloned().collect()
    }

    proptest! {
        #[test]
        fn merging_commutes_associates_and_may_be_repeated(a in records(), b in records(), c in records()) {
            let all = merged(&[&a, &b, &c]);
            prop_assert_eq!(&all, &merged(&[&c, &b, &a]));
            prop_assert_eq!(&all, &merged(&[&b, &a, &c]));
            prop_assert_eq!(&all, &merged(&[&a, &merged(&[&b, &c])]));
            prop_assert_eq!(&all, &merged(&[&a, &b, &c, &b, &a]));
        }

        #[test]
        fn a_merge_says_exactly_what_changed(a in records(), b in records()) {
            let mut topology = topology(&[]);
            topology.merge(Time::ZERO, a);
            let before = topology.clone();
            let changed = topology.merge(Time::ZERO, b).changed;
            for record in topology.records() {
                prop_assert_eq!(before.get(record.name) != Some(record), changed.contains(&record.name));
            }
        }
    }
}
