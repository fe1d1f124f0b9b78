//! The entries of everybody, merged by maximum.

use std::collections::BTreeMap;

use super::entry::{Key, Value};
use super::message::Item;
use crate::Time;
use crate::peer::PeerName;

/// How long a dead entry is kept after its death.
pub(super) const TOMBSTONE: Time = Time::from_secs(30 * 60);
/// How long it is talked about. Less, so that one who has dropped it is not taught it again by one whose clock is a little behind.
const TOLD: Time = Time::from_secs(15 * 60);
/// Most entries: a mesh that has more has lost its mind, and must not take our memory with it.
const MAX_ENTRIES: usize = 1 << 18;
const MINUTE: u64 = 60;

/// What is known of an entry here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) value: Value,
    /// When a dead one is dropped.
    pub(super) drop_at: Time,
}

/// What a merge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It was known.
    Known,
    /// Something later is known.
    Old,
    /// It is later than what was known.
    New,
    /// There is no room for it.
    Full,
}

/// All entries, live and dead.
#[derive(Clone, Debug, Default)]
pub(super) struct Replica {
    entries: BTreeMap<Key, Held>,
}

impl Replica {
    pub(super) fn get(&self, key: &Key) -> Option<Value> {
        self.entries.get(key).map(|held| held.value)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Key, &Held)> {
        self.entries.iter()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Key> {
        self.entries.iter().filter(|(_, held)| !held.value.dead).map(|(key, _)| key)
    }

    /// What an origin decided about its own entry.
    pub(super) fn set(&mut self, now: Time, key: Key, value: Value) {
        self.entries.insert(key, Held { value, drop_at: now + TOMBSTONE });
    }

    /// What another peer says.
    pub(super) fn merge(&mut self, now: Time, item: &Item) -> Merged {
        let drop_at = (now + TOMBSTONE).saturating_sub(Time::from_secs(u64::from(item.age) * MINUTE));
        let room = self.entries.len() < MAX_ENTRIES;
        match self.entries.get_mut(&item.key) {
            None if !room => Merged::Full,
            None => {
                self.entries.insert(item.key.clone(), Held { value: item.value, drop_at });
                Merged::New
            }
            Some(held) if held.value < item.value => {
                *held = Held { value: item.value, drop_at };
                Merged::New
            }
            Some(held) if item.value < held.value => Merged::Old,
            Some(held) => {
                // Whoever knew it first knows best how old it is.
                held.drop_at = held.drop_at.min(drop_at);
                Merged::Known
            }
        }
    }

    /// An entry as it is told to everybody; `None` if it is not known, or too long dead.
    pub(super) fn item(&self, now: Time, key: &Key) -> Option<Item> {
        let held = self.entries.get(key)?;
        let told = !held.value.dead || age(now, held) < TOLD;
        told.then(|| item(now, key, held))
    }

    /// The same however long it is dead, for somebody who shows that he has missed it.
    pub(super) fn item_of_any_age(&self, now: Time, key: &Key) -> Option<Item> {
        self.entries.get(key).map(|held| item(now, key, held))
    }

    /// Drops tombstones whose time is over; how many.
    pub(super) fn expire(&mut self, now: Time) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, held| !held.value.dead || now < held.drop_at);
        before - self.entries.len()
    }

    /// Drops all entries of an origin; whether there were any.
    pub(super) fn forget(&mut self, origin: PeerName) -> bool {
        let before = self.entries.len();
        self.entries.retain(|key, _| key.origin != origin);
        before != self.entries.len()
    }
}

fn item(now: Time, key: &Key, held: &Held) -> Item {
    let minutes = u8::try_from(age(now, held).as_secs() / MINUTE).unwrap_or(u8::MAX);
    Item { key: key.clone(), value: held.value, age: if held.value.dead { minutes } else { 0 } }
}

fn age(now: Time, held: &Held) -> Time {
    TOMBSTONE.saturating_sub(held.drop_at.saturating_sub(now))
}
