//! How the kernel would reach our neighbours, told whenever it changes.
//!
//! A task keeps a picture of links, addresses and IPv4 neighbours. Messages from the kernel say what of it is stale; after a
//! moment, in which more may come, that is looked up again and what differs is told. A slow tick looks everything up: some changes
//! (path MTU, routes that go with their link) have no message.

mod neighbours;
mod picture;
mod watcher;

use std::net::Ipv4Addr;

use tokio::sync::mpsc;

use super::socket::Result;
use crate::addr::Mac;

/// Events that wait for their reader before the task does.
const QUEUE: usize = 256;

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
    /// An interface was deleted, or moved to another namespace.
    LinkGone(u32),
    /// The interfaces that may carry underlay traffic, sorted: Ethernet, with an IPv4 address, not loopback, not ours.
    Interfaces(Vec<u32>),
}

/// A neighbour and our address towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    remote: Ipv4Addr,
    local: Ipv4Addr,
}

#[derive(Debug)]
enum Order {
    Watch(Edge),
    Unwatch(Edge),
}

/// Watches routes, neighbours, links and addresses. Dropping it ends the watch.
#[derive(Debug)]
pub struct Underlay {
    orders: mpsc::UnboundedSender<Order>,
}

impl Underlay {
    /// Watch the calling thread's namespace. The addresses and interfaces there are come as events too.
    pub fn start() -> Result<(Self, mpsc::Receiver<UnderlayEvent>)> {
        let (orders, from_owner) = mpsc::unbounded_channel();
        let (events, to_owner) = mpsc::channel(QUEUE);
        let watcher = watcher::Watcher::new(from_owner, events)?;
        tokio::spawn(watcher.run());
        Ok((Self { orders }, to_owner))
    }

    /// Tell the next hop from `local` to `remote`, now and whenever it changes.
    pub fn watch(&self, remote: Ipv4Addr, local: Ipv4Addr) {
        self.order(Order::Watch(Edge { remote, local }));
    }

    /// No longer.
    pub fn unwatch(&self, remote: Ipv4Addr, local: Ipv4Addr) {
        self.order(Order::Unwatch(Edge { remote, local }));
    }

    fn order(&self, order: Order) {
        // The task only ends before us when nobody reads its events any more.
        let _ = self.orders.send(order);
    }
}
