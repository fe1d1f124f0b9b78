//! When our own word is not enough: after a start with an old state, and before a removed peer's space is taken over, every
//! other owner is asked what it knows.

use std::collections::BTreeSet;

use rand::RngExt;

use super::error::Named;
use super::machine::Ipam;
use super::message::{Message, State};
use super::requests::{Pending, Wish};
use super::{Answer, Error};
use crate::Time;
use crate::mesh::PeerView;
use crate::peer::PeerName;

/// Before an owner that did not answer is asked again.
const AGAIN: Time = Time::from_secs(1);
/// How long it is believed that a peer is gone for good: until the same was said of all that died with it. Its space is taken
/// over only while somebody who says so waits, for it may come back unseen.
const BELIEF: Time = Time::from_secs(600);

/// One round of questions.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Answers to earlier questions may be older than what we want to know.
    number: u64,
    answered: BTreeSet<PeerName>,
    /// When to ask those who did not answer.
    pub(super) due: Time,
}

impl Ipam {
    /// Begins a round of questions.
    pub(super) fn compare_notes(&mut self) {
        self.exchange = Some(Exchange { number: self.rng.random(), answered: BTreeSet::new(), due: Time::ZERO });
    }

    /// Owners whose word is missing. Those that are to be removed themselves are not waited for.
    fn waiting(&self) -> BTreeSet<PeerName> {
        let Some(exchange) = &self.exchange else { return BTreeSet::new() };
        let counts = |peer: &PeerName| *peer != self.config.name && !exchange.answered.contains(peer) && !self.removals.contains_key(peer);
        self.owners().into_iter().filter(counts).collect()
    }

    /// The same for people.
    pub(super) fn missing(&self) -> Vec<Named> {
        self.waiting().into_iter().map(|peer| self.named(peer)).collect()
    }

    /// An owner answered.
    pub(super) fn answered(&mut self, from: PeerName, number: u64) {
        if let Some(exchange) = self.exchange.as_mut().filter(|exchange| exchange.number == number) {
            exchange.answered.insert(from);
        }
    }

    /// Asks on, or does what the answers were wanted for.
    pub(super) fn conclude(&mut self, now: Time) {
        self.removals.retain(|_, until| *until > now);
        let claimed = self.pending.values().any(|pending| matches!(pending.wish, Wish::Remove { .. }));
        if !self.quarantined && !claimed {
            self.exchange = None;
        }
        let Some(exchange) = &self.exchange else { return };
        let (due, number) = (exchange.due, exchange.number);
        let waiting = self.waiting();
        if waiting.is_empty() {
            self.exchange = None;
            self.release();
            self.take_over();
            for ((range, address), peer) in std::mem::take(&mut self.reserved) {
                self.concede(range, address, peer);
            }
            return;
        }
        if now < due {
            return;
        }
        for peer in waiting.into_iter().filter(|peer| self.reachable(*peer)).collect::<Vec<_>>() {
            let state = State { question: Some(number), ..self.state() };
            self.unicast(peer, &Message::State(Box::new(state)));
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.due = now + AGAIN;
        }
    }

    /// Our free space is what the ring says.
    fn release(&mut self) {
        if std::mem::take(&mut self.quarantined) {
            tracing::info!("every other owner told what it knows: our own addresses are used again");
            self.spaces.iter_mut().for_each(|space| space.fresh = None);
            self.ring_changed();
        }
    }

    fn take_over(&mut self) {
        let me = self.config.name;
        let removed = |pending: &Pending| if let Wish::Remove { peer } = pending.wish { Some(peer) } else { None };
        let claimed: BTreeSet<PeerName> = self.pending.values().filter_map(removed).collect();
        for gone in claimed {
            self.removals.remove(&gone);
            let rings = self.spaces.iter_mut().filter_map(|space| space.ring.as_mut());
            let count: u128 = rings.map(|ring| ring.take_over(gone, me)).sum();
            tracing::info!(peer = %gone, count, "took over the addresses of a removed peer");
            self.ring_changed();
            self.news();
            self.end_removal(gone, Ok(count));
        }
    }

