//! Take addresses from a container, or the whole interface.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::attach::{AttachError, ONE_AT_A_TIME, Pair, existing};
use super::netns::Netns;
use super::socket::{Error, Netlink};
use super::undo::to_the_end;
use crate::datapath::PortId;

/// What was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detached {
    /// The port it was about.
    pub port: PortId,
    /// What its interface was made as.
    pub made_as: String,
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
    /// The host is not on the network.
    #[error("this host is not exposed: `weave-agent expose` exposes it")]
    NotExposed,
    /// It does not have this address.
    #[error("{} does not have the address {addr}", quoted(target))]
    NoSuchAddress {
        /// The container, or the host.
        target: String,
        /// The address it does not have.
        addr: IpAddr,
    },
    /// Its interface of that name is not ours.
    #[error("{} has an interface {ifname:?} that this host's weave-agent did not make", quoted(target))]
    ForeignInterface {
        /// The container.
        target: String,
        /// The interface.
        ifname: String,
    },
    /// The kernel refused some of it; all else was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Kernel(Vec<Error>),
}

/// What messages call the host; containers have names in quotes.
pub(super) const THE_HOST: &str = "the host";

/// A target in a message.
pub(super) fn quoted(target: &str) -> String {
    if target == THE_HOST { target.to_owned() } else { format!("{target:?}") }
}

impl From<Error> for DetachError {
    fn from(error: Error) -> Self {
        Self::Kernel(vec![error])
    }
}

impl From<AttachError> for DetachError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::ForeignInterface { target, ifname } => Self::ForeignInterface { target, ifname },
            AttachError::Kernel(error) => error.into(),
            other => Error::invalid("detaching", other.to_string()).into(),
        }
    }
}

/// Remove addresses (all if `addrs` is empty) from a container's interface; with the last one goes the interface. Dropping the future
/// does not stop it half-way.
pub async fn detach(host: &Netlink, target: &Netns, ifname: &str, addrs: &[IpAddr]) -> Result<Detached, DetachError> {
    let (host, target, ifname, addrs) = (host.clone(), target.clone(), ifname.to_owned(), addrs.to_vec());
    let work = async move {
        let _turn = ONE_AT_A_TIME.lock().await;
        let pair = existing(&host, &target, &ifname).await?;
        let pair = pair.ok_or_else(|| DetachError::NotAttached(target.name().to_owned()))?;
        pair.remove(target.name(), &addrs).await
    };
    to_the_end("detaching", work).await
}

impl Pair {
    /// Remove addresses (all if `addrs` is empty) from the inner end; with the last one goes the pair.
    pub(super) async fn remove(&self, owner: &str, addrs: &[IpAddr]) -> Result<Detached, DetachError> {
        let has = self.inside.given_addresses(self.inner.index).await?;
        if let Some(addr) = addrs.iter().find(|addr| has.iter().all(|net| net.addr() != **addr)) {
            return Err(DetachError::NoSuchAddress { target: owner.to_owned(), addr: *addr });
        }
        let (removed, left): (Vec<_>, Vec<_>) = has.iter().partition(|net| addrs.is_empty() || addrs.contains(&net.addr()));
        let failures = if left.is_empty() {
            self.host.delete_link(self.outer.index).await.err().into_iter().collect()
        } else {
            self.inside.remove_addresses(self.inner.index, &removed, &left).await
        };
        if !failures.is_empty() {
            return Err(DetachError::Kernel(failures));
        }
        Ok(Detached { port: PortId(self.outer.index), made_as: self.made_as.clone(), removed, left })
    }
}
