//! Which way everything goes: breadth first over two graphs, the lowest names first, so that all peers agree.

use std::collections::BTreeMap;

use super::short_ids;
use super::topology::{PeerRecord, Topology};
use super::view::{PeerView, View};
use crate::peer::{PeerName, ShortId};

/// Peers by rank of their names, with their neighbours in ascending order.
#[derive(Debug)]
struct Graph {
    names: Vec<PeerName>,
    adjacent: Vec<Vec<usize>>,
}

impl Graph {
    fn new(topology: &Topology, counts: impl Fn(PeerName, PeerName, super::topology::Edge) -> bool) -> Self {
        let names: Vec<PeerName> = topology.records().map(|record| record.name).collect();
        let adjacent = names
            .iter()
            .map(|from| {
                topology
                    .edges(*from)
                    .filter(|(to, edge)| counts(*from, *to, *edge))
                    .filter_map(|(to, _)| names.binary_search(&to).ok())
                    .collect()
            })
            .collect();
        Self { names, adjacent }
    }

    fn index(&self, name: PeerName) -> Option<usize> {
        self.names.binary_search(&name).ok()
    }

    /// Everyone's parent in the tree of `root`, which is its own; ends early once `us` and all others are decided.
    fn tree(&self, root: usize) -> Vec<Option<usize>> {
        let mut parents = vec![None; self.names.len()];
        let mut left = self.names.len().saturating_sub(1);
        parents[root] = Some(root);
        let mut level = vec![root];
        while !level.is_empty() && left > 0 {
            let mut next = Vec::new();
            for &from in &level {
                for &to in &self.adjacent[from] {
                    if parents[to].is_none() {
                        parents[to] = Some(from);
                        left -= 1;
                        next.push(to);
                    }
                }
                if left == 0 {
                    break;
                }
            }
            next.sort_unstable();
            level = next;
        }
        parents
    }

    /// To whom `of` passes on what `root` says.
    fn hops(&self, parents: &[Option<usize>], of: usize) -> Vec<PeerName> {
        // Only the root is its own parent, and nobody is adjacent to itself.
        self.adjacent[of].iter().filter(|&&to| parents[to] == Some(of)).map(|&to| self.names[to]).collect()
    }
}

/// The data plane as `us` sees it.
pub(crate) fn view(topology: &Topology, us: PeerName, short: ShortId) -> View {
    let graph =
        Graph::new(topology, |from, to, edge| edge.established && topology.edge(to, from).is_some_and(|opposite| opposite.established));
    let owners = short_ids::owners(topology.records());
    let mut view = View { name: us, short, peers: BTreeMap::new(), hops: Vec::new() };
    let Some(own) = graph.index(us) else { return view };
    let from_us = graph.tree(own);
    view.hops = graph.hops(&from_us, own);
    for record in topology.records().filter(|record| record.name != us) {
        let Some(root) = graph.index(record.name) else { continue };
        let mut peer = described(record, &owners);
        if from_us[root].is_some() {
            peer.next_hop = first_hop(&from_us, own, root).map(|hop| graph.names[hop]);
            let parents = graph.tree(root);
            peer.parent = parents[own].map(|parent| graph.names[parent]);
            peer.hops = graph.hops(&parents, own);
        }
        view.peers.insert(record.name, peer);
    }
    view
}

fn described(record: &PeerRecord, owners: &BTreeMap<ShortId, PeerName>) -> PeerView {
    let short = record.short.filter(|short| owners.get(short) == Some(&record.name));
    PeerView { nickname: record.nickname.clone(), short, ..PeerView::default() }
}

fn first_hop(parents: &[Option<usize>], own: usize, to: usize) -> Option<usize> {
    let mut at = to;
    loop {
        match parents[at]? {
            parent if parent == own => return Some(at),
            parent => at = parent,
        }
    }
}

/// The control plane's trees: to whom `us` passes on what `origin` broadcasts; `None` if no tree of its leads here.
pub(crate) fn relays(topology: &Topology, us: PeerName, origin: PeerName) -> Option<Vec<PeerName>> {
    let graph = Graph::new(topology, |_, _, edge| edge.linked);
    let (own, root) = (graph.index(us)?, graph.index(origin)?);
    let parents = graph.tree(root);
    parents[own].map(|_| graph.hops(&parents, own))
}
