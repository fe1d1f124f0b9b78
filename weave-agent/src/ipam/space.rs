//! One family's part of a replica: the ring, and what is in use on this host.
//!
//! What is free is never stored: it is what the ring says is ours, without what is in use, without what is in quarantine.
//! So ring and free space cannot disagree.

use std::collections::VecDeque;

use ipnet::IpNet;

use super::block::{Block, Family, number};
use super::intervals::Intervals;
use super::ring::{MAX_TOKENS, Ring};
use crate::peer::PeerName;

/// So many addresses rest after they were freed, while there are others.
const RESTING: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) family: Family,
    pub(super) range: IpNet,
    /// What addresses are taken from if nobody says otherwise.
    pub(super) subnet: IpNet,
    pub(super) ring: Option<Ring>,
    /// In use by containers of this host, wherever in the range (or outside it) they lie.
    used: Intervals,
    /// Freed lately, the first one first: they are given out again last, for others may still take them for whoever had them.
    /// The set and the queue have the same in them.
    resting: Intervals,
    freed: VecDeque<u128>,
    /// If set, what the ring says is ours may not be: only these blocks (sorted, disjoint), given to us since our start, are.
    pub(super) fresh: Option<Vec<Block>>,
}

impl Space {
    pub(super) fn new(range: IpNet, subnet: IpNet) -> Self {
        let (used, resting, freed) = Default::default();
        Self { family: Family::of(range.addr()), range, subnet, ring: None, used, resting, freed, fresh: None }
    }

    pub(super) fn block(&self) -> Block {
        Block::of(self.range)
    }

    pub(super) fn contains(&self, address: std::net::IpAddr) -> bool {
        self.family == Family::of(address) && self.block().contains(number(address))
    }

    /// Free blocks of ours in `within`, in order, found as they are asked for.
    pub(super) fn free(&self, me: PeerName, within: Block) -> impl Iterator<Item = Block> {
        let own = self.ring.iter().flat_map(move |ring| ring.owned_by(me, within));
        let known = own.flat_map(|block| self.certain(block));
        known.flat_map(|block| self.used.gaps(block))
    }

    /// The parts of a block of ours that are ours for certain.
    fn certain(&self, block: Block) -> Vec<Block> {
        let Some(fresh) = &self.fresh else { return vec![block] };
        fresh.iter().map(|fresh| fresh.and(block)).filter(|block| !block.is_empty()).collect()
    }

    /// Blocks that the ring says are ours and that may not be.
    pub(super) fn quarantined(&self, me: PeerName, within: Block) -> impl Iterator<Item = Block> {
        let (ring, fresh) = (self.ring.iter().filter(|_| self.fresh.is_some()), self.fresh.as_deref().unwrap_or_default());
        ring.flat_map(move |ring| ring.owned_by(me, within)).flat_map(|block| block.without(fresh))
    }

    pub(super) fn count_free(&self, me: PeerName, within: Block) -> u128 {
        self.free(me, within).map(Block::size).sum()
    }

    /// The address for the next container in a subnet: the lowest one that is free and does not rest, or what has rested longest.
    pub(super) fn next(&self, me: PeerName, subnet: IpNet) -> Option<u128> {
        let hosts = Block::hosts(subnet);
        let rested = || self.freed.iter().copied().find(|address| hosts.contains(*address) && self.is_free(me, *address));
        let fresh = self.free(me, hosts).flat_map(|block| self.resting.gaps(block)).next();
        fresh.map(|block| block.start).or_else(rested)
    }

    /// A container has an address, wherever it lies.
    pub(super) fn take(&mut self, address: u128) {
        self.used.insert(address);
        if self.resting.remove(address) {
            self.freed.retain(|freed| *freed != address);
        }
    }

    /// It has it no more.
    pub(super) fn put_back(&mut self, address: u128) {
        self.used.remove(address);
    }

    /// It may have used it: others come first.
    pub(super) fn rest(&mut self, address: u128) {
        if self.resting.insert(address) {
            self.freed.push_back(address);
            if self.freed.len() > RESTING
                && let Some(oldest) = self.freed.pop_front()
            {
                self.resting.remove(oldest);
            }
        }
    }

    /// How many addresses of a block are in use here.
    pub(super) fn count_used(&self, within: Block) -> u128 {
        self.used.count(within)
    }

    /// What to give to a peer that wants space in `within`: the largest free block that a prefix can name, but if that is
    /// more than half of what is free there, only its upper half. An owner keeps one address, come what may: who owns
    /// something is asked before a state that may be old is believed, or space of a removed peer used.
    pub(super) fn spare(&self, me: PeerName, within: Block) -> Option<Block> {
        let ring = self.ring.as_ref().filter(|ring| ring.tokens().len() + 2 <= MAX_TOKENS)?;
        let best = self.free(me, within).map(Block::largest_cidr).max_by_key(|block| block.size())?;
        let half = best.size() > self.count_free(me, within) / 2;
        let spare = if half { best.upper_half() } else { best };
        (spare.size() < ring.size_of(me)).then_some(spare)
    }

    /// Whether we own an address and nobody uses it.
    pub(super) fn is_free(&self, me: PeerName, address: u128) -> bool {
        self.free(me, Block::single(address)).next().is_some()
    }

