//! Links: create, find, change, delete; and the vxlan device.

use super::netns::Netns;
use super::socket::{Error, Netlink, Result};
use crate::addr::Mac;

/// An interface, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Its Ethernet address; `None` if it has no Ethernet header.
    pub mac: Option<Mac>,
    /// Largest packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// `veth`, `vxlan`, …; empty for hardware.
    pub kind: String,
    /// Index of a veth's other end (in its namespace), or of what lies below.
    pub peer: Option<u32>,
    /// The note that its maker left.
    pub alias: String,
}

/// The collect-metadata vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Interface index.
    pub ifindex: u32,
    /// `vxlan-` and the port.
    pub name: String,
    /// Its MTU, as large as the kernel takes.
    pub mtu: u32,
    /// It was there before.
    pub adopted: bool,
}

/// The vxlan device of a UDP port: found as it should be, or made.
pub async fn ensure_vxlan(host: &Netlink, port: u16) -> Result<VxlanDevice> {
    let _ = host;
    Err(Error::invalid(format!("vxlan-{port}"), "not built yet"))
}

/// Delete the vxlan device of a UDP port, if it is ours and there.
pub async fn remove_vxlan(host: &Netlink, port: u16) -> Result<bool> {
    let _ = host;
    Err(Error::invalid(format!("vxlan-{port}"), "not built yet"))
}
