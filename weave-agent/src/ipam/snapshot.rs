//! What must survive the agent. Everything in it is text or small numbers, whatever the format of the file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::block::{Block, Family, number};
use super::ring::{Ring, RingError, Token};
use super::votes::Vote;
use crate::peer::PeerName;

/// A replica's state on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whose it is; bytes of the name.
    pub name: Option<PeerName>,
    /// Ranges, IPv4 first.
    pub ranges: Vec<IpNet>,
    /// From whom the first ring was made; empty if there is none yet.
    pub seeds: Vec<PeerName>,
    /// The ring of each range; empty if there is none yet.
    pub rings: Vec<Vec<StoredToken>>,
    /// Addresses in use here, by owner.
    pub owned: BTreeMap<String, Vec<IpNet>>,
    /// What peers that own something are called.
    pub nicknames: Vec<(PeerName, String)>,
    /// Our own free space was not believed to be ours: a start from this must not believe it either.
    pub quarantined: bool,
    /// What we said in the vote on the first ring.
    pub vote: Option<Vote>,
}

/// A range of a ring: from here to the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// Its first address.
    pub at: IpAddr,
    /// Who owns it.
    pub owner: PeerName,
    /// Goes up with every write.
    pub version: u64,
}

/// A snapshot that cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Somebody else's.
    #[error("it is of a peer of another name")]
    Name,
    /// The settings changed.
    #[error("it is of the range {}", super::config::list(.0))]
    Ranges(Vec<IpNet>),
    /// Damaged.
    #[error("it has {0} rings for {1} ranges")]
    Rings(usize, usize),
    /// Damaged.
    #[error("its ring cannot be: {0}")]
    Ring(#[from] RingError),
}

pub(super) fn store(family: Family, ring: &Ring) -> Vec<StoredToken> {
    let token = |token: &Token| StoredToken { at: family.address(token.at), owner: token.owner, version: token.version };
    ring.tokens().iter().map(token).collect()
}

pub(super) fn restore(range: IpNet, tokens: &[StoredToken]) -> Result<Ring, RingError> {
    let token = |token: &StoredToken| Token { at: number(token.at), owner: token.owner, version: token.version };
    Ring::from_tokens(Block::of(range), tokens.iter().map(token))
}

impl Snapshot {
    /// Its rings, if a replica of this name and these ranges can go on from it; none if there was no ring yet.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub(super) fn rings(&self, name: PeerName, ranges: &[IpNet]) -> Result<Vec<Ring>, SnapshotError> {
        if self.name != Some(name) {
            return Err(SnapshotError::Name);
        }
        if self.ranges != ranges {
            return Err(SnapshotError::Ranges(self.ranges.clone()));
        }
        if !self.rings.is_empty() && self.rings.len() != ranges.len() {
            return Err(SnapshotError::Rings(self.rings.len(), ranges.len()));
        }
        self.rings.iter().zip(ranges).map(|(tokens, range)| restore(*range, tokens).map_err(Into::into)).collect()
    }
}
