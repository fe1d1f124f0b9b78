//! Who owns which part of the range: the replicated state.
//!
//! Read as a function from addresses to (version, owner). Merging takes the greater of the two at each address: commutative,
//! associative and idempotent because maximum is, with nothing left that could be "inconsistent". That it is also right
//! rests on one rule: **only the owner of an address writes there** (and whoever runs `rmpeer`, with a jump of the version that
//! nothing the old owner wrote can reach). Tokens are only the shortest way to write the function down.

use super::block::Block;
use crate::peer::PeerName;

/// Most ranges of one ring. A grant that would make more is refused, a message that has more is not read.
pub(super) const MAX_TOKENS: usize = 1 << 15;

/// What `rmpeer` adds to versions: more than an owner ever adds by its own writes.
pub(super) const JUMP: u64 = 1 << 32;

/// From here to the next token (or the end of the range).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) at: u128,
    pub(super) owner: PeerName,
    pub(super) version: u64,
}

impl Token {
    fn rank(&self) -> (u64, PeerName) {
        (self.version, self.owner)
    }
}

/// A ring that nobody can have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The first one must begin the range, and the others must rise within it.
    #[error("its tokens do not rise from the start of the range")]
    Order,
    /// None, or too many.
    #[error("it has {0} tokens, where 1 to {MAX_TOKENS} are allowed")]
    Count(usize),
}

/// Every address of a range has an owner. Neighbouring tokens differ, so that equal rings are equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    range: Block,
    tokens: Vec<Token>,
}

impl Ring {
    /// The first ring, a function of the range and of the peers (sorted, without doubles): halved down to one peer each.
    /// Two peers get halves, three a half and two quarters; all are blocks that a prefix can name. `None` without peers.
    pub(super) fn first(range: Block, peers: &[PeerName]) -> Option<Self> {
        let mut ring = Self { range, tokens: Vec::new() };
        ring.halve(range, peers);
        (!ring.tokens.is_empty()).then_some(ring)
    }

    fn halve(&mut self, block: Block, peers: &[PeerName]) {
        let Some(owner) = peers.first() else { return };
        if peers.len() == 1 || block.size() == 1 {
            return self.push(Token { at: block.start, owner: *owner, version: 1 });
        }
        let (left, right) = peers.split_at(peers.len() / 2);
        let upper = block.upper_half();
        self.halve(Block::new(block.start, upper.start), left);
        self.halve(upper, right);
    }

    /// A ring that was received or read from disk.
    ///
    /// # Errors
    /// See [`RingError`].
    pub(super) fn from_tokens(range: Block, tokens: impl IntoIterator<Item = Token>) -> Result<Self, RingError> {
        let mut ring = Self { range, tokens: Vec::new() };
        let mut last = None;
        for token in tokens {
            let rises = last.map_or(token.at == range.start, |last| last < token.at && token.at < range.end);
            if !rises {
                return Err(RingError::Order);
            }
            last = Some(token.at);
            ring.push(token);
        }
        let count = ring.tokens.len();
        if (1..=MAX_TOKENS).contains(&count) { Ok(ring) } else { Err(RingError::Count(count)) }
    }

    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Appends a token, unless the last one says the same.
    fn push(&mut self, token: Token) {
        if self.tokens.last().is_none_or(|last| last.rank() != token.rank()) {
            self.tokens.push(token);
        }
    }

    fn end_of(&self, index: usize) -> u128 {
        self.tokens.get(index + 1).map_or(self.range.end, |next| next.at)
    }

    /// The parts of `within`, with their tokens, in order.
    pub(super) fn spans(&self, within: Block) -> impl Iterator<Item = (Block, &Token)> {
        let first = self.tokens.partition_point(|token| token.at <= within.start).saturating_sub(1);
        let from_first = self.tokens.iter().enumerate().skip(first).take_while(move |(_, token)| token.at < within.end);
        from_first
            .map(move |(index, token)| (Block::new(token.at, self.end_of(index)).and(within), token))
            .filter(|(span, _)| !span.is_empty())
    }

    /// The owner of an address; `None` outside the range.
    pub(super) fn owner(&self, address: u128) -> Option<PeerName> {
        self.spans(Block::single(address).and(self.range)).next().map(|(_, token)| token.owner)
    }

    /// The parts of `within` that a peer owns.
    pub(super) fn owned_by(&self, peer: PeerName, within: Block) -> impl Iterator<Item = Block> {
        self.spans(within).filter(move |(_, token)| token.owner == peer).map(|(span, _)| span)
    }

