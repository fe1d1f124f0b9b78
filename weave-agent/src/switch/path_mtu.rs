//! The largest inner packet that gets to a neighbour and back, found with heartbeats of that size.
//!
//! What the route says is tried first and then taken as proven until a later heartbeat of that size fails. If it does, a
//! binary search goes down from it; as soon as one size gets through that is used, and raised as larger ones do. A
//! smaller size than the route's is tried to be raised once a minute.

use std::collections::VecDeque;

use super::liveness::{INTERVAL, slack};
use crate::Time;

/// Below this nothing is sought (RFC 791: every host takes 576 bytes, here without 24 of them, as Weave Net has it).
pub(super) const FLOOR: u16 = 552;
/// UDP takes no more: 65,535 less 50 bytes of headers.
const CEILING: u16 = 65_485;
/// A size has failed when this many heartbeats of it went unanswered while small ones were answered.
const TRIES: u8 = 3;
/// Between tries, unless the round trip takes longer.
const PACE: Time = Time::from_millis(30);
/// A try is over after this, however long the round trip.
const PATIENCE: Time = Time::from_secs(2);
/// Between proofs of what was proven, in heartbeats. A path that narrows is a black hole for large packets until the next, and 0.1 s.
const PROOF: u32 = 2;
/// Until all is tried again when not even the floor got through.
const RETRY: Time = Time::from_secs(1);
/// Between attempts to raise.
const GROW: Time = Time::from_secs(60);
/// Requests remembered: late answers to the last few sizes are no nonsense.
const OPEN: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until `due`.
    Rest,
    /// `candidate` is expected to work.
    Proof,
    /// Binary search between `good` and `bad`.
    Search,
}

#[derive(Debug)]
struct Open {
    sequence: u32,
    size: u16,
    sent: Time,
}

/// Full-size heartbeats to one neighbour.
#[derive(Debug)]
pub(super) struct PathMtu {
    phase: Phase,
    due: Time,
    ceiling: u16,
    proven: Option<u16>,
    /// What was proven before the tunnel died: tried first.
    hint: Option<u16>,
    /// Largest that works (or one below the floor).
    good: u16,
    /// Smallest that does not.
    bad: u16,
    candidate: u16,
    failed: u8,
    /// How often the candidate was tried.
    tried: u8,
    /// Between proofs.
    proof: Time,
    grow: Time,
    open: VecDeque<Open>,
}

impl PathMtu {
    pub(super) fn new(now: Time, ceiling: u16) -> Self {
        let ceiling = ceiling.clamp(FLOOR, CEILING);
        Self {
            phase: Phase::Rest,
            due: now,
            ceiling,
            proven: None,
            hint: None,
            good: FLOOR - 1,
            bad: ceiling + 1,
            candidate: ceiling,
            failed: 0,
            tried: 0,
            proof: INTERVAL * PROOF,
            grow: now,
            open: VecDeque::new(),
        }
    }

    pub(super) const fn proven(&self) -> Option<u16> {
        self.proven
    }

    pub(super) const fn due(&self) -> Time {
        self.due
    }

    /// Small heartbeats go out so often.
    pub(super) fn set_pace(&mut self, pace: Time) {
        let proof = pace * PROOF;
        if self.phase == Phase::Rest {
            self.due = self.due.saturating_sub(self.proof.saturating_sub(proof));
        }
        self.proof = proof;
    }

