//! The fdb: where each MAC is, with moves, their damping, quotas and ageing.

use std::collections::{BTreeMap, BTreeSet};

use super::Config;
use super::recency::Recency;
use super::status::{FdbStatus, Location};
use crate::Time;
use crate::addr::Mac;

/// A MAC may move this often ...
const MOVES: usize = 5;
/// ... within this time; one move more and it is contested ...
const MOVES_WINDOW: Time = Time::from_secs(10);
/// ... and stays where it is for this long.
const HOLD: Time = Time::from_secs(10);
/// Uses are noted this coarsely: ageing is a matter of minutes, and re-sorting for each frame would cost.
const GRAIN: Time = Time::from_secs(5);

/// What came of learning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It was there already.
    Known,
    /// It was not known. The second is the MAC that had to go to make room.
    New(Option<Mac>),
    /// It was elsewhere. The second is the MAC that had to go to make room.
    Moved(Location, Option<Mac>),
    /// It moved too often: it is held where it is, from now on.
    Contested(Location),
    /// It is being held elsewhere.
    Held,
}

#[derive(Debug)]
struct Entry {
    at: Location,
    /// When it came; unknown if an earlier agent saw it come.
    since: Option<Time>,
    used: Time,
    /// Times of the last few moves, oldest first.
    moves: Vec<Time>,
    held_until: Option<Time>,
}

/// Where each MAC is. Locations are names of peers, not short ids: those change hands.
#[derive(Debug)]
pub(super) struct Fdb {
    entries: BTreeMap<Mac, Entry>,
    order: Recency<Location, Mac>,
    holds: BTreeSet<(Time, Mac)>,
    port_quota: usize,
    peer_quota: usize,
    total: usize,
}