    /// How many addresses a peer owns.
    pub(super) fn size_of(&self, peer: PeerName) -> u128 {
        self.owned_by(peer, self.range).map(Block::size).sum()
    }

    pub(super) fn range(&self) -> Block {
        self.range
    }

    /// The greater of both, address by address. Both must be of the same range.
    pub(super) fn merge(&self, other: &Self) -> Self {
        debug_assert_eq!(self.range, other.range);
        let mut merged = Self { range: self.range, tokens: Vec::with_capacity(self.tokens.len()) };
        let (mut i, mut j, mut at) = (0, 0, self.range.start);
        while let (Some(a), Some(b)) = (self.tokens.get(i), other.tokens.get(j)) {
            let greater = if a.rank() >= b.rank() { a } else { b };
            merged.push(Token { at, ..*greater });
            at = self.end_of(i).min(other.end_of(j));
            i += usize::from(self.end_of(i) == at);
            j += usize::from(other.end_of(j) == at);
        }
        merged
    }

    /// Writes to the parts of `block` that `writes` changes.
    fn rewrite(&mut self, block: Block, write: impl Fn(&Token) -> Token) {
        let mut new = Self { range: self.range, tokens: Vec::with_capacity(self.tokens.len() + 2) };
        for (span, token) in self.spans(self.range) {
            let hit = span.and(block);
            if hit.is_empty() {
                new.push(*token);
                continue;
            }
            if span.start < hit.start {
                new.push(*token);
            }
            new.push(Token { at: hit.start, ..write(token) });
            if hit.end < span.end {
                new.push(Token { at: hit.end, ..*token });
            }
        }
        *self = new;
    }

    /// The owner gives `block`, all of it its own, to `to`.
    pub(super) fn grant(&mut self, block: Block, to: PeerName) {
        // One version for all of it, so that it is one token.
        let version = self.spans(block).map(|(_, token)| token.version).max().unwrap_or_default().saturating_add(1);
        self.rewrite(block, |token| Token { owner: to, version, ..*token });
    }

    /// `from` gives everything to `to`; says how many addresses.
    pub(super) fn hand_over(&mut self, from: PeerName, to: PeerName) -> u128 {
        self.transfer(from, to, 1)
    }

    /// `heir` takes everything that `gone` had; says how many addresses.
    pub(super) fn take_over(&mut self, gone: PeerName, heir: PeerName) -> u128 {
        self.transfer(gone, heir, JUMP)
    }

    fn transfer(&mut self, from: PeerName, to: PeerName, add: u64) -> u128 {
        let size = self.size_of(from);
        let write = |token: &Token| {
            if token.owner == from { Token { owner: to, version: token.version.saturating_add(add), ..*token } } else { *token }
        };
        self.rewrite(self.range, write);
        size
    }

    /// Gives neighbouring ranges of `me` one version, so that they become one token; says whether that changed anything.
    /// Versions only rise, and only on our own ranges, so others take it over like any write.
    pub(super) fn tidy(&mut self, me: PeerName) -> bool {
        let before = self.tokens.len();
        let mut tidied: Vec<Token> = Vec::with_capacity(before);
        for token in &self.tokens {
            match tidied.last_mut() {
                Some(last) if last.owner == me && token.owner == me => last.version = last.version.max(token.version),
                _ => tidied.push(*token),
            }
        }
        self.tokens = tidied;
        self.tokens.len() != before
    }

