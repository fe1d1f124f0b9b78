//! How the kernel would reach our neighbours, told whenever it changes.

use std::net::Ipv4Addr;

use tokio::sync::mpsc;

use super::socket::Result;
use crate::addr::Mac;

/// How packets to a neighbour leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Out of this Ethernet interface.
    pub ifindex: u32,
    /// With this source address.
    pub source_mac: Mac,
    /// To this one; `None` until the kernel has resolved it.
    pub next_hop_mac: Option<Mac>,
    /// Whose that is, if not the neighbour's own.
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet: the interface's MTU, or the route's if smaller.
    pub mtu: u32,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnderlayEvent {
    /// A watched neighbour is reached so now; `None`: not through an Ethernet interface, or not at all.
    NextHop {
        /// The neighbour.
        remote: Ipv4Addr,
        /// Our address towards it.
        local: Ipv4Addr,
        /// The answer. The first comes soon after `watch`.
        next_hop: Option<NextHop>,
    },
    /// The host has a new IPv4 address.
    AddressAdded(Ipv4Addr),
    /// The host has lost an IPv4 address.
    AddressGone(Ipv4Addr),
    /// An interface was deleted.
    LinkGone(u32),
    /// The interfaces that may carry underlay traffic, sorted: Ethernet, with an IPv4 address, not loopback, not ours.
    Interfaces(Vec<u32>),
}

/// Watches routes, neighbours, links and addresses. Dropping it ends the watch.
#[derive(Debug)]
pub struct Underlay {
    orders: mpsc::UnboundedSender<()>,
}

impl Underlay {
    /// Watch the calling thread's namespace. The addresses and interfaces there are come as events too.
    pub fn start() -> Result<(Self, mpsc::Receiver<UnderlayEvent>)> {
        let (orders, _) = mpsc::unbounded_channel();
        let (_, events) = mpsc::channel(1);
        Ok((Self { orders }, events))
    }

    /// Tell the next hop from `local` to `remote`, now and whenever it changes.
    pub fn watch(&self, remote: Ipv4Addr, local: Ipv4Addr) {
        let _ = (remote, local, &self.orders);
    }

    /// No longer.
    pub fn unwatch(&self, remote: Ipv4Addr, local: Ipv4Addr) {
        let _ = (remote, local);
    }
}