    fn end_removal(&mut self, gone: PeerName, result: Result<u128, Error>) {
        let ours = |pending: &Pending| matches!(pending.wish, Wish::Remove { peer } if peer == gone);
        let requests: Vec<(u64, Time)> = self.pending.iter().filter(|(_, p)| ours(p)).map(|(request, p)| (*request, p.deadline)).collect();
        for (request, deadline) in requests {
            self.pending.remove(&request);
            match &result {
                Ok(count) => self.out.answer(request, deadline, None, Answer::Count(*count)),
                Err(error) => self.out.refuse(request, error.clone()),
            }
        }
    }

    /// `rmpeer`.
    pub(super) fn remove(&mut self, now: Time, request: u64, given: String, deadline: Time) {
        match self.removable(given) {
            Err(error) => self.out.refuse(request, error),
            Ok(peer) => {
                self.wish(now, request, deadline, Wish::Remove { peer });
                if self.pending.contains_key(&request) {
                    self.removals.insert(peer, now.max(deadline) + BELIEF);
                    // What was answered before may have been said before the peer's last words were heard.
                    self.compare_notes();
                }
            }
        }
    }

    fn removable(&self, given: String) -> Result<PeerName, Error> {
        let peer = self.resolve(given)?;
        if peer == self.config.name {
            return Err(Error::Myself(self.myself()));
        }
        match self.seen(peer) {
            Some(seen) if seen.linked => Err(Error::PeerReachable(self.named(peer))),
            Some(seen) if seen.lives() => Err(Error::PeerCarries(self.named(peer))),
            _ => Ok(peer),
        }
    }

    fn resolve(&self, given: String) -> Result<PeerName, Error> {
        let owners = self.owners();
        if let Ok(name) = given.parse::<PeerName>()
            && (owners.contains(&name) || name == self.config.name)
        {
            return Ok(name);
        }
        let called = |peer: &PeerName| self.named(*peer).nickname == given;
        let peers: Vec<PeerName> =
            owners.iter().copied().chain([self.config.name]).filter(called).collect::<BTreeSet<_>>().into_iter().collect();
        match peers.as_slice() {
            [] => Err(Error::UnknownPeer { given, owners: owners.into_iter().map(|peer| self.named(peer)).collect() }),
            [peer] => Ok(*peer),
            _ => Err(Error::Ambiguous { given, peers }),
        }
    }

    /// Peers that came back are not removed.
    pub(super) fn spare_the_living(&mut self) {
        let alive: Vec<PeerName> = self.removals.keys().copied().filter(|peer| self.seen(*peer).is_some_and(PeerView::lives)).collect();
        alive.into_iter().for_each(|peer| self.spare(peer));
    }

    /// A peer lives: it is not removed.
    pub(super) fn spare(&mut self, peer: PeerName) {
        if self.removals.remove(&peer).is_some() {
            self.end_removal(peer, Err(Error::PeerReachable(self.named(peer))));
        }
    }

    /// `reset`.
    pub(super) fn leave(&mut self, request: u64, deadline: Time) {
        let me = self.config.name;
        if self.left || self.pending.contains_key(&request) || self.out.waits(request) {
            return self.out.refuse(request, if self.left { Error::Left } else { Error::Duplicate(request) });
        }
        if self.quarantined {
            return self.out.refuse(request, Error::StaleHeritage { me, waiting: self.missing() });
        }
        let heir = self.heir();
        if heir.is_none() && self.owners().contains(&me) {
            return self.out.refuse(request, Error::NoHeir { me });
        }
        let rings = self.spaces.iter_mut().filter_map(|space| space.ring.as_mut());
        let count = heir.map_or(0, |heir| rings.map(|ring| ring.hand_over(me, heir)).sum());
        self.bow_out();
        if let Some(heir) = heir {
            let state = self.state();
            self.unicast(heir, &Message::State(Box::new(state)));
        }
        self.tell_all();
        self.out.answer(request, deadline, None, Answer::Count(count));
    }

    /// A reachable owner, else a reachable replica.
    fn heir(&self) -> Option<PeerName> {
        let heard = self.heard.keys().copied();
        self.owners().into_iter().chain(heard).find(|peer| *peer != self.config.name && self.reachable(*peer))
    }

    fn bow_out(&mut self) {
        self.left = true;
        for request in std::mem::take(&mut self.pending).into_keys() {
            self.out.refuse(request, Error::Left);
        }
        let owners: Vec<String> = self.owned.keys().cloned().collect();
        owners.iter().for_each(|owner| self.free(owner));
        self.removals.clear();
        self.ring_changed();
    }
}
