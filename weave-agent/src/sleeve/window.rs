//! Which numbers of a session have been seen: each is accepted once, whichever thread gets it, without a lock.
//!
//! The window is an array of slots. A slot remembers one block of 32 numbers: which block, and which of it were seen. Number `n` is
//! of block `n / 32` and belongs in slot `block % SLOTS`. A slot that holds an older block is taken over; one that holds a
//! younger one says that `n` is too old. As each slot changes by compare-and-swap alone there is nothing to agree on between
//! slots, and no notion of "the highest": a number is refused as too old only when one at least `WIDTH - 31` higher was accepted.

use std::sync::atomic::{AtomicU64, Ordering};

const PER_SLOT: u64 = 32;
const SLOTS: u64 = 512;

/// How far numbers may be out of order and be accepted all the same: several senders' batches of 64, many times over.
pub const WIDTH: u64 = PER_SLOT * SLOTS;

/// Numbers up to here fit a slot. Sessions end long before.
pub const LAST: u64 = PER_SLOT * (1 << 32) - 1;

/// The numbers of one session.
#[derive(Debug)]
pub struct Window {
    /// Block in the upper half, bits of those seen in the lower.
    slots: Box<[AtomicU64]>,
}

impl Default for Window {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Window {
    /// Note a number. Is it the first time, and recent enough to know?
    #[must_use]
    pub fn accept(&self, number: u64) -> bool {
        if number > LAST {
            return false;
        }
        let (block, bit) = place(number);
        let slot = &self.slots[(block % SLOTS) as usize];
        let admit = |held: u64| match (held >> PER_SLOT).cmp(&block) {
            std::cmp::Ordering::Less => Some(block << PER_SLOT | bit),
            std::cmp::Ordering::Equal if held & bit == 0 => Some(held | bit),
            _ => None,
        };
        slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit).is_ok()
    }

    /// Would it be accepted now? Asked before the costly part of opening a datagram; only [`Window::accept`] decides.
    #[must_use]
    pub fn is_new(&self, number: u64) -> bool {
        let (block, bit) = place(number);
        let held = self.slots[(block % SLOTS) as usize].load(Ordering::Relaxed);
        number <= LAST && (held >> PER_SLOT < block || held >> PER_SLOT == block && held & bit == 0)
    }
}

const fn place(number: u64) -> (u64, u64) {
    (number / PER_SLOT, 1 << (number % PER_SLOT))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_is_accepted_once() {
        let window = Window::default();
        for number in 0..WIDTH * 3 {
            assert!(window.is_new(number) && window.accept(number));
            assert!(!window.is_new(number) && !window.accept(number));
        }
    }

    #[test]
    fn what_is_a_windows_width_behind_is_too_old() {
        let window = Window::default();
        assert!(window.accept(WIDTH * 5));
        assert!(window.accept(WIDTH * 4 + PER_SLOT));
        assert!(!window.accept(WIDTH * 4));
        assert!(!window.accept(LAST + 1) && !window.is_new(u64::MAX) && !window.accept(u64::MAX));
        assert!(window.accept(LAST));
    }

    #[test]
    fn threads_that_race_for_a_number_do_not_both_get_it() {
        let window = Window::default();
        let accepted = std::thread::scope(|scope| {
            let count = || (0..100_000).filter(|number| window.accept(*number)).count();
            [(); 4].map(|()| scope.spawn(count)).into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        // A thread that lags a whole window behind is refused what the others have had.
        assert_eq!(accepted, 100_000);
    }

    /// What is said in one breath: batches that start anywhere near the highest so far, and sometimes far ahead.
    fn batches() -> impl Strategy<Value = Vec<(i64, u64)>> {
        let back = -(WIDTH as i64 * 2)..WIDTH as i64 * 2;
        prop::collection::vec((prop_oneof![4 => -100_i64..100, 1 => back], 1_u64..64), 1..200)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all_numbers_seen(batches in batches(), first in 0_u64..1 << 36) {
            let (window, mut seen) = (Window::default(), BTreeSet::new());
            let mut highest = first;
            for (step, length) in batches {
                let start = highest.saturating_add_signed(step);
                for number in start..start + length {
                    let accepted = window.accept(number);
                    prop_assert!(!accepted || !seen.contains(&number), "{number} twice");
                    let recent = number + WIDTH - PER_SLOT >= highest;
                    prop_assert!(accepted || seen.contains(&number) || !recent, "{number} refused with {highest} the highest");
                    if accepted {
                        seen.insert(number);
                        highest = highest.max(number);
                    }
                }
            }
        }
    }
}
