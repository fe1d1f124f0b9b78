//! Routes: which there are, which would be taken, and the one that containers get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType};
use rtnetlink::RouteMessageBuilder;

use super::socket::{Netlink, Result, explain};

/// A route that leads packets to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Out of this interface; `None` for routes with several.
    pub ifindex: Option<u32>,
}

/// The kernel's choice for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Out of this interface.
    pub ifindex: u32,
    /// Through this router.
    pub gateway: Option<Ipv4Addr>,
    /// The route's own limit, or what path MTU discovery learned.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Every route to somewhere: unicast, and to the host's own addresses.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut all = self.dump("listing IPv4 routes", |handle| handle.route().get(v4.clone()).execute()).await?;
        all.extend(self.dump("listing IPv6 routes", |handle| handle.route().get(v6.clone()).execute()).await?);
        Ok(all.iter().filter_map(parse).collect())
    }

    /// How the kernel would send from `local` to `remote`; `None`: not at all, or to ourselves.
    pub async fn path(&self, remote: Ipv4Addr, local: Option<Ipv4Addr>) -> Result<Option<Path>> {
        let mut question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(remote, 32);
        if let Some(local) = local {
            question = question.source_prefix(local, 32);
        }
        let mut stream = std::pin::pin!(self.handle().route().get(question.build()).execute());
        match stream.try_next().await.map_err(explain(|| format!("looking for the route to {remote}"))) {
            // EINVAL: `local` is not ours; the others: there is no way.
            Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => Ok(answer.as_ref().and_then(parse_path)),
        }
    }

    /// Send multicast out of this interface. False: there is such a route already.
    pub async fn add_multicast_route(&self, ifindex: u32) -> Result<bool> {
        let added = self.handle().route().add(multicast_route(ifindex)).execute().await;
        match added.map_err(explain(|| format!("adding the multicast route to link {ifindex}"))) {
            Err(error) if error.is_exists() => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Take that route back.
    pub async fn remove_multicast_route(&self, ifindex: u32) -> Result<()> {
        let removed = self.handle().route().del(multicast_route(ifindex)).execute().await;
        removed.map_err(explain(|| format!("removing the multicast route to link {ifindex}")))
    }
}

fn multicast_route(ifindex: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::new(224, 0, 0, 0), 4)
        .output_interface(ifindex)
        .scope(RouteScope::Link)
        .build()
}

impl Route {
    /// Routes of everything say nothing about who has an address: the default, and the halves of it that VPNs use instead.
    pub fn is_default(&self) -> bool {
        let everything = if self.destination.addr().is_ipv4() { 1 } else { 3 };
        self.destination.prefix_len() <= everything
    }

    /// Would an address of `net` be meant by this route, or the other way round?
    pub fn overlaps(&self, net: &IpNet) -> bool {
        let other = net.trunc();
        self.destination.contains(&other) || other.contains(&self.destination)
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let ifindex = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    matches!(message.header.kind, RouteType::Unicast | RouteType::Local).then_some(())?;
    Some(Route { destination: prefix(message)?, ifindex })
}

/// What a route is for.
pub(super) fn prefix(message: &RouteMessage) -> Option<IpNet> {
    IpNet::new(destination(message)?, message.header.destination_prefix_length).ok()
}

/// Routes of everything carry no destination.
fn destination(message: &RouteMessage) -> Option<IpAddr> {
    let given = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    });
    let everything = match message.header.address_family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    };
    given.or(everything)
}

fn parse_path(message: &RouteMessage) -> Option<Path> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut path = Path { ifindex: 0, gateway: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => path.ifindex = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => path.gateway = Some(*addr),
            // A next hop that is an IPv6 router: its neighbour entry is not in the IPv4 table, so the stack must send.
            RouteAttribute::Via(_) => return None,
            RouteAttribute::Metrics(metrics) => path.mtu = mtu(metrics),
            _ => {}
        }
    }
    (path.ifindex != 0).then_some(path)
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_overlaps_what_it_contains_and_what_contains_it() {
        let route = |text: &str| Route { destination: text.parse().unwrap(), ifindex: None };
        let net: IpNet = "10.32.1.5/16".parse().unwrap();
        for overlapping in ["10.0.0.0/8", "10.32.0.0/16", "10.32.7.0/24", "10.32.9.9/32"] {
            assert!(route(overlapping).overlaps(&net), "{overlapping}");
        }
        for apart in ["10.33.0.0/16", "192.168.0.0/16", "fd00::/8"] {
            assert!(!route(apart).overlaps(&net), "{apart}");
        }
        assert!(["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"].iter().all(|text| route(text).is_default()));
        assert!(!route("10.0.0.0/8").is_default());
    }
}
