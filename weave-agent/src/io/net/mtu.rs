//! The MTU that containers get.

use std::net::Ipv4Addr;

use super::link::Link;
use super::socket::{Netlink, Result};
use super::{VXLAN_OVERHEAD, is_ours};

/// Where nothing can be learned.
const ETHERNET: u32 = 1_500;
/// Any address that is not here: the way to it is the default route.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The largest inner packet that every known path takes: the smallest MTU among the routes to `peers`; without peers that of the
/// default route, else of the interfaces that are up, else 1,500; less the tunnel's headers.
pub async fn mtu_for(host: &Netlink, peers: &[Ipv4Addr]) -> u32 {
    let underlay = underlay_mtu(host, peers).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the underlay's MTU is unknown; taking Ethernet's");
        ETHERNET
    });
    underlay.saturating_sub(VXLAN_OVERHEAD)
}

async fn underlay_mtu(host: &Netlink, peers: &[Ipv4Addr]) -> Result<u32> {
    let links = host.links().await?;
    let mut smallest = smallest_to(host, &links, peers).await?;
    if smallest.is_none() {
        smallest = smallest_to(host, &links, &[ELSEWHERE]).await?;
    }
    let of_links = || links.iter().filter(|link| link.up && !link.loopback && !is_ours(&link.name)).map(|link| link.mtu).min();
    Ok(smallest.or_else(of_links).unwrap_or(ETHERNET))
}

async fn smallest_to(host: &Netlink, links: &[Link], remotes: &[Ipv4Addr]) -> Result<Option<u32>> {
    let mut smallest: Option<u32> = None;
    for remote in remotes {
        let Some(path) = host.path(*remote, None).await? else {
            continue;
        };
        let of_link = links.iter().find(|link| link.index == path.ifindex).map(|link| link.mtu);
        smallest = [smallest, path.mtu, of_link].into_iter().flatten().min();
    }
    Ok(smallest)
}
