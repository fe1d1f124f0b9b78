//! Ways through the mesh, for one graph of it: the data plane's or the gossip's.
//!
//! Everything follows from one breadth-first search per origin, in which every level is gone through by ascending name
//! and the first to find a peer becomes its parent. Peers that agree on the graph so agree on every origin's tree: the
//! hops of each are its children, and p has q among its hops if and only if q has p for its parent.

use std::collections::BTreeMap;

use super::forest;
use crate::peer::PeerName;

/// Directed edges between peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    /// Ascending, so that the order of numbers is the order of names.
    names: Vec<PeerName>,
    neighbours: Vec<Vec<usize>>,
}

impl Graph {
    /// From each peer, by ascending name, to whom it has edges: quickest if they ascend, too. Edges to those that are not among
    /// the peers lead nowhere and are left out.
    pub(super) fn new<To: IntoIterator<Item = PeerName>>(peers: impl IntoIterator<Item = (PeerName, To)>) -> Self {
        let (names, edges): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
        let neighbours = edges.into_iter().map(|to| numbers(&names, to)).collect();
        Self { names, neighbours }
    }

    /// Only the edges that both ends have.
    pub(super) fn mutual(mut self) -> Self {
        let mut back: Vec<Vec<usize>> = vec![Vec::new(); self.names.len()];
        for (from, to) in self.neighbours.iter_mut().enumerate() {
            to.sort_unstable();
            to.dedup();
            // Whoever comes later finds the ends of the earlier ones in order.
            to.iter().for_each(|to| back[*to].push(from));
        }
        for (to, from) in self.neighbours.iter_mut().zip(back) {
            let mut from = from.into_iter().peekable();
            to.retain(|to| {
                while from.next_if(|from| from < to).is_some() {}
                from.peek() == Some(to)
            });
        }
        self
    }

    /// Everyone's parent in the tree of `root`, which is its own; `None` for those it does not reach.
    fn tree(&self, root: usize) -> Vec<Option<usize>> {
        let mut parents = vec![None; self.names.len()];
        parents[root] = Some(root);
        let (mut level, mut left) = (vec![root], self.names.len() - 1);
        // In a full mesh the first peer reaches all others: stopping there makes a tree linear in peers, not in edges.
        while !level.is_empty() && left > 0 {
            level = self.next_level(&level, &mut parents);
            left -= level.len();
        }
        parents
    }

    fn next_level(&self, level: &[usize], parents: &mut [Option<usize>]) -> Vec<usize> {
        let mut next = Vec::new();
        for &from in level {
            for &to in &self.neighbours[from] {
                if parents[to].is_none() {
                    parents[to] = Some(from);
                    next.push(to);
                }
            }
        }
        next.sort_unstable();
        next
    }

    /// The peers that `root` reaches, itself included if it is in the graph.
    pub(super) fn reachable(&self, root: PeerName) -> Vec<PeerName> {
        let Ok(root) = self.names.binary_search(&root) else { return Vec::new() };
        let parents = self.tree(root);
        self.names.iter().zip(parents).filter_map(|(name, parent)| parent.map(|_| *name)).collect()
    }
}

/// The places of some of these names, which ascend.
fn numbers(names: &[PeerName], some: impl IntoIterator<Item = PeerName>) -> Vec<usize> {
    let mut next = 0;
    let mut number = |name: PeerName| {
        // In a full mesh each comes after the one before.
        let at = if names.get(next) == Some(&name) { next } else { names.binary_search(&name).ok()? };
        next = at + 1;
        Some(at)
    };
    some.into_iter().filter_map(&mut number).collect()
}

/// Where we are in one origin's tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Branch {
    /// Who passes the origin's messages on to us; `None` for our own tree.
    pub(super) parent: Option<PeerName>,
    /// Whom we pass them on to.
    pub(super) hops: Vec<PeerName>,
}

