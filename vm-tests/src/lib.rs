//! Hosts made of network namespaces (the lab).

pub mod process;
