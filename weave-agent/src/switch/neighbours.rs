//! Tunnels to the neighbours: which there are, their heartbeats, and what follows when one comes up or goes down.

use std::net::Ipv4Addr;

use bytes::Bytes;
use weave_ebpf::flow::FlowKey;

use super::decide::{ends, outer_src};
use super::flows::Facet;
use super::heartbeat::Heartbeat;
use super::liveness::{INTERVAL, pace_at_rest};
use super::tunnel::Tunnel;
use super::{Output, Switch};
use crate::Time;
use crate::datapath::{Action, Op, TunnelKind};
use crate::mesh::{Neighbour, View};
use crate::peer::{PeerName, ShortId};
use crate::sleeve;

impl Switch {
    pub(super) fn link_up(&mut self, now: Time, neighbour: Neighbour) {
        let name = neighbour.name;
        let mtu = self.route_mtu_to(neighbour.remote);
        let protected = self.protected.contains(&neighbour.remote);
        match self.tunnels.get_mut(&name) {
            Some(tunnel) => tunnel.relink(now, neighbour, mtu, protected),
            None => drop(self.tunnels.insert(name, Tunnel::new(now, neighbour, mtu, protected))),
        }
        self.reconcile();
        self.notice_tunnels();
        self.beat(now);
    }

    pub(super) fn link_down(&mut self, name: PeerName) {
        if let Some(tunnel) = self.tunnels.get_mut(&name) {
            tunnel.unlink();
        }
        self.notice_tunnels();
    }

    pub(super) fn route_mtu_to(&self, remote: Ipv4Addr) -> u16 {
        self.route_mtus.get(&remote).copied().unwrap_or(self.config.default_mtu)
    }

