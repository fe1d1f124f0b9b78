//! What stands before a frame on the sleeve's TAP device, both ways: shaped like an Ethernet header, so that the kernel
//! takes it for one.
//!
//! | bytes | |
//! |---|---|
//! | 0 | 02: a unicast address |
//! | 1 | hop limit |
//! | 2..6 | the neighbour: the next hop on the way out, where it came from on the way in |
//! | 6..9 | 02 00 00 |
//! | 9..12 | VNI |
//! | 12..14 | 86dd before IPv6, 0800 before all else: the kernel shortens no other packet |

use crate::flow::{Ipv4, PeerSlot, slot};
use crate::packet::{ETHERNET, Packet, ethertype};
use crate::vxlan::Template;

/// Bytes of the prefix.
pub const PREFIX: usize = ETHERNET;

const UNICAST: u8 = 2;

/// A frame's way through the sleeve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// As a TTL of a VXLAN packet: a relay takes [`crate::vxlan::RELAY_TTL`].
    pub ttl: u8,
    /// The neighbour's outer address.
    pub neighbour: Ipv4,
    /// As in VXLAN.
    pub vni: u32,
}

impl Prefix {
    /// As bytes, before a frame of this kind.
    #[inline(always)]
    pub const fn bytes(&self, inner_ethertype: u16) -> [u8; PREFIX] {
        let [a, b, c, d] = self.neighbour;
        let [_, x, y, z] = self.vni.to_be_bytes();
        let kind = if inner_ethertype == ethertype::IPV6 { ethertype::IPV6 } else { ethertype::IPV4 };
        let [high, low] = kind.to_be_bytes();
        [UNICAST, self.ttl, a, b, c, d, UNICAST, 0, 0, x, y, z, high, low]
    }

    /// The prefix of a packet, if it has one.
    #[inline(always)]
    pub fn parse<P: Packet + ?Sized>(packet: &P) -> Option<Self> {
        match packet.read::<PREFIX>(0)? {
            [UNICAST, ttl, a, b, c, d, UNICAST, 0, 0, x, y, z, _, _] => {
                Some(Self { ttl, neighbour: [a, b, c, d], vni: u32::from_be_bytes([0, x, y, z]) })
            }
            _ => None,
        }
    }
}

/// The slot of a peer that the TAP device `ifindex` takes frames for, by way of this neighbour. Frames of any size:
/// user space cuts them.
pub fn slot(ifindex: u32, remote: Ipv4, local: Ipv4) -> PeerSlot {
    PeerSlot { flags: slot::VALID | slot::SLEEVE, ifindex, mtu: u32::MAX, sum: 0, remote, local, template: Template::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_parsed_and_an_ethernet_header_of_others_is_not() {
        let prefix = Prefix { ttl: 64, neighbour: [10, 0, 0, 2], vni: 0x00_2001 };
        assert_eq!(Prefix::parse(prefix.bytes(ethertype::IPV6).as_slice()), Some(prefix));
        assert_eq!(ethertype(prefix.bytes(ethertype::IPV6).as_slice(), 0), Some(ethertype::IPV6));
        assert_eq!(ethertype(prefix.bytes(0x0806).as_slice(), 0), Some(ethertype::IPV4));
        assert_eq!(Prefix::parse([0xff_u8; PREFIX].as_slice()), None);
        assert_eq!(Prefix::parse([2_u8; PREFIX - 1].as_slice()), None);
    }
}
