//! The task that keeps the picture and tells what changed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::picture::{Picture, key};
use super::{Edge, NextHop, Order, UnderlayEvent, neighbours};
use crate::io::net::is_ours;
use crate::io::net::link::parse;
use crate::io::net::notify::{Notifications, Payload};
use crate::io::net::routes::{self, Path};
use crate::io::net::socket::{Netlink, Result};

/// One change comes as several messages: wait for the rest.
const COALESCE: Duration = Duration::from_millis(10);
/// Neighbours that have not been heard of are asked this often: the fast path uses their entries unseen by the kernel.
const TICK: Duration = Duration::from_secs(5);
/// Every so many of these everything is looked up, in case that the kernel did not tell: each neighbour's way is two questions.
const ROUND: u32 = 6;
/// After the kernel failed us.
const BREATHER: Duration = Duration::from_millis(500);

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Nexthop,
];

/// How much must be looked up again; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    Nothing,
    /// The neighbour table is as told; paths of some edges are missing.
    Neighbours,
    Paths,
    Everything,
}

/// What is known of an edge.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// `None`: to be looked up. `Some(None)`: there is no way.
    path: Option<Option<Path>>,
    /// `None`: nothing told yet.
    told: Option<Option<NextHop>>,
}

pub(super) struct Watcher {
    netlink: Netlink,
    notifications: Notifications,
    orders: mpsc::UnboundedReceiver<Order>,
    events: mpsc::Sender<UnderlayEvent>,
    tick: Interval,
    ticks: u32,
    picture: Picture,
    watched: BTreeMap<Edge, Watched>,
    /// Not told yet.
    links_gone: Vec<u32>,
}

/// Nobody listens any more.
struct Finished;

