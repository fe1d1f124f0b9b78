//! What is answered at one moment: an immutable snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::name::{Domain, Name};

/// Names, addresses, and the way back. Look-ups take O(log n); nothing in it changes, so that it can be shared without a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    domain: Domain,
    /// The domain as queries carry it.
    suffix: Vec<u8>,
    ttl: u32,
    /// By name on the wire, in lower case. Also names that only others are below (RFC 8020), with no address.
    names: BTreeMap<Vec<u8>, Addresses>,
    addresses: BTreeMap<IpAddr, BTreeSet<Name>>,
    /// What is given out: addresses of these without a name are nobody's, whatever others say.
    ranges: Vec<IpNet>,
}

/// Sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
}

impl Zone {
    /// A snapshot of `entries`; those outside the domain are not part of it. `ttl` in seconds.
    pub fn new(domain: Domain, ttl: u32, entries: impl IntoIterator<Item = (Name, IpAddr)>) -> Self {
        let suffix = domain.name().wire();
        let mut zone = Self { domain, suffix, ttl, ..Self::default() };
        let entries: BTreeSet<_> = entries.into_iter().filter(|(name, _)| zone.domain.contains(name)).collect();
        for (name, address) in entries {
            zone.add(name, address);
        }
        zone.names.entry(zone.suffix.clone()).or_default();
        zone
    }

    /// The same, with authority for the addresses of these ranges.
    pub fn giving_out(self, ranges: Vec<IpNet>) -> Self {
        Self { ranges, ..self }
    }

    fn add(&mut self, name: Name, address: IpAddr) {
        let wire = name.wire();
        self.add_parents(&wire);
        let addresses = self.names.entry(wire).or_default();
        match address {
            IpAddr::V4(address) => addresses.v4.push(address),
            IpAddr::V6(address) => addresses.v6.push(address),
        }
        self.addresses.entry(address).or_default().insert(name);
    }

    fn add_parents(&mut self, wire: &[u8]) {
        let mut rest = parent(wire);
        while rest.len() > self.suffix.len() {
            self.names.entry(rest.to_vec()).or_default();
            rest = parent(rest);
        }
    }

    /// The domain that we answer for.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// How long answers may be kept, seconds.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// The addresses of a name, sorted, IPv4 first.
    pub fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        let found = self.find(&name.wire());
        let v4 = found.iter().flat_map(|found| found.v4.iter().copied().map(IpAddr::from));
        let v6 = found.iter().flat_map(|found| found.v6.iter().copied().map(IpAddr::from));
        v4.chain(v6).collect()
    }

    /// The names of an address, sorted.
    pub fn names(&self, address: IpAddr) -> impl ExactSizeIterator<Item = &Name> {
        static NONE: BTreeSet<Name> = BTreeSet::new();
        self.addresses.get(&address).unwrap_or(&NONE).iter()
    }

    /// The range that all these addresses are in.
    pub(super) fn range_of(&self, net: IpNet) -> Option<IpNet> {
        self.ranges.iter().copied().find(|range| range.contains(&net))
    }

    /// By name on the wire, in lower case.
    pub(super) fn find(&self, wire: &[u8]) -> Option<&Addresses> {
        self.names.get(wire)
    }

    /// The domain on the wire.
    pub(super) fn suffix(&self) -> &[u8] {
        &self.suffix
    }
}

/// A name on the wire without its first label.
pub(super) fn parent(wire: &[u8]) -> &[u8] {
    let first = wire.first().map_or(0, |length| usize::from(*length) + 1);
    wire.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_knows_both_ways_and_each_address_once() {
        let entry = |text: &str, address: &str| (name(text), address.parse().unwrap());
        let zone = Zone::new(
            Domain::default(),
            1,
            [
                entry("web.weave.local.", "10.32.0.2"),
                entry("web.weave.local.", "10.32.0.1"),
                entry("web.weave.local.", "10.32.0.2"),
                entry("web.weave.local.", "fd00::1"),
                entry("db.weave.local.", "10.32.0.1"),
                entry("a.b.weave.local.", "10.32.0.9"),
                entry("www.example.com.", "10.32.0.3"),
            ],
        );
        let text: Vec<String> = zone.addresses(&name("WEB.weave.local")).iter().map(IpAddr::to_string).collect();
        assert_eq!(text, ["10.32.0.1", "10.32.0.2", "fd00::1"]);
        let names: Vec<&str> = zone.names("10.32.0.1".parse().unwrap()).map(Name::as_str).collect();
        assert_eq!(names, ["db.weave.local.", "web.weave.local."]);
        assert!(zone.addresses(&name("www.example.com.")).is_empty());
        assert_eq!(zone.find(b"\x01b\x05weave\x05local\0"), Some(&Addresses::default()));
        assert!(zone.find(b"\x01c\x05weave\x05local\0").is_none());
        assert!(zone.find(zone.suffix()).is_some());
    }
}