/// The ways from and to one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routes {
    /// The neighbour to go through, for each peer that can be reached.
    pub(super) next_hops: BTreeMap<PeerName, PeerName>,
    /// Our branch of the tree of each peer that reaches us, ourselves included.
    pub(super) branches: BTreeMap<PeerName, Branch>,
}

impl Routes {
    pub(super) fn new(graph: &Graph, me: PeerName) -> Self {
        let Ok(me) = graph.names.binary_search(&me) else { return Self::default() };
        let name = |number: usize| graph.names[number];
        let branches = forest::places(&graph.neighbours, me).into_iter().enumerate().filter_map(|(origin, place)| {
            let branch = Branch { parent: place.parent.map(name), hops: place.children.into_iter().map(name).collect() };
            (origin == me || branch.parent.is_some()).then(|| (name(origin), branch))
        });
        Self { next_hops: next_hops(graph, me), branches: branches.collect() }
    }

    /// Whom we pass on to what `origin` broadcast.
    pub(super) fn hops(&self, origin: PeerName) -> &[PeerName] {
        self.branches.get(&origin).map_or(&[], |branch| &branch.hops)
    }
}

fn next_hops(graph: &Graph, me: usize) -> BTreeMap<PeerName, PeerName> {
    let parents = graph.tree(me);
    let mut next_hops = BTreeMap::new();
    for to in (0..parents.len()).filter(|to| *to != me) {
        if let Some(hop) = first_hop(&parents, me, to) {
            next_hops.insert(graph.names[to], graph.names[hop]);
        }
    }
    next_hops
}

