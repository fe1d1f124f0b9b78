//! The scenarios: one file each.

pub(super) mod big_tcp;
pub(super) mod bulk;
pub(super) mod connect;
pub(super) mod dns;
pub(super) mod latency;
pub(super) mod local;
pub(super) mod mesh;
pub(super) mod packets;
pub(super) mod peers;
pub(super) mod programs;
pub(super) mod scale;
pub(super) mod setup;
pub(super) mod sleeve;
pub(super) mod strangers;
pub(super) mod throughput;
pub(super) mod udp;
pub(super) mod vm;
