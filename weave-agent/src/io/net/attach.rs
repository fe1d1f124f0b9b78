//! Give a container an interface on the network.
//!
//! A port is finished when its host side carries a note that says whose it is; one without is left over from an agent that was killed
//! half-way, and is removed by the next attempt.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::Mutex;

use super::announce::announce;
use super::detach::quoted;
use super::known::Known;
use super::link::{Link, Veth};
use super::netns::Netns;
use super::ports::{Note, Owner, Port, PortKind, container_alias, recognise};
use super::socket::{Error, Netlink};
use super::undo::{Undo, to_the_end};
use super::{CONTAINER_IFNAME, PORT_PREFIX, checks, sysctl};

/// What is free must stay free until it is taken: who changes ports, does so alone.
pub(super) static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// Names to try for the host side before giving up.
const NAME_ATTEMPTS: u64 = 16;

/// What a container gets.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// Addresses to add, each with the prefix of its subnet.
    pub addrs: Vec<IpNet>,
    /// MTU of a new interface.
    pub mtu: u32,
    /// Its name inside.
    pub ifname: String,
    /// Name of a new interface's host side, from [`new_port_name`].
    pub host_ifname: Option<String>,
    /// Send multicast there by default.
    pub multicast_route: bool,
    /// Who has which addresses, if that is known.
    pub known: Known,
}

impl AttachSpec {
    /// The usual interface with these addresses.
    pub fn new(addrs: Vec<IpNet>, mtu: u32) -> Self {
        Self { addrs, mtu, ifname: CONTAINER_IFNAME.to_owned(), host_ifname: None, multicast_route: true, known: Known::default() }
    }

    /// With what is known of others' addresses; it learns these.
    pub fn knowing(mut self, known: &Known) -> Self {
        self.known = known.clone();
        self
    }

    /// With this name for the host side, if the interface is new.
    pub fn on_port(mut self, host_ifname: String) -> Self {
        self.host_ifname = Some(host_ifname);
        self
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
    #[error("no address to attach {} with", quoted(.0))]
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
    #[error("the network of {addr} overlaps the host's route {route} (dev {device}): choose another network, or remove the route")]
    RouteOverlap {
        /// The address asked for.
        addr: IpNet,
        /// Destination of the route.
        route: IpNet,
        /// Its interface.
        device: String,
    },
    /// The container would not send there by the new interface.
    #[error(
        "{target:?} has a route {route} (dev {device}) of its own, which wins over the network of {addr}: remove it, or choose another network"
    )]
    OwnRoute {
        /// The container.
        target: String,
        /// The address asked for.
        addr: IpNet,
        /// Destination of the route.
        route: IpNet,
        /// Its interface.
        device: String,
    },
    /// Its interface of that name is not ours.
    #[error("{} has an interface {ifname:?} that this host's weave-agent did not make", quoted(target))]
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
    Kernel(#[from] Error),
    /// The kernel refused, and refused to undo.
    #[error("{error}; undoing it failed too: {}", left.join("; "))]
    LeftBehind {
        /// What failed first.
        error: Box<AttachError>,
        /// What could not be undone.
        left: Vec<String>,
    },
}

/// Attach a container, or add addresses to an attached one. On failure nothing is left behind; dropping the future does not stop it half-way.
pub async fn attach(host: &Netlink, target: &Netns, spec: &AttachSpec) -> Result<Attached, AttachError> {
    let (host, target, spec) = (host.clone(), target.clone(), spec.clone());
    let work = async move {
        let _turn = ONE_AT_A_TIME.lock().await;
        attach_alone(&host, &target, &spec).await
    };
    to_the_end("attaching", work).await
}

/// Both ends of a port, each with the socket that reaches it.
pub(super) struct Pair {
    pub(super) host: Netlink,
    pub(super) outer: Link,
    pub(super) inside: Netlink,
    pub(super) inner: Link,
    /// The name that the outer end was made with.
    pub(super) made_as: String,
}

