//! What replicas tell each other, and when.
//!
//! A write of ours is broadcast (at most ten times a second; who asked for space is told at once). Everything is gossiped
//! every 30 s and when peers come into reach. Who is seen to lack something is told after a short random time, unless it is heard to
//! have caught up by then; a state that equals ours is not answered. So at rest there is the gossip and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::Named;
use super::machine::Ipam;
use super::message::{Message, State, clean};
use super::ring::Ring;
use super::{Foreign, Output};
use crate::Time;
use crate::mesh::View;
use crate::peer::PeerName;

/// How long an owner that has come into reach is waited for: it speaks within a tenth of that.
const PATIENCE: Time = Time::from_secs(2);
/// Between two gossips of everything.
const GOSSIP: Time = Time::from_secs(30);
/// Between two broadcasts.
const BREATH: Time = Time::from_millis(100);
/// Up to so long we wait before we tell somebody what it lacks.
const TACT: Time = Time::from_millis(300);
/// To so many we tell it ourselves; gossip does the rest.
const FEW: usize = 8;
/// Most foreign replicas remembered, for status.
const MAX_FOREIGN: usize = 64;

impl Ipam {
    /// All we know, for others.
    pub(super) fn state(&self) -> State {
        let state = State {
            ranges: self.config.ranges.clone(),
            seeds: self.seeds.clone(),
            votes: if self.has_ring() { Vec::new() } else { self.votes.all().map(|(peer, vote)| (*peer, vote.clone())).collect() },
            levels: self.spaces.iter().map(|space| if self.quarantined { 0 } else { space.level(self.config.name) }).collect(),
            in_use: self.displaced_numbers(),
            observer: self.is_observer(),
            wanting: self.is_observer() && self.ballot.is_some(),
            ..State::default()
        };
        state.with_rings(self.rings(), |peer| clean(&self.named(peer).nickname))
    }

    pub(super) fn unicast(&mut self, to: PeerName, message: &Message) {
        if let Some(payload) = message.encode() {
            self.out.send(Output::Unicast { to, payload });
        }
    }

    /// Tells everybody now.
    pub(super) fn tell_all(&mut self) {
        if let Some(payload) = Message::State(Box::new(self.state())).encode() {
            self.out.send(Output::Broadcast(payload));
        }
    }

    /// Everybody must be told, soon.
    pub(super) fn news(&mut self) {
        self.announce.get_or_insert(self.announced.map_or(Time::ZERO, |last| last + BREATH));
    }

