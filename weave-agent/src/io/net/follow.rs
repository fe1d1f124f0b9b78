//! Attached interfaces follow the MTU: what a container sends and no path takes any more would be lost without a word.
//!
//! The host side, which no container can change, is the memory of what we set: an inner side that differs was set by somebody
//! inside, and is only made smaller.

use std::collections::BTreeMap;

use super::attach::ONE_AT_A_TIME;
use super::link::Link;
use super::netns::Netns;
use super::ports::{self, Port, PortKind, recognise};
use super::socket::{Error, Netlink, Result};
use crate::datapath::PortId;

/// IPv6 does without an interface that takes less.
const IPV6: u32 = 1_280;

/// Give every port this MTU; says why it could not be done for some.
///
/// # Errors
/// When the host's links cannot be listed.
pub async fn follow_mtu(host: &Netlink, wanted: u32) -> Result<BTreeMap<PortId, String>> {
    let differs = |link: &Link| recognise(link).is_some() && link.mtu != wanted;
    // Looking for namespaces costs: most often there is nothing to do.
    if !host.links().await?.iter().any(differs) {
        return Ok(BTreeMap::new());
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut failures = BTreeMap::new();
    for port in &ports::list_those(host, differs).await? {
        match follow(host, port, wanted).await {
            // A container that has just died needs nothing.
            Err(error) if !error.is_not_found() || port.netns.is_none() => _ = failures.insert(port.id, complaint(port, wanted, &error)),
            _ => {}
        }
    }
    Ok(failures)
}

fn complaint(port: &Port, wanted: u32, error: &Error) -> String {
    let (owner, has) = (port.owner(), port.mtu);
    format!("{owner} still has MTU {has} where {wanted} is right, and what is larger is lost: {error}")
}

async fn follow(host: &Netlink, port: &Port, wanted: u32) -> Result<()> {
    let inside = inside(host, port).await?;
    let outer = host.link_at(port.id.0).await?.ok_or_else(|| gone(port))?;
    let peer = outer.peer.ok_or_else(|| gone(port))?;
    let inner = inside.link_at(peer).await?.filter(|inner| inner.peer == Some(outer.index)).ok_or_else(|| gone(port))?;
    if wanted < IPV6 && inner.mtu >= IPV6 && port.addrs.iter().any(|net| net.addr().is_ipv6()) {
        return Err(Error::invalid(
            "making it smaller",
            format!("it has IPv6 addresses, and IPv6 needs {IPV6}: detach those, or mend the network below"),
        ));
    }
    let (before, after) = (outer.mtu, inner_mtu(outer.mtu, inner.mtu, wanted));
    // What a side sends must never be more than the other takes.
    if wanted > before {
        host.set_mtu(outer.index, wanted).await?;
    }
    if after != inner.mtu {
        inside.set_mtu(inner.index, after).await?;
    }
    if wanted < before {
        host.set_mtu(outer.index, wanted).await?;
    }
    tracing::info!(port = %port.host_ifname, before, now = wanted, inside = after, "a port follows the MTU");
    Ok(())
}

/// The inner side is as we left it, or somebody inside wanted less.
fn inner_mtu(outer: u32, inner: u32, wanted: u32) -> u32 {
    if inner == outer { wanted } else { inner.min(wanted) }
}

/// Where the other end of a port is.
pub(super) async fn inside(host: &Netlink, port: &Port) -> Result<Netlink> {
    let PortKind::Container(id) = port.kind else { return Ok(host.clone()) };
    let unknown =
        || Error::invalid("entering its namespace", "no process and no name leads there: detach the container and attach it again");
    let netns = Netns::open(port.netns.as_deref().ok_or_else(unknown)?)?;
    if netns.id() == id { netns.netlink().await } else { Err(gone(port)) }
}

fn gone(port: &Port) -> Error {
    Error::new(format!("looking at {}", port.host_ifname), std::io::Error::from_raw_os_error(libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_inside_made_smaller_is_never_made_larger() {
        assert_eq!(inner_mtu(1450, 1450, 1250), 1250);
        assert_eq!(inner_mtu(1250, 1250, 1450), 1450);
        assert_eq!(inner_mtu(1450, 1300, 1250), 1250);
        assert_eq!(inner_mtu(1450, 1300, 1400), 1300);
        assert_eq!(inner_mtu(1250, 1300, 1450), 1300);
    }
}
