//! The ports that exist on this host: for adoption after a restart, and to see one go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use ipnet::IpNet;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use serde::Serialize;

use super::link::{Link, parse};
use super::netns::{self, Netns, NetnsId};
use super::notify::Notifications;
use super::socket::{Netlink, Result};
use super::{EXPOSE_IFNAME, EXPOSE_PORT};
use crate::addr::Mac;
use crate::datapath::PortId;

/// The note on the host's own port, and what those of containers begin with.
const ALIAS: &str = "weave-agent";

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
    /// The name it was made with, which nobody else has: what its addresses are kept under, whatever it is called now.
    pub made_as: String,
    /// Whose it is.
    pub kind: PortKind,
    /// Where its namespace can be opened, if that was found.
    pub netns: Option<PathBuf>,
    /// Name of the inner side.
    pub ifname: String,
    /// Ethernet address of the inner side; zero if its namespace was not found.
    pub mac: Mac,
    /// Addresses of the inner side, without link-local IPv6 ones; none if its namespace was not found.
    pub addrs: Vec<IpNet>,
    /// MTU of the host side.
    pub mtu: u32,
}

impl Port {
    /// What messages call its owner.
    pub fn owner(&self) -> String {
        match (&self.kind, &self.netns) {
            (PortKind::Host, _) => format!("the host ({EXPOSE_IFNAME})"),
            (PortKind::Container(_), Some(path)) => format!("the container {}", described(path)),
            (PortKind::Container(id), None) => {
                format!("the container behind {} (namespace {id})", self.host_ifname)
            }
        }
    }

    pub(super) fn new(outer: &Link, owner: Owner, inner: &Link, addrs: Vec<IpNet>) -> Self {
        Self {
            id: PortId(outer.index),
            host_ifname: outer.name.clone(),
            made_as: owner.made_as,
            kind: owner.kind,
            netns: owner.netns,
            ifname: inner.name.clone(),
            mac: inner.mac.unwrap_or_default(),
            addrs,
            mtu: outer.mtu,
        }
    }
}

/// Whose port, what it was made as, and where its namespace can be opened.
pub(super) struct Owner {
    pub(super) kind: PortKind,
    pub(super) made_as: String,
    pub(super) netns: Option<PathBuf>,
}

