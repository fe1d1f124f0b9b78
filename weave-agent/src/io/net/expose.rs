//! Put the host itself on the network.

use std::net::IpAddr;

use ipnet::IpNet;

use super::announce::announce;
use super::attach::{AttachError, Attached, ONE_AT_A_TIME, Pair, delete_on_failure, undone};
use super::detach::{DetachError, Detached, THE_HOST};
use super::known::Known;
use super::link::Veth;
use super::netns::Netns;
use super::ports::{Owner, Port, PortKind, host_alias};
use super::socket::{Error, Netlink};
use super::undo::{Undo, to_the_end};
use super::{EXPOSE_IFNAME, EXPOSE_PORT, checks, sysctl};

/// Give the host addresses on the network. Repeating it changes nothing: `added` are only those it did not have. On failure nothing is
/// left behind; dropping the future does not stop it half-way.
pub async fn expose(host: &Netlink, addrs: &[IpNet], mtu: u32) -> Result<Attached, AttachError> {
    expose_knowing(host, addrs, mtu, &Known::default()).await
}

/// The same, with what is known of others' addresses; it learns these.
pub async fn expose_knowing(host: &Netlink, addrs: &[IpNet], mtu: u32, known: &Known) -> Result<Attached, AttachError> {
    let (host, addrs, known) = (host.clone(), addrs.to_vec(), known.clone());
    let work = async move {
        let _turn = ONE_AT_A_TIME.lock().await;
        expose_alone(&host, &addrs, mtu, &known).await
    };
    to_the_end("exposing", work).await
}

/// Take addresses (all if `addrs` is empty) from the host; with the last one goes the interface. Dropping the future does not stop it
/// half-way.
pub async fn hide(host: &Netlink, addrs: &[IpAddr]) -> Result<Detached, DetachError> {
    let (host, addrs) = (host.clone(), addrs.to_vec());
    let work = async move {
        let _turn = ONE_AT_A_TIME.lock().await;
        let pair = existing(&host).await?.ok_or(DetachError::NotExposed)?;
        pair.remove(THE_HOST, &addrs).await
    };
    to_the_end("hiding", work).await
}

async fn expose_alone(host: &Netlink, addrs: &[IpNet], mtu: u32, known: &Known) -> Result<Attached, AttachError> {
    if addrs.is_empty() {
        return Err(AttachError::NoAddress(THE_HOST.to_owned()));
    }
    checks::possible(addrs)?;
    let existing = existing(host).await?;
    let has = match &existing {
        Some(pair) => host.given_addresses(pair.inner.index).await?,
        None => Vec::new(),
    };
    let new: Vec<_> = addrs.iter().copied().filter(|net| has.iter().all(|has| has.addr() != net.addr())).collect();
    checks::unused(host, PortKind::Host, &new, known).await?;

    let mut undo = Undo::default();
    match build(host, new, mtu, existing, &mut undo).await {
        Ok(exposed) => {
            known.set(exposed.port.id, &exposed.port.addrs);
            Ok(exposed)
        }
        Err(error) => Err(undone(error.into(), undo).await),
    }
}

/// The host's pair, if it has one. An unfinished one is removed.
async fn existing(host: &Netlink) -> Result<Option<Pair>, AttachError> {
    let Some(inner) = host.link_named(EXPOSE_IFNAME).await? else {
        return Ok(None);
    };
    let foreign = || AttachError::ForeignInterface { target: THE_HOST.to_owned(), ifname: EXPOSE_IFNAME.to_owned() };
    let outer = host.link_named(EXPOSE_PORT).await?;
    let outer = outer.filter(|outer| outer.peer == Some(inner.index)).ok_or_else(foreign)?;
    if outer.alias.is_empty() {
        host.delete_link(outer.index).await?;
        return Ok(None);
    }
    if outer.alias != host_alias() {
        return Err(foreign());
    }
    Ok(Some(Pair { host: host.clone(), outer, inside: host.clone(), inner, made_as: EXPOSE_PORT.to_owned() }))
}

async fn build(host: &Netlink, new: Vec<IpNet>, mtu: u32, existing: Option<Pair>, undo: &mut Undo) -> Result<Attached, Error> {
    let created = existing.is_none();
    let pair = match existing {
        Some(pair) => pair,
        None => create(host, mtu, undo).await?,
    };
    pair.add_addresses(&new, undo).await?;
    pair.set_up().await?;
    host.set_alias(pair.outer.index, &host_alias()).await?;
    announce(&Netns::own()?, EXPOSE_IFNAME, pair.inner.mac.unwrap_or_default(), &new).await?;
    let addrs = host.given_addresses(pair.inner.index).await?;
    let owner = Owner { kind: PortKind::Host, made_as: EXPOSE_PORT.to_owned(), netns: None };
    Ok(Attached { port: Port::new(&pair.outer, owner, &pair.inner, addrs), added: new, created })
}

async fn create(host: &Netlink, mtu: u32, undo: &mut Undo) -> Result<Pair, Error> {
    let veth = Veth { name: EXPOSE_IFNAME, peer: EXPOSE_PORT, peer_netns: None, mtu };
    host.create_veth(&veth).await?;
    delete_on_failure(host, EXPOSE_IFNAME, undo);
    let (inner, outer) = (host.made(EXPOSE_IFNAME).await?, host.made(EXPOSE_PORT).await?);
    host.without_ipv6(outer.index).await?;
    sysctl::settle_port(EXPOSE_PORT);
    sysctl::settle_container(EXPOSE_IFNAME);
    sysctl::enable_ipv6(EXPOSE_IFNAME);
    Ok(Pair { host: host.clone(), outer, inside: host.clone(), inner, made_as: EXPOSE_PORT.to_owned() })
}
