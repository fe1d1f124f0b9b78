//! Which short id stands for which peer.

use std::collections::BTreeMap;

use crate::mesh::View;
use crate::peer::{PeerName, ShortId};

/// Short ids and names, both ways; our own is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directory {
    names: BTreeMap<ShortId, PeerName>,
    shorts: BTreeMap<PeerName, ShortId>,
}

impl Directory {
    pub(super) fn new(view: &View) -> Self {
        let mut directory = Self::default();
        for (&name, peer) in &view.peers {
            // Two may claim one id, or ours, until they have arbitrated: the lowest name has it so long.
            if let Some(short) = peer.short.filter(|short| *short != view.short && !directory.names.contains_key(short)) {
                directory.names.insert(short, name);
                directory.shorts.insert(name, short);
            }
        }
        directory
    }

    pub(super) fn name(&self, short: ShortId) -> Option<PeerName> {
        self.names.get(&short).copied()
    }

    pub(super) fn short(&self, name: PeerName) -> Option<ShortId> {
        self.shorts.get(&name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ShortId, PeerName)> {
        self.names.iter().map(|(short, name)| (*short, *name))
    }

    /// Short ids that stand for somebody else in `new`.
    pub(super) fn reassigned(&self, new: &Self) -> Vec<ShortId> {
        self.iter().filter(|(short, name)| new.name(*short).is_some_and(|other| other != *name)).map(|(short, _)| short).collect()
    }

    /// Short ids that stand for nobody in `new`.
    pub(super) fn gone(&self, new: &Self) -> Vec<ShortId> {
        self.names.keys().filter(|short| !new.names.contains_key(short)).copied().collect()
    }
}
