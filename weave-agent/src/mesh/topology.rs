//! What every peer says about itself, and how two opinions are merged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::MAX_PEERS;
use crate::Time;
use crate::peer::{PeerName, PeerUid, ShortId};

/// From a change to the removal of peers that nobody reaches any more.
pub(crate) const GC_DELAY: Duration = Duration::from_secs(1);
/// How long a restarted peer's earlier edges count.
pub(crate) const KEPT: Duration = Duration::from_secs(5);

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edge {
    /// Where the remote peer accepts links, as seen by the owner.
    pub(crate) address: SocketAddrV4,
    /// Whether the owner dialled.
    pub(crate) outbound: bool,
    /// Whether the tunnel works: part of the data plane.
    pub(crate) established: bool,
    /// Whether there is a TCP link: part of the control plane.
    pub(crate) linked: bool,
}

/// What a peer says about itself; only the peer itself makes new versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerRecord {
    pub(crate) name: PeerName,
    pub(crate) nickname: String,
    pub(crate) uid: PeerUid,
    pub(crate) version: u64,
    pub(crate) short: Option<ShortId>,
    pub(crate) connections: BTreeMap<PeerName, Edge>,
}

impl PeerRecord {
    /// Whether it replaces `other`: a total order, so that all peers end with the same record whatever order they hear them in.
    pub(crate) fn newer_than(&self, other: &Self) -> bool {
        (self.version, self.uid) > (other.version, other.uid)
    }
}

#[derive(Debug)]
struct Entry {
    record: PeerRecord,
    /// Edges of the peer's earlier incarnation, until when.
    kept: Option<(BTreeMap<PeerName, Edge>, Time)>,
}

impl Entry {
    fn edge(&self, to: PeerName) -> Option<Edge> {
        let own = self.record.connections.get(&to).copied();
        let kept = self.kept.as_ref().and_then(|(edges, _)| edges.get(&to)).copied();
        match (own, kept) {
            (Some(own), Some(kept)) => Some(Edge { established: own.established || kept.established, ..own }),
            // The TCP link of the earlier incarnation is gone for certain.
            (None, Some(kept)) => Some(Edge { linked: false, ..kept }),
            (own, None) => own,
        }
    }

    fn edges(&self) -> impl Iterator<Item = (PeerName, Edge)> {
        let kept = self.kept.iter().flat_map(|(edges, _)| edges.keys());
        let names: BTreeSet<PeerName> = self.record.connections.keys().chain(kept).copied().collect();
        names.into_iter().filter_map(|name| self.edge(name).map(|edge| (name, edge)))
    }

    /// Goes on with `edges` of an earlier incarnation for a while.
    fn keep(&mut self, now: Time, edges: BTreeMap<PeerName, Edge>) {
        if !edges.is_empty() {
            self.kept = Some((edges, now + KEPT));
        }
    }
}

/// What came of a topology message.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Whose records were new: to be passed on.
    pub(crate) fresh: BTreeSet<PeerName>,
    /// Somebody says something about us that we did not say: uid and version.
    pub(crate) impostor: Option<(PeerUid, u64)>,
    /// Records not taken because there are too many peers.
    pub(crate) refused: u64,
}

#[derive(Debug)]
pub(crate) struct Topology {
    us: PeerName,
    entries: BTreeMap<PeerName, Entry>,
    gc_at: Option<Time>,
}

impl Topology {
    pub(crate) fn new(own: PeerRecord) -> Self {
        Self { us: own.name, entries: BTreeMap::from([(own.name, Entry { record: own, kept: None })]), gc_at: None }
    }

