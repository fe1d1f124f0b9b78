//! How the first ring comes to be.

use std::collections::BTreeSet;

use super::block::Block;
use super::machine::Ipam;
use super::ring::Ring;
use super::{Error, Init};
use crate::Time;
use crate::peer::PeerName;

/// A ballot that came to nothing is repeated after this, and up to as much again.
const BALLOT: Time = Time::from_millis(500);
/// Before we begin a ballot while another one is under way: so long and up to as much again.
const COURTESY: Time = Time::from_millis(250);

impl Ipam {
    /// Makes the first rings: a function of the range and the seeds, so that several may do so.
    pub(super) fn found(&mut self, seeds: &[PeerName]) {
        let rings: Option<Vec<Ring>> = self.spaces.iter().map(|space| Ring::first(Block::of(space.range), seeds)).collect();
        let Some(rings) = rings else { return };
        tracing::info!(?seeds, "the address range is shared out");
        self.seeds = seeds.to_vec();
        self.adopt(rings);
        self.news();
    }

    pub(super) fn is_observer(&self) -> bool {
        self.config.init == Init::Observer
    }

    /// Goes on with the vote, if there must be one.
    pub(super) fn agree(&mut self, now: Time) {
        if self.has_ring() {
            (self.ballot, self.urged) = (None, false);
            return;
        }
        let wanted = self.urged || self.pending.values().any(|pending| pending.wish.wants_ring());
        if !wanted {
            self.ballot = None;
        } else if self.ballot.is_none() {
            let underway = self.votes.promises() > 0;
            let wait = if underway || self.pending.is_empty() { COURTESY + self.jitter(COURTESY) } else { Time::ZERO };
            self.ballot = Some(now + wait);
        }
        if self.ballot.is_some_and(|at| at <= now) {
            self.ballot = Some(now + BALLOT + self.jitter(BALLOT));
            self.call();
        }
        self.vote();
    }

    /// Begins a ballot, or asks for one.
    fn call(&mut self) {
        if !self.is_observer() {
            self.votes.propose(self.config.name);
            self.out.changed();
        }
        self.tell_all();
    }

    fn vote(&mut self) {
        if self.is_observer() || self.votes.is_empty() {
            return;
        }
        let (quorum, value) = (self.quorum(), self.electorate());
        if self.votes.think(self.config.name, quorum, &value) {
            self.out.changed();
            self.tell_all();
        }
        if let Some(peers) = self.votes.chosen(quorum).map(<[PeerName]>::to_vec) {
            self.found(&peers);
        }
    }

    /// Who would get a share: ourselves, and who is there and takes part.
    fn electorate(&self) -> BTreeSet<PeerName> {
        let heard = self.heard.iter().filter(|(peer, observer)| !**observer && self.reachable(**peer)).map(|(peer, _)| *peer);
        let voters = self.votes.all().map(|(peer, _)| *peer);
        heard.chain(voters).chain([self.config.name]).collect()
    }

    /// How many make a majority of all who might vote.
    fn quorum(&self) -> usize {
        let expected = if let Init::ConsensusOf(count) = self.config.init { count } else { 0 };
        // Whoever was told of another host is not alone, even if it has not met it yet.
        let expected = expected.max(self.targets + 1);
        let view = self.view.iter().flat_map(|view| view.peers.keys().copied());
        let known: BTreeSet<PeerName> = view.chain(self.votes.all().map(|(peer, _)| *peer)).chain([self.config.name]).collect();
        let voters = known.iter().filter(|peer| self.heard.get(*peer) != Some(&true)).count();
        voters.max(expected) / 2 + 1
    }

    /// Hosts that take part in the vote, and how many must.
    pub(super) fn turnout(&self) -> (usize, usize) {
        (self.votes.promises(), self.quorum())
    }

    pub(super) fn undecided(&self) -> Error {
        let foreign = self.foreign.values().cloned().collect();
        if self.is_observer() {
            return Error::NothingToObserve { foreign };
        }
        let (votes, wanted) = self.turnout();
        Error::NoRing { votes, wanted, foreign }
    }
}
