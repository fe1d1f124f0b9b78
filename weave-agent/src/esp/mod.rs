//! IPsec for the kernel's tunnel: VXLAN between two hosts goes under ESP (RFC 4303) in transport mode, sealed by AES-256-GCM
//! (RFC 4106).
//!
//! An association is one direction, as a session of the sleeve is: its receiver makes number (SPI) and key and tells the sender
//! over the link, once its own kernel has it. What keeps VXLAN from going or coming in clear is there before the first of them,
//! and as long as the neighbour is one ([`Op::Protect`]).

mod associations;

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use self::associations::{Associations, Input, Output};

/// A key and the salt of its nonces: 32 bytes and 4 (RFC 4106 section 8.1).
pub const KEY: usize = 36;
/// Numbers below are reserved (RFC 4303 section 2.1).
pub const LEAST_SPI: u32 = 256;

/// IPv4 header, ESP header with counter and nonce, ICV.
const AROUND: u16 = 20 + 16 + 16;
/// Inside: UDP, VXLAN, inner Ethernet header, padding's length, next header.
const INSIDE: u16 = 8 + 8 + 14 + 2;
/// What bare VXLAN adds to an inner packet.
const VXLAN: u16 = 50;

/// The largest inner packet that goes under ESP where bare VXLAN takes packets of this size. What is sealed is a multiple of 4 bytes.
pub const fn inner_mtu(vxlan_mtu: u16) -> u16 {
    let sealed = vxlan_mtu.saturating_add(VXLAN).saturating_sub(AROUND);
    (sealed & !3).saturating_sub(INSIDE)
}

/// The same for any size.
pub fn sealed_mtu(vxlan_mtu: u32) -> u32 {
    u16::try_from(vxlan_mtu).map_or(u16::MAX, inner_mtu).into()
}

/// An association's number at its receiver; at least [`LEAST_SPI`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spi(pub u32);

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// An association's secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; KEY]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Which way an association goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The neighbour sends.
    In,
    /// We do.
    Out,
}

/// Where an association is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The neighbour's outer address.
    pub remote: Ipv4Addr,
    /// Ours towards it.
    pub local: Ipv4Addr,
    /// Which way.
    pub direction: Direction,
    /// Its number.
    pub spi: Spi,
}

/// What the neighbour's protection is about: UDP to this port, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protection {
    /// The neighbour's outer address.
    pub remote: Ipv4Addr,
    /// Port of its tunnel, and of ours.
    pub port: u16,
}

/// An order to `io::esp`. They are carried out in order; all are idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// VXLAN to and from this neighbour is dropped unless it is under ESP, from now on: [`Input::Protected`] says when that is so.
    Protect(Protection),
    /// No longer.
    Unprotect(Ipv4Addr),
    /// Have this association: [`Input::Installed`] says when it is there. The latest outgoing one is sent with.
    Add(Id, Key),
    /// Forget it.
    Remove(Id),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_under_esp_fills_the_underlay_but_for_the_padding() {
        for vxlan in 500..9000 {
            let around = |inner: u16| {
                let sealed = inner + INSIDE;
                AROUND + sealed.next_multiple_of(4)
            };
            let most = inner_mtu(vxlan);
            assert!(around(most) <= vxlan + VXLAN && around(most + 1) > vxlan + VXLAN, "{vxlan}: {most}");
        }
        assert_eq!(inner_mtu(1450), 1416);
    }
}
