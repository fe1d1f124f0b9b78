//! Effects: everything that touches the machine.

pub mod net;
