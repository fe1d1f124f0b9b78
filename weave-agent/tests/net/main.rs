//! The network verbs against the kernel: every test in a host of its own, a namespace that nobody else sees.

mod attach;
mod expose;
mod frames;
mod host;
mod target;
mod underlay;
mod vxlan;
