//! Who owns what, in order of last use: the book-keeping behind quotas and ageing.

use std::collections::{BTreeMap, BTreeSet};

use crate::Time;

/// Keys by owner, each owner's in order of last use. A key has one owner at a time; the caller remembers which, and
/// when it was last used.
#[derive(Debug)]
pub(super) struct Recency<O, K> {
    owners: BTreeMap<O, BTreeSet<(Time, K)>>,
    len: usize,
}

impl<O: Ord + Copy, K: Ord + Copy> Recency<O, K> {
    pub(super) const fn new() -> Self {
        Self { owners: BTreeMap::new(), len: 0 }
    }

    pub(super) fn insert(&mut self, owner: O, used: Time, key: K) {
        self.len += usize::from(self.owners.entry(owner).or_default().insert((used, key)));
    }

    pub(super) fn remove(&mut self, owner: O, used: Time, key: K) {
        let Some(keys) = self.owners.get_mut(&owner) else { return };
        self.len -= usize::from(keys.remove(&(used, key)));
        if keys.is_empty() {
            self.owners.remove(&owner);
        }
    }

    /// How many keys an owner has.
    pub(super) fn owned(&self, owner: &O) -> usize {
        self.owners.get(owner).map_or(0, BTreeSet::len)
    }

    /// An owner's keys, least recently used first.
    pub(super) fn keys(&self, owner: &O) -> impl Iterator<Item = K> {
        self.owners.get(owner).into_iter().flatten().map(|&(_, key)| key)
    }

    /// What must go before `owner` may have one more: its own oldest if it has `quota`, and if all have `total` its own
    /// or, if it has none, that of whoever has most.
    pub(super) fn victim(&self, owner: &O, quota: usize, total: usize) -> Option<K> {
        if self.owned(owner) < quota && self.len < total {
            return None;
        }
        let own = self.owners.get(owner);
        let keys = own.or_else(|| self.owners.values().max_by_key(|keys| keys.len()))?;
        keys.first().map(|&(_, key)| key)
    }

    /// Everything last used before `cutoff`.
    pub(super) fn stale(&self, cutoff: Time) -> Vec<K> {
        self.owners.values().flat_map(|keys| keys.iter().take_while(|(used, _)| *used < cutoff)).map(|&(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recency(entries: &[(char, u64, u32)]) -> Recency<char, u32> {
        let mut recency = Recency::new();
        for &(owner, used, key) in entries {
            recency.insert(owner, Time::from_secs(used), key);
        }
        recency
    }

    #[test]
    fn an_owner_at_its_quota_loses_its_own_least_recent() {
        let recency = recency(&[('a', 5, 1), ('a', 3, 2), ('b', 1, 3)]);
        assert_eq!(recency.victim(&'a', 2, 100), Some(2));
        assert_eq!(recency.victim(&'b', 2, 100), None);
    }

    #[test]
    fn when_all_is_full_a_newcomer_takes_from_whoever_has_most() {
        let recency = recency(&[('a', 5, 1), ('a', 3, 2), ('b', 1, 3)]);
        assert_eq!(recency.victim(&'c', 10, 3), Some(2));
        assert_eq!(recency.victim(&'b', 10, 3), Some(3));
    }

    #[test]
    fn removing_leaves_nothing_behind() {
        let mut recency = recency(&[('a', 5, 1)]);
        recency.remove('a', Time::from_secs(4), 1);
        assert_eq!(recency.owned(&'a'), 1, "not at that time");
        recency.remove('a', Time::from_secs(5), 1);
        assert_eq!((recency.owned(&'a'), recency.len, recency.owners.len()), (0, 0, 0));
    }

    #[test]
    fn what_was_used_at_the_cutoff_is_not_stale() {
        let recency = recency(&[('a', 5, 1), ('a', 3, 2), ('b', 1, 3)]);
        assert_eq!(recency.stale(Time::from_secs(5)), [2, 3]);
    }
}
