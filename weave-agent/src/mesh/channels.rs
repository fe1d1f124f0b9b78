//! What keeps messages on channels from coming twice, and counts them. Which way they go is the mesh's affair.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Channel;
use super::message::Gossip;
use crate::Time;
use crate::peer::{PeerName, PeerUid};

/// The same gossip is passed on again only after this time: half of what replicas take between full states.
const LATELY: Time = Time::from_secs(15);
/// Gossip remembered at most.
const MAX_SEEN: usize = 4096;
/// Channels counted by name; names come from the network.
const MAX_COUNTED: usize = 64;

/// Memory of what was heard.
#[derive(Debug)]
pub(super) struct Channels {
    /// Number of our last broadcast.
    last: u64,
    heard: BTreeMap<PeerName, Heard>,
    seen: BTreeSet<u64>,
    order: VecDeque<(Time, u64)>,
    /// Makes the hashes ours, so that nobody can aim at one.
    salt: u64,
}

/// Broadcasts heard of one origin: the highest number, and which of the 64 up to it.
#[derive(Debug)]
struct Heard {
    uid: PeerUid,
    highest: u64,
    recent: u64,
}

impl Channels {
    pub(super) fn new(salt: u64) -> Self {
        Self { last: 0, heard: BTreeMap::new(), seen: BTreeSet::new(), order: VecDeque::new(), salt }
    }

    /// A number for our next broadcast.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Notes a broadcast of a known peer; says whether it is news.
    pub(super) fn hear(&mut self, origin: PeerName, uid: PeerUid, number: u64) -> bool {
        let heard = self.heard.entry(origin).or_insert(Heard { uid, highest: 0, recent: 0 });
        if heard.uid != uid {
            *heard = Heard { uid, highest: 0, recent: 0 };
        }
        heard.note(number)
    }

    /// Forgets peers that left the mesh.
    pub(super) fn forget(&mut self, peers: &[PeerName]) {
        for peer in peers {
            self.heard.remove(peer);
        }
    }

    /// Notes gossip; says whether it is news.
    pub(super) fn see(&mut self, now: Time, gossip: &Gossip) -> bool {
        while self.order.len() >= MAX_SEEN || self.order.front().is_some_and(|(seen, _)| now >= *seen + LATELY) {
            if let Some((_, hash)) = self.order.pop_front() {
                self.seen.remove(&hash);
            }
        }
        let mut hasher = DefaultHasher::new();
        (self.salt, &gossip.channel.0, &gossip.payload).hash(&mut hasher);
        let new = self.seen.insert(hasher.finish());
        if new {
            self.order.push_back((now, hasher.finish()));
        }
        new
    }
}

impl Heard {
    fn note(&mut self, number: u64) -> bool {
        if number > self.highest {
            let ahead = u32::try_from(number - self.highest).unwrap_or(u32::MAX);
            self.recent = self.recent.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = number;
            return true;
        }
        // What is older than the window may be new, but more likely circles.
        let bit = u32::try_from(self.highest - number).ok().and_then(|behind| 1_u64.checked_shl(behind)).unwrap_or(u64::MAX);
        let new = self.recent & bit == 0;
        self.recent |= if new { bit } else { 0 };
        new
    }
}

/// One more on `channel`.
pub(super) fn count(counters: &mut BTreeMap<String, u64>, channel: &Channel) {
    if let Some(counter) = counters.get_mut(&channel.0) {
        *counter += 1;
    } else {
        let name = if counters.len() < MAX_COUNTED { &channel.0 } else { "other" };
        *counters.entry(name.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const ORIGIN: PeerName = PeerName([2, 0, 0, 0, 0, 1]);

    fn gossip(payload: u32) -> Gossip {
        Gossip { channel: Channel("x".into()), origin: ORIGIN, payload: Bytes::copy_from_slice(&payload.to_be_bytes()) }
    }

    #[test]
    fn broadcasts_out_of_order_are_heard_once_each() {
        let mut channels = Channels::new(0);
        let heard = [3, 1, 3, 2, 1, 70, 6, 7, 7, 5].map(|number| channels.hear(ORIGIN, PeerUid(1), number));
        assert_eq!(heard, [true, true, false, true, false, true, false, true, false, false]);
    }

    #[test]
    fn a_restarted_origin_counts_anew() {
        let mut channels = Channels::new(0);
        assert!(channels.hear(ORIGIN, PeerUid(1), u64::MAX));
        assert!(channels.hear(ORIGIN, PeerUid(2), 1));
        assert!(!channels.hear(ORIGIN, PeerUid(2), 1));
    }

    #[test]
    fn gossip_is_news_again_after_a_while() {
        let mut channels = Channels::new(0);
        let news = [0, 14, 15, 29, 30].map(|seconds| channels.see(Time::from_secs(seconds), &gossip(1)));
        assert_eq!(news, [true, false, true, false, true]);
    }

    #[test]
    fn what_is_remembered_of_gossip_is_bounded() {
        let mut channels = Channels::new(0);
        assert!((0..10_000).all(|payload| channels.see(Time::ZERO, &gossip(payload))));
        assert_eq!((channels.order.len(), channels.seen.len()), (MAX_SEEN, MAX_SEEN));
    }

    #[test]
    fn channels_beyond_the_64th_are_counted_together() {
        let mut counters = BTreeMap::new();
        for channel in 0..1000 {
            count(&mut counters, &Channel(channel.to_string()));
        }
        assert_eq!((counters.len(), counters["other"]), (65, 936));
    }
}