    /// A size was not answered at once: small heartbeats, by which that is judged, should come fast, too.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.phase == Phase::Search || self.phase == Phase::Proof && self.tried > 1
    }

    /// What was proven has failed, and what works in its place is not known to the byte.
    pub(super) fn is_searching(&self) -> bool {
        self.phase == Phase::Search
    }

    /// The route takes `ceiling` now.
    pub(super) fn set_ceiling(&mut self, now: Time, ceiling: u16) {
        let ceiling = ceiling.clamp(FLOOR, CEILING);
        if ceiling == self.ceiling {
            return;
        }
        self.ceiling = ceiling;
        self.proven = self.proven.map(|proven| proven.min(ceiling));
        self.hint = None;
        self.rest(now);
        self.grow = now;
    }

    /// The tunnel died: nothing is proven any more.
    pub(super) fn forget(&mut self, now: Time) {
        self.hint = self.proven.take().or(self.hint);
        self.rest(now);
        self.grow = now;
    }

    /// The size of a request that is due; it goes out with this sequence number. `last_answer` and `rtt` are of small ones.
    pub(super) fn poll(&mut self, now: Time, sequence: u32, last_answer: Option<Time>, rtt: Option<Time>) -> Option<u16> {
        let early = if self.phase == Phase::Rest { slack(self.proof / PROOF) } else { Time::ZERO };
        if now + early < self.due {
            return None;
        }
        match self.phase {
            Phase::Rest => self.begin(now),
            Phase::Proof | Phase::Search => self.judge(now, last_answer),
        }
        if self.phase == Phase::Rest {
            return None;
        }
        self.open.push_back(Open { sequence, size: self.candidate, sent: now });
        if self.open.len() > OPEN {
            self.open.pop_front();
        }
        self.due = now + rtt.map_or(PACE, |rtt| (rtt * 2).clamp(PACE, PATIENCE));
        self.tried = self.tried.saturating_add(1);
        Some(self.candidate)
    }

    /// Takes an answer; false if nobody asked.
    pub(super) fn answer(&mut self, now: Time, sequence: u32, size: u16) -> bool {
        let Some(at) = self.open.iter().position(|open| open.sequence == sequence && open.size == size) else { return false };
        self.open.remove(at);
        if size == self.candidate {
            match self.phase {
                Phase::Rest => {}
                Phase::Proof => self.conclude(now, Some(size)),
                Phase::Search => {
                    self.good = size;
                    // Anything that works is better than what has failed.
                    self.proven = self.proven.map(|proven| if proven >= self.bad { size } else { proven.max(size) });
                    self.next(now);
                }
            }
        }
        true
    }

    fn begin(&mut self, now: Time) {
        (self.failed, self.tried) = (0, 0);
        match self.proven {
            Some(proven) if proven < self.ceiling && self.grow <= now => {
                self.grow = now + GROW;
                (self.phase, self.good, self.bad) = (Phase::Search, proven, self.ceiling + 1);
                self.candidate = self.ceiling;
            }
            proven => {
                self.phase = Phase::Proof;
                self.candidate = proven.or(self.hint.take()).unwrap_or(self.ceiling);
            }
        }
    }

    /// The time of a try is over.
    fn judge(&mut self, now: Time, last_answer: Option<Time>) {
        let tried = self.open.back().filter(|open| open.size == self.candidate).map(|open| open.sent);
        // When small ones are not answered either, this says nothing of the size.
        if tried.is_some_and(|sent| last_answer > Some(sent)) {
            self.failed += 1;
        }
        if self.failed < TRIES {
            return;
        }
        if self.phase == Phase::Proof {
            (self.phase, self.good) = (Phase::Search, FLOOR - 1);
        }
        self.bad = self.candidate;
        self.next(now);
    }

    fn next(&mut self, now: Time) {
        self.failed = 0;
        if self.good + 1 >= self.bad {
            self.conclude(now, Some(self.good).filter(|good| *good >= FLOOR));
        } else {
            self.candidate = self.good.midpoint(self.bad);
            self.due = now;
        }
    }

    fn conclude(&mut self, now: Time, proven: Option<u16>) {
        if proven != self.proven && proven.is_some_and(|proven| proven < self.ceiling) {
            self.grow = now + GROW;
        }
        self.proven = proven;
        self.rest(now + if proven.is_some() { self.proof } else { RETRY });
    }

    fn rest(&mut self, until: Time) {
        (self.phase, self.due) = (Phase::Rest, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers what fits `path` after 20 ms, between `from` and `to`; says when what was proven changed.
    fn run(mtu: &mut PathMtu, from: u64, to: u64, path: u16) -> Vec<(u64, Option<u16>)> {
        let (mut changes, mut last) = (Vec::new(), mtu.proven());
        let mut answers = VecDeque::new();
        for ms in from..to {
            let now = Time::from_millis(ms);
            let size = mtu.poll(now, ms as u32, Some(now), Some(Time::from_millis(20)));
            answers.extend(size.filter(|size| *size <= path).map(|size| (ms + 20, ms as u32, size)));
            if let Some((_, sequence, size)) = answers.pop_front_if(|(at, _, _)| *at == ms) {
                assert!(mtu.answer(now, sequence, size));
            }
            if mtu.proven() != last {
                last = mtu.proven();
                changes.push((ms, last));
            }
        }
        changes
    }

    #[test]
    fn a_path_as_wide_as_its_route_is_proven_by_the_first_answer() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        assert_eq!(run(&mut mtu, 0, 30_000, 1450), [(20, Some(1450))]);
    }

    #[test]
    fn a_narrow_path_is_measured_to_the_byte_within_four_seconds() {
        for path in [552, 553, 1000, 1399, 1449] {
            let mut mtu = PathMtu::new(Time::ZERO, 1450);
            let changes = run(&mut mtu, 0, 4000, path);
            assert_eq!(changes.len(), 1, "{path}: {changes:?}");
            assert_eq!(changes[0].1, Some(path));
        }
    }

    #[test]
    fn a_path_below_the_floor_is_never_proven() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        assert!(run(&mut mtu, 0, 30_000, 551).is_empty());
    }

    #[test]
    fn a_path_that_narrows_is_noticed_and_one_that_widens_is_used_again() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        run(&mut mtu, 0, 5000, 1450);
        let changes = run(&mut mtu, 5000, 25_000, 1400);
        assert!(matches!(changes[..], [(..7000, Some(1000)), .., (..11_000, Some(1400))]), "{changes:?}");
        assert!(changes.is_sorted(), "{changes:?}");
        let changes = run(&mut mtu, 25_000, 100_000, 1450);
        assert!(matches!(changes[..], [(_, Some(1450))]), "{changes:?}");
    }

    #[test]
    fn a_route_that_widens_or_narrows_counts_at_once() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        run(&mut mtu, 0, 1000, 9000);
        mtu.set_ceiling(Time::from_secs(1), 8950);
        assert_eq!(run(&mut mtu, 1000, 2000, 9000), [(1020, Some(8950))]);
        mtu.set_ceiling(Time::from_secs(2), 1400);
        assert_eq!(mtu.proven(), Some(1400));
    }

    #[test]
    fn silence_says_nothing_of_sizes() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        run(&mut mtu, 0, 5000, 1450);
        for ms in 5000..40_000 {
            mtu.poll(Time::from_millis(ms), ms as u32, Some(Time::from_secs(4)), None);
        }
        assert_eq!((mtu.proven(), mtu.candidate), (Some(1450), 1450));
        assert!(mtu.open.len() <= OPEN);
    }

    #[test]
    fn after_a_death_the_size_that_worked_is_tried_first() {
        let mut mtu = PathMtu::new(Time::ZERO, 1450);
        run(&mut mtu, 0, 10_000, 1400);
        mtu.forget(Time::from_secs(10));
        assert_eq!(mtu.proven(), None);
        assert_eq!(run(&mut mtu, 10_000, 10_100, 1400), [(10_020, Some(1400))]);
    }
}
