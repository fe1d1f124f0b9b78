//! Who owns a short id: of all that claim it, the peer with the lowest name.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;

use super::topology::PeerRecord;
use crate::peer::{PeerName, ShortId};

const PROBES: usize = 10;
const COUNT: u16 = 1 << 12;

/// Each claimed short id's owner.
pub(crate) fn owners<'a>(records: impl Iterator<Item = &'a PeerRecord>) -> BTreeMap<ShortId, PeerName> {
    let mut owners = BTreeMap::new();
    for record in records {
        if let Some(short) = record.short {
            let owner = owners.entry(short).or_insert(record.name);
            *owner = record.name.min(*owner);
        }
    }
    owners
}

/// One that nobody claims; `None` if all are taken.
pub(crate) fn choose(rng: &mut StdRng, owners: &BTreeMap<ShortId, PeerName>) -> Option<ShortId> {
    let free = |short: &ShortId| !owners.contains_key(short);
    for _ in 0..PROBES {
        if let Some(short) = ShortId::new(rng.random_range(0..COUNT)).filter(free) {
            return Some(short);
        }
    }
    let all: Vec<ShortId> = (0..COUNT).filter_map(ShortId::new).filter(free).collect();
    if all.is_empty() { None } else { Some(all[rng.random_range(0..all.len())]) }
}
