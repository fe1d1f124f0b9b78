//! Who owns which of the 4,096 short ids: the claimant with the lowest name. Losers choose again.
//!
//! Ownership is a function of the topology, so there is no table to keep in step. An id that was freed may be given out
//! again at once, without tombstones: a [`super::View`] says which name has which id, so the switch sees in one step that
//! an id went from one peer to another or to nobody, and drops what it had cached for the old owner before it points the
//! id's slot elsewhere. What is on the wire meanwhile carries the id for a path's delay only.

use std::collections::BTreeMap;

use rand::{Rng, RngExt};

use super::message::MAX_PEERS;
use crate::peer::{PeerName, ShortId};

/// The lowest.
pub(super) const LOWEST: ShortId = match ShortId::new(0) {
    Some(short) => short,
    None => panic!("0 fits 12 bits"),
};

/// Everyone's claim to who owns what.
pub(super) fn owners(claims: impl Iterator<Item = (PeerName, ShortId)>) -> BTreeMap<ShortId, PeerName> {
    let mut owners = BTreeMap::new();
    for (name, short) in claims {
        owners.entry(short).and_modify(|owner: &mut PeerName| *owner = name.min(*owner)).or_insert(name);
    }
    owners
}

/// An id that nobody owns, or `None` if all are taken.
pub(super) fn pick(owners: &BTreeMap<ShortId, PeerName>, rng: &mut impl Rng) -> Option<ShortId> {
    let free: Vec<_> = all().filter(|short| !owners.contains_key(short)).collect();
    (!free.is_empty()).then(|| free[rng.random_range(0..free.len())])
}

fn all() -> impl Iterator<Item = ShortId> {
    (0..MAX_PEERS).filter_map(|id| ShortId::new(u16::try_from(id).ok()?))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn name(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn the_lowest_name_owns_a_contested_id() {
        let short = ShortId::new(7).unwrap();
        for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
            assert_eq!(owners(order.map(|n| (name(n), short)).into_iter())[&short], name(1));
        }
    }

    #[test]
    fn the_last_free_id_is_found_and_then_there_is_none() {
        let mut owners: BTreeMap<_, _> = all().map(|short| (short, name(1))).collect();
        let mut rng = StdRng::from_seed([0; 32]);
        assert_eq!(pick(&owners, &mut rng), None);
        let short = ShortId::new(1234).unwrap();
        owners.remove(&short);
        assert_eq!(pick(&owners, &mut rng), Some(short));
    }
}
