//! A set of addresses as its maximal runs: dense sets are small, and the next gap is one look-up away.

use std::collections::BTreeMap;

use super::block::Block;

/// Sorted, disjoint runs that do not touch: start to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals(BTreeMap<u128, u128>);

impl Intervals {
    /// Adds an address; false if it was there.
    pub(super) fn insert(&mut self, address: u128) -> bool {
        if self.contains(address) {
            return false;
        }
        let end = self.0.remove(&(address + 1)).unwrap_or(address + 1);
        match self.0.range_mut(..address).next_back() {
            Some((_, last)) if *last == address => *last = end,
            _ => {
                self.0.insert(address, end);
            }
        }
        true
    }

    /// Takes an address out; false if it was not there.
    pub(super) fn remove(&mut self, address: u128) -> bool {
        let Some(run) = self.run(address) else { return false };
        self.0.remove(&run.start);
        for left in [Block::new(run.start, address), Block::new(address + 1, run.end)] {
            if !left.is_empty() {
                self.0.insert(left.start, left.end);
            }
        }
        true
    }

    pub(super) fn contains(&self, address: u128) -> bool {
        self.run(address).is_some()
    }

    /// The run that an address is in.
    fn run(&self, address: u128) -> Option<Block> {
        let (start, end) = self.0.range(..=address).next_back()?;
        (address < *end).then(|| Block::new(*start, *end))
    }

    /// How many addresses of a block are in the set.
    pub(super) fn count(&self, within: Block) -> u128 {
        let first = self.run(within.start).map(|run| run.and(within).size()).unwrap_or_default();
        let inner = self.0.range(within.start + 1..within.end.max(within.start + 1));
        first + inner.map(|(start, end)| Block::new(*start, *end).and(within).size()).sum::<u128>()
    }

    /// The parts of a block that are not in the set, in order, found as they are asked for.
    pub(super) fn gaps(&self, within: Block) -> impl Iterator<Item = Block> {
        let mut from = within.start;
        std::iter::from_fn(move || {
            from = self.run(from).map_or(from, |run| run.end);
            if from >= within.end {
                return None;
            }
            let end = self.0.range(from..within.end).next().map_or(within.end, |(start, _)| *start);
            let gap = Block::new(from, end);
            from = end;
            Some(gap)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0_u128..40), 0..100), start in 0_u128..40, size in 0_u128..40) {
            let (mut intervals, mut set) = (Intervals::default(), BTreeSet::new());
            for (add, address) in steps {
                if add {
                    prop_assert_eq!(intervals.insert(address), set.insert(address));
                } else {
                    prop_assert_eq!(intervals.remove(address), set.remove(&address));
                }
            }
            let within = Block::new(start, start + size);
            prop_assert_eq!(intervals.count(within), set.range(start..start + size).count() as u128);
            let gaps: Vec<u128> = intervals.gaps(within).flat_map(|gap| gap.start..gap.end).collect();
            let free: Vec<u128> = (start..start + size).filter(|address| !set.contains(address)).collect();
            prop_assert_eq!(gaps, free);
            let touching = intervals.0.iter().zip(intervals.0.iter().skip(1)).any(|((_, end), (start, _))| end >= start);
            prop_assert!(!touching, "runs that touch are one");
        }
    }
}