impl Fdb {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            entries: BTreeMap::new(),
            order: Recency::new(),
            holds: BTreeSet::new(),
            port_quota: config.port_macs,
            peer_quota: config.peer_macs,
            total: config.macs,
        }
    }

    pub(super) fn find(&self, mac: Mac) -> Option<Location> {
        self.entries.get(&mac).map(|entry| entry.at)
    }

    /// `mac` was seen at `at`.
    pub(super) fn learn(&mut self, now: Time, mac: Mac, at: Location) -> Learned {
        let Some(entry) = self.entries.get_mut(&mac) else {
            return Learned::New(self.add(now, mac, at, Vec::new()));
        };
        if entry.at == at {
            self.refresh(now, mac, at);
            return Learned::Known;
        }
        if entry.held_until.is_some() {
            return Learned::Held;
        }
        entry.moves.retain(|&moved| now.saturating_sub(moved) < MOVES_WINDOW);
        if entry.moves.len() >= MOVES {
            let place = entry.at;
            entry.held_until = Some(now + HOLD);
            self.holds.insert((now + HOLD, mac));
            return Learned::Contested(place);
        }
        self.relocate(now, mac, at)
    }

    fn relocate(&mut self, now: Time, mac: Mac, at: Location) -> Learned {
        let Some(mut entry) = self.remove(mac) else {
            return Learned::New(self.add(now, mac, at, Vec::new()));
        };
        entry.moves.push(now);
        let evicted = self.add(now, mac, at, entry.moves);
        Learned::Moved(entry.at, evicted)
    }

    fn add(&mut self, now: Time, mac: Mac, at: Location, moves: Vec<Time>) -> Option<Mac> {
        let quota = match at {
            Location::Port(_) => self.port_quota,
            Location::Peer(_) => self.peer_quota,
        };
        let victim = self.order.victim(&at, quota, self.total);
        if let Some(victim) = victim {
            self.remove(victim);
        }
        self.entries.insert(mac, Entry { at, since: Some(now), used: now, moves, held_until: None });
        self.order.insert(at, now, mac);
        victim
    }

    /// A MAC that is not known is at `at`, an earlier agent says. Returns the one that had to go to make room.
    pub(super) fn inherit(&mut self, now: Time, mac: Mac, at: Location) -> Option<Mac> {
        let evicted = self.add(now, mac, at, Vec::new());
        if let Some(entry) = self.entries.get_mut(&mac) {
            entry.since = None;
        }
        evicted
    }

    /// `mac` was used at `at`; nothing if it is elsewhere.
    pub(super) fn refresh(&mut self, used: Time, mac: Mac, at: Location) {
        let Some(entry) = self.entries.get_mut(&mac).filter(|entry| entry.at == at) else { return };
        if used.saturating_sub(entry.used) >= GRAIN {
            self.order.remove(at, entry.used, mac);
            self.order.insert(at, used, mac);
            entry.used = used;
        }
    }

    fn remove(&mut self, mac: Mac) -> Option<Entry> {
        let entry = self.entries.remove(&mac)?;
        self.order.remove(entry.at, entry.used, mac);
        if let Some(until) = entry.held_until {
            self.holds.remove(&(until, mac));
        }
        Some(entry)
    }

    /// MACs that came to a local port at `since` or later.
    pub(super) fn arrivals(&self, since: Time) -> Vec<Mac> {
        let local = |entry: &Entry| matches!(entry.at, Location::Port(_)) && entry.since >= Some(since);
        self.entries.iter().filter(|(_, entry)| local(entry)).map(|(mac, _)| *mac).collect()
    }

    /// Forgets whatever is at `at`.
    pub(super) fn forget_location(&mut self, at: Location) -> Vec<Mac> {
        let macs: Vec<Mac> = self.order.keys(&at).collect();
        macs.iter().for_each(|&mac| drop(self.remove(mac)));
        macs
    }

    /// Forgets what was not used since `cutoff`.
    pub(super) fn forget_unused(&mut self, cutoff: Time) -> Vec<Mac> {
        let macs = self.order.stale(cutoff);
        macs.iter().for_each(|&mac| drop(self.remove(mac)));
        macs
    }

    /// Ends the holds that are over; their MACs may move again.
    pub(super) fn release(&mut self, now: Time) -> Vec<Mac> {
        let mut released = Vec::new();
        while let Some(&(until, mac)) = self.holds.first()
            && until <= now
        {
            self.holds.pop_first();
            if let Some(entry) = self.entries.get_mut(&mac) {
                entry.held_until = None;
                entry.moves.clear();
            }
            released.push(mac);
        }
        released
    }

    /// When the next hold ends.
    pub(super) fn next_release(&self) -> Option<Time> {
        self.holds.first().map(|&(until, _)| until)
    }

    pub(super) fn count_at(&self, at: Location) -> usize {
        self.order.owned(&at)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn status(&self, now: Time) -> Vec<FdbStatus> {
        let status = |(&mac, entry): (&Mac, &Entry)| FdbStatus {
            mac,
            at: entry.at,
            idle_ms: now.saturating_sub(entry.used).as_millis() as u64,
            contested: entry.held_until.is_some(),
        };
        self.entries.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::PortId;
    use crate::peer::{PeerName, ShortId};

    const A: Location = Location::Port(PortId(1));
    const B: Location = Location::Peer(PeerName([2; 6]));

    fn fdb() -> Fdb {
        let config = Config { port_macs: 3, ..Config::new(PeerName([9; 6]), ShortId::new(1).unwrap(), 6784) };
        Fdb::new(&config)
    }

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn seconds(n: u64) -> Time {
        Time::from_secs(n)
    }

    /// Moves `mac` between A and B until it is contested, once a second.
    fn contest(fdb: &mut Fdb, mac: Mac) -> (u64, Learned) {
        fdb.learn(Time::ZERO, mac, A);
        for second in 1..100 {
            let learned = fdb.learn(seconds(second), mac, if second % 2 == 1 { B } else { A });
            if !matches!(learned, Learned::Moved(_, None)) {
                return (second, learned);
            }
        }
        (0, Learned::Known)
    }

    #[test]
    fn a_mac_is_where_it_was_seen_last() {
        let mut fdb = fdb();
        assert_eq!(fdb.learn(Time::ZERO, mac(1), A), Learned::New(None));
        assert_eq!(fdb.learn(Time::ZERO, mac(1), A), Learned::Known);
        assert_eq!(fdb.learn(Time::ZERO, mac(1), B), Learned::Moved(A, None));
        assert_eq!(fdb.find(mac(1)), Some(B));
        assert_eq!((fdb.count_at(A), fdb.count_at(B)), (0, 1));
    }

    #[test]
    fn the_sixth_move_in_ten_seconds_is_refused_and_the_mac_held_where_it_is() {
        let mut fdb = fdb();
        assert_eq!(contest(&mut fdb, mac(1)), (6, Learned::Contested(B)));
        assert_eq!(fdb.learn(seconds(7), mac(1), A), Learned::Held);
        assert_eq!(fdb.learn(seconds(7), mac(1), B), Learned::Known);
    }

    #[test]
    fn a_hold_ends_after_ten_seconds_and_touches_no_other_mac() {
        let mut fdb = fdb();
        let (start, _) = contest(&mut fdb, mac(1));
        assert_eq!(fdb.learn(seconds(start), mac(2), A), Learned::New(None));
        assert_eq!(fdb.learn(seconds(start), mac(2), B), Learned::Moved(A, None));
        assert_eq!(fdb.next_release(), Some(seconds(start + 10)));
        assert!(fdb.release(seconds(start + 9)).is_empty());
        assert_eq!(fdb.release(seconds(start + 10)), [mac(1)]);
        assert_eq!(fdb.learn(seconds(start + 10), mac(1), A), Learned::Moved(B, None));
    }

    #[test]
    fn five_moves_in_ten_seconds_again_and_again_are_no_contest() {
        let mut fdb = fdb();
        fdb.learn(Time::ZERO, mac(1), A);
        for n in 1..50 {
            let learned = fdb.learn(seconds(2 * n), mac(1), if n % 2 == 1 { B } else { A });
            assert!(matches!(learned, Learned::Moved(..)), "{n}");
        }
    }

    #[test]
    fn a_port_over_its_quota_loses_its_least_recent_mac() {
        let mut fdb = fdb();
        for n in 1..4 {
            fdb.learn(seconds(n.into()), mac(n), A);
        }
        fdb.learn(seconds(20), mac(1), A);
        assert_eq!(fdb.learn(seconds(21), mac(4), A), Learned::New(Some(mac(2))));
        assert_eq!(fdb.learn(seconds(21), mac(2), B), Learned::New(None), "a peer has its own quota");
    }

    #[test]
    fn what_is_not_used_is_forgotten_and_leaves_no_hold() {
        let mut fdb = fdb();
        let (start, _) = contest(&mut fdb, mac(1));
        fdb.learn(seconds(start), mac(2), A);
        fdb.refresh(seconds(100), mac(2), A);
        fdb.refresh(seconds(100), mac(1), A);
        assert_eq!(fdb.forget_unused(seconds(100)), [mac(1)]);
        assert_eq!(fdb.next_release(), None);
        assert_eq!(fdb.len(), 1);
    }
}