/// `/run/netns/web` is "web", `/proc/7/ns/net` "process 7".
fn described(path: &Path) -> String {
    let mut parts = path.iter().skip(1).filter_map(|part| part.to_str());
    match (parts.next(), parts.next()) {
        (Some("proc"), Some(pid)) => format!("of process {pid}"),
        _ => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// The note on a finished port: whose it is, and what both ends were made as. Names change; only the note tells a port.
pub(super) fn container_alias(id: NetnsId, ifname: &str, made_as: &str) -> String {
    format!("{ALIAS} {id} {ifname} {made_as}")
}

/// The note on the host's own port.
pub(super) fn host_alias() -> String {
    format!("{ALIAS} host")
}

/// What the note on a port says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) kind: PortKind,
    /// The name inside, when it was made.
    pub(super) ifname: String,
    /// The name outside, when it was made.
    pub(super) made_as: String,
}

/// Whose port a link is; `None` for links that are no finished ports of ours. What it is called now says nothing.
pub(super) fn recognise(link: &Link) -> Option<Note> {
    if link.kind != "veth" {
        return None;
    }
    if link.alias == host_alias() {
        return Some(Note { kind: PortKind::Host, ifname: EXPOSE_IFNAME.to_owned(), made_as: EXPOSE_PORT.to_owned() });
    }
    let mut words = link.alias.strip_prefix(ALIAS)?.strip_prefix(' ')?.split(' ');
    let (dev, ino) = words.next()?.split_once(':')?;
    let kind = PortKind::Container(NetnsId { dev: dev.parse().ok()?, ino: ino.parse().ok()? });
    let ifname = words.next()?.to_owned();
    // Notes of earlier versions end here.
    let made_as = words.next().unwrap_or(&link.name).to_owned();
    Some(Note { kind, ifname, made_as })
}

/// Is it a finished port of ours, whatever it is called?
pub fn is_port(link: &Link) -> bool {
    recognise(link).is_some()
}

/// What the ports there are were made as.
pub async fn names(host: &Netlink) -> Result<BTreeSet<String>> {
    let links = host.links().await?;
    Ok(links.iter().filter_map(recognise).map(|note| note.made_as).collect())
}

/// The finished ports of this host, by index.
pub async fn list(host: &Netlink) -> Result<Vec<Port>> {
    list_those(host, |_| true).await
}

/// Those of them whose host side is `wanted`: each costs a look into its namespace.
pub(super) async fn list_those(host: &Netlink, wanted: impl Fn(&Link) -> bool) -> Result<Vec<Port>> {
    let links = host.links().await?;
    let ours: Vec<_> = links.iter().filter(|link| wanted(link)).filter_map(|link| recognise(link).map(|note| (link, note))).collect();
    let ids: BTreeSet<_> = ours.iter().filter_map(|(_, note)| container(note.kind)).collect();
    let places = netns::find(ids).await;
    let mut ports = join_all(ours.into_iter().map(|(link, note)| examine(host, link, note, &places))).await;
    ports.sort_by_key(|port| port.id);
    Ok(ports)
}

fn container(kind: PortKind) -> Option<NetnsId> {
    match kind {
        PortKind::Container(id) => Some(id),
        PortKind::Host => None,
    }
}

async fn examine(host: &Netlink, link: &Link, note: Note, places: &BTreeMap<NetnsId, PathBuf>) -> Port {
    let Note { kind, ifname, made_as } = note;
    let place = container(kind).and_then(|id| places.get(&id).cloned());
    let inside = match (kind, &place) {
        (PortKind::Host, _) => look(host, link).await,
        (PortKind::Container(id), Some(path)) => look_inside(path, id, link).await,
        (PortKind::Container(_), None) => None,
    };
    // Whoever died while we looked is like one that was not found; its link will be gone in a moment.
    let (inner, addrs) = inside.unwrap_or_else(|| (Link { name: ifname, ..Link::default() }, Vec::new()));
    Port::new(link, Owner { kind, made_as, netns: place }, &inner, addrs)
}

async fn look_inside(path: &Path, id: NetnsId, link: &Link) -> Option<(Link, Vec<IpNet>)> {
    let netns = Netns::open(path).ok().filter(|netns| netns.id() == id)?;
    look(&netns.netlink().await.ok()?, link).await
}

async fn look(inside: &Netlink, link: &Link) -> Option<(Link, Vec<IpNet>)> {
    let inner = inside.link_at(link.peer?).await.ok()??;
    let addrs = inside.given_addresses(inner.index).await.ok()?;
    Some((inner, addrs))
}

/// Tells when a port's host side has gone: its container died, or somebody deleted it.
#[derive(Debug)]
pub struct PortWatch {
    notifications: Notifications,
}

impl PortWatch {
    /// Watch the calling thread's namespace.
    pub fn new() -> Result<Self> {
        Ok(Self { notifications: Notifications::open(&[MulticastGroup::Link])? })
    }

    /// The next link to go that may have been a port; `None`: some may have gone unseen, so list them. Cancel-safe.
    pub async fn gone(&mut self) -> Result<Option<PortId>> {
        loop {
            match self.notifications.next().await? {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => {
                    let link = parse(&message);
                    // Messages of a bridge's family tell that a port left the bridge.
                    let deleted = message.header.interface_family == AddressFamily::Unspec;
                    if deleted && link.kind == "veth" {
                        return Ok(Some(PortId(link.index)));
                    }
                }
                NetlinkPayload::Overrun(_) => return Ok(None),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_ports_of_ours_are_recognised() {
        let id = NetnsId { dev: 4, ino: 4_026_532_000 };
        let link = |name: &str, alias: &str| Link { name: name.into(), alias: alias.into(), kind: "veth".into(), ..Link::default() };
        let note = |kind, ifname: &str, made_as: &str| Some(Note { kind, ifname: ifname.into(), made_as: made_as.into() });
        let alias = container_alias(id, "ethwe", "vethwepl0000100");
        for name in ["vethwepl0000100", "renamed"] {
            assert_eq!(recognise(&link(name, &alias)), note(PortKind::Container(id), "ethwe", "vethwepl0000100"));
        }
        let earlier = format!("weave-agent {id} ethwe");
        assert_eq!(recognise(&link("vethwepl0000100", &earlier)), note(PortKind::Container(id), "ethwe", "vethwepl0000100"));
        assert_eq!(recognise(&link(EXPOSE_PORT, &host_alias())), note(PortKind::Host, EXPOSE_IFNAME, EXPOSE_PORT));
        for alias in ["", "weave-agent", "weave-agent x:y ethwe", "weave-agent 4:5", "somebody 4:5 ethwe"] {
            assert_eq!(recognise(&link("vethwepl0000100", alias)), None);
        }
        assert_eq!(recognise(&Link { kind: "dummy".into(), ..link("vethwepl0000100", &alias) }), None);
    }

    #[test]
    fn owners_are_called_by_the_name_people_use() {
        assert_eq!(described(Path::new("/run/netns/web")), "web");
        assert_eq!(described(Path::new("/proc/7/ns/net")), "of process 7");
    }
}
