//! Other peers that use our name.
//!
//! They show themselves on a link (same name, other uid), through a third peer that has links from both, or in gossip: a
//! record of our name that beats ours. The last can as well be our own earlier incarnation, which is outbid: our version
//! goes beyond its. Two living clones would outbid each other for ever, so after [`FREE`] rounds there is one each
//! [`PACE`], and the user is told.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use crate::Time;
use crate::peer::PeerUid;

/// An earlier incarnation can be met so often before it is taken for alive: once per partition that kept another version.
const FREE: u32 = 3;
/// Then it is outbid as often.
const PACE: Time = Time::from_secs(30);
/// What was not seen for so long is over. More than gossip's and the dialler's period.
const OVER: Time = Time::from_secs(90);
/// Most clones kept track of.
const MAX: usize = 64;

/// What is known of clones.
#[derive(Debug, Default)]
pub(super) struct Collisions {
    reports: BTreeMap<PeerUid, Report>,
    bids: BTreeMap<PeerUid, Bid>,
}

/// A clone, for people.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) text: String,
    pub(super) seen: Time,
    /// Where it accepts links, if we have met it.
    address: Option<SocketAddrV4>,
}

#[derive(Debug)]
struct Bid {
    rounds: u32,
    next: Time,
    seen: Time,
}

/// What to do about a record that beats ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Go beyond its version now.
    pub(super) outbid: bool,
    /// It lives: tell people.
    pub(super) clone: bool,
}

impl Collisions {
    /// Notes a clone; says whether it is news.
    pub(super) fn report(&mut self, now: Time, uid: PeerUid, text: String, address: Option<SocketAddrV4>) -> bool {
        self.forget(now);
        if self.reports.len() >= MAX && !self.reports.contains_key(&uid) {
            return false;
        }
        match self.reports.get_mut(&uid) {
            // Hearsay tells less than what we saw.
            Some(report) if address.is_none() => report.seen = now,
            _ => return self.reports.insert(uid, Report { text, seen: now, address }).is_none(),
        }
        false
    }

    /// Somebody said hello from this address: whatever else was there is there no more, and is again but an earlier incarnation.
    pub(super) fn met(&mut self, address: SocketAddrV4, uid: PeerUid) {
        let over = |(other, report): (&PeerUid, &Report)| (*other != uid && report.address == Some(address)).then_some(*other);
        for other in self.reports.iter().filter_map(over).collect::<Vec<_>>() {
            self.reports.remove(&other);
            self.bids.remove(&other);
        }
    }

    /// A record of our name with this uid beat ours.
    pub(super) fn claimed(&mut self, now: Time, uid: PeerUid) -> Verdict {
        self.forget(now);
        if self.bids.len() >= MAX && !self.bids.contains_key(&uid) {
            return Verdict { outbid: false, clone: true };
        }
        let bid = self.bids.entry(uid).or_insert(Bid { rounds: 0, next: now, seen: now });
        bid.seen = now;
        let outbid = now >= bid.next;
        if outbid {
            bid.rounds += 1;
            bid.next = if bid.rounds < FREE { now } else { now + PACE };
        }
        Verdict { outbid, clone: bid.rounds >= FREE }
    }

    /// Those seen lately.
    pub(super) fn reports(&self, now: Time) -> impl Iterator<Item = (PeerUid, &Report)> {
        self.reports.iter().filter(move |(_, report)| now < report.seen + OVER).map(|(uid, report)| (*uid, report))
    }

    fn forget(&mut self, now: Time) {
        self.reports.retain(|_, report| now < report.seen + OVER);
        self.bids.retain(|_, bid| now < bid.seen + OVER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn an_old_incarnation_is_outbid_at_once_and_not_reported() {
        let mut collisions = Collisions::default();
        assert_eq!(collisions.claimed(at(0), PeerUid(1)), Verdict { outbid: true, clone: false });
        assert_eq!(collisions.claimed(at(0), PeerUid(1)), Verdict { outbid: true, clone: false });
    }

    #[test]
    fn a_clone_is_outbid_once_in_thirty_seconds_and_reported() {
        let mut collisions = Collisions::default();
        let outbids = (0..600).filter(|second| collisions.claimed(at(*second), PeerUid(1)).outbid).count();
        assert_eq!(outbids, 3 + (599 - 2) / 30);
        assert!(collisions.claimed(at(600), PeerUid(1)).clone);
    }

    #[test]
    fn a_clone_that_was_reset_is_forgotten() {
        let mut collisions = Collisions::default();
        assert!(collisions.report(at(0), PeerUid(1), "x".into(), None));
        assert!(!collisions.report(at(60), PeerUid(1), "x".into(), None));
        assert_eq!(collisions.reports(at(149)).count(), 1);
        assert_eq!(collisions.reports(at(150)).count(), 0);
    }

    #[test]
    fn whoever_else_answers_at_a_clones_address_ends_its_report() {
        let (mut collisions, address) = (Collisions::default(), "192.0.2.1:6783".parse().unwrap());
        assert!(collisions.report(at(0), PeerUid(1), "seen".into(), Some(address)));
        assert!(!collisions.report(at(1), PeerUid(1), "heard".into(), None));
        assert!(collisions.reports(at(1)).all(|(_, report)| report.text == "seen"));
        collisions.met(address, PeerUid(1));
        collisions.met("192.0.2.2:6783".parse().unwrap(), PeerUid(2));
        assert_eq!(collisions.reports(at(1)).count(), 1);
        collisions.met(address, PeerUid(2));
        assert_eq!(collisions.reports(at(1)).count(), 0);
    }

    #[test]
    fn what_is_kept_about_clones_is_bounded() {
        let mut collisions = Collisions::default();
        for uid in 0..1000 {
            collisions.report(at(0), PeerUid(uid), "x".into(), None);
            collisions.claimed(at(0), PeerUid(uid));
        }
        assert_eq!((collisions.reports.len(), collisions.bids.len()), (MAX, MAX));
    }
}
