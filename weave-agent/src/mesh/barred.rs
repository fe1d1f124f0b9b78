//! Who dialled us and could not agree on a password, and how often: an address that fails too often is not listened to for
//! a while, so that passwords cannot be tried as fast as TCP can.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Time;

/// So many failures at once,
const BURST: u32 = 5;
/// and one more each.
const INTERVAL: Time = Time::from_secs(10);
/// A failure is shown so long: who goes on trying does so at least as often.
const SHOWN: Time = Time::from_secs(60);
/// Most addresses that are remembered. Who has more of them than that can try more often.
const ADDRESSES: usize = 1024;

/// Failures by the address they came from.
#[derive(Debug, Default)]
pub(super) struct Failures {
    addresses: BTreeMap<Ipv4Addr, Failure>,
}

/// The last of an address.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) remote: SocketAddrV4,
    pub(super) text: String,
    at: Time,
    /// When as many as ever may fail again.
    clean: Time,
}

impl Failures {
    /// One more.
    pub(super) fn note(&mut self, now: Time, remote: SocketAddrV4, text: String) {
        self.forget(now);
        let clean = self.addresses.get(remote.ip()).map_or(now, |failure| failure.clean.max(now)) + INTERVAL;
        if self.addresses.len() >= ADDRESSES
            && let Some(oldest) = self.addresses.iter().min_by_key(|(_, failure)| failure.clean).map(|(address, _)| *address)
        {
            self.addresses.remove(&oldest);
        }
        self.addresses.insert(*remote.ip(), Failure { remote, text, at: now, clean });
    }

    /// Has it failed too often?
    pub(super) fn bars(&self, now: Time, address: Ipv4Addr) -> bool {
        self.addresses.get(&address).is_some_and(|failure| failure.clean > now + INTERVAL * (BURST - 1))
    }

    /// To be shown.
    pub(super) fn recent(&self, now: Time) -> impl Iterator<Item = &Failure> {
        self.addresses.values().filter(move |failure| now < failure.at + SHOWN)
    }

    /// Everybody may try again.
    pub(super) fn clear(&mut self) {
        self.addresses.clear();
    }

    fn forget(&mut self, now: Time) {
        self.addresses.retain(|_, failure| now < failure.clean.max(failure.at + SHOWN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    fn from(address: u32) -> SocketAddrV4 {
        SocketAddrV4::new(address.into(), 40_000)
    }

    #[test]
    fn five_failures_at_once_bar_an_address_and_ten_seconds_later_one_more_attempt_is_heard() {
        let mut failures = Failures::default();
        for _ in 0..5 {
            assert!(!failures.bars(at(1), 7.into()));
            failures.note(at(1), from(7), "x".into());
        }
        assert!(failures.bars(at(1), 7.into()) && !failures.bars(at(1), 8.into()));
        assert!(failures.bars(at(10), 7.into()) && !failures.bars(at(11), 7.into()));
        failures.note(at(11), from(7), "x".into());
        assert!(failures.bars(at(12), 7.into()) && !failures.bars(at(21), 7.into()));
        failures.clear();
        assert!(!failures.bars(at(12), 7.into()));
    }

    #[test]
    fn a_failure_is_shown_for_a_minute_and_forgotten_when_it_counts_no_more() {
        let mut failures = Failures::default();
        (0..9).for_each(|_| failures.note(at(0), from(7), "x".into()));
        assert_eq!((failures.recent(at(59)).count(), failures.recent(at(60)).count()), (1, 0));
        failures.note(at(89), from(8), "x".into());
        assert_eq!(failures.addresses.len(), 2);
        failures.note(at(90), from(8), "x".into());
        assert_eq!(failures.addresses.len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut failures = Failures::default();
        (0..5000).for_each(|address| failures.note(at(0), from(address), "x".into()));
        assert_eq!(failures.addresses.len(), ADDRESSES);
    }
}
