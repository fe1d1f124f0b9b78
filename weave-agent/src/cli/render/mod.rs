//! Text for people, from what the control API answers.

mod detail;
mod summary;
mod table;

pub use detail::{attachments, changed, connections, fdb, flows, peers, targets};
pub use summary::summary;
