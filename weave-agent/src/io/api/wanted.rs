//! An address as it is asked for.

use std::fmt::{self, Display};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `10.32.1.1/16` (or `ip:10.32.1.1/16`), `net:10.32.2.0/24`, `net:default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Wanted {
    /// This one, with the prefix of its subnet.
    This(IpNet),
    /// A free one of a subnet.
    Of(IpNet),
    /// A free one of the default subnet; of each, if there are two.
    Default,
}

/// Words that mean no address, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Not an address with a prefix.
    #[error("{0:?} is not an address with its subnet's prefix length: say for example 10.32.1.1/16")]
    Address(String),
    /// Not a subnet.
    #[error("{0:?} does not name a subnet: say for example net:10.32.2.0/24, or net:default")]
    Subnet(String),
    /// An address where a subnet was announced.
    #[error("{given} is an address inside a subnet: say net:{subnet} for any free address of it, or ip:{address} for this one")]
    NotASubnet {
        /// What was said.
        given: String,
        /// The subnet it is in.
        subnet: IpNet,
        /// The address it is.
        address: IpNet,
    },
}

impl FromStr for Wanted {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        match text.strip_prefix("net:") {
            Some("default") => Ok(Self::Default),
            Some(subnet) => of(text, subnet.parse().map_err(|_| Unclear::Subnet(text.to_owned()))?),
            None => {
                let address = text.strip_prefix("ip:").unwrap_or(text);
                address.parse().map(Self::This).map_err(|_| Unclear::Address(text.to_owned()))
            }
        }
    }
}

fn of(text: &str, subnet: IpNet) -> Result<Wanted, Unclear> {
    if subnet.addr() == subnet.network() {
        return Ok(Wanted::Of(subnet));
    }
    Err(Unclear::NotASubnet { given: text.to_owned(), subnet: subnet.trunc(), address: subnet })
}

impl Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::This(address) => write!(f, "{address}"),
            Self::Of(subnet) => write!(f, "net:{subnet}"),
            Self::Default => f.write_str("net:default"),
        }
    }
}

impl TryFrom<String> for Wanted {
    type Error = Unclear;

    fn try_from(text: String) -> Result<Self, Unclear> {
        text.parse()
    }
}

impl From<Wanted> for String {
    fn from(wanted: Wanted) -> Self {
        wanted.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_and_read_is_said() {
        for (text, said) in [
            ("10.32.1.1/16", "10.32.1.1/16"),
            ("ip:10.32.1.1/16", "10.32.1.1/16"),
            ("fd00::1/64", "fd00::1/64"),
            ("net:10.32.2.0/24", "net:10.32.2.0/24"),
            ("net:default", "net:default"),
        ] {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), said);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_answered_with_what_can() {
        let refused = |text: &str| text.parse::<Wanted>().unwrap_err().to_string();
        assert!(refused("10.32.1.1").contains("10.32.1.1/16"));
        assert!(refused("net:web").contains("net:default"));
        assert!(refused("net:10.32.2.7/24").contains("say net:10.32.2.0/24"));
    }
}
