//! Effects: everything that touches the machine.

pub mod api;
pub mod bpffs;
pub mod clock;
pub mod datapath;
pub mod logging;
pub mod net;
pub mod object;
pub mod paths;
pub mod pidfile;
pub mod store;
