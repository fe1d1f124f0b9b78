//! Which MACs the other peers are told of, batched and limited in rate and memory.

use std::collections::{BTreeSet, VecDeque};

use crate::Time;
use crate::addr::Mac;

/// How long a MAC waits for others to be announced with.
const BATCH: Time = Time::from_millis(20);
/// As many seconds' worth may wait; more are not announced.
const BACKLOG: usize = 5;

#[derive(Debug)]
pub(super) struct Announcer {
    queue: VecDeque<Mac>,
    queued: BTreeSet<Mac>,
    due: Option<Time>,
    /// Per second, and at most at once.
    rate: u32,
    tokens: u32,
    refilled: Time,
}

impl Announcer {
    pub(super) const fn new(rate: u32) -> Self {
        Self { queue: VecDeque::new(), queued: BTreeSet::new(), due: None, rate, tokens: rate, refilled: Time::ZERO }
    }

    pub(super) const fn due(&self) -> Option<Time> {
        self.due
    }

    /// False if too many wait already.
    pub(super) fn push(&mut self, now: Time, mac: Mac) -> bool {
        if self.queued.contains(&mac) {
            return true;
        }
        if self.queue.len() >= self.rate as usize * BACKLOG {
            return false;
        }
        self.queue.push_back(mac);
        self.queued.insert(mac);
        self.due.get_or_insert(now + BATCH);
        true
    }

    /// What may be announced now.
    pub(super) fn poll(&mut self, now: Time) -> Vec<Mac> {
        if self.due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.refill(now);
        let count = self.queue.len().min(self.tokens as usize);
        self.tokens -= count as u32;
        let macs: Vec<Mac> = self.queue.drain(..count).collect();
        self.queued.retain(|mac| !macs.contains(mac));
        self.due = (!self.queue.is_empty()).then_some(now + BATCH);
        macs
    }

    fn refill(&mut self, now: Time) {
        let elapsed = now.saturating_sub(self.refilled);
        let earned = elapsed.as_micros() * u128::from(self.rate) / 1_000_000;
        // A fraction of a token is not lost: the clock stays until it is whole.
        if earned > 0 {
            self.refilled = now;
            self.tokens = self.rate.min(self.tokens.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    #[test]
    fn macs_are_announced_together_after_twenty_milliseconds_and_once() {
        let mut announcer = Announcer::new(200);
        for n in [1, 2, 1] {
            announcer.push(Time::from_secs(1), mac(n));
        }
        assert_eq!(announcer.due(), Some(Time::from_millis(1020)));
        assert!(announcer.poll(Time::from_millis(1019)).is_empty());
        assert_eq!(announcer.poll(Time::from_millis(1020)), [mac(1), mac(2)]);
        assert_eq!(announcer.due(), None);
    }

    #[test]
    fn a_flood_of_macs_is_announced_at_the_rate_and_remembered_in_bounds() {
        let mut announcer = Announcer::new(200);
        let (mut announced, mut refused) = (0, 0);
        for ms in 0..10_000 {
            for n in 0..10 {
                refused += usize::from(!announcer.push(Time::from_millis(ms), mac(ms as u32 * 10 + n)));
            }
            announced += announcer.poll(Time::from_millis(ms)).len();
            assert!(announcer.queue.len() <= 1000);
        }
        assert!((2100..=2200).contains(&announced), "{announced}");
        assert_eq!(refused + announced + announcer.queue.len(), 100_000);
    }
}
