//! The vote on who gets a share of the first ring: Paxos for one value, where everyone gossips everything said so far.
//!
//! What a peer said is on disk before anyone hears of it (it is part of the snapshot like everything else), so a peer that
//! starts anew keeps its promises, and a vote counts once per name. Two proposers that take turns in outbidding each other
//! end by chance: each waits a random time before it tries again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::config::MAX_SEEDS;
use crate::bounded::list;
use crate::peer::PeerName;

/// An attempt: later ones count more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    /// Counts up.
    pub round: u64,
    /// Whose attempt it is.
    pub proposer: PeerName,
}

/// What one peer has said so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// It will not accept anything in earlier ballots.
    pub promised: Ballot,
    /// What it accepted last: the peers to get a share (sorted), and in which ballot.
    pub accepted: Option<Accepted>,
}

/// A value, accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Accepted {
    /// In which ballot.
    pub ballot: Ballot,
    /// The peers to get a share (sorted).
    #[serde(deserialize_with = "list::<_, _, MAX_SEEDS>")]
    pub peers: Vec<PeerName>,
}

/// Most votes kept: as many as a mesh has peers.
const MAX_VOTES: usize = MAX_SEEDS;

/// All that was said, as far as we heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Votes(BTreeMap<PeerName, Vote>);

impl Votes {
    pub(super) fn all(&self) -> impl Iterator<Item = (&PeerName, &Vote)> {
        self.0.iter()
    }

    pub(super) fn of(&self, peer: PeerName) -> Option<&Vote> {
        self.0.get(&peer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes over what is later; says whether anything was.
    pub(super) fn merge(&mut self, peer: PeerName, vote: Vote) -> bool {
        if self.0.len() >= MAX_VOTES && !self.0.contains_key(&peer) {
            return false;
        }
        let Some(known) = self.0.get_mut(&peer) else {
            self.0.insert(peer, vote);
            return true;
        };
        let merged = Vote { promised: known.promised.max(vote.promised), accepted: known.accepted.clone().max(vote.accepted) };
        let news = *known != merged;
        *known = merged;
        news
    }

    /// Starts a ballot of our own.
    pub(super) fn propose(&mut self, me: PeerName) {
        let round = self.0.values().map(|vote| vote.promised.round).max().unwrap_or_default().saturating_add(1);
        let accepted = self.of(me).and_then(|vote| vote.accepted.clone());
        self.0.insert(me, Vote { promised: Ballot { round, proposer: me }, accepted });
    }

    /// Says what follows from what was heard; whether that is anything new. `value` is what we propose if we are free to.
    pub(super) fn think(&mut self, me: PeerName, quorum: usize, value: &BTreeSet<PeerName>) -> bool {
        let Some(highest) = self.0.values().map(|vote| vote.promised).max() else { return false };
        let accepted = self.of(me).and_then(|vote| vote.accepted.clone());
        let decision = self.proposed(highest).or_else(|| self.decide(me, highest, quorum, value));
        let accepted = match decision {
            Some(new) if accepted.as_ref().is_none_or(|old| old.ballot < highest) => Some(new),
            _ => accepted,
        };
        let vote = Vote { promised: highest, accepted };
        let news = self.of(me) != Some(&vote);
        self.0.insert(me, vote);
        news
    }

    /// What its proposer chose in a ballot, if somebody has heard.
    fn proposed(&self, ballot: Ballot) -> Option<Accepted> {
        self.0.values().filter_map(|vote| vote.accepted.as_ref()).find(|accepted| accepted.ballot == ballot).cloned()
    }

    /// What to propose in a ballot of ours, once a quorum has promised.
    fn decide(&self, me: PeerName, ballot: Ballot, quorum: usize, value: &BTreeSet<PeerName>) -> Option<Accepted> {
        let promised = || self.0.iter().filter(|(peer, vote)| vote.promised == ballot || **peer == me);
        if ballot.proposer != me || promised().count() < quorum {
            return None;
        }
        let bound = promised().filter_map(|(_, vote)| vote.accepted.as_ref()).max();
        let peers = bound.map_or_else(|| value.iter().copied().take(MAX_SEEDS).collect(), |accepted| accepted.peers.clone());
        Some(Accepted { ballot, peers })
    }

    /// How many take part in the latest ballot.
    pub(super) fn promises(&self) -> usize {
        let highest = self.0.values().map(|vote| vote.promised).max();
        self.0.values().filter(|vote| Some(vote.promised) == highest).count()
    }

    /// The value that a quorum accepted in one ballot: nothing else can be chosen any more.
    pub(super) fn chosen(&self, quorum: usize) -> Option<&[PeerName]> {
        let accepted = || self.0.values().filter_map(|vote| vote.accepted.as_ref());
        let wins = |candidate: &&Accepted| accepted().filter(|other| other.ballot == candidate.ballot).count() >= quorum;
        accepted().find(wins).map(|accepted| accepted.peers.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    fn tell(votes: &mut [Votes], from: usize, to: usize) {
        let said: Vec<_> = votes[from].all().map(|(peer, vote)| (*peer, vote.clone())).collect();
        for (peer, vote) in said {
            votes[to].merge(peer, vote);
        }
    }

    #[test]
    fn alone_one_is_a_majority() {
        let mut votes = Votes::default();
        votes.propose(peer(1));
        assert!(votes.think(peer(1), 1, &[peer(1)].into()));
        assert_eq!(votes.chosen(1), Some([peer(1)].as_slice()));
    }

    proptest! {
        /// Any order of proposals, deliveries and thoughts, with everything said earlier in them or not.
        #[test]
        fn no_two_values_are_ever_chosen(steps in proptest::collection::vec((0_usize..10, 0_usize..5, 0_usize..5), 0..300)) {
            let mut votes = vec![Votes::default(); 5];
            let mut chosen = BTreeSet::new();
            for (kind, a, b) in steps {
                let me = peer(u8::try_from(a).unwrap());
                match kind {
                    0 => votes[a].propose(me),
                    1..=6 => tell(&mut votes, a, b),
                    _ => {
                        // Each proposer has an idea of its own.
                        votes[a].think(me, 3, &[me].into());
                    }
                }
                chosen.extend(votes.iter().filter_map(|votes| votes.chosen(3)).map(<[PeerName]>::to_vec));
                prop_assert!(chosen.len() <= 1, "{:?}", chosen);
            }
        }

        #[test]
        fn undisturbed_proposals_are_chosen(before in proptest::collection::vec((0_usize..6, 0_usize..5, 0_usize..5), 0..100), last in 0_usize..5) {
            let mut votes = vec![Votes::default(); 5];
            let name = |a: usize| peer(u8::try_from(a).unwrap());
            for (kind, a, b) in before {
                match kind {
                    0 => votes[a].propose(name(a)),
                    1..=3 => tell(&mut votes, a, b),
                    _ => { votes[a].think(name(a), 3, &[name(a)].into()); }
                }
            }
            (0..5).for_each(|from| tell(&mut votes, from, last));
            votes[last].propose(name(last));
            for _ in 0..3 {
                for other in (0..5).filter(|other| *other != last) {
                    tell(&mut votes, last, other);
                    votes[other].think(name(other), 3, &[name(other)].into());
                    tell(&mut votes, other, last);
                }
                votes[last].think(name(last), 3, &[name(last)].into());
            }
            prop_assert!(votes[last].chosen(3).is_some());
        }
    }
}
