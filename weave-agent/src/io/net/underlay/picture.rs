//! What is known of the host's network, and what it means for a next hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::neighbours::{self, Key, Neighbour};
use super::{Edge, NextHop, UnderlayEvent};
use crate::io::net::address::{Address, ipv4};
use crate::io::net::is_ours;
use crate::io::net::link::Link;
use crate::io::net::routes::Path;
use crate::io::net::socket::{Netlink, Result};

/// Links, addresses and neighbours at one time.
#[derive(Debug, Default)]
pub(super) struct Picture {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Ipv4Addr>,
    interfaces: Vec<u32>,
    pub(super) neighbours: BTreeMap<Key, Neighbour>,
}

impl Picture {
    /// Look everything up.
    pub(super) async fn take(netlink: &Netlink) -> Result<Self> {
        let links = netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
        let neighbours = neighbours::all(netlink).await?;
        Ok(Self::new(links, &netlink.addresses().await?, neighbours))
    }

    fn new(links: BTreeMap<u32, Link>, all: &[Address], neighbours: BTreeMap<Key, Neighbour>) -> Self {
        let elsewhere = |address: &&Address| address.routable && links.get(&address.ifindex).is_some_and(|link| !is_ours(&link.name));
        let on_links: Vec<_> = all.iter().filter(elsewhere).filter_map(|a| ipv4(&a.net).map(|addr| (a.ifindex, addr))).collect();
        let carries = |index: &u32| links.get(index).is_some_and(is_underlay);
        let interfaces: BTreeSet<_> = on_links.iter().map(|(index, _)| *index).filter(carries).collect();
        let addresses = on_links.iter().map(|(_, addr)| *addr).collect();
        Self { links, addresses, interfaces: interfaces.into_iter().collect(), neighbours }
    }

    /// What to tell somebody who knows `before`.
    pub(super) fn changes(&self, before: &Self) -> Vec<UnderlayEvent> {
        let gone = before.addresses.difference(&self.addresses).copied().map(UnderlayEvent::AddressGone);
        let added = self.addresses.difference(&before.addresses).copied().map(UnderlayEvent::AddressAdded);
        let interfaces = (self.interfaces != before.interfaces).then(|| UnderlayEvent::Interfaces(self.interfaces.clone()));
        gone.chain(added).chain(interfaces).collect()
    }

    /// What the fast path needs to know to send along a path; `None` if it cannot.
    pub(super) fn next_hop(&self, edge: Edge, path: Path) -> Option<NextHop> {
        let link = self.links.get(&path.ifindex).filter(|link| link.up && is_underlay(link))?;
        Some(NextHop {
            ifindex: link.index,
            source_mac: link.mac?,
            next_hop_mac: self.neighbours.get(&key(edge, path)).and_then(|neighbour| neighbour.mac),
            gateway: path.gateway,
            mtu: path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        })
    }
}

/// Whose Ethernet address is asked for.
pub(super) fn key(edge: Edge, path: Path) -> Key {
    (path.ifindex, path.gateway.unwrap_or(edge.remote))
}

fn is_underlay(link: &Link) -> bool {
    link.mac.is_some() && !link.loopback && !is_ours(&link.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Mac;

    fn link(index: u32, name: &str) -> (u32, Link) {
        (index, Link { index, name: name.into(), mac: Some(Mac([2, 0, 0, 0, 0, 1])), mtu: 1500, up: true, ..Link::default() })
    }

    fn address(ifindex: u32, net: &str) -> Address {
        Address { ifindex, net: net.parse().unwrap(), routable: true }
    }

    #[test]
    fn only_ethernet_interfaces_of_others_carry_the_underlay() {
        let mut links = BTreeMap::from([link(2, "eth0"), link(3, "weave"), link(4, "tun0"), link(5, "eth1")]);
        if let Some(tun) = links.get_mut(&4) {
            tun.mac = None;
        }
        let all = [address(2, "10.0.0.1/24"), address(3, "10.32.0.1/12"), address(4, "10.9.0.1/24"), address(5, "fd00::1/64")];
        let picture = Picture::new(links, &all, BTreeMap::new());
        assert_eq!(picture.interfaces, [2]);
        let told = picture.changes(&Picture::default());
        let expected = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 9, 0, 1)].map(UnderlayEvent::AddressAdded);
        assert_eq!(told, [expected.to_vec(), vec![UnderlayEvent::Interfaces(vec![2])]].concat());
        assert_eq!(picture.changes(&picture), []);
    }

    #[test]
    fn a_routes_mtu_counts_when_it_is_the_smaller() {
        let picture = Picture::new(BTreeMap::from([link(2, "eth0")]), &[], BTreeMap::new());
        let edge = Edge { remote: Ipv4Addr::new(10, 0, 0, 2), local: Ipv4Addr::new(10, 0, 0, 1) };
        for (mtu, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let hop = picture.next_hop(edge, Path { ifindex: 2, gateway: None, mtu });
            assert_eq!(hop.map(|hop| hop.mtu), Some(expected));
        }
    }
}