async fn attach_alone(host: &Netlink, target: &Netns, spec: &AttachSpec) -> Result<Attached, AttachError> {
    if spec.addrs.is_empty() {
        return Err(AttachError::NoAddress(target.name().to_owned()));
    }
    if target.is_own() {
        return Err(AttachError::HostNamespace(target.name().to_owned()));
    }
    checks::possible(&spec.addrs)?;
    let existing = existing(host, target, &spec.ifname).await?;
    if let Some(pair) = &existing {
        refuse_what_it_has(pair, target, spec).await?;
    }
    let ours = existing.as_ref().map(|pair| pair.inner.index);
    checks::no_route_of_its_own(target, ours, &spec.addrs).await?;
    checks::unused(host, PortKind::Container(target.id()), &spec.addrs, &spec.known).await?;

    let mut undo = Undo::default();
    match build(host, target, spec, existing, &mut undo).await {
        Ok(attached) => {
            spec.known.set(attached.port.id, &attached.port.addrs);
            Ok(attached)
        }
        Err(error) => Err(undone(error.into(), undo).await),
    }
}

/// The error, after everything was taken back.
pub(super) async fn undone(error: AttachError, undo: Undo) -> AttachError {
    let left = undo.run().await;
    if left.is_empty() { error } else { AttachError::LeftBehind { error: Box::new(error), left } }
}

/// A container's pair, if it has one, whatever its ends are called now. An unfinished one is removed.
pub(super) async fn existing(host: &Netlink, target: &Netns, ifname: &str) -> Result<Option<Pair>, AttachError> {
    let inside = target.netlink().await?;
    for outer in host.links().await? {
        let note = recognise(&outer).filter(|note| note.kind == PortKind::Container(target.id()) && note.ifname == ifname);
        let (Some(Note { made_as, .. }), Some(peer)) = (note, outer.peer) else { continue };
        let inner = inside.link_at(peer).await?;
        if let Some(inner) = inner.filter(|inner| inner.kind == "veth" && inner.peer == Some(outer.index)) {
            return Ok(Some(Pair { host: host.clone(), outer, inside, inner, made_as }));
        }
    }
    clear_unfinished(host, &inside, target, ifname).await.map(|()| None)
}

/// The name is free now, or somebody else's.
async fn clear_unfinished(host: &Netlink, inside: &Netlink, target: &Netns, ifname: &str) -> Result<(), AttachError> {
    let Some(inner) = inside.link_named(ifname).await? else {
        return Ok(());
    };
    let foreign = || AttachError::ForeignInterface { target: target.name().to_owned(), ifname: ifname.to_owned() };
    let outer = match inner.peer {
        Some(index) if inner.kind == "veth" => host.link_at(index).await?,
        _ => None,
    };
    let unfinished = |outer: &Link| outer.name.starts_with(PORT_PREFIX) && outer.peer == Some(inner.index) && outer.alias.is_empty();
    let outer = outer.filter(unfinished).ok_or_else(foreign)?;
    Ok(host.delete_link(outer.index).await?)
}

async fn refuse_what_it_has(pair: &Pair, target: &Netns, spec: &AttachSpec) -> Result<(), AttachError> {
    let has = pair.inside.given_addresses(pair.inner.index).await?;
    let again = has.iter().find(|has| spec.addrs.iter().any(|wanted| wanted.addr() == has.addr()));
    again.map_or(Ok(()), |addr| Err(AttachError::AlreadyAttached { target: target.name().to_owned(), addr: *addr }))
}

async fn build(host: &Netlink, target: &Netns, spec: &AttachSpec, existing: Option<Pair>, undo: &mut Undo) -> Result<Attached, Error> {
    let created = existing.is_none();
    let pair = match existing {
        Some(pair) => pair,
        None => create(host, target, spec, undo).await?,
    };
    if spec.addrs.iter().any(|net| net.addr().is_ipv6()) {
        let ifname = pair.inner.name.clone();
        target.run(move || sysctl::enable_ipv6(&ifname)).await?;
    }
    pair.add_addresses(&spec.addrs, undo).await?;
    pair.set_up().await?;
    if spec.multicast_route {
        pair.add_multicast_route(undo).await?;
    }
    pair.host.set_alias(pair.outer.index, &container_alias(target.id(), &spec.ifname, &pair.made_as)).await?;
    let mac = pair.inner.mac.unwrap_or_default();
    announce(target, &pair.inner.name, mac, &spec.addrs).await?;
    let owner = Owner { kind: PortKind::Container(target.id()), made_as: pair.made_as.clone(), netns: Some(target.path().to_owned()) };
    let addrs = pair.inside.given_addresses(pair.inner.index).await?;
    Ok(Attached { port: Port::new(&pair.outer, owner, &pair.inner, addrs), added: spec.addrs.clone(), created })
}

