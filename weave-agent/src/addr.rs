//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address, in wire order; shown and parsed as `02:00:00:00:00:01`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// 00:00:00:00:00:00, both addresses of a vxlan heartbeat.
    pub const ZERO: Self = Self([0; 6]);

    /// Group bit set: broadcast or multicast (IEEE 802 8.2).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// One of the sixteen groups a bridge never forwards (IEEE 802.1Q table 8-1).
    pub const fn is_reserved_group(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last < 0x10)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not six colon-separated groups of one or two hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address like 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().filter(|g| matches!(g.len(), 1 | 2)).ok_or_else(error)?;
            if !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| error())?;
        }
        groups.next().is_none().then_some(Self(bytes)).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways_and_nonsense_is_named() {
        let mac: Mac = "2:00:AB:c:0:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:0c:00:ff");
        for bad in ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3:4:5:xx", "1:2:3:4:5:+6", "1:2:3:4:5:678"] {
            assert!(bad.parse::<Mac>().unwrap_err().to_string().contains(bad));
        }
    }
}
