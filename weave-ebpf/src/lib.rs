//! The fast path: what is done with a frame without asking anyone.
//!
//! Everything here is `no_std`, pure and shared: the BPF programs (`main.rs`) bind it to packets and maps, the
//! simulator binds it to slices and tables, and the agent reads and writes the same structures through the maps.
#![cfg_attr(not(test), no_std)]

pub mod fastpath;
pub mod flow;
pub mod packet;
pub mod sleeve;
pub mod stats;
pub mod stranger;
pub mod vxlan;
