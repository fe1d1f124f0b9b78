//! Effects: everything that touches the machine.

pub mod datapath;
pub mod object;
