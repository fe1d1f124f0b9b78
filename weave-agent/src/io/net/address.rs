//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::socket::{Error, Netlink, Result, explain};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Whose.
    pub ifindex: u32,
    /// Address and prefix.
    pub net: IpNet,
    /// It can be reached from elsewhere (not 127.0.0.1).
    pub routable: bool,
}

impl Netlink {
    /// Every address of the namespace.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let all = self.dump("listing addresses", |handle| handle.address().get().execute()).await?;
        Ok(all.iter().filter_map(parse).collect())
    }

    /// The addresses of an interface that somebody gave it: without link-local IPv6 ones, which every interface has.
    pub async fn given_addresses(&self, ifindex: u32) -> Result<Vec<IpNet>> {
        let all = self.addresses().await?;
        Ok(all.iter().filter(|a| a.ifindex == ifindex).map(|a| a.net).filter(|net| !is_link_local6(net)).collect())
    }

    /// Add an address, usable at once.
    pub async fn add_address(&self, ifindex: u32, net: IpNet) -> Result<()> {
        let mut request = self.handle().address().add(ifindex, net.addr(), net.prefix_len());
        if net.addr().is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(explain(|| format!("adding {net}")))
    }

    /// Remove an address.
    pub async fn remove_address(&self, ifindex: u32, net: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.index = ifindex;
        message.header.prefix_len = net.prefix_len();
        message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
        self.handle().address().del(message).execute().await.map_err(explain(|| format!("removing {net}")))
    }

    /// Remove some addresses of an interface and keep the others: with a subnet's first address the kernel may remove its younger ones,
    /// so those are put back. Goes on after a failure; reports each.
    pub(super) async fn remove_addresses(&self, ifindex: u32, remove: &[IpNet], keep: &[IpNet]) -> Vec<Error> {
        let mut failures = Vec::new();
        for net in remove {
            match self.remove_address(ifindex, *net).await {
                Err(error) if !error.is_not_found() => failures.push(error),
                _ => {}
            }
        }
        for net in keep {
            match self.add_address(ifindex, *net).await {
                Err(error) if !error.is_exists() => failures.push(error),
                _ => {}
            }
        }
        failures
    }
}

/// fe80::/10.
pub(super) fn is_link_local6(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(addr) if addr.is_unicast_link_local())
}

pub(super) fn parse(message: &AddressMessage) -> Option<Address> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    // IPv6 has no IFA_LOCAL unless it is point to point; IPv4's IFA_ADDRESS is then the other end.
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(addr) => Some(*addr),
        _ => None,
    });
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let routable = !matches!(message.header.scope, AddressScope::Host | AddressScope::Nowhere);
    Some(Address { ifindex: message.header.index, net, routable })
}

/// The IPv4 address, if it is one.
pub(super) fn ipv4(net: &IpNet) -> Option<Ipv4Addr> {
    match net.addr() {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    }
}
