//! Upcall -> decision: what is done with a frame, whether that is cached, and where its copies go.
//!
//! From a port, a frame goes where the fdb says, or to all. From a tunnel it goes to the local port that the fdb says.
//! If the fdb says another peer, or nothing, it is a copy of a flood, or was sent here by mistake, and goes on as a flood
//! of its origin: the datapath takes that only from the parent in the origin's tree, so that nothing loops and nothing comes
//! twice, and a frame for a MAC that moved on without our knowing still gets to it. It is never sent to the peer that the fdb
//! says: two peers that each believe the MAC at the other would play ping-pong.

use std::net::Ipv4Addr;

use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, short_ids};
use weave_ebpf::stats::DropReason;

use super::Switch;
use super::status::Location;
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, Egress, Frame, Op, PortId};
use crate::peer::ShortId;

/// What is done with frames of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) action: Action,
    /// It holds until something it depends on changes.
    pub(super) cached: bool,
}

const fn cached(action: Action) -> Decision {
    Decision { action, cached: true }
}

const fn once(reason: DropReason) -> Decision {
    Decision { action: Action::Drop(reason), cached: false }
}

impl Switch {
    pub(super) fn miss(&mut self, now: Time, key: &FlowKey, frame: Frame) {
        self.counters.misses += 1;
        self.reconsider(now);
        let contested = self.source(key).is_some_and(|at| !self.learn(now, Mac(key.src), at));
        let decision = if contested { cached(Action::Drop(DropReason::Contested)) } else { self.decide(key) };
        if decision.cached {
            self.install(now, *key, decision.action);
        } else if matches!(decision.action, Action::Drop(_)) {
            self.counters.dropped += 1;
        }
        let copies = self.copies(key, decision.action);
        if !copies.is_empty() {
            self.order(Op::Execute(frame, copies));
        }
    }

    /// Where the source MAC of a frame is, if the frame is fit to be learned from.
    pub(super) fn source(&self, key: &FlowKey) -> Option<Location> {
        if !is_station(key.src) || Mac(key.dst) == Mac::ZERO {
            return None;
        }
        if key.ingress != INGRESS_TUNNEL {
            let port = PortId(key.ingress);
            return self.ports.contains(&port).then_some(Location::Port(port));
        }
        let (to, origin) = ends(key)?;
        if to != self.short || !self.told.sources.contains_key(&outer_src(key)) {
            return None;
        }
        self.directory.name(origin).map(Location::Peer)
    }

    /// The decision for frames with this key, as far as is known now.
    pub(super) fn decide(&self, key: &FlowKey) -> Decision {
        let decision = if key.ingress == INGRESS_TUNNEL { self.decide_tunnel(key) } else { self.decide_local(key) };
        // Of a peer that only our predecessor knew nothing is learned: the next frame must be an upcall, too.
        let stranger = key.ingress == INGRESS_TUNNEL && ends(key).is_none_or(|(_, origin)| self.directory.name(origin).is_none());
        match decision.action {
            Action::Flood(origin) if !self.told.fits(origin) => Decision { cached: false, ..decision },
            _ => Decision { cached: decision.cached && !stranger, ..decision },
        }
    }

    fn decide_local(&self, key: &FlowKey) -> Decision {
        let ingress = PortId(key.ingress);
        if !self.ports.contains(&ingress) {
            return once(DropReason::Switch);
        }
        if let Some(reason) = unfit(key) {
            return cached(Action::Drop(reason));
        }
        match self.fdb.find(Mac(key.dst)) {
            Some(Location::Port(port)) if port == ingress => cached(Action::Drop(DropReason::Reflected)),
            Some(Location::Port(port)) => cached(Action::Port(port)),
            // Its short id is being arbitrated: not for long.
            Some(Location::Peer(name)) => self.directory.short(name).map_or(once(DropReason::NoRoute), |short| cached(Action::Peer(short))),
            None => cached(Action::Flood(self.short)),
        }
    }

    fn decide_tunnel(&self, key: &FlowKey) -> Decision {
        if !self.told.sources.contains_key(&outer_src(key)) {
            return once(DropReason::Stranger);
        }
        let Some((to, origin)) = ends(key).filter(|(_, origin)| self.is_peer(*origin)) else {
            return once(DropReason::UnknownPeer);
        };
        if to != self.short {
            return self.transit(key, to, origin);
        }
        if let Some(reason) = unfit(key) {
            return cached(Action::Drop(reason));
        }
        match self.fdb.find(Mac(key.dst)) {
            Some(Location::Port(port)) => cached(Action::Port(port)),
            // Cached even if it came from the wrong neighbour: the datapath looks at the parent itself, each time.
            _ => cached(Action::Flood(origin)),
        }
    }

    /// The mesh knows it, or our predecessor did and the mesh may have yet to tell us.
    fn is_peer(&self, short: ShortId) -> bool {
        self.directory.name(short).is_some() || !self.settled && self.told.slots.contains_key(&short)
    }

    fn transit(&self, key: &FlowKey, to: ShortId, origin: ShortId) -> Decision {
        if !self.is_peer(to) {
            return once(DropReason::UnknownPeer);
        }
        match self.told.slots.get(&to) {
            None => once(DropReason::NoRoute),
            Some(route) if route.remote == outer_src(key) || to == origin => once(DropReason::Reflected),
            Some(_) => cached(Action::Peer(to)),
        }
    }

    /// Where copies of the frame that missed go.
    fn copies(&self, key: &FlowKey, action: Action) -> Vec<Egress> {
        let origin = if key.ingress == INGRESS_TUNNEL { ends(key).map(|(_, origin)| origin) } else { Some(self.short) };
        let Some(origin) = origin else { return Vec::new() };
        match action {
            Action::Drop(_) => Vec::new(),
            Action::Port(port) => vec![Egress::Port(port)],
            Action::Peer(to) => vec![Egress::Peer { to, origin }],
            Action::Flood(_) => self.flood(key, origin),
        }
    }

    fn flood(&self, key: &FlowKey, origin: ShortId) -> Vec<Egress> {
        let tunnel = key.ingress == INGRESS_TUNNEL;
        if tunnel && self.told.parent(origin) != Some(outer_src(key)) {
            return Vec::new();
        }
        let ports = self.ports.iter().filter(|port| port.0 != key.ingress).map(|port| Egress::Port(*port));
        // Not by the neighbour it came from, even if that were the way to another.
        let back = |hop: &ShortId| tunnel && self.told.slots.get(hop).is_some_and(|route| route.remote == outer_src(key));
        let hops = self.told.hops(origin).iter().filter(|hop| **hop != origin && !back(hop)).map(|&to| Egress::Peer { to, origin });
        ports.chain(hops).collect()
    }
}

/// Why frames with these addresses go nowhere.
fn unfit(key: &FlowKey) -> Option<DropReason> {
    if !is_station(key.src) || Mac(key.dst) == Mac::ZERO {
        return Some(DropReason::Malformed);
    }
    Mac(key.dst).is_reserved_group().then_some(DropReason::Reserved)
}

fn is_station(mac: [u8; 6]) -> bool {
    !Mac(mac).is_group() && Mac(mac) != Mac::ZERO
}

pub(super) fn outer_src(key: &FlowKey) -> Ipv4Addr {
    key.outer_src.into()
}

/// Destination and origin of a tunnel frame.
pub(super) fn ends(key: &FlowKey) -> Option<(ShortId, ShortId)> {
    let (to, origin) = short_ids(key.vni);
    Some((ShortId::new(to as u16)?, ShortId::new(origin as u16)?))
}
