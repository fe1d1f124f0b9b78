//! weave-agent: a container network for any set of Linux hosts.
//!
//! Everything that decides is pure: it takes time, randomness and input as arguments. [`router`] is the whole agent as
//! one machine; [`mesh`] and [`switch`] are its two halves. Effects live in `io`.

pub mod addr;
mod bounded;
pub mod config;
pub mod datapath;
pub mod dns;
pub mod esp;
pub mod frame;
pub mod ipam;
pub mod mesh;
pub mod password;
pub mod peer;
pub mod router;
pub mod sleeve;
pub mod status;
pub mod switch;
pub mod virtio;

#[cfg(feature = "io")]
pub mod cli;
#[cfg(feature = "io")]
pub mod io;

/// Monotonic time since an arbitrary start; an argument everywhere outside `io`.
pub type Time = std::time::Duration;