    pub(crate) fn get(&self, name: PeerName) -> Option<&PeerRecord> {
        self.entries.get(&name).map(|entry| &entry.record)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &PeerRecord> {
        self.entries.values().map(|entry| &entry.record)
    }

    pub(crate) fn nickname(&self, name: PeerName) -> &str {
        self.get(name).map_or("", |record| &record.nickname)
    }

    /// The edge that counts, which may be one of the peer's earlier incarnation.
    pub(crate) fn edge(&self, from: PeerName, to: PeerName) -> Option<Edge> {
        self.entries.get(&from)?.edge(to)
    }

    /// All edges that count.
    pub(crate) fn edges(&self, from: PeerName) -> impl Iterator<Item = (PeerName, Edge)> {
        self.entries.get(&from).into_iter().flat_map(Entry::edges)
    }

    /// Changes our own record, and makes it a new version if `change` says so.
    pub(crate) fn change_own(&mut self, now: Time, change: impl FnOnce(&mut PeerRecord) -> bool) -> bool {
        let Some(entry) = self.entries.get_mut(&self.us) else { return false };
        let changed = change(&mut entry.record);
        if changed {
            entry.record.version += 1;
            self.gc_at.get_or_insert(now + GC_DELAY);
        }
        changed
    }

    /// A placeholder for a neighbour whose own record has not come yet.
    pub(crate) fn meet(&mut self, record: PeerRecord) {
        self.entries.entry(record.name).or_insert(Entry { record, kept: None });
    }

    pub(crate) fn apply(&mut self, now: Time, records: Vec<PeerRecord>) -> Applied {
        let mut applied = Applied::default();
        for mut record in records {
            let name = record.name;
            record.connections.remove(&name);
            let room = self.entries.len() < MAX_PEERS;
            let Some(entry) = self.entries.get_mut(&name) else {
                if room {
                    self.entries.insert(name, Entry { record, kept: None });
                    applied.fresh.insert(name);
                } else {
                    applied.refused += 1;
                }
                continue;
            };
            if name == self.us {
                let own = &entry.record;
                if record.uid != own.uid && record.version >= own.version || record.uid == own.uid && record.version > own.version {
                    if applied.impostor.is_none_or(|(_, version)| version < record.version) {
                        applied.impostor = Some((record.uid, record.version));
                    }
                    if record.uid != own.uid && entry.kept.is_none() {
                        entry.keep(now, record.connections);
                    }
                }
                continue;
            }
            if record.newer_than(&entry.record) {
                let earlier = std::mem::replace(&mut entry.record, record);
                if earlier.uid != entry.record.uid {
                    entry.keep(now, earlier.connections);
                }
                applied.fresh.insert(name);
            }
        }
        if !applied.fresh.is_empty() {
            self.gc_at.get_or_insert(now + GC_DELAY);
        }
        applied
    }

    /// Makes our version the newest there is.
    pub(crate) fn outbid(&mut self, version: u64) {
        if let Some(entry) = self.entries.get_mut(&self.us) {
            entry.record.version = entry.record.version.max(version) + 1;
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let kept = self.entries.values().filter_map(|entry| entry.kept.as_ref().map(|(_, until)| *until));
        kept.chain(self.gc_at).min()
    }

    /// Ends what was only kept and forgets peers that nobody reaches; whether anything changed.
    pub(crate) fn handle_timeout(&mut self, now: Time) -> bool {
        let mut changed = false;
        for entry in self.entries.values_mut() {
            if entry.kept.as_ref().is_some_and(|(_, until)| *until <= now) {
                entry.kept = None;
                changed = true;
            }
        }
        if changed {
            self.gc_at = Some(now);
        }
        if self.gc_at.is_some_and(|at| at <= now) {
            self.gc_at = None;
            let reached = self.reached();
            let before = self.entries.len();
            self.entries.retain(|name, _| reached.contains(name));
            changed |= self.entries.len() != before;
        }
        changed
    }

    /// Over all edges, whoever lists them.
    fn reached(&self) -> BTreeSet<PeerName> {
        let mut reached = BTreeSet::from([self.us]);
        let mut todo = vec![self.us];
        while let Some(name) = todo.pop() {
            for (next, _) in self.edges(name) {
                if reached.insert(next) {
                    todo.push(next);
                }
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::from_secs(100);

    pub(super) fn name(number: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, number])
    }

    fn edge(established: bool) -> Edge {
        Edge { address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1), outbound: false, established, linked: true }
    }

    fn record(number: u8, uid: u64, version: u64, to: &[u8]) -> PeerRecord {
        PeerRecord {
            name: name(number),
            nickname: String::new(),
            uid: PeerUid(uid),
            version,
            short: ShortId::new(u16::from(number)),
            connections: to.iter().map(|to| (name(*to), edge(true))).collect(),
        }
    }

    /// The owner makes one record per uid and version, so contents follow from them.
    fn any_record() -> impl Strategy<Value = PeerRecord> {
        (1_u8..5, 1_u64..4, 0_u64..5).prop_map(|(number, uid, version)| {
            let to: Vec<u8> = (0..8).filter(|to| (uid * 31 + version * 7) >> to & 1 == 1 && *to != number).collect();
            record(number, uid, version, &to)
        })
    }

    fn merged(records: &[PeerRecord]) -> Vec<PeerRecord> {
        let mut topology = Topology::new(record(0, 1, 1, &[]));
        topology.apply(NOW, records.to_vec());
        topology.records().cloned().collect()
    }

    proptest! {
        #[test]
        fn records_merge_to_the_same_in_any_order_and_any_number(
            (records, shuffled) in prop::collection::vec(any_record(), 0..12)
                .prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle())),
            again in 0_usize..12,
        ) {
            let expected = merged(&records);
            prop_assert_eq!(&merged(&shuffled), &expected);
            let repeated: Vec<PeerRecord> = records.iter().chain(records.iter().take(again)).cloned().collect();
            prop_assert_eq!(&merged(&repeated), &expected);
            // What was merged in parts, merged.
            let (one, other) = records.split_at(again.min(records.len()));
            let parts: Vec<PeerRecord> = merged(one).into_iter().chain(merged(other)).collect();
            prop_assert_eq!(&merged(&parts), &expected);
        }

        #[test]
        fn what_is_known_is_not_fresh(records in prop::collection::vec(any_record(), 0..12)) {
            let mut topology = Topology::new(record(0, 1, 1, &[]));
            topology.apply(NOW, records.clone());
            prop_assert!(topology.apply(NOW, records).fresh.is_empty());
        }
    }

