//! Who is who in the mesh.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::addr::{Mac, ParseMacError};

/// A peer's name: random, kept in the state directory, shown like a MAC address. Ordered, because the lowest name wins ties.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerName(pub [u8; 6]);

impl PeerName {
    /// A new name: random, unicast, locally administered.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = rng.next_u64().to_be_bytes();
        bytes[0] = bytes[0] & !1 | 2;
        Self([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]])
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Mac(self.0), f)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerName {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Mac>().map(|mac| Self(mac.0))
    }
}

/// Chosen at random at every start: tells two incarnations of one name apart. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerUid(pub u64);

/// 12 bits that stand for a peer in a VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShortId(u16);

impl ShortId {
    /// `None` if it does not fit 12 bits.
    pub const fn new(id: u16) -> Option<Self> {
        if id < 1 << 12 { Some(Self(id)) } else { None }
    }

    /// The number, below 4,096.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