    pub(super) fn route_mtu(&mut self, now: Time, remote: Ipv4Addr, mtu: u16) {
        self.route_mtus.insert(remote, mtu);
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.remote() == remote) {
            tunnel.set_route_mtu(now, mtu);
        }
        self.notice_tunnels();
    }

    /// A peer that left the mesh and has no link is no neighbour any more, even if its kernel goes on answering.
    pub(super) fn forget_strangers(&mut self, view: &View) {
        let gone = self.tunnels.iter().filter(|(name, tunnel)| !tunnel.linked && !view.peers.contains_key(name));
        for name in gone.map(|(name, _)| *name).collect::<Vec<_>>() {
            self.forget_tunnel(name);
        }
    }

    fn forget_tunnel(&mut self, peer: PeerName) {
        let Some(tunnel) = self.tunnels.remove(&peer) else { return };
        if tunnel.told.is_some() {
            self.out.push_back(Output::Tunnel { peer, up: false });
        }
        if !self.tunnels.values().any(|other| other.remote() == tunnel.remote()) {
            self.route_mtus.remove(&tunnel.remote());
        }
    }

    /// Sends the heartbeats that are due.
    pub(super) fn beat(&mut self, now: Time) {
        self.set_paces(now);
        let mut due = Vec::new();
        for (name, tunnel) in &mut self.tunnels {
            due.extend(tunnel.poll(now).into_iter().map(|(kind, heartbeat)| (*name, kind, heartbeat)));
        }
        for (name, kind, heartbeat) in due {
            match kind {
                TunnelKind::Vxlan | TunnelKind::Esp => self.send_heartbeat(name, &heartbeat),
                TunnelKind::Sleeve => self.probe_sleeve(name, &heartbeat),
            }
        }
    }

    /// Tunnels that are due and that no flow depends on can wait.
    fn set_paces(&mut self, now: Time) {
        let rest = pace_at_rest(self.tunnels.len());
        let flows = &self.flows;
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.due().is_none_or(|due| due <= now)) {
            let remote = tunnel.remote();
            let mut by_it = self.told.slots.iter().filter(|(_, route)| route.remote == remote);
            tunnel.set_use(rest == INTERVAL || by_it.any(|(short, _)| flows.depend_on(Facet::Peer(*short))), rest);
        }
    }

    /// A flow was installed: the tunnel that it goes by is one that frames depend on.
    pub(super) fn use_tunnel(&mut self, action: Action) {
        let Action::Peer(short) = action else { return };
        let Some(remote) = self.told.slots.get(&short).map(|route| route.remote) else { return };
        let is_by_it = |tunnel: &&mut Tunnel| tunnel.remote() == remote;
        let itself = self.directory.name(short).filter(|name| self.tunnels.get(name).is_some_and(|tunnel| tunnel.remote() == remote));
        let tunnel = match itself {
            Some(name) => self.tunnels.get_mut(&name),
            None => self.tunnels.values_mut().find(is_by_it),
        };
        if let Some(tunnel) = tunnel {
            tunnel.take_into_use();
        }
    }

    fn send_heartbeat(&mut self, name: PeerName, heartbeat: &Heartbeat) {
        let Some(tunnel) = self.tunnels.get(&name) else { return };
        let Neighbour { local, remote, port, .. } = tunnel.neighbour;
        let datagram = heartbeat.datagram(self.neighbour_short(name, tunnel), self.short);
        self.order(Op::Heartbeat { local, remote, port, datagram });
    }

    fn probe_sleeve(&mut self, name: PeerName, heartbeat: &Heartbeat) {
        let Some(tunnel) = self.tunnels.get(&name) else { return };
        let neighbour = tunnel.remote();
        self.out.push_back(Output::Sleeve(sleeve::Op::Probe { neighbour, heartbeat: heartbeat.token(), datagram: heartbeat.size }));
    }

    /// The sleeve heard of a neighbour.
    pub(super) fn sleeve_heard(&mut self, now: Time, heard: &sleeve::Heard) {
        let (neighbour, heartbeat, datagram) = match heard {
            sleeve::Heard::Reply { neighbour, heartbeat, datagram } => (neighbour, heartbeat, datagram),
            // The sleeve follows it by itself.
            sleeve::Heard::Moved { neighbour, remote } => {
                return tracing::debug!(%neighbour, %remote, "its sleeve comes from another address");
            }
            sleeve::Heard::Worn(_) => return,
        };
        let reply = Heartbeat::from_token(heartbeat, *datagram);
        let mut from = self.tunnels.values_mut().filter(|tunnel| tunnel.remote() == *neighbour);
        if !reply.is_some_and(|reply| from.any(|tunnel| tunnel.answer(now, TunnelKind::Sleeve, &reply))) {
            self.counters.bad_heartbeats += 1;
        }
        self.notice_tunnels();
    }

    /// A neighbour's short id as the mesh has it now, or as it was when the link came up.
    pub(super) fn neighbour_short(&self, name: PeerName, tunnel: &Tunnel) -> ShortId {
        self.directory.short(name).unwrap_or(tunnel.neighbour.short)
    }

    pub(super) fn heartbeat(&mut self, now: Time, key: &FlowKey, frame: &Bytes) {
        if !self.take_heartbeat(now, key, frame) {
            self.counters.bad_heartbeats += 1;
        }
        self.notice_tunnels();
    }

    /// False if it is nonsense, for another, from a stranger, or an answer to nothing.
    fn take_heartbeat(&mut self, now: Time, key: &FlowKey, frame: &[u8]) -> bool {
        let Ok(heartbeat) = Heartbeat::decode(frame) else { return false };
        if ends(key).is_none_or(|(to, _)| to != self.short) {
            return false;
        }
        if heartbeat.is_reply() {
            let mut from = self.tunnels.values_mut().filter(|tunnel| tunnel.remote() == outer_src(key));
            return from.any(|tunnel| tunnel.answer(now, TunnelKind::Vxlan, &heartbeat));
        }
        let from = self.tunnels.iter().find(|(_, tunnel)| tunnel.remote() == outer_src(key)).map(|(name, _)| *name);
        from.inspect(|name| self.send_heartbeat(*name, &heartbeat.reply())).is_some()
    }

    /// Tells the mesh and the datapath what tunnels came up, went down or changed, and forgets abandoned ones.
    pub(super) fn notice_tunnels(&mut self) {
        let mut changed = false;
        for (&peer, tunnel) in &mut self.tunnels {
            let datagram = tunnel.datagram();
            if datagram != tunnel.told_datagram {
                tunnel.told_datagram = datagram;
                let (neighbour, datagram) = (tunnel.remote(), datagram.unwrap_or(sleeve::SAFE_DATAGRAM));
                self.out.push_back(Output::Sleeve(sleeve::Op::Path { neighbour, datagram }));
            }
            let route = tunnel.route();
            if route == tunnel.told {
                continue;
            }
            if route.is_some() != tunnel.told.is_some() {
                self.out.push_back(Output::Tunnel { peer, up: route.is_some() });
            }
            tunnel.told = route;
            changed = true;
        }
        // As long as the mesh knows the peer it is probed: coming back must not wait for a link.
        let known = |name: &PeerName| self.view.as_ref().is_some_and(|view| view.peers.contains_key(name));
        let abandoned = self.tunnels.iter().filter(|(name, tunnel)| tunnel.is_abandoned() && !known(name));
        let abandoned: Vec<PeerName> = abandoned.map(|(name, _)| *name).collect();
        changed |= !abandoned.is_empty();
        for name in abandoned {
            self.forget_tunnel(name);
        }
        if changed {
            self.reconcile();
        }
        if !self.oversize.is_empty() {
            self.answer_oversize();
        }
    }
}