fn first_hop(parents: &[Option<usize>], me: usize, to: usize) -> Option<usize> {
    let mut hop = to;
    while parents[hop]? != me {
        hop = parents[hop]?;
    }
    Some(hop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(last: usize) -> PeerName {
        PeerName([2, 0, 0, 0, 0, u8::try_from(last).unwrap()])
    }

    fn graph(peers: usize, edges: &[(usize, usize)]) -> Graph {
        let mut map: BTreeMap<_, Vec<_>> = (0..peers).map(|peer| (name(peer), Vec::new())).collect();
        for (from, to) in edges {
            map.get_mut(&name(*from)).unwrap().push(name(*to));
        }
        Graph::new(map)
    }

    fn symmetric(edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
        edges.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect()
    }

    #[test]
    fn of_two_ways_as_short_the_lower_name_is_taken() {
        let diamond = graph(4, &symmetric(&[(0, 2), (0, 1), (2, 3), (1, 3)]));
        let routes = Routes::new(&diamond, name(0));
        assert_eq!(routes.next_hops, BTreeMap::from([(name(1), name(1)), (name(2), name(2)), (name(3), name(1))]));
        assert_eq!(Routes::new(&diamond, name(1)).hops(name(0)), [name(3)]);
        assert!(Routes::new(&diamond, name(2)).hops(name(0)).is_empty());
    }

    #[test]
    fn a_peer_outside_has_no_route_and_no_branch() {
        let routes = Routes::new(&graph(3, &symmetric(&[(0, 1)])), name(0));
        assert!(!routes.next_hops.contains_key(&name(2)) && !routes.branches.contains_key(&name(2)));
    }

    #[test]
    fn an_edge_to_oneself_or_given_twice_changes_nothing() {
        let routes = Routes::new(&graph(2, &[(0, 0), (0, 1), (0, 1), (1, 0)]), name(0));
        assert_eq!(routes.branches[&name(0)], Branch { parent: None, hops: vec![name(1)] });
    }

    fn edges(peers: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = (usize, Vec<(usize, usize)>)> {
        peers.prop_flat_map(|peers| (Just(peers), prop::collection::vec((0..peers, 0..peers), 0..peers * 4)))
    }

    fn reach(graph: &Graph, from: PeerName) -> Vec<PeerName> {
        let mut reached = vec![from];
        let mut at = 0;
        while let Some(&peer) = reached.get(at) {
            let number = graph.names.binary_search(&peer).unwrap();
            let new: Vec<_> = graph.neighbours[number].iter().map(|n| graph.names[*n]).collect();
            reached.extend(new.into_iter().filter(|n| !reached.contains(n)).collect::<std::collections::BTreeSet<_>>());
            at += 1;
        }
        reached.sort_unstable();
        reached
    }

    /// The same from the whole tree.
    fn branch(graph: &Graph, origin: usize, me: usize) -> Option<Branch> {
        let parents = graph.tree(origin);
        let parent = parents[me]?;
        let is_hop = |peer: &usize| parents[*peer] == Some(me) && *peer != me && *peer != origin;
        let hops = (0..parents.len()).filter(is_hop).map(|hop| graph.names[hop]).collect();
        Some(Branch { parent: (me != origin).then(|| graph.names[parent]), hops })
    }

    proptest! {
        #[test]
        fn all_trees_at_once_are_those_of_a_search_from_each((peers, edges) in prop_oneof![edges(1..=12), edges(60..=140)]) {
            let graph = graph(peers, &edges);
            for me in 0..peers {
                let branches = (0..peers).filter_map(|origin| Some((graph.names[origin], branch(&graph, origin, me)?)));
                prop_assert_eq!(Routes::new(&graph, graph.names[me]).branches, branches.collect::<BTreeMap<_, _>>());
            }
        }

        #[test]
        fn mutual_edges_are_those_that_both_ends_have((peers, edges) in edges(1..=12)) {
            let given: std::collections::BTreeSet<_> = edges.iter().copied().collect();
            let mutual = graph(peers, &edges).mutual();
            let left = (0..peers).flat_map(|from| mutual.neighbours[from].iter().map(move |to| (from, *to)));
            prop_assert_eq!(left.collect::<Vec<_>>(), given.iter().filter(|(a, b)| given.contains(&(*b, *a))).copied().collect::<Vec<_>>());
        }

        #[test]
        fn a_broadcast_reaches_every_reachable_peer_exactly_once((peers, edges) in edges(1..=12), origin in 0..12_usize) {
            let (graph, origin) = (graph(peers, &edges), name(origin % peers));
            let routes: BTreeMap<_, _> = graph.names.iter().map(|me| (*me, Routes::new(&graph, *me))).collect();
            let (mut got, mut queue) = (vec![origin], vec![origin]);
            while let Some(peer) = queue.pop() {
                queue.extend(routes[&peer].hops(origin));
                got.extend(routes[&peer].hops(origin));
            }
            got.sort_unstable();
            prop_assert_eq!(&got, &reach(&graph, origin));
            prop_assert_eq!(got, graph.reachable(origin));
        }

        #[test]
        fn a_peer_is_a_hop_if_and_only_if_we_are_its_parent((peers, edges) in edges(1..=12)) {
            let graph = graph(peers, &edges);
            let routes: BTreeMap<_, _> = graph.names.iter().map(|me| (*me, Routes::new(&graph, *me))).collect();
            for (p, q, origin) in (0..peers.pow(3)).map(|n| (name(n % peers), name(n / peers % peers), name(n / peers / peers))) {
                let parent = routes[&q].branches.get(&origin).and_then(|branch| branch.parent);
                prop_assert_eq!(routes[&p].hops(origin).contains(&q), parent == Some(p));
            }
        }

        #[test]
        fn following_next_hops_arrives((peers, edges) in edges(1..=12)) {
            let graph = graph(peers, &symmetric(&edges));
            let routes: BTreeMap<_, _> = graph.names.iter().map(|me| (*me, Routes::new(&graph, *me))).collect();
            for (from, to) in (0..peers * peers).map(|n| (name(n % peers), name(n / peers))) {
                let (mut at, mut steps) = (from, 0);
                while at != to && let Some(next) = routes[&at].next_hops.get(&to) {
                    (at, steps) = (*next, steps + 1);
                    prop_assert!(steps < peers);
                }
                prop_assert_eq!(at == to, reach(&graph, from).contains(&to));
            }
        }
    }
}