    /// All peers that own something.
    pub(super) fn owners(&self) -> std::collections::BTreeSet<PeerName> {
        self.tokens.iter().map(|token| token.owner).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: Block = Block::new(64, 128);

    fn peer(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    fn first(peers: u8) -> Ring {
        Ring::first(RANGE, &(1..=peers).map(peer).collect::<Vec<_>>()).unwrap()
    }

    fn tokens(ring: &Ring) -> Vec<(u128, u8, u64)> {
        ring.tokens.iter().map(|token| (token.at, token.owner.0[5], token.version)).collect()
    }

    fn rings() -> impl Strategy<Value = Ring> {
        let token = (any::<prop::sample::Index>(), 1_u8..4, 1_u64..4);
        proptest::collection::vec(token, 0..8).prop_map(|list| {
            let at = |index: prop::sample::Index| RANGE.start + index.index(64) as u128;
            let mut tokens: std::collections::BTreeMap<u128, (u8, u64)> =
                list.into_iter().map(|(index, owner, version)| (at(index), (owner, version))).collect();
            tokens.entry(RANGE.start).or_insert((1, 1));
            let token = |(at, (owner, version))| Token { at, owner: peer(owner), version };
            Ring::from_tokens(RANGE, tokens.into_iter().map(token)).unwrap()
        })
    }

    #[test]
    fn the_first_ring_is_halved_down_to_one_peer_each() {
        assert_eq!(tokens(&first(1)), [(64, 1, 1)]);
        assert_eq!(tokens(&first(2)), [(64, 1, 1), (96, 2, 1)]);
        assert_eq!(tokens(&first(3)), [(64, 1, 1), (96, 2, 1), (112, 3, 1)]);
        assert_eq!(tokens(&first(4)), [(64, 1, 1), (80, 2, 1), (96, 3, 1), (112, 4, 1)]);
        assert_eq!(Ring::first(RANGE, &[]), None);
    }

    #[test]
    fn a_grant_is_seen_by_others_whatever_order_they_hear_in() {
        let old = first(2);
        let mut once = old.clone();
        once.grant(Block::new(80, 88), peer(2));
        assert_eq!(tokens(&once), [(64, 1, 1), (80, 2, 2), (88, 1, 1), (96, 2, 1)]);
        let mut twice = once.clone();
        twice.grant(Block::new(88, 96), peer(3));
        assert_eq!(old.merge(&twice).merge(&once), twice);
        assert_eq!(twice.merge(&old), twice);
    }

    #[test]
    fn neighbouring_ranges_of_one_owner_become_one() {
        let mut ring = first(2);
        ring.grant(Block::new(80, 96), peer(2));
        let given = ring.clone();
        assert!(ring.tidy(peer(2)));
        assert_eq!(tokens(&ring), [(64, 1, 1), (80, 2, 2)]);
        assert_eq!(given.merge(&ring), ring);
        assert!(!ring.tidy(peer(2)));
    }

    #[test]
    fn what_a_removed_peer_wrote_meanwhile_counts_no_more() {
        let old = first(3);
        let mut taken = old.clone();
        assert_eq!(taken.take_over(peer(1), peer(3)), 32);
        let mut meanwhile = old;
        for _ in 0..1000 {
            meanwhile.grant(Block::new(70, 80), peer(1));
        }
        assert_eq!(taken.merge(&meanwhile), taken);
        assert_eq!(taken.size_of(peer(1)), 0);
    }

    #[test]
    fn rings_that_nobody_wrote_are_refused() {
        let token = |at| Token { at, owner: peer(1), version: 1 };
        let refused = |at: &[u128]| Ring::from_tokens(RANGE, at.iter().copied().map(token)).unwrap_err();
        assert_eq!(refused(&[]), RingError::Count(0));
        assert_eq!(refused(&[65]), RingError::Order);
        assert_eq!(refused(&[64, 64]), RingError::Order);
        assert_eq!(refused(&[64, 128]), RingError::Order);
    }

    proptest! {
        #[test]
        fn merging_is_a_maximum_at_each_address(a in rings(), b in rings(), c in rings()) {
            let merged = a.merge(&b);
            prop_assert_eq!(&merged, &b.merge(&a));
            prop_assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)));
            prop_assert_eq!(&a.merge(&a), &a);
            let at = |ring: &Ring, address| ring.spans(Block::single(address)).next().unwrap().1.rank();
            for address in RANGE.start..RANGE.end {
                prop_assert_eq!(at(&merged, address), at(&a, address).max(at(&b, address)));
            }
            let rebuilt = Ring::from_tokens(RANGE, merged.tokens().iter().copied());
            prop_assert_eq!(rebuilt.as_ref(), Ok(&merged));
        }

        #[test]
        fn a_write_changes_what_it_says_and_nothing_else(ring in rings(), start in 64_u128..127, size in 1_u128..64) {
            let block = Block::new(start, start + size).and(RANGE);
            let mut granted = ring.clone();
            granted.grant(block, peer(9));
            for address in RANGE.start..RANGE.end {
                let expected = if block.contains(address) { Some(peer(9)) } else { ring.owner(address) };
                prop_assert_eq!(granted.owner(address), expected);
            }
            let mut tidied = granted.clone();
            tidied.tidy(peer(1));
            prop_assert!((RANGE.start..RANGE.end).all(|address| tidied.owner(address) == granted.owner(address)));
            prop_assert_eq!(granted.merge(&tidied), tidied);
        }
    }
}
