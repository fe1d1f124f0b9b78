//! What the datapath was told besides flows: slots, sources, trees, flood ports. Only differences are said again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use weave_ebpf::flow::MAX_FANOUT;

use super::Adopted;
use crate::datapath::{Op, PeerRoute, PortId, Source};
use crate::peer::ShortId;

/// One broadcast tree: parent and hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) parent: Option<Ipv4Addr>,
    pub(super) hops: Vec<ShortId>,
}

/// The datapath's tables, as they are or as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) slots: BTreeMap<ShortId, PeerRoute>,
    pub(super) sources: BTreeMap<Ipv4Addr, Source>,
    /// By origin; an empty tree is none.
    pub(super) trees: BTreeMap<ShortId, Tree>,
    pub(super) flood_ports: BTreeSet<PortId>,
}

impl From<Adopted> for Tables {
    fn from(adopted: Adopted) -> Self {
        Self {
            slots: adopted.slots.into_iter().collect(),
            sources: adopted.sources.into_iter().collect(),
            trees: adopted.trees.into_iter().map(|(origin, parent, hops)| (origin, Tree { parent, hops })).collect(),
            flood_ports: adopted.flood_ports.into_iter().collect(),
        }
    }
}

impl Tables {
    pub(super) fn parent(&self, origin: ShortId) -> Option<Ipv4Addr> {
        self.trees.get(&origin)?.parent
    }

    pub(super) fn hops(&self, origin: ShortId) -> &[ShortId] {
        self.trees.get(&origin).map_or(&[], |tree| &tree.hops)
    }

    /// Whether the kernel can copy this origin's floods by itself.
    pub(super) fn fits(&self, origin: ShortId) -> bool {
        self.hops(origin).len() <= MAX_FANOUT && self.flood_ports.len() <= MAX_FANOUT
    }

    /// These tables without what they say of some peers.
    pub(super) fn without(&self, shorts: &[ShortId]) -> Self {
        let mut tables = self.clone();
        tables.slots.retain(|short, _| !shorts.contains(short));
        tables.trees.retain(|short, _| !shorts.contains(short));
        tables
    }

    /// Makes these tables what `wanted` says and returns the orders that do it.
    pub(super) fn become_like(&mut self, mut wanted: Self) -> Vec<Op> {
        wanted.trees.retain(|_, tree| *tree != Tree::default());
        let ops = self.differences(&wanted);
        *self = wanted;
        ops
    }

    /// What is only in `old` is here, too.
    pub(super) fn add(&mut self, old: &Self) {
        for (short, route) in &old.slots {
            self.slots.entry(*short).or_insert(*route);
        }
        for (remote, source) in &old.sources {
            self.sources.entry(*remote).or_insert(*source);
        }
        for (origin, old) in &old.trees {
            let tree = self.trees.entry(*origin).or_default();
            tree.parent = tree.parent.or(old.parent);
            tree.hops.extend(old.hops.iter().filter(|hop| !tree.hops.contains(hop)).copied().collect::<Vec<_>>());
        }
        self.flood_ports.extend(&old.flood_ports);
    }

    fn differences(&self, wanted: &Self) -> Vec<Op> {
        // Who may send comes first, then ways, then floods along them.
        let mut ops: Vec<Op> = changed(&self.sources, &wanted.sources)
            .map(|(remote, source)| Op::SetSource { remote, neighbour: source.copied() })
            .chain(changed(&self.slots, &wanted.slots).map(|(short, route)| Op::SetPeer(short, route.copied())))
            .chain(changed(&self.trees, &wanted.trees).map(|(origin, tree)| {
                let Tree { parent, hops } = tree.cloned().unwrap_or_default();
                Op::SetTree { origin, parent, hops }
            }))
            .collect();
        if self.flood_ports != wanted.flood_ports {
            ops.push(Op::SetFloodPorts(wanted.flood_ports.iter().copied().collect()));
        }
        ops
    }
}

/// Entries that are other in `new` (or not there) than in `old`.
fn changed<'a, K: Ord + Copy, V: PartialEq>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl Iterator<Item = (K, Option<&'a V>)> {
    let set = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, value)| (*key, Some(value)));
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (*key, None));
    set.chain(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(n: u16) -> ShortId {
        ShortId::new(n).unwrap()
    }

    fn tables(hops: &[u16], ports: &[u32]) -> Tables {
        let tree = Tree { parent: None, hops: hops.iter().map(|&hop| short(hop)).collect() };
        Tables { trees: [(short(1), tree)].into(), flood_ports: ports.iter().map(|&port| PortId(port)).collect(), ..Tables::default() }
    }

    #[test]
    fn what_is_as_it_was_is_not_said_again() {
        let mut told = tables(&[2], &[7]);
        assert!(told.become_like(tables(&[2], &[7])).is_empty());
        assert_eq!(told.become_like(tables(&[2], &[8])), [Op::SetFloodPorts(vec![PortId(8)])]);
    }

    #[test]
    fn what_is_kept_is_added_to_and_an_empty_tree_is_none() {
        let mut told = tables(&[2], &[7]);
        let mut wanted = tables(&[3], &[7]);
        wanted.add(&told);
        let ops = told.become_like(wanted);
        assert_eq!(ops, [Op::SetTree { origin: short(1), parent: None, hops: vec![short(3), short(2)] }]);
        let ops = told.become_like(tables(&[], &[7]));
        assert_eq!(ops, [Op::SetTree { origin: short(1), parent: None, hops: vec![] }]);
        assert!(told.trees.is_empty());
    }
}