async fn create(host: &Netlink, target: &Netns, spec: &AttachSpec, undo: &mut Undo) -> Result<Pair, Error> {
    let name = match &spec.host_ifname {
        Some(name) => name.clone(),
        None => free_name(host, target.id().ino).await?,
    };
    let inside = target.netlink().await?;
    let veth = Veth { name: &name, peer: &spec.ifname, peer_netns: Some(target), mtu: spec.mtu };
    host.create_veth(&veth).await?;
    delete_on_failure(host, &name, undo);
    let (outer, inner) = (host.made(&name).await?, inside.made(&spec.ifname).await?);
    let pair = Pair { outer, inner, host: host.clone(), inside, made_as: name.clone() };
    host.without_ipv6(pair.outer.index).await?;
    sysctl::settle_port(&name);
    let ifname = spec.ifname.clone();
    target.run(move || sysctl::settle_container(&ifname)).await?;
    Ok(pair)
}

/// Undo the creation of a link, whatever its index was.
pub(super) fn delete_on_failure(host: &Netlink, name: &str, undo: &mut Undo) {
    let (host, name) = (host.clone(), name.to_owned());
    undo.push(async move {
        match host.link_named(&name).await? {
            Some(link) => host.delete_link(link.index).await,
            None => Ok(()),
        }
    });
}

/// A name for the host side: its prefix and the last 28 bits of a number.
pub fn new_port_name(number: u32) -> String {
    format!("{PORT_PREFIX}{:07x}", number & 0xfff_ffff)
}

/// What the host side was made as, and the addresses of an attached container; `None` for one that is not.
///
/// # Errors
/// When its interface is somebody else's, or the kernel refuses.
pub async fn port_of(host: &Netlink, target: &Netns) -> Result<Option<(String, Vec<IpNet>)>, AttachError> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(pair) = existing(host, target, CONTAINER_IFNAME).await? else { return Ok(None) };
    let addresses = pair.inside.given_addresses(pair.inner.index).await?;
    Ok(Some((pair.made_as, addresses)))
}

/// `vethwepl` and 7 hexadecimal digits of the namespace's inode; the kernel counts those from 0xf0000000, so the digits differ while
/// fewer than 2^28 namespaces exist, and the next candidate is for a container with two interfaces.
pub(super) async fn free_name(host: &Netlink, ino: u64) -> Result<String, Error> {
    for attempt in 0..NAME_ATTEMPTS {
        let name = port_name(ino, attempt);
        if host.link_named(&name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(Error::invalid("naming a port", format!("{} and its alternatives are taken", port_name(ino, 0))))
}

fn port_name(ino: u64, attempt: u64) -> String {
    // An odd step far from the small differences between inodes.
    let digits = ino.wrapping_add(attempt.wrapping_mul(0x9e3_779b)) & 0xfff_ffff;
    format!("{PORT_PREFIX}{digits:07x}")
}

impl Pair {
    /// Add addresses to the inner end.
    pub(super) async fn add_addresses(&self, addrs: &[IpNet], undo: &mut Undo) -> Result<(), Error> {
        for net in addrs.iter().copied() {
            self.inside.add_address(self.inner.index, net).await?;
            let (inside, index) = (self.inside.clone(), self.inner.index);
            undo.push(async move { inside.remove_address(index, net).await });
        }
        Ok(())
    }

    /// Let frames through, and return when they do.
    pub(super) async fn set_up(&self) -> Result<(), Error> {
        self.host.set_up(self.outer.index).await?;
        self.inside.set_up(self.inner.index).await?;
        self.host.wait_running(self.outer.index).await?;
        self.inside.wait_running(self.inner.index).await
    }

    async fn add_multicast_route(&self, undo: &mut Undo) -> Result<(), Error> {
        if self.inside.add_multicast_route(self.inner.index).await? {
            let (inside, index) = (self.inside.clone(), self.inner.index);
            undo.push(async move { inside.remove_multicast_route(index).await });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_fit_and_differ() {
        assert_eq!(port_name(0xf000_0123, 0), "vethwepl0000123");
        let names: Vec<_> = (0..NAME_ATTEMPTS).map(|attempt| port_name(0xf000_0123, attempt)).collect();
        assert!(names.iter().all(|name| name.len() == 15));
        assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])));
    }
}
