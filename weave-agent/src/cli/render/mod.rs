//! Text for people, from what the control API answers.

mod addresses;
mod detail;
mod names;
pub mod odp;
mod summary;
mod table;

pub use addresses::ipam;
pub use detail::{attachments, changed, connections, fdb, flows, peers, targets};
pub use names::dns;
pub use summary::summary;
