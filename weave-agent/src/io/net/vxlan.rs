//! The vxlan device that gives and takes the tunnel key per packet: for frames that the fast path cannot carry.

use std::io;

use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::LinkVxlan;

use super::link::{Link, parse};
use super::socket::{Error, Netlink, Result, explain};
use super::{VXLAN_PREFIX, sysctl};

/// The note on a device that we made.
const ALIAS: &str = "weave-agent";
/// What a packet of 65,535 bytes leaves for the inner one; the others are for kernels that want less.
const MTUS: [u32; 3] = [65_485, 65_465, 9_000];

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

/// What a vxlan device was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parameters {
    port: u16,
    metadata: bool,
    learning: bool,
}

impl Parameters {
    fn wanted(port: u16) -> Self {
        Self { port, metadata: true, learning: false }
    }
}

/// The vxlan device of a UDP port: found as it should be, or made. One of ours that is wrong is made anew; somebody else's is left alone.
pub async fn ensure_vxlan(host: &Netlink, port: u16) -> Result<VxlanDevice> {
    let name = format!("{VXLAN_PREFIX}{port}");
    name_again(host, &name, port).await?;
    let adopted = match find(host, &name).await? {
        Some(found) => keep_or_clear(host, &found, port).await?,
        None => false,
    };
    if !adopted {
        create(host, &name, port).await?;
    }
    let link = host.made(&name).await?;
    match settle(host, &link, port).await {
        Ok(mtu) => Ok(VxlanDevice { ifindex: link.index, name, mtu, adopted }),
        Err(error) if adopted => Err(error),
        Err(error) => match host.delete_link(link.index).await {
            Err(left) => Err(Error::invalid(format!("{error}; undoing it failed too"), left.to_string())),
            Ok(()) => Err(error),
        },
    }
}

/// The vxlan devices that we made, of whichever UDP port and whatever they are called now: those with our note, and those without one
/// that are as we make them.
pub async fn our_vxlans(host: &Netlink) -> Result<Vec<Link>> {
    let mut ours = Vec::new();
    for link in host.links().await?.into_iter().filter(|link| link.kind == "vxlan" && is_ours(link)) {
        if link.alias == ALIAS || is_unnoted(host, &link).await? {
            ours.push(link);
        }
    }
    Ok(ours)
}

/// Deletes our vxlan devices, but for that of this UDP port. Were there any?
pub async fn remove_vxlans(host: &Netlink, but: Option<u16>) -> Result<bool> {
    let kept = but.map(|port| format!("{VXLAN_PREFIX}{port}"));
    let mut removed = false;
    for link in our_vxlans(host).await?.into_iter().filter(|link| Some(&link.name) != kept.as_ref()) {
        host.delete_link(link.index).await?;
        removed = true;
    }
    Ok(removed)
}

/// We were killed before we could leave the note.
async fn is_unnoted(host: &Netlink, link: &Link) -> Result<bool> {
    let Some(port) = link.name.strip_prefix(VXLAN_PREFIX).and_then(|port| port.parse().ok()) else { return Ok(false) };
    let message = host.link_message(host.handle().link().get().match_index(link.index), &link.name).await?;
    Ok(message.is_some_and(|message| parameters(&message) == Parameters::wanted(port)))
}

/// Ours, under a name that somebody else gave it: the port is taken as long as it is there.
async fn name_again(host: &Netlink, name: &str, port: u16) -> Result<()> {
    let links = host.links().await?;
    if links.iter().any(|link| link.name == name) {
        return Ok(());
    }
    for link in links.iter().filter(|link| link.kind == "vxlan" && link.alias == ALIAS) {
        let message = host.link_message(host.handle().link().get().match_index(link.index), &link.name).await?;
        if message.is_some_and(|message| parameters(&message).port == port) {
            // Only a link that is down can be renamed by every kernel.
            host.set_down(link.index).await?;
            return host.rename(link.index, name).await;
        }
    }
    Ok(())
}

async fn find(host: &Netlink, name: &str) -> Result<Option<LinkMessage>> {
    host.link_message(host.handle().link().get().match_name(name), name).await
}

/// True: it can stay. False: it was ours, wrong, and is gone.
async fn keep_or_clear(host: &Netlink, found: &LinkMessage, port: u16) -> Result<bool> {
    let link = parse(found);
    let right = link.kind == "vxlan" && parameters(found) == Parameters::wanted(port);
    match (right, is_ours(&link)) {
        (true, true) => Ok(true),
        (false, true) if link.alias == ALIAS => host.delete_link(link.index).await.map(|()| false),
        _ => Err(Error::invalid(
            format!("the vxlan device of UDP port {port}"),
            format!("somebody else made an interface {}: remove it, or choose another port", link.name),
        )),
    }
}

/// Without a note it may be one of which we were killed before we could leave it.
fn is_ours(link: &Link) -> bool {
    link.alias == ALIAS || link.alias.is_empty()
}

async fn create(host: &Netlink, name: &str, port: u16) -> Result<()> {
    let message = LinkVxlan::new(name, 0)
        .port(port)
        .collect_metadata(true)
        .learning(false)
        .udp_csum(false)
        .udp_zero_csum6_tx(true)
        .udp_zero_csum6_rx(true)
        .build();
    let what = || format!("creating {name}");
    match host.handle().link().add(message).execute().await.map_err(explain(what)) {
        Err(error) if error.is_exists() => Err(Error::new(
            format!("creating {name}"),
            io::Error::new(io::ErrorKind::AlreadyExists, format!("another vxlan device uses UDP port {port} already")),
        )),
        other => other,
    }
}

/// Up, quiet, large, and with our note on it.
async fn settle(host: &Netlink, link: &Link, port: u16) -> Result<u32> {
    host.without_ipv6(link.index).await?;
    sysctl::settle_port(&link.name);
    let mtu = largest_mtu(host, link).await?;
    match host.set_up(link.index).await {
        Err(error) if error.errno() == Some(libc::EADDRINUSE) => Err(Error::new(
            format!("setting {} up", link.name),
            io::Error::new(io::ErrorKind::AddrInUse, format!("another program uses UDP port {port} already")),
        )),
        other => other,
    }?;
    host.set_alias(link.index, ALIAS).await?;
    Ok(mtu)
}

async fn largest_mtu(host: &Netlink, link: &Link) -> Result<u32> {
    if MTUS.contains(&link.mtu) {
        return Ok(link.mtu);
    }
    for mtu in MTUS {
        match host.set_mtu(link.index, mtu).await {
            Ok(()) => return Ok(mtu),
            Err(error) if error.errno() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(link.mtu)
}

fn parameters(message: &LinkMessage) -> Parameters {
    let mut found = Parameters::default();
    for info in infos(message) {
        match info {
            InfoVxlan::Port(port) => found.port = *port,
            InfoVxlan::CollectMetadata(on) => found.metadata = *on,
            InfoVxlan::Learning(on) => found.learning = *on,
            _ => {}
        }
    }
    found
}

fn infos(message: &LinkMessage) -> impl Iterator<Item = &InfoVxlan> {
    let link_infos = message.attributes.iter().filter_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = link_infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(infos)) => Some(infos),
        _ => None,
    });
    data.flatten()
}
