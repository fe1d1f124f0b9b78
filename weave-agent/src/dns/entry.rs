//! What is said of a name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::peer::PeerName;

/// Longest owner, bytes.
pub const MAX_OWNER: usize = 128;
/// No entry changes so often; versions beyond are refused, so that there is always a higher one.
pub(super) const MAX_VERSION: u64 = 1 << 48;

/// Whose entry it is: a container's id, or a word that begins with `weave:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(String);

/// A text that is no owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no owner of a name: 1 to {MAX_OWNER} printable ASCII characters without spaces")]
pub struct OwnerError(String);

impl Owner {
    /// Of what a person added by hand.
    pub fn external() -> Self {
        Self("weave:extern".to_owned())
    }

    /// Of the host's own name.
    pub fn expose() -> Self {
        Self("weave:expose".to_owned())
    }

    /// Text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;

    fn try_from(text: String) -> Result<Self, OwnerError> {
        let fine = (1..=MAX_OWNER).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if fine { Ok(Self(text)) } else { Err(OwnerError(text)) }
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which entry: two that differ in any of these are two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) origin: PeerName,
    pub(super) name: Name,
    pub(super) address: IpAddr,
    pub(super) owner: Owner,
}

/// What is known of it; the greater is the later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) version: u64,
    pub(super) dead: bool,
}
