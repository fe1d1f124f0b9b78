//! The kernel's IPv4 neighbour table.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};

use crate::addr::Mac;
use crate::io::net::socket::{Netlink, Result, explain};

/// Whose address: behind this interface, this IPv4 address.
pub(super) type Key = (u32, Ipv4Addr);

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Its Ethernet address, if frames may be sent to it.
    pub(super) mac: Option<Mac>,
    /// The kernel would ask again if told that the entry is used.
    pub(super) doubtful: bool,
}

/// The neighbours of the namespace.
pub(super) async fn all(netlink: &Netlink) -> Result<BTreeMap<Key, Neighbour>> {
    let what = "listing neighbours";
    let all = netlink.dump(what, |handle| handle.neighbours().get().set_address_family(AddressFamily::Inet).execute()).await?;
    Ok(all.iter().filter_map(parse).collect())
}

/// Make the kernel find out where a neighbour is, or whether it still is. Not for permanent entries: using one so ends its permanence.
pub(super) async fn solicit(netlink: &Netlink, (ifindex, addr): Key) -> Result<()> {
    let request = netlink.handle().neighbours().add(ifindex, addr.into());
    let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
    request.execute().await.map_err(explain(|| format!("asking for {addr}")))
}

/// `None` for neighbours of another family.
pub(super) fn parse(message: &NeighbourMessage) -> Option<(Key, Neighbour)> {
    let mut addr = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(*v4),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(&**bytes).ok().map(Mac);
            }
            _ => {}
        }
    }
    let (usable, doubtful) = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp => (true, false),
        // The kernel is asking already.
        NeighbourState::Delay | NeighbourState::Probe => (true, false),
        NeighbourState::Incomplete => (false, false),
        NeighbourState::Stale => (true, true),
        _ => (false, true),
    };
    Some(((message.header.ifindex, addr?), Neighbour { mac: mac.filter(|_| usable), doubtful }))
}
