//! ipam
#![allow(dead_code)]
mod block;
mod config;
mod error;
mod intervals;
mod message;
mod ring;
mod snapshot;
mod space;
mod votes;
pub use block::Family;
pub use config::{Config, ConfigError, DEFAULT_RANGE, Init};
pub use error::{Error, Named};
pub use message::DecodeError;
pub use ring::RingError;
pub use snapshot::{Snapshot, SnapshotError, StoredToken};
pub use votes::{Accepted, Ballot, Vote};
