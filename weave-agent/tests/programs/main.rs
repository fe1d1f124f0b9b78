//! The BPF programs in the kernel: that they do what the library says, that packets go where they should, what they cost.
//!
//! All need root, and run in network and mount namespaces of their own, so nothing outside is touched.
#![cfg(feature = "io")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod capture;
mod carry;
mod context;
mod cost;
mod delivery;
mod differential;
mod flood;
mod frames;
mod hooks;
mod host;
mod kernel;
mod outside;
mod place;
mod scale;
mod stack;
mod strangers;
mod stream;
mod tables;
mod trampoline;
mod upcalls;
mod wires;
mod world;
