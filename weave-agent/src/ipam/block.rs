//! Addresses as numbers: families, and half-open blocks of one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Serialize;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// 32-bit addresses.
    V4,
    /// 128-bit addresses.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address with this number (its lowest 32 bits, for IPv4).
    pub(super) fn address(self, number: u128) -> IpAddr {
        match self {
            // The mask makes the conversion exact.
            Self::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number & u128::from(u32::MAX)).unwrap_or_default())),
            Self::V6 => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }
}

/// An address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The addresses from `start` to just before `end`; empty if these are equal. Never made from a whole address space, so that
/// `end` has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub(super) start: u128,
    pub(super) end: u128,
}

impl Block {
    pub(super) const fn new(start: u128, end: u128) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// One address.
    pub(super) const fn single(address: u128) -> Self {
        Self::new(address, address.saturating_add(1))
    }

    /// All addresses of a network.
    pub(super) fn of(net: IpNet) -> Self {
        Self::new(number(net.network()), number(net.broadcast()).saturating_add(1))
    }

    /// What containers can have of a network: for IPv4 neither its first nor its last address, for IPv6 not its first (the
    /// subnet-router anycast address).
    pub(super) fn hosts(net: IpNet) -> Self {
        let all = Self::of(net);
        match net {
            IpNet::V4(_) => Self::new(all.start + 1, all.end - 1),
            IpNet::V6(_) => Self::new(all.start + 1, all.end),
        }
    }

    pub(super) const fn size(self) -> u128 {
        self.end - self.start
    }

    pub(super) const fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(super) const fn contains(self, address: u128) -> bool {
        self.start <= address && address < self.end
    }

    pub(super) const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What is in both; empty if nothing is.
    pub(super) fn and(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The largest block inside that a prefix can name; of several the last, for addresses are handed out from the front.
    pub(super) fn largest_cidr(self) -> Self {
        let mut size = 1_u128.checked_shl(127 - self.size().leading_zeros().min(127)).unwrap_or(1);
        while size > 1 && !self.is_empty() {
            // Sizes are powers of two: rounding down is a mask.
            let start = (self.end - size) & !(size - 1);
            if start >= self.start {
                return Self::new(start, start + size);
            }
            size /= 2;
        }
        Self::new(self.end.saturating_sub(1).max(self.start), self.end)
    }

    /// Its upper half, rounded up: never empty unless it is.
    pub(super) fn upper_half(self) -> Self {
        Self::new(self.start + self.size() / 2, self.end)
    }

    /// What is left of it without `others` (sorted, disjoint).
    pub(super) fn without(self, others: &[Self]) -> Vec<Self> {
        let mut left = Vec::new();
        let mut from = self.start;
        for other in others.iter().map(|other| other.and(self)).filter(|other| !other.is_empty()) {
            left.push(Self::new(from, other.start));
            from = other.end;
        }
        left.push(Self::new(from, self.end));
        left.retain(|block| !block.is_empty());
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn largest(start: u128, end: u128) -> (u128, u128) {
        let block = Block::new(start, end).largest_cidr();
        (block.start, block.end)
    }

    #[test]
    fn the_largest_block_a_prefix_can_name_is_found() {
        assert_eq!(largest(0, 8), (0, 8));
        assert_eq!(largest(6, 8), (6, 8));
        assert_eq!(largest(1, 8), (4, 8));
        assert_eq!(largest(3, 5), (4, 5));
        assert_eq!(largest(5, 5), (5, 5));
        assert_eq!(largest(5, 6), (5, 6));
    }

    #[test]
    fn hosts_are_without_network_and_broadcast_address() {
        let hosts = |net: &str| Block::hosts(net.parse().unwrap()).size();
        assert_eq!(hosts("10.32.0.0/30"), 2);
        assert_eq!(hosts("fd00::/126"), 3);
    }

    proptest! {
        #[test]
        fn the_largest_block_is_aligned_inside_and_at_least_a_quarter(start in 0_u128..1000, size in 1_u128..1000) {
            let whole = Block::new(start, start + size);
            let found = whole.largest_cidr();
            prop_assert!(whole.covers(found) && found.size().is_power_of_two() && found.start.is_multiple_of(found.size()));
            prop_assert!(found.size() * 4 > size);
        }

        #[test]
        fn numbers_and_addresses_are_the_same(number: u128) {
            prop_assert_eq!(super::number(Family::V6.address(number)), number);
            prop_assert_eq!(super::number(Family::V4.address(number)), number & 0xffff_ffff);
        }
    }
}
