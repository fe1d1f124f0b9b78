//! The underlay changes: ways to neighbours, interfaces, addresses.

use std::net::Ipv4Addr;

use super::Agent;
use crate::datapath::Source;
use crate::io::carrier;
use crate::io::net::{UnderlayEvent, VXLAN_OVERHEAD};
use crate::mesh::{self, Target};
use crate::router::Input;
use crate::switch;

impl Agent {
    /// The ways to neighbours are watched as long as they are neighbours.
    pub(super) fn set_way(&mut self, remote: Ipv4Addr, source: Option<Source>) {
        let before = match source {
            Some(source) => self.ways.insert(remote, source),
            None => self.ways.remove(&remote),
        };
        if before == source {
            return;
        }
        let (before, local) = (before.map(|source| source.local), source.map(|source| source.local));
        if let Some(before) = before.filter(|_| before != local) {
            self.parts.underlay.unwatch(remote, before);
        }
        if let Some(local) = local.filter(|_| before != local) {
            self.parts.underlay.watch(remote, local);
        }
        self.parts.neighbours.send_replace(self.ways.clone());
        self.parts.hands.look_at_mtu.notify_one();
    }

    pub(super) fn changed(&mut self, change: UnderlayEvent) {
        self.parts.hands.look_at_mtu.notify_one();
        match change {
            UnderlayEvent::NextHop { remote, local, next_hop } if self.ways.get(&remote).is_some_and(|source| source.local == local) => {
                self.parts.carrier.set_next_hop(remote, next_hop.as_ref().and_then(carrier::next_hop));
                if let Some(hop) = next_hop {
                    let mtu = u16::try_from(hop.mtu.saturating_sub(VXLAN_OVERHEAD)).unwrap_or(u16::MAX);
                    self.input(Input::Switch(switch::Input::RouteMtu { remote, mtu }));
                }
            }
            UnderlayEvent::NextHop { .. } => {}
            UnderlayEvent::AddressAdded(address) => {
                self.parts.carrier.address_added(address);
                self.dial_again();
            }
            UnderlayEvent::AddressGone(address) => {
                self.parts.carrier.address_gone(address);
                self.mesh(mesh::Input::AddressGone(address));
            }
            UnderlayEvent::LinkGone(ifindex) => self.leave(ifindex),
            UnderlayEvent::Interfaces(there) => self.interfaces_are(&there),
        }
    }

    /// What could not be reached may be within reach of a new address: the targets are not made to wait for their turn.
    fn dial_again(&mut self) {
        let known = self.parts.router.status(self.parts.clock.now()).mesh.targets;
        let targets = known.into_iter().map(|target| Target { name: target.name, addresses: target.addresses }).collect();
        self.mesh(mesh::Input::Connect { targets, replace: false });
    }

    fn interfaces_are(&mut self, there: &[u32]) {
        let gone: Vec<u32> = self.interfaces.iter().filter(|ifindex| !there.contains(ifindex)).copied().collect();
        gone.into_iter().for_each(|ifindex| self.leave(ifindex));
        for ifindex in there {
            if !self.interfaces.contains(ifindex) && self.parts.carrier.join(*ifindex) {
                self.interfaces.insert(*ifindex);
            }
        }
        self.parts.carrier.underlays_are(there);
    }

    fn leave(&mut self, ifindex: u32) {
        if self.interfaces.remove(&ifindex) {
            self.parts.carrier.leave(ifindex);
        }
    }
}