    /// Tells whom it is time to tell.
    pub(super) fn speak(&mut self, now: Time) {
        if self.gossip.is_none() {
            self.gossip = Some(now + self.jitter(GOSSIP));
        }
        if self.announce.take_if(|at| *at <= now).is_some() {
            self.announced = Some(now);
            self.tell_all();
        }
        let due: Vec<PeerName> = self.owed.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            self.owed.remove(&peer);
            let state = self.state();
            self.unicast(peer, &Message::State(Box::new(state)));
        }
        if self.gossip.is_some_and(|at| at <= now) {
            self.gossip = Some(now + GOSSIP * 3 / 4 + self.jitter(GOSSIP / 2));
            if let Some(payload) = Message::State(Box::new(self.state())).encode() {
                self.out.send(Output::Gossip(payload));
            }
        }
    }

    fn owe(&mut self, now: Time, peer: PeerName) {
        if self.owed.len() < FEW && !self.owed.contains_key(&peer) {
            let at = now + self.jitter(TACT);
            self.owed.insert(peer, at);
        }
    }

    pub(super) fn view_changed(&mut self, now: Time, view: Arc<View>) {
        let before = self.reached();
        self.view = Some(view);
        let after = self.reached();
        self.take_down_nicknames();
        for peer in before.difference(&after) {
            self.heard.remove(peer);
            self.reached.remove(peer);
            self.owed.remove(peer);
        }
        let new: Vec<PeerName> = after.difference(&before).copied().collect();
        for peer in &new {
            self.reached.insert(*peer, now);
            self.owe(now, *peer);
        }
        let known = self.view.clone();
        self.foreign.retain(|peer, _| known.as_ref().is_some_and(|view| view.peers.contains_key(peer)));
        self.levels.retain(|peer, _| known.as_ref().is_some_and(|view| view.peers.contains_key(peer)));
        if !new.is_empty() {
            let soon = now + self.jitter(TACT * 3);
            self.gossip = Some(self.gossip.map_or(soon, |at| at.min(soon)));
            if let Some(exchange) = &mut self.exchange {
                exchange.due = now;
            }
        }
        self.spare_the_living();
        self.give_up_on_unreachable(now);
        self.stirred = true;
    }

    /// Whoever was away may have been removed (`rmpeer`): our own space waits a moment for the first word of each owner that came
    /// into reach, and after a start for that of any.
    pub(super) fn hold(&mut self, now: Time) {
        let began = *self.began.get_or_insert(now);
        self.resumed &= self.heard.is_empty();
        let others = self.owners().into_iter().filter(|peer| *peer != self.config.name);
        let unheard: Vec<PeerName> = others.filter(|peer| !self.heard.contains_key(peer)).collect();
        let met = unheard.iter().filter_map(|peer| self.reached.get(peer)).max();
        let since = met.copied().max((self.resumed && !unheard.is_empty()).then_some(began));
        let held = since.map(|since| since + PATIENCE).filter(|until| *until > now);
        self.stirred |= self.held.is_some() && held.is_none();
        self.held = held;
        self.expect(now);
    }

    /// Peers that have just come into reach may bring space, or know who has some.
    fn expect(&mut self, now: Time) {
        let is_silent = |peer: &PeerName| !self.heard.contains_key(peer) && !self.foreign.contains_key(peer);
        let silent = self.reached.iter().filter(|(peer, _)| is_silent(peer)).map(|(_, since)| *since + PATIENCE).max();
        let expected = silent.filter(|until| *until > now);
        self.stirred |= self.expected.is_some() && expected.is_none();
        self.expected = expected;
    }

    fn reached(&self) -> BTreeSet<PeerName> {
        let peers = self.view.iter().flat_map(|view| &view.peers);
        peers.filter(|(_, peer)| peer.answers()).map(|(name, _)| *name).collect()
    }

    /// Nicknames of owners are kept: they are what an unreachable peer is known by.
    fn take_down_nicknames(&mut self) {
        let Some(view) = &self.view else { return };
        for owner in self.owners() {
            if let Some(peer) = view.peers.get(&owner).filter(|peer| !peer.nickname.is_empty()) {
                self.nicknames.insert(owner, clean(&peer.nickname));
            }
        }
    }

    pub(super) fn named(&self, peer: PeerName) -> Named {
        if peer == self.config.name {
            return self.myself();
        }
        let seen = self.view.as_ref().and_then(|view| view.peers.get(&peer)).map(|peer| peer.nickname.clone());
        let nickname = seen.filter(|name| !name.is_empty()).or_else(|| self.nicknames.get(&peer).cloned()).unwrap_or_default();
        Named { name: peer, nickname }
    }

    pub(super) fn myself(&self) -> Named {
        Named { name: self.config.name, nickname: self.config.nickname.clone() }
    }

    /// The ring is another one than it was.
    pub(super) fn ring_changed(&mut self) {
        let me = self.config.name;
        self.out.changed();
        self.stirred = true;
        // What we write must be ours for certain.
        if !self.quarantined {
            let rings = self.spaces.iter_mut().filter_map(|space| space.ring.as_mut());
            // No short cut: all of them.
            let tidied = rings.fold(false, |any, ring| ring.tidy(me) | any);
            if tidied {
                self.news();
            }
        }
        let owners = self.owners();
        self.nicknames.retain(|peer, _| owners.contains(peer));
        self.take_down_nicknames();
        self.find_displaced();
    }

    pub(super) fn delivered(&mut self, now: Time, from: PeerName, payload: &[u8]) {
        if from == self.config.name {
            return;
        }
        // Before anything else: what we answer may make it use its space again.
        self.spare(from);
        match Message::decode(payload) {
            Ok(Message::State(state)) => self.heard_state(now, from, *state),
            Ok(Message::Ask(ask)) => self.asked(from, &ask),
            Ok(Message::Unknown(_)) => self.counters.unknown += 1,
            Err(error) => self.malformed(from, &error),
        }
    }

    fn malformed(&mut self, from: PeerName, error: &super::DecodeError) {
        self.counters.malformed += 1;
        tracing::debug!(%from, %error, "a message about addresses makes no sense");
    }

    fn heard_state(&mut self, now: Time, from: PeerName, state: State) {
        if self.is_foreign(from, &state) {
            return;
        }
        let rings = match state.read_rings() {
            Ok(rings) => rings,
            Err(error) => return self.malformed(from, &error),
        };
        self.heard.insert(from, state.observer);
        self.levels.insert(from, state.levels);
        let equal = self.learn(&state.seeds, rings);
        self.learn_nicknames(state.owners);
        if !self.has_ring() {
            for (peer, vote) in state.votes {
                self.votes.merge(peer, vote);
            }
            self.urged |= state.wanting && !self.is_observer();
        }
        self.spoken_for(from, &state.in_use);
        if let Some(number) = state.answer {
            self.answered(from, number);
        }
        if let Some(reply) = state.reply {
            self.replied(now, from, reply);
        }
        if let Some(number) = state.question {
            let answer = State { answer: Some(number), ..self.state() };
            self.owed.remove(&from);
            self.unicast(from, &Message::State(Box::new(answer)));
        } else if !equal {
            self.owe(now, from);
        } else if self.has_ring() {
            self.owed.remove(&from);
        }
    }

    fn learn_nicknames(&mut self, owners: Vec<super::message::Owner>) {
        let known = self.owners();
        for owner in owners.into_iter().filter(|owner| !owner.nickname.is_empty() && known.contains(&owner.name)) {
            self.nicknames.entry(owner.name).or_insert(owner.nickname);
        }
    }

    /// Merges rings; says whether ours are now equal to them.
    fn learn(&mut self, seeds: &[PeerName], theirs: Vec<Ring>) -> bool {
        if theirs.is_empty() {
            return !self.has_ring();
        }
        if !self.has_ring() {
            self.seeds = seeds.to_vec();
            self.adopt(theirs);
            return self.rings().count() > 0;
        }
        let (mut equal, mut changed) = (true, false);
        for (space, theirs) in self.spaces.iter_mut().zip(&theirs) {
            let Some(ours) = &mut space.ring else { continue };
            let merged = ours.merge(theirs);
            changed |= merged != *ours;
            equal &= merged == *theirs;
            *ours = merged;
        }
        if changed {
            self.counters.merges += 1;
            self.ring_changed();
        }
        equal
    }

    /// Replicas of other ranges or seeds are none of ours; nothing of what they say is used.
    fn is_foreign(&mut self, from: PeerName, state: &State) -> bool {
        let other_range = state.ranges != self.config.ranges;
        let other_seeds = !state.seeds.is_empty() && !self.seeds.is_empty() && state.seeds != self.seeds;
        if !other_range && !other_seeds {
            self.foreign.remove(&from);
            return false;
        }
        self.counters.foreign += 1;
        if self.foreign.len() < MAX_FOREIGN || self.foreign.contains_key(&from) {
            let foreign = Foreign {
                peer: self.named(from),
                ranges: state.ranges.clone(),
                seeds: state.seeds.clone(),
                our_ranges: self.config.ranges.clone(),
                our_seeds: self.seeds.clone(),
            };
            if self.foreign.insert(from, foreign.clone()).is_none() {
                tracing::warn!("{foreign}");
            }
        }
        true
    }
}