    #[test]
    fn a_restarted_peer_keeps_its_edges_for_five_seconds() {
        let mut topology = Topology::new(record(0, 1, 1, &[1]));
        topology.apply(NOW, vec![record(1, 5, 9, &[0, 2]), record(2, 6, 9, &[1])]);
        assert!(topology.apply(NOW, vec![record(1, 7, 2, &[])]).fresh.is_empty(), "its version is lower still");
        topology.apply(NOW, vec![record(1, 7, 10, &[])]);
        let kept = topology.edge(name(1), name(2)).unwrap();
        assert!(kept.established && !kept.linked);
        topology.handle_timeout(NOW + GC_DELAY);
        assert!(topology.get(name(2)).is_some());
        assert_eq!(topology.poll_timeout(), Some(NOW + KEPT));
        assert!(topology.handle_timeout(NOW + KEPT));
        assert!(topology.edge(name(1), name(2)).is_none());
        assert!(topology.get(name(2)).is_none() && topology.get(name(1)).is_some());
    }

    #[test]
    fn nobody_else_makes_versions_of_our_record() {
        let mut topology = Topology::new(record(0, 1, 3, &[]));
        assert!(topology.apply(NOW, vec![record(0, 9, 2, &[])]).impostor.is_none(), "ours is newer already");
        assert_eq!(topology.apply(NOW, vec![record(0, 9, 8, &[1])]).impostor, Some((PeerUid(9), 8)));
        topology.outbid(8);
        let own = topology.get(name(0)).unwrap();
        assert_eq!((own.uid, own.version), (PeerUid(1), 9));
        assert!(topology.edge(name(0), name(1)).is_some(), "our earlier incarnation's edges count for a while");
    }

    #[test]
    fn there_are_never_more_peers_than_short_ids() {
        let mut topology = Topology::new(record(0, 1, 1, &[]));
        let many = (0..5000_u16).map(|number| {
            let [a, b] = number.to_be_bytes();
            PeerRecord { name: PeerName([6, 0, 0, 0, a, b]), ..record(1, 1, 1, &[]) }
        });
        let applied = topology.apply(NOW, many.collect());
        assert_eq!((topology.records().count(), applied.refused), (MAX_PEERS, 5001 - MAX_PEERS as u64));
    }
}
