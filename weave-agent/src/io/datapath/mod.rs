//! Datapaths: what carries frames for the switch.

pub mod ebpf;
