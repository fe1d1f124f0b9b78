//! The openvswitch module.

pub mod kernel;
pub mod socket;
pub mod wire;
