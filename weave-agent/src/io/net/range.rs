//! Does the host use the range that containers are to get their addresses from itself?

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::Address;
use super::checks::name_of;
use super::link::Link;
use super::routes::Route;
use super::socket::{Error, Netlink};
use super::{PortKind, is_ours, ports};

/// Who uses it. Addresses of the range would be given to containers all the same, and one of the two be out of reach.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// The host itself.
    #[error("--ipalloc-range {range} has the address {address} of this host ({device}) in it: {WAY_OUT}")]
    Address {
        /// The range.
        range: IpNet,
        /// The host's.
        address: IpAddr,
        /// Its interface.
        device: String,
    },
    /// Whoever is behind a route: of part of the range, or of more than the range.
    #[error("--ipalloc-range {range} overlaps the host's route {route} (dev {device}): {WAY_OUT}, or remove the route")]
    Route {
        /// The range.
        range: IpNet,
        /// Destination of the route.
        route: IpNet,
        /// Its interface.
        device: String,
    },
    /// The kernel did not say.
    #[error(transparent)]
    Kernel(#[from] Error),
}

const WAY_OUT: &str = "launch with another --ipalloc-range, the same on all hosts";

/// Refuse ranges that the host uses itself. What our own interfaces have does not count, nor do default routes.
pub async fn unused_range(host: &Netlink, ranges: &[IpNet]) -> Result<(), RangeError> {
    let (links, addresses, routes) = (host.links().await?, host.addresses().await?, host.routes().await?);
    ranges.iter().try_for_each(|range| look(*range, &links, &addresses, &routes))
}

/// Whether containers are attached here, or the host is exposed. Ports whose namespace nobody can enter do not count: the name server's
/// of an agent that has just stopped is there for a moment longer.
pub async fn is_inhabited(host: &Netlink) -> Result<bool, Error> {
    let ports = ports::list(host).await?;
    Ok(ports.iter().any(|port| port.kind == PortKind::Host || port.netns.is_some()))
}

fn look(range: IpNet, links: &[Link], addresses: &[Address], routes: &[Route]) -> Result<(), RangeError> {
    // An address says more than the routes that come with it.
    for address in addresses.iter().filter(|address| range.contains(&address.net.addr())) {
        let device = name_of(links, address.ifindex);
        if !is_ours(device) {
            return Err(RangeError::Address { range, address: address.net.addr(), device: device.to_owned() });
        }
    }
    for route in routes.iter().filter(|route| !route.is_default() && route.overlaps(&range)) {
        let device = route.ifindex.map_or("several", |index| name_of(links, index));
        if !is_ours(device) {
            return Err(RangeError::Route { range, route: route.destination, device: device.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(addresses: &[(u32, &str)], routes: &[(u32, &str)]) -> String {
        let link = |index, name: &str| Link { index, name: name.to_owned(), ..Link::default() };
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "weave"), link(4, "vethwe-host")];
        let addresses: Vec<Address> =
            addresses.iter().map(|(ifindex, net)| Address { ifindex: *ifindex, net: net.parse().unwrap(), routable: true }).collect();
        let routes: Vec<Route> =
            routes.iter().map(|(ifindex, net)| Route { ifindex: Some(*ifindex), destination: net.parse().unwrap() }).collect();
        let looked = look("10.32.0.0/12".parse().unwrap(), &links, &addresses, &routes);
        looked.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_others_have_of_the_range_is_named_and_what_is_ours_does_not_count() {
        assert_eq!(told(&[(2, "192.168.0.5/24")], &[(2, "192.168.0.0/24"), (2, "0.0.0.0/0"), (2, "0.0.0.0/1"), (2, "fd00::/8")]), "");
        assert_eq!(told(&[(3, "10.32.0.1/12")], &[(3, "10.32.0.0/12"), (3, "10.32.0.1/32")]), "");
        let address = told(&[(2, "10.40.0.5/16")], &[(2, "10.40.0.0/16"), (2, "10.40.0.5/32")]);
        assert!(address.contains("--ipalloc-range 10.32.0.0/12 has the address 10.40.0.5 of this host (eth0)"), "{address}");
        for route in ["10.40.0.0/16", "10.32.0.0/12", "10.0.0.0/8"] {
            let text = told(&[], &[(2, route)]);
            assert!(text.contains(&format!("--ipalloc-range 10.32.0.0/12 overlaps the host's route {route} (dev eth0)")), "{text}");
        }
    }
}
