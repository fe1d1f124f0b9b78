//! The trees of all origins at once, as one peer sees them.
//!
//! A breadth-first search from each origin would go through the whole graph as often as there are peers. Here all go in step, a bit
//! for each origin and peer, so that an edge is passed by 64 of them at a time (Then et al., "The More the Merrier: Efficient
//! Multi-Source Graph Traversal", VLDB 2014). A level that is gone through by ascending name gives a peer the lowest of those before it
//! for a parent, so nobody's tree needs to be known whole.

use std::iter::{self, zip};

/// Where one peer is in one origin's tree, by numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// `None` in one's own tree, and in that of an origin that does not reach here.
    pub(super) parent: Option<usize>,
    /// Ascending.
    pub(super) children: Vec<usize>,
}

/// For each peer the origins that have something to do with it.
#[derive(Clone, Debug)]
struct Origins {
    words: usize,
    bits: Vec<u64>,
}

impl Origins {
    fn none(peers: usize) -> Self {
        let words = peers.div_ceil(64);
        Self { words, bits: vec![0; peers * words] }
    }

    fn of(&self, peer: usize) -> &[u64] {
        &self.bits[peer * self.words..][..self.words]
    }

    fn add(&mut self, peer: usize, origins: &[u64]) {
        zip(&mut self.bits[peer * self.words..], origins).for_each(|(to, from)| *to |= from);
    }

    fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }
}

/// The place of `me` in each tree; `neighbours` are edges from each peer.
pub(super) fn places(neighbours: &[Vec<usize>], me: usize) -> Vec<Place> {
    let peers = neighbours.len();
    let mut places = vec![Place::default(); peers];
    let around = Around::new(neighbours, me);
    let mut level = Origins::none(peers);
    (0..peers).for_each(|peer| level.bits[peer * level.words + peer / 64] |= 1 << (peer % 64));
    let mut reached = level.clone();
    // Once all have been everywhere, another level would only say so: in a full mesh it would cost as much as the first.
    let mut left = peers * peers - peers;
    while left > 0 {
        let next = step(neighbours, &level, &mut reached);
        if next.is_empty() {
            break;
        }
        around.claim(&level, &next, &mut places);
        left -= next.bits.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        level = next;
    }
    places
}

/// The level after this one.
fn step(neighbours: &[Vec<usize>], level: &Origins, reached: &mut Origins) -> Origins {
    let mut next = Origins::none(neighbours.len());
    for (from, to) in neighbours.iter().enumerate() {
        let origins = level.of(from);
        if origins.iter().any(|word| *word != 0) {
            to.iter().for_each(|to| next.add(*to, origins));
        }
    }
    for (next, reached) in zip(&mut next.bits, &mut reached.bits) {
        *next &= !*reached;
        *reached |= *next;
    }
    next
}

/// Those who can be parents or children of one peer.
struct Around {
    me: usize,
    /// Who has an edge to us, ascending.
    parents: Vec<usize>,
    /// To whom we have one, ascending; and who else has and comes before us.
    children: Vec<(usize, Vec<usize>)>,
}

impl Around {
    fn new(neighbours: &[Vec<usize>], me: usize) -> Self {
        let mut children: Vec<_> = neighbours[me].iter().map(|child| (*child, Vec::new())).collect();
        children.sort_unstable();
        children.dedup();
        let mut parents = Vec::new();
        for (from, to) in neighbours.iter().enumerate() {
            if to.contains(&me) {
                parents.push(from);
            }
            for to in to.iter().filter(|_| from < me) {
                if let Ok(at) = children.binary_search_by_key(to, |(child, _)| *child) {
                    children[at].1.push(from);
                }
            }
        }
        Self { me, parents, children }
    }

    /// Who is whose parent, of those that `next` comes to from `level`.
    fn claim(&self, level: &Origins, next: &Origins, places: &mut [Place]) {
        for word in 0..level.words {
            let mut left = next.of(self.me)[word];
            for parent in &self.parents {
                let come = left & level.of(*parent)[word];
                left &= !come;
                ones(word, come).for_each(|origin| places[origin].parent = Some(*parent));
            }
            for (child, before) in &self.children {
                let mut ours = next.of(*child)[word] & level.of(self.me)[word];
                let mut before = before.iter();
                while ours != 0
                    && let Some(other) = before.next()
                {
                    ours &= !level.of(*other)[word];
                }
                ones(word, ours).for_each(|origin| places[origin].children.push(*child));
            }
        }
    }
}

/// The origins whose bits are set in one word of them.
fn ones(word: usize, bits: u64) -> impl Iterator<Item = usize> {
    let rest = iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1))).take_while(|bits| *bits != 0);
    rest.map(move |bits| word * 64 + bits.trailing_zeros() as usize)
}
