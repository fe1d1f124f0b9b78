//! What must hold before an address is added.

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::is_link_local6;
use super::attach::AttachError;
use super::is_ours;
use super::known::Known;
use super::link::Link;
use super::netns::Netns;
use super::ports::{self, PortKind};
use super::socket::Netlink;
use super::{NAMESERVER, NAMESERVER_6};

/// Can each of these be an address of a container?
pub(super) fn possible(addrs: &[IpNet]) -> Result<(), AttachError> {
    for (i, addr) in addrs.iter().enumerate() {
        let twice = addrs[..i].iter().any(|other| other.addr() == addr.addr());
        let why = if twice { Some("it is given twice") } else { impossible(addr) };
        if let Some(why) = why {
            return Err(AttachError::InvalidAddress { addr: *addr, why });
        }
    }
    Ok(())
}

fn impossible(net: &IpNet) -> Option<&'static str> {
    let addr = net.addr();
    // Of the shortest networks (/31 and /127 links, single addresses) every address may be used.
    let has_ends = net.prefix_len() + 1 < net.max_prefix_len();
    match addr {
        _ if addr.is_multicast() => Some("it is a group"),
        _ if addr == NAMESERVER || addr == NAMESERVER_6 => Some("containers ask the name server there"),
        _ if addr.is_unspecified() || net.prefix_len() == 0 => Some("it is no single address of a network"),
        _ if addr.is_loopback() => Some("it never leaves a host"),
        _ if is_link_local6(net) => Some("link-local addresses are the kernel's to give"),
        _ if has_ends && addr == net.network() => Some("it is the network's own address"),
        IpAddr::V4(_) if has_ends && addr == net.broadcast() => Some("it is the network's broadcast address"),
        _ => None,
    }
}

/// Is none of these used on this host by anybody else than `owner`?
pub(super) async fn unused(host: &Netlink, owner: PortKind, addrs: &[IpNet], known: &Known) -> Result<(), AttachError> {
    let in_use = |net: &IpNet, owner: String| AttachError::AddressInUse { addr: net.addr(), owner };
    let wanted = |other: IpAddr| addrs.iter().find(|net| net.addr() == other);
    // Looking costs a visit to every container.
    let ports = if known.may_have(addrs) { ports::list(host).await? } else { Vec::new() };
    for port in ports.iter().filter(|port| port.kind != owner) {
        if let Some(net) = port.addrs.iter().find_map(|net| wanted(net.addr())) {
            return Err(in_use(net, port.owner()));
        }
    }
    let links = host.links().await?;
    for address in host.addresses().await? {
        let device = name_of(&links, address.ifindex);
        if let Some(net) = wanted(address.net.addr()).filter(|_| !is_ours(device)) {
            return Err(in_use(net, format!("the host ({device})")));
        }
    }
    no_overlap(host, &links, addrs).await
}

/// Would the host still know which network an address is in?
async fn no_overlap(host: &Netlink, links: &[Link], addrs: &[IpNet]) -> Result<(), AttachError> {
    for route in host.routes().await?.iter().filter(|route| !route.is_default()) {
        let device = route.ifindex.map_or("several", |index| name_of(links, index));
        if let Some(addr) = addrs.iter().find(|addr| route.overlaps(addr)).filter(|_| !is_ours(device)) {
            return Err(AttachError::RouteOverlap { addr: *addr, route: route.destination, device: device.to_owned() });
        }
    }
    Ok(())
}

/// Would the container send to these networks by its port, the interface `ours` if it has one already? Wider routes do no harm: ours
/// is more specific.
pub(super) async fn no_route_of_its_own(target: &Netns, ours: Option<u32>, addrs: &[IpNet]) -> Result<(), AttachError> {
    let inside = target.netlink().await?;
    for route in inside.routes().await?.iter().filter(|route| !route.is_default() && (route.ifindex.is_none() || route.ifindex != ours)) {
        if let Some(addr) = addrs.iter().find(|addr| addr.trunc().contains(&route.destination)) {
            let links = inside.links().await?;
            let device = route.ifindex.map_or("several", |index| name_of(&links, index)).to_owned();
            return Err(AttachError::OwnRoute { target: target.name().to_owned(), addr: *addr, route: route.destination, device });
        }
    }
    Ok(())
}

pub(super) fn name_of(links: &[Link], index: u32) -> &str {
    links.iter().find(|link| link.index == index).map_or("?", |link| &link.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Option<&'static str> {
        impossible(&text.parse().unwrap())
    }

    #[test]
    fn ends_of_a_network_groups_and_local_addresses_are_no_container_addresses() {
        for good in ["10.32.0.1/12", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "fd00::1/64", "fd00::/128", "fd00::ffff/112"] {
            assert_eq!(verdict(good), None, "{good}");
        }
        for bad in [
            "10.32.0.0/12",
            "10.47.255.255/12",
            "224.0.0.1/4",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "10.0.0.1/0",
            "::1/64",
            "fd00::/64",
            "ff02::1/64",
            "fe80::1/64",
            "169.254.83.53/16",
        ] {
            assert!(verdict(bad).is_some(), "{bad}");
        }
        assert!(possible(&["10.0.0.1/24".parse().unwrap(), "10.0.0.1/16".parse().unwrap()]).is_err());
    }
}
