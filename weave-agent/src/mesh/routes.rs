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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddrV4};

    use proptest::prelude::*;

    use super::super::topology::Edge;
    use super::*;
    use crate::Time;
    use crate::peer::PeerUid;

    fn name(number: usize) -> PeerName {
        PeerName([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
    }

    /// What each peer believes if edges are as listed: from, to, established.
    fn topologies(count: usize, edges: &[(usize, usize, bool)]) -> Vec<Topology> {
        let record = |number: usize| PeerRecord {
            name: name(number),
            nickname: String::new(),
            uid: PeerUid(1),
            version: 1,
            short: ShortId::new(u16::try_from(number).unwrap()),
            connections: edges
                .iter()
                .filter(|(from, to, _)| *from % count == number && *to % count != number)
                .map(|(_, to, established)| {
                    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
                    (name(to % count), Edge { address, outbound: true, established: *established, linked: true })
                })
                .collect(),
        };
        (0..count)
            .map(|us| {
                let mut topology = Topology::new(record(us));
                topology.apply(Time::ZERO, (0..count).filter(|other| *other != us).map(record).collect());
                topology
            })
            .collect()
    }

    /// Who gets what `origin` says, in which order, if each passes it on to `hops`.
    fn flood(origin: usize, hops: impl Fn(usize) -> Vec<PeerName>) -> Vec<(usize, usize)> {
        let mut got = Vec::new();
        let mut todo = vec![origin];
        while let Some(at) = todo.pop() {
            for hop in hops(at) {
                got.push((at, usize::from(hop.0[5])));
                todo.push(usize::from(hop.0[5]));
                assert!(got.len() < 1000, "a loop");
            }
        }
        got
    }

    proptest! {
        #[test]
        fn every_tree_comes_once_to_each_peer_that_can_be_reached(
            count in 1_usize..12,
            edges in prop::collection::vec((0_usize..12, 0_usize..12, prop::bool::weighted(0.9)), 0..60),
            symmetric in any::<bool>(),
        ) {
            let mut edges = edges;
            if symmetric {
                let back: Vec<_> = edges.iter().map(|(from, to, established)| (*to, *from, *established)).collect();
                edges.extend(back);
            }
            let topologies = topologies(count, &edges);
            let views: Vec<View> =
                topologies.iter().enumerate().map(|(us, topology)| view(topology, name(us), ShortId::new(0).unwrap())).collect();
            for origin in 0..count {
                let reachable: BTreeSet<usize> = (0..count)
                    .filter(|peer| *peer != origin && views[origin].peers[&name(*peer)].next_hop.is_some())
                    .collect();
                let got = flood(origin, |at| {
                    if at == origin { views[at].hops.clone() } else { views[at].peers[&name(origin)].hops.clone() }
                });
                let to: BTreeSet<usize> = got.iter().map(|(_, to)| *to).collect();
                prop_assert_eq!(to.len(), got.len(), "a copy came twice");
                prop_assert_eq!(&to, &reachable);
                for (from, to) in &got {
                    prop_assert_eq!(views[*to].peers[&name(origin)].parent, Some(name(*from)));
                }
                for peer in (0..count).filter(|peer| *peer != origin && !reachable.contains(peer)) {
                    prop_assert_eq!(views[peer].peers[&name(origin)].parent, None);
                }
                // Each next hop is one step nearer.
                for peer in &reachable {
                    let (mut at, mut steps) = (origin, 0);
                    while at != *peer {
                        at = usize::from(views[at].peers[&name(*peer)].next_hop.unwrap().0[5]);
                        steps += 1;
                        prop_assert!(steps < count);
                    }
                }
                // The control plane needs no symmetry.
                let relayed = flood(origin, |at| relays(&topologies[at], name(at), name(origin)).unwrap());
                prop_assert_eq!(relayed.iter().map(|(_, to)| *to).collect::<BTreeSet<_>>().len(), relayed.len());
            }
        }
    }

    #[test]
    fn an_edge_that_only_one_end_calls_established_carries_nothing() {
        let topologies = topologies(2, &[(0, 1, true), (1, 0, false)]);
        let view = view(&topologies[0], name(0), ShortId::new(0).unwrap());
        assert_eq!(view.hops, []);
        assert_eq!(view.peers[&name(1)].next_hop, None);
        assert_eq!(relays(&topologies[0], name(0), name(0)), Some(vec![name(1)]));
    }

    #[test]
    fn of_equally_long_ways_the_one_through_the_lowest_name_is_taken() {
        let edges: Vec<_> = [(0, 1), (0, 2), (1, 3), (2, 3)].iter().flat_map(|(a, b)| [(*a, *b, true), (*b, *a, true)]).collect();
        let view = view(&topologies(4, &edges)[0], name(0), ShortId::new(0).unwrap());
        assert_eq!(view.peers[&name(3)].next_hop, Some(name(1)));
        assert_eq!(view.peers[&name(3)].parent, Some(name(1)));
        assert_eq!(view.peers[&name(3)].hops, [], "2 hears 3 itself");
    }
}
