//! Names that are about addresses: below in-addr.arpa (RFC 1035, 3.5) and ip6.arpa (RFC 3596, 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::zone::parent;

/// What such a name is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reverse {
    /// One address, or all that begin so.
    pub(super) net: IpNet,
}

impl Reverse {
    /// Of a lower-case name on the wire; `None` if it is about no address.
    pub(super) fn of(wire: &[u8]) -> Option<Self> {
        if let Some(labels) = wire.strip_suffix(b"\x07in-addr\x04arpa\0") {
            let parts: Vec<u8> = labels_of(labels).map(decimal).collect::<Option<_>>()?;
            let mut octets = [0; 4];
            octets.get_mut(..parts.len())?.iter_mut().zip(parts.iter().rev()).for_each(|(octet, part)| *octet = *part);
            return Self::new(Ipv4Addr::from(octets).into(), 8 * parts.len());
        }
        let nibbles: Vec<u8> = labels_of(wire.strip_suffix(b"\x03ip6\x04arpa\0")?).map(nibble).collect::<Option<_>>()?;
        let missing = u32::try_from(32_usize.checked_sub(nibbles.len())?).ok()?;
        let address = nibbles.iter().rev().fold(0, |all, nibble| all << 4 | u128::from(*nibble));
        Self::new(Ipv6Addr::from(address.checked_shl(4 * missing).unwrap_or_default()).into(), 4 * nibbles.len())
    }

    fn new(address: IpAddr, bits: usize) -> Option<Self> {
        Some(Self { net: IpNet::new(address, u8::try_from(bits).ok()?).ok()? })
    }

    /// The one address that it is about.
    pub(super) fn address(&self) -> Option<IpAddr> {
        (self.net.prefix_len() == self.net.max_prefix_len()).then(|| self.net.addr())
    }

    /// The zone that the name `wire` is in, for resolvers want an SOA of one above: that of the part of `range` that labels can name.
    pub(super) fn apex<'a>(&self, wire: &'a [u8], range: IpNet) -> &'a [u8] {
        let bits = if range.addr().is_ipv4() { 8 } else { 4 };
        let least = range.prefix_len().div_ceil(bits).min(range.max_prefix_len() / bits - 1);
        let above = (self.net.prefix_len() / bits).saturating_sub(least);
        (0..above).fold(wire, |name, _| parent(name))
    }
}

fn labels_of(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let length = usize::from(*rest.first()?);
        let label = rest.get(1..=length)?;
        rest = &rest[1 + length..];
        Some(label)
    })
}

fn decimal(label: &[u8]) -> Option<u8> {
    let canonical = matches!(label, [b'0'] | [b'1'..=b'9', ..]);
    if canonical { std::str::from_utf8(label).ok()?.parse().ok() } else { None }
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [letter @ b'a'..=b'f'] => Some(letter - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(name: &str) -> Vec<u8> {
        let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
        labels.chain([0]).collect()
    }

    #[test]
    fn names_say_an_address_or_what_addresses_begin_with() {
        let net = |name: &str| Reverse::of(&wire(name)).map(|reverse| reverse.net.to_string());
        assert_eq!(net("5.0.32.10.in-addr.arpa").as_deref(), Some("10.32.0.5/32"));
        assert_eq!(net("32.10.in-addr.arpa").as_deref(), Some("10.32.0.0/16"));
        assert_eq!(net("0.d.f.ip6.arpa").as_deref(), Some("fd00::/12"));
        let whole = format!("1.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(net(&whole).as_deref(), Some("fd00::1/128"));
        for none in ["1.1.1.1.1.in-addr.arpa", "01.0.32.10.in-addr.arpa", "256.in-addr.arpa", "x.ip6.arpa", "10.in-addr.arpa.x"] {
            assert_eq!(net(none), None, "{none}");
        }
        assert_eq!(net(&format!("0.{whole}")), None);
    }

    #[test]
    fn the_zone_is_the_part_of_the_range_that_labels_can_name() {
        let apex = |name: &str, range: &str| {
            let name = wire(name);
            Reverse::of(&name).unwrap().apex(&name, range.parse().unwrap()).to_vec()
        };
        assert_eq!(apex("5.0.40.10.in-addr.arpa", "10.32.0.0/12"), wire("40.10.in-addr.arpa"));
        assert_eq!(apex("5.0.40.10.in-addr.arpa", "10.40.0.0/26"), wire("0.40.10.in-addr.arpa"));
        assert_eq!(apex("40.10.in-addr.arpa", "10.32.0.0/12"), wire("40.10.in-addr.arpa"));
        assert_eq!(apex("1.0.0.0.d.f.ip6.arpa", "fd00::/16"), wire("0.0.d.f.ip6.arpa"));
    }
}
