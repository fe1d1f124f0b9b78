//! Hosts made of network namespaces (the lab), and other kernels to try things on ([`vm`]).
//!
//! A [`Lab`] is a set of hosts on an underlay, an agent in each, and containers attached to them; all of it in network
//! namespaces of its own (`wl-<lab>-h1`, `wl-<lab>-h1c1`, `wl-<lab>-wire`), so that nothing outside is touched and
//! several labs live side by side. The scenario tests and `cargo xtask lab` use the same code:
//!
//! ```no_run
//! # use vm_tests::{Lab, LabConfig};
//! # fn main() -> anyhow::Result<()> {
//! let mut lab = Lab::scenario(LabConfig { hosts: 3, ..LabConfig::named("relay") })?;
//! lab.cut(1, 3)?;
//! lab.container("h1c1")?.exec(["ping", "-c1", "10.32.3.1"])?;
//! # Ok(())
//! # }
//! ```

pub mod figure;
pub mod kernel;
pub mod process;
pub mod vm;

mod agent;
mod config;
mod cut;
mod lab;
mod nat;
mod netns;
mod node;
mod openvswitch;
mod place;
mod plan;
mod record;
mod root;
mod underlay;
mod wait;

pub use agent::Host;
pub use config::{LabConfig, Underlay};
pub use lab::Lab;
pub use node::{Node, Running};
pub use openvswitch::OpenVswitch;
pub use place::Place;
pub use plan::Uplink;
pub use record::{Record, lab_dir};
pub use root::{is_ci, is_root, root_or_skip};
pub use wait::wait_for;
