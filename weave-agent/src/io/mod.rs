//! Effects: everything that touches the machine.

pub mod agent;
pub mod api;
pub mod asks;
pub mod bpffs;
pub mod carrier;
pub mod clock;
pub mod connect;
pub mod datapath;
pub mod event;
pub mod exposure;
pub mod follow;
pub mod hands;
pub mod leases;
pub mod links;
pub mod logging;
pub mod net;
pub mod object;
pub mod paths;
pub mod pidfile;
pub mod report;
pub mod reset;
pub mod run;
pub mod signals;
pub mod store;
pub mod targets;
pub mod troubles;
