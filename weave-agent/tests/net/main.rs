//! The network verbs against the kernel: every test in a host of its own, a namespace that nobody else sees.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod attach;
mod expose;
mod frames;
mod host;
mod nameserver;
mod nat;
mod resolvers;
mod target;
mod underlay;
mod vxlan;
