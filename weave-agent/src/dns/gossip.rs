//! What peers tell each other: who is told what, and what is believed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Output;
use super::entry::Key;
use super::machine::{BATCH, Dns};
use super::message::{self, Item, Kind};
use super::replica::{Merged, Replica};
use crate::Time;
use crate::mesh::View;
use crate::peer::PeerName;

/// How long entries of an origin that the mesh does not know wait for it: gossip may be faster than topology.
const STRANGER: Time = Time::from_secs(60);
/// So long after its start an agent asks its neighbours: a mesh that did not notice its restart would tell it nothing.
const YOUNG: Time = Time::from_secs(60);

impl Dns {
    pub(super) fn view_changed(&mut self, now: Time, view: Arc<View>) {
        let reached = |view: &View, name: PeerName| view.peers.get(&name).is_some_and(|peer| peer.next_hop == Some(name));
        let old = self.view.replace(view.clone());
        let before = |name| old.as_ref().is_some_and(|old| reached(old, name));
        let new: Vec<PeerName> = view.peers.keys().copied().filter(|name| reached(&view, *name) && !before(*name)).collect();
        self.welcome(now, &new);
        if let Some(old) = &old {
            for origin in old.peers.keys().filter(|name| !view.peers.contains_key(name)) {
                self.forget(*origin);
            }
        }
        self.strangers.retain(|name, _| !view.peers.contains_key(name));
        self.renew(now);
    }

    /// Neighbours that have just come into reach.
    fn welcome(&mut self, now: Time, new: &[PeerName]) {
        if new.is_empty() {
            return;
        }
        let mut messages = self.everything(now);
        if self.started.is_some_and(|started| now < started + YOUNG) {
            messages.extend(message::encode(Kind::Question, []));
        }
        for to in new.iter().copied() {
            for payload in messages.iter().cloned() {
                self.send(Output::Unicast { to, payload });
            }
        }
    }

    fn forget(&mut self, origin: PeerName) {
        self.strangers.remove(&origin);
        if origin != self.config.name && self.replica.forget(origin) {
            self.counters.forgotten += 1;
        }
    }

    pub(super) fn forget_strangers(&mut self, now: Time) {
        let late: Vec<PeerName> = self.strangers.iter().filter(|(_, since)| **since + STRANGER <= now).map(|(name, _)| *name).collect();
        for origin in late {
            self.forget(origin);
        }
    }

    pub(super) fn delivered(&mut self, now: Time, from: PeerName, payload: &[u8]) {
        self.counters.received += 1;
        match message::decode(payload) {
            Ok((Kind::Question, _)) => {
                for payload in self.everything(now) {
                    self.send(Output::Unicast { to: from, payload });
                }
            }
            Ok((kind, items)) => {
                for item in items {
                    self.learn(now, kind, item);
                }
            }
            Err(error) => {
                self.counters.malformed += 1;
                tracing::debug!(%from, %error, "a message about names makes no sense");
            }
        }
    }

    fn learn(&mut self, now: Time, kind: Kind, item: Item) {
        if item.key.origin == self.config.name {
            return self.told_of_ours(now, &item);
        }
        match self.replica.merge(now, &item) {
            Merged::Known => return,
            Merged::Old => {
                if self.replica.item(now, &item.key).is_none() {
                    self.insist(now, item.key);
                }
                return;
            }
            Merged::Full => {
                self.counters.refused += 1;
                return;
            }
            Merged::New => self.counters.learned += 1,
        }
        if !self.knows(item.key.origin) {
            self.strangers.entry(item.key.origin).or_insert(now);
        }
        if kind == Kind::State {
            self.news.insert(item.key);
            self.tell.get_or_insert(now + BATCH);
        }
        self.renew(now);
    }

    /// Somebody holds an entry of ours: it is as we say, with a version that convinces.
    fn told_of_ours(&mut self, now: Time, item: &Item) {
        let mine = self.replica.get(&item.key);
        let theirs = item.value;
        match mine {
            Some(mine) if theirs == mine => {}
            Some(mine) if theirs < mine => self.insist(now, item.key.clone()),
            Some(mine) if theirs.dead == mine.dead => self.replica.set(now, item.key.clone(), theirs),
            // While nobody has told us all that runs here, it may well be right.
            None if !theirs.dead && self.settles.is_some() => {
                self.replica.set(now, item.key.clone(), theirs);
                self.inherited.insert(item.key.clone());
                self.renew(now);
            }
            None if theirs.dead => {}
            _ => {
                self.counters.corrected += 1;
                self.decide(now, item.key.clone(), theirs.version + 1, mine.is_none_or(|mine| mine.dead));
            }
        }
    }

    /// Somebody has missed what became of an entry, perhaps for so long that nobody speaks of it any more.
    fn insist(&mut self, now: Time, key: Key) {
        self.insisted.insert(key);
        self.tell.get_or_insert(now + BATCH);
    }

    pub(super) fn tell_changes(&mut self, now: Time) {
        let items = |keys: BTreeSet<Key>, replica: &Replica| keys.iter().filter_map(|key| replica.item(now, key)).collect::<Vec<_>>();
        let delta = items(std::mem::take(&mut self.delta), &self.replica);
        let mut news = items(std::mem::take(&mut self.news), &self.replica);
        news.extend(std::mem::take(&mut self.insisted).iter().filter_map(|key| self.replica.item_of_any_age(now, key)));
        for payload in message::encode(Kind::Delta, delta) {
            self.send(Output::Broadcast(payload));
        }
        for payload in message::encode(Kind::State, news) {
            self.send(Output::Gossip(payload));
        }
    }

    /// The whole state, but for origins that the mesh does not know: nobody forgotten is to come back.
    pub(super) fn everything(&self, now: Time) -> Vec<bytes::Bytes> {
        let known = self.replica.iter().filter(|(key, _)| self.knows(key.origin));
        message::encode(Kind::State, known.filter_map(|(key, _)| self.replica.item(now, key)))
    }

    pub(super) fn send(&mut self, message: Output) {
        self.counters.sent += 1;
        self.out.push_back(message);
    }
}
