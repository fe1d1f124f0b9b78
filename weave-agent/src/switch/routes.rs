//! The view of the mesh and the tunnels -> what the datapath's tables should be.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Switch;
use super::tables::{Tables, Tree};
use super::tunnel::Tunnel;
use crate::Time;
use crate::datapath::{Op, PeerRoute, Source, TunnelKind};
use crate::mesh::{PeerView, View};
use crate::peer::{PeerName, ShortId};

impl Switch {
    /// Tells the datapath what became different.
    pub(super) fn reconcile(&mut self) {
        let mut wanted = self.wanted();
        wanted.add(&self.kept);
        self.close(&mut wanted);
        let oversized = self.oversized();
        for op in self.told.become_like(wanted) {
            if let Op::SetSource { remote, neighbour: None } = op {
                self.remove_flows_from(remote);
            }
            self.order(op);
        }
        // Flows that the kernel can no longer carry out are made by us, frame by frame.
        if self.oversized() > oversized {
            for key in self.flows.floods() {
                self.remove_flow(&key);
            }
        }
    }

    /// Takes out what would go or come in clear where it must not. What an earlier agent left, and what a slot was before
    /// its neighbour asked for sealing, is good for frames that nobody wants secret only.
    fn close(&self, wanted: &mut Tables) {
        wanted.slots.retain(|_, route| self.may_carry(route));
        for (remote, source) in &mut wanted.sources {
            source.least = match (self.must_seal(*remote), self.protected.contains(remote)) {
                (false, _) => TunnelKind::Vxlan,
                (true, true) => TunnelKind::Esp,
                (true, false) => TunnelKind::Sleeve,
            };
        }
    }

    fn may_carry(&self, route: &PeerRoute) -> bool {
        match route.tunnel {
            TunnelKind::Vxlan => !self.must_seal(route.remote),
            TunnelKind::Esp => self.protected.contains(&route.remote),
            TunnelKind::Sleeve => !self.must_seal(route.remote) || self.is_sealed(route.remote),
        }
    }

    /// The kernel lets no VXLAN to or from this address in clear from now on, or may do so again.
    pub(super) fn protect(&mut self, now: Time, remote: Ipv4Addr, protected: bool) {
        if protected {
            self.protected.insert(remote);
        } else {
            self.protected.remove(&remote);
        }
        let mtu = self.route_mtu_to(remote);
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.remote() == remote) {
            tunnel.protect(now, protected, mtu);
        }
        self.notice_tunnels();
        self.reconcile();
        self.beat(now);
    }

    /// If our settings say so, whatever was agreed with the neighbour when there was no password, or if that was.
    fn must_seal(&self, remote: Ipv4Addr) -> bool {
        self.config.seals(remote) || self.tunnels.values().any(|tunnel| tunnel.remote() == remote && tunnel.neighbour.sealed)
    }

    /// Its sleeve is: one that was agreed on before there was a password carries in clear. Before there is a neighbour there is
    /// no session either, and nothing leaves.
    fn is_sealed(&self, remote: Ipv4Addr) -> bool {
        let mut here = self.tunnels.values().filter(|tunnel| tunnel.remote() == remote);
        here.all(|tunnel| tunnel.neighbour.sealed)
    }

    fn oversized(&self) -> usize {
        self.told.trees.keys().filter(|origin| !self.told.fits(**origin)).count()
    }

    fn wanted(&self) -> Tables {
        let mut tables = Tables {
            sources: self.tunnels.iter().map(|(name, tunnel)| (tunnel.remote(), self.source_of(*name, tunnel))).collect(),
            flood_ports: self.ports.clone(),
            ..Tables::default()
        };
        match &self.view {
            None => (tables.slots, tables.trees) = (self.told.slots.clone(), self.told.trees.clone()),
            Some(view) => {
                tables.slots = self.slots(view);
                tables.trees = self.trees(view);
            }
        }
        tables
    }

    fn source_of(&self, name: PeerName, tunnel: &Tunnel) -> Source {
        // What must be sealed `close` says.
        Source { short: self.neighbour_short(name, tunnel), local: tunnel.neighbour.local, least: TunnelKind::Vxlan }
    }

    fn slots(&self, view: &View) -> BTreeMap<ShortId, PeerRoute> {
        let slot = |(short, name)| {
            let old = self.told.slots.get(&short).copied();
            let by = self.way(view, name).filter(|by| *by == name || !old.is_some_and(|old| self.is_worth_keeping(old)));
            let route = by.and_then(|by| Some((by, self.tunnels.get(&by)?.route()?)));
            // What is longer than a packet can be a relay might have to cut: only the neighbour itself gets it.
            let route = route.map(|(by, route)| PeerRoute { big: route.big && by == name, ..route });
            route.or(old).map(|route| (short, route))
        };
        self.directory.iter().filter_map(slot).collect()
    }

    /// In our first seconds, what the last agent left is as good as a relay, unless its tunnel is known to be dead.
    fn is_worth_keeping(&self, route: PeerRoute) -> bool {
        !self.settled && !self.tunnels.values().any(|tunnel| tunnel.remote() == route.remote && tunnel.is_dead())
    }

    /// The neighbour with a working tunnel that takes frames for a peer: itself, else the next hop.
    pub(super) fn way(&self, view: &View, name: PeerName) -> Option<PeerName> {
        let works = |name: &PeerName| self.tunnels.get(name).is_some_and(Tunnel::is_up);
        Some(name).filter(works).or_else(|| view.peers.get(&name)?.next_hop.filter(works))
    }

    fn trees(&self, view: &View) -> BTreeMap<ShortId, Tree> {
        let others = self.directory.iter().filter_map(|(short, name)| Some((short, self.tree(short, view.peers.get(&name)?))));
        let own = Tree { parent: None, hops: self.hops(&view.hops, None) };
        others.chain([(self.short, own)]).collect()
    }

    /// The tree of another peer; while it is out of reach, what it was.
    fn tree(&self, origin: ShortId, peer: &PeerView) -> Tree {
        let parent = peer.parent.and_then(|parent| self.tunnels.get(&parent));
        match parent {
            None => self.told.trees.get(&origin).cloned().unwrap_or_default(),
            Some(parent) => Tree { parent: Some(parent.remote()), hops: self.hops(&peer.hops, peer.parent) },
        }
    }

    fn hops(&self, hops: &[PeerName], parent: Option<PeerName>) -> Vec<ShortId> {
        // By way of a relay it would be a second copy, or dropped: the next hop tells only the relay's address from it.
        let direct = |hop: &&PeerName| self.tunnels.get(hop).is_some_and(Tunnel::is_up);
        hops.iter().filter(direct).filter(|hop| Some(**hop) != parent).filter_map(|hop| self.directory.short(*hop)).collect()
    }
}
