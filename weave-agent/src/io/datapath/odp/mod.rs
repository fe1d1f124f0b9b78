//! The openvswitch module.

pub mod wire;
