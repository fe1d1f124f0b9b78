//! BIG TCP: segments longer than an IPv4 packet can be, from containers to the underlay's driver.
//!
//! A socket makes segments as long as the interface takes that its route leads out of (`gso_ipv4_max_size`, Linux 6.3); every interface on
//! the way that takes less cuts them into packets. So ports get more than usual only while all underlay interfaces do, too.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::attach::ONE_AT_A_TIME;
use super::follow::inside;
use super::is_ours;
use super::link::Link;
use super::ports::{self, Port, recognise};
use super::socket::{Netlink, Result};

/// What interfaces are set to. No round number, and not Cilium's 196,608: so what we set is known again.
const BIG: u32 = 192_000;
/// What all interfaces have by themselves (`GSO_LEGACY_MAX_SIZE`).
const USUAL: u32 = 65_536;

/// Give ports, and the interfaces that lead to `peers`, the size that is wanted; says why it cannot be had.
///
/// # Errors
/// When the host's links or routes cannot be looked at.
pub async fn follow_big_tcp(host: &Netlink, wanted: bool, peers: &[Ipv4Addr]) -> Result<Option<String>> {
    let links = host.links().await?;
    let underlay = if wanted { leading_to(host, &links, peers).await? } else { Vec::new() };
    let obstacle = match underlay.iter().find_map(|link| obstacle(link)) {
        None => set(host, &below(&underlay), BIG).await.err().map(|error| error.to_string()),
        obstacle => obstacle,
    };
    // Without neighbours nobody takes them.
    let size = if obstacle.is_none() && !underlay.is_empty() { BIG } else { USUAL };
    let differs = |link: &Link| recognise(link).is_some() && link.gso.is_some_and(|has| has != size && (has == BIG || size == BIG));
    if links.iter().any(differs) {
        let _turn = ONE_AT_A_TIME.lock().await;
        for port in &ports::list_those(host, differs).await? {
            if let Err(error) = set_port(host, port, size).await {
                tracing::debug!(port = %port.host_ifname, %error, "its segments stay as long as they are");
            }
        }
    }
    if size == USUAL {
        set(host, &ours(&links), USUAL).await?;
    }
    Ok(obstacle.map(|why| format!("no BIG TCP: {why}")))
}

/// Interfaces have what they had before us.
///
/// # Errors
/// When one cannot be changed.
pub async fn leave_big_tcp(host: &Netlink) -> Result<()> {
    set(host, &ours(&host.links().await?), USUAL).await
}

/// Those that take less; somebody else may have set one to more.
fn below<'a>(links: &[&'a Link]) -> Vec<&'a Link> {
    links.iter().filter(|link| link.gso.is_some_and(|has| has < BIG)).copied().collect()
}

/// Those of the host's own interfaces that we have set.
fn ours(links: &[Link]) -> Vec<&Link> {
    links.iter().filter(|link| link.gso == Some(BIG) && !is_ours(&link.name)).collect()
}

async fn set(host: &Netlink, links: &[&Link], size: u32) -> Result<()> {
    for link in links {
        host.set_gso(link.index, size).await?;
        tracing::info!(link = link.name, from = link.gso, to = size, "segments may be so long");
    }
    Ok(())
}

fn obstacle(link: &Link) -> Option<String> {
    match (link.gso, link.tso) {
        (None, _) => Some("this kernel has none for IPv4 (Linux 6.3 has)".to_owned()),
        // A bond, a VLAN: what lies below it would cut them.
        _ if !matches!(&*link.kind, "" | "veth") => {
            Some(format!("{} is a {} on other interfaces, which would cut long segments", link.name, link.kind))
        }
        (_, Some(takes)) if takes < BIG => Some(format!("the driver of {} takes segments of at most {takes} bytes", link.name)),
        _ => None,
    }
}

async fn leading_to<'a>(host: &Netlink, links: &'a [Link], peers: &[Ipv4Addr]) -> Result<Vec<&'a Link>> {
    let mut indices = BTreeSet::new();
    for peer in peers {
        indices.extend(host.path(*peer, None).await?.map(|path| path.ifindex));
    }
    Ok(links.iter().filter(|link| indices.contains(&link.index)).collect())
}

/// Both sides: what the host sends into the container, too.
async fn set_port(host: &Netlink, port: &Port, size: u32) -> Result<()> {
    let inside = inside(host, port).await?;
    if let Some(inner) = host.link_at(port.id.0).await?.and_then(|outer| outer.peer) {
        inside.set_gso(inner, size).await?;
    }
    host.set_gso(port.id.0, size).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: &str, gso: Option<u32>, tso: Option<u32>) -> Link {
        Link { name: name.to_owned(), kind: kind.to_owned(), gso, tso, ..Link::default() }
    }

    #[test]
    fn an_interface_that_cannot_says_why() {
        let why = |link: &Link| obstacle(link).unwrap_or_default();
        assert_eq!(why(&link("eth0", "", Some(USUAL), Some(524_280))), "");
        assert_eq!(why(&link("eth0", "veth", Some(USUAL), Some(524_280))), "");
        assert!(why(&link("eth0", "", None, None)).contains("Linux 6.3"));
        assert!(why(&link("eth1", "", Some(USUAL), Some(65_536))).contains("eth1 takes segments of at most 65536"));
        assert!(why(&link("bond0", "bond", Some(USUAL), Some(524_280))).contains("bond0 is a bond"));
    }

    #[test]
    fn what_somebody_else_set_is_left_alone() {
        let links = [
            link("eth0", "", Some(USUAL), None),
            link("eth1", "", Some(BIG), None),
            link("eth2", "", Some(500_000), None),
            link("vethwepl1", "veth", Some(BIG), None),
        ];
        let names = |links: Vec<&Link>| links.iter().map(|link| link.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(below(&links.iter().collect::<Vec<_>>())), ["eth0"]);
        assert_eq!(names(ours(&links)), ["eth1"]);
    }
}
