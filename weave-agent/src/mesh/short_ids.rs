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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::peer::PeerUid;

    fn claim(number: u16, short: u16) -> PeerRecord {
        let [a, b] = number.to_be_bytes();
        PeerRecord {
            name: PeerName([2, 0, 0, 0, a, b]),
            nickname: String::new(),
            uid: PeerUid(1),
            version: 1,
            short: ShortId::new(short),
            connections: BTreeMap::new(),
        }
    }

    #[test]
    fn the_lowest_name_owns_what_several_claim() {
        let claims = [claim(3, 7), claim(2, 7), claim(9, 8)];
        let owners = owners(claims.iter());
        assert_eq!(owners, BTreeMap::from([(ShortId::new(7).unwrap(), claims[1].name), (ShortId::new(8).unwrap(), claims[2].name)]));
    }

    #[test]
    fn the_last_free_one_is_found_and_none_is_none() {
        let mut rng = StdRng::from_seed([1; 32]);
        let mut claims: Vec<PeerRecord> = (0..COUNT).filter(|short| *short != 1234).map(|short| claim(short, short)).collect();
        assert_eq!(choose(&mut rng, &owners(claims.iter())), ShortId::new(1234));
        claims.push(claim(1234, 1234));
        assert_eq!(choose(&mut rng, &owners(claims.iter())), None);
    }
}