    pub(super) fn owner(&self, address: u128) -> Option<PeerName> {
        self.ring.as_ref()?.owner(address)
    }

    /// The addresses that can be given out at all: those of the range without its ends.
    pub(super) fn hosts(&self) -> Block {
        Block::hosts(self.range)
    }

    /// Bits of the number of free addresses: coarse, so that it seldom changes.
    pub(super) fn level(&self, me: PeerName) -> u8 {
        let free = self.count_free(me, self.hosts());
        u8::try_from(128 - free.leading_zeros()).unwrap_or(u8::MAX)
    }

    /// A block was given to us since our start.
    pub(super) fn trust(&mut self, block: Block) {
        if let Some(fresh) = &mut self.fresh {
            let new = block.without(fresh);
            fresh.extend(new);
            fresh.sort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: PeerName = PeerName([2, 0, 0, 0, 0, 1]);
    const OTHER: PeerName = PeerName([2, 0, 0, 0, 0, 2]);

    fn space(range: &str, peers: &[PeerName]) -> Space {
        let range: IpNet = range.parse().unwrap();
        let mut space = Space::new(range, range);
        space.ring = Ring::first(Block::of(range), peers);
        space
    }

    #[test]
    fn the_lowest_address_that_a_container_can_have_is_next() {
        let mut space = space("10.32.0.0/24", &[ME]);
        let base = space.block().start;
        assert_eq!(space.next(ME, space.range), Some(base + 1));
        space.take(base + 1);
        assert_eq!(space.next(ME, space.range), Some(base + 2));
        assert_eq!(space.next(ME, "10.32.0.64/26".parse().unwrap()), Some(base + 65));
        assert_eq!(space.next(OTHER, space.range), None);
    }

    #[test]
    fn the_specifications_example_of_a_donation() {
        // weave-net.md, D.4: A owns 10.32 to 10.39 and uses .1 to .5.
        let mut space = space("10.32.0.0/12", &[ME, OTHER]);
        let range = space.block();
        for last in 1..=5 {
            space.take(range.start + last);
        }
        let spare = space.spare(ME, Block::hosts(space.range)).unwrap();
        assert_eq!(spare, Block::of("10.38.0.0/15".parse().unwrap()));
    }

    #[test]
    fn an_owner_keeps_one_address() {
        let mut space = space("10.32.0.0/30", &[ME]);
        let within = space.block();
        let mut given = Vec::new();
        while let Some(block) = space.spare(ME, within) {
            space.ring.as_mut().unwrap().grant(block, OTHER);
            given.push(block.size());
        }
        assert_eq!(given, [2, 1]);
        assert_eq!(space.count_free(ME, within), 1);
    }

    #[test]
    fn what_is_in_quarantine_is_not_free() {
        let mut space = space("10.32.0.0/24", &[ME, OTHER]);
        let range = space.block();
        space.fresh = Some(Vec::new());
        assert_eq!((space.count_free(ME, range), space.spare(ME, range)), (0, None));
        space.trust(Block::new(range.start + 32, range.start + 64));
        assert_eq!((space.count_free(ME, range), space.next(ME, space.range)), (32, Some(range.start + 32)));
    }

    #[test]
    fn a_hundred_thousand_addresses_in_use_do_not_slow_an_allocation() {
        let mut space = space("10.32.0.0/12", &[ME]);
        let base = space.block().start;
        for address in 1..100_000 {
            assert_eq!(space.next(ME, space.range), Some(base + address));
            space.take(base + address);
        }
        space.put_back(base + 777);
        space.rest(base + 777);
        assert_eq!(space.next(ME, space.range), Some(base + 100_000));
        space.take(base + 100_000);
        assert_eq!(space.next(ME, "10.32.3.8/29".parse().unwrap()), Some(base + 777));
    }

    #[test]
    fn what_was_freed_is_given_out_again_last_and_in_that_order() {
        let mut space = space("10.32.0.0/28", &[ME]);
        let base = space.block().start;
        let mut given = |freed: &[u128]| {
            for address in freed {
                space.put_back(base + address);
                space.rest(base + address);
            }
            let next = space.next(ME, space.range).map(|address| address - base);
            next.into_iter().for_each(|address| space.take(base + address));
            next
        };
        assert_eq!((1..=6).map(|_| given(&[])).collect::<Vec<_>>(), (1..=6).map(Some).collect::<Vec<_>>());
        let after = [given(&[5, 2]), given(&[]), given(&[3])];
        assert_eq!(after, [Some(7), Some(8), Some(9)]);
        let rest: Vec<_> = (0..9).map(|_| given(&[])).collect();
        assert_eq!(rest, [Some(10), Some(11), Some(12), Some(13), Some(14), Some(5), Some(2), Some(3), None]);
    }

    #[test]
    fn so_many_rest_and_no_more() {
        let mut space = space("10.32.0.0/16", &[ME]);
        let base = space.block().start;
        for address in 1..=2 * RESTING as u128 {
            space.take(base + address);
        }
        for address in 1..=2 * RESTING as u128 {
            space.put_back(base + address);
            space.rest(base + address);
        }
        assert_eq!((space.freed.len(), space.next(ME, space.range)), (RESTING, Some(base + 1)));
    }
}
