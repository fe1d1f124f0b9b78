//! The ports that exist on this host: for adoption after a restart, and to see one go.

use ipnet::IpNet;
use serde::Serialize;

use super::netns::NetnsId;
use super::socket::{Netlink, Result};
use crate::addr::Mac;
use crate::datapath::PortId;

/// Whose port it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PortKind {
    /// A container's.
    Container(NetnsId),
    /// The host's own, made by [`super::expose()`].
    Host,
}

/// A port as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Interface index of the host side.
    pub id: PortId,
    /// Name of the host side.
    pub host_ifname: String,
    /// Whose it is.
    pub kind: PortKind,
    /// Name of the inner side; empty if its namespace was not found.
    pub ifname: String,
    /// Ethernet address of the inner side; zero if its namespace was not found.
    pub mac: Mac,
    /// Addresses of the inner side, without link-local ones.
    pub addrs: Vec<IpNet>,
    /// MTU of the host side.
    pub mtu: u32,
}

/// The ports of this host, by index.
pub async fn list(host: &Netlink) -> Result<Vec<Port>> {
    let _ = host;
    Ok(Vec::new())
}

/// Tells when a port's host side has gone: its container died, or somebody deleted it.
#[derive(Debug)]
pub struct PortWatch {}

impl PortWatch {
    /// Watch the calling thread's namespace.
    pub fn new() -> Result<Self> {
        Ok(Self {})
    }

    /// The next port to go. Cancel-safe.
    pub async fn gone(&mut self) -> Result<PortId> {
        std::future::pending().await
    }
}