impl Watcher {
    pub(super) fn new(orders: mpsc::UnboundedReceiver<Order>, events: mpsc::Sender<UnderlayEvent>) -> Result<Self> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            netlink: Netlink::here()?,
            notifications: Notifications::open(&GROUPS)?,
            orders,
            events,
            tick,
            ticks: 0,
            picture: Picture::default(),
            watched: BTreeMap::new(),
            links_gone: Vec::new(),
        })
    }

    pub(super) async fn run(mut self) {
        // Nothing is known yet.
        let mut going = self.look_again(Stale::Everything, false).await;
        while going.is_ok() {
            going = self.round().await;
        }
    }

    /// Wait for something to change, look it up, tell it.
    async fn round(&mut self) -> std::result::Result<(), Finished> {
        let mut stale = Stale::Nothing;
        let mut ticked = false;
        while stale == Stale::Nothing {
            tokio::select! {
                _ = self.tick.tick() => (stale, ticked) = (self.ticked(), true),
                change = next_change(&mut self.notifications, &mut self.orders) => stale = self.note(change).await?,
                () = self.events.closed() => return Err(Finished),
            }
        }
        let stale = stale.max(self.gather().await?);
        self.look_again(stale, ticked).await
    }

    async fn look_again(&mut self, stale: Stale, ticked: bool) -> std::result::Result<(), Finished> {
        if let Err(error) = self.refresh(stale, ticked).await {
            tracing::warn!(%error, "the underlay cannot be looked at");
            sleep(BREATHER).await;
            self.ticks = ROUND - 1;
            self.tick.reset_immediately();
        }
        self.tell().await
    }

    fn ticked(&mut self) -> Stale {
        self.ticks += 1;
        if self.ticks.is_multiple_of(ROUND) { Stale::Everything } else { Stale::Neighbours }
    }

    /// What comes within a moment.
    async fn gather(&mut self) -> std::result::Result<Stale, Finished> {
        let mut stale = Stale::Nothing;
        let mut moment = std::pin::pin!(sleep(COALESCE));
        loop {
            tokio::select! {
                () = &mut moment => return Ok(stale),
                change = next_change(&mut self.notifications, &mut self.orders) => stale = stale.max(self.note(change).await?),
            }
        }
    }

    /// What a change makes stale.
    async fn note(&mut self, change: Change) -> std::result::Result<Stale, Finished> {
        match change {
            Change::Dropped => Err(Finished),
            Change::Ordered(order) => Ok(self.obey(order)),
            Change::Said(Ok(payload)) => Ok(self.hear(&payload)),
            Change::Said(Err(error)) => {
                tracing::warn!(%error, "subscribing again");
                sleep(BREATHER).await;
                if let Ok(notifications) = Notifications::open(&GROUPS) {
                    self.notifications = notifications;
                }
                Ok(Stale::Everything)
            }
        }
    }

    fn obey(&mut self, order: Order) -> Stale {
        match order {
            Order::Watch(edge) => {
                self.watched.insert(edge, Watched::default());
                Stale::Neighbours
            }
            Order::Unwatch(edge) => {
                self.watched.remove(&edge);
                Stale::Nothing
            }
        }
    }

    fn hear(&mut self, payload: &Payload) -> Stale {
        use RouteNetlinkMessage as Said;
        match payload {
            NetlinkPayload::InnerMessage(message) => match message {
                Said::NewLink(link) => self.hear_link(link, false),
                Said::DelLink(link) => self.hear_link(link, true),
                Said::NewNeighbour(neighbour) => self.hear_neighbour(neighbour, false),
                Said::DelNeighbour(neighbour) => self.hear_neighbour(neighbour, true),
                Said::NewAddress(_) | Said::DelAddress(_) => Stale::Everything,
                Said::NewRoute(route) | Said::DelRoute(route) => self.hear_route(route),
                // Rules and next hop objects; what else there may be is rare.
                _ => Stale::Paths,
            },
            NetlinkPayload::Overrun(_) => Stale::Everything,
            _ => Stale::Nothing,
        }
    }

    fn hear_link(&mut self, message: &LinkMessage, gone: bool) -> Stale {
        // A bridge tells of its ports in messages of its own family; leaving a bridge is not going.
        if message.header.interface_family != AddressFamily::Unspec {
            return Stale::Nothing;
        }
        let link = parse(message);
        if gone {
            self.links_gone.push(link.index);
        }
        // Ours carry no underlay, and containers come and go.
        match (gone, is_ours(&link.name)) {
            (false, true) => Stale::Nothing,
            (true, true) => Stale::Neighbours,
            (_, false) => Stale::Everything,
        }
    }

    /// A routing daemon may change many routes that lead to none of ours.
    fn hear_route(&mut self, message: &RouteMessage) -> Stale {
        let Some(prefix) = routes::prefix(message) else {
            return Stale::Paths;
        };
        let mut stale = Stale::Nothing;
        for (edge, watched) in &mut self.watched {
            if prefix.contains(&IpAddr::V4(edge.remote)) {
                watched.path = None;
                stale = Stale::Neighbours;
            }
        }
        stale
    }

    fn hear_neighbour(&mut self, message: &NeighbourMessage, gone: bool) -> Stale {
        let Some((key, neighbour)) = neighbours::parse(message) else {
            return Stale::Nothing;
        };
        if gone {
            self.picture.neighbours.remove(&key);
        } else {
            self.picture.neighbours.insert(key, neighbour);
        }
        if self.keys().any(|watched| watched == key) { Stale::Neighbours } else { Stale::Nothing }
    }

    /// The neighbours that watched edges need.
    fn keys(&self) -> impl Iterator<Item = neighbours::Key> {
        self.watched.iter().filter_map(|(edge, watched)| Some(key(*edge, watched.path??)))
    }

    async fn refresh(&mut self, stale: Stale, ticked: bool) -> Result<()> {
        if stale == Stale::Everything {
            let picture = Picture::take(&self.netlink).await?;
            self.tell_changes(&picture).await;
            self.picture = picture;
        }
        for (edge, watched) in &mut self.watched {
            if stale >= Stale::Paths || watched.path.is_none() {
                watched.path = Some(self.netlink.path(edge.remote, Some(edge.local)).await?);
            }
        }
        self.solicit(ticked).await;
        Ok(())
    }

    async fn tell_changes(&mut self, picture: &Picture) {
        for event in picture.changes(&self.picture) {
            // A closed channel ends the next round.
            let _ = self.events.send(event).await;
        }
    }

    /// Ask for neighbours that are unknown, and now and then for those in doubt.
    async fn solicit(&mut self, ticked: bool) {
        for (edge, watched) in &self.watched {
            let Some(path) = watched.path.flatten().filter(|path| self.picture.next_hop(*edge, *path).is_some()) else {
                continue;
            };
            let key = key(*edge, path);
            let ask = self.picture.neighbours.get(&key).is_none_or(|neighbour| ticked && neighbour.doubtful);
            if let Err(error) = if ask { neighbours::solicit(&self.netlink, key).await } else { Ok(()) } {
                tracing::debug!(%error, "left to the vxlan device");
            }
        }
    }

    /// Tell what differs from what was told.
    async fn tell(&mut self) -> std::result::Result<(), Finished> {
        let mut events: Vec<_> = self.links_gone.drain(..).map(UnderlayEvent::LinkGone).collect();
        for (edge, watched) in &mut self.watched {
            let next_hop = watched.path.flatten().and_then(|path| self.picture.next_hop(*edge, path));
            if watched.path.is_some() && watched.told != Some(next_hop) {
                watched.told = Some(next_hop);
                events.push(UnderlayEvent::NextHop { remote: edge.remote, local: edge.local, next_hop });
            }
        }
        for event in events {
            self.events.send(event).await.map_err(|_| Finished)?;
        }
        Ok(())
    }
}

/// What a round waits for.
enum Change {
    Said(Result<Payload>),
    Ordered(Order),
    Dropped,
}

async fn next_change(notifications: &mut Notifications, orders: &mut mpsc::UnboundedReceiver<Order>) -> Change {
    tokio::select! {
        said = notifications.next() => Change::Said(said),
        order = orders.recv() => order.map_or(Change::Dropped, Change::Ordered),
    }
}
