//! Executing the switch's orders on a kernel's tables.

use std::cell::Cell;
use std::net::Ipv4Addr;

use weave_agent::datapath::{self, Egress, Op, PeerRoute, TunnelKind};
use weave_ebpf::flow::{Ipv4, Mac, PeerSlot, Source, slot, source};
use weave_ebpf::vxlan::{self, Path};

use crate::carry::Effect;
use crate::decode;
use crate::kernel::{Break, Kernel, Tree};

/// Index of the one underlay interface.
const UNDERLAY: u32 = 2;
/// Index of the sleeve's device.
const SLEEVE: u32 = 3;

impl Kernel {
    /// Does what the switch says.
    pub(crate) fn apply(&mut self, op: Op) -> Vec<Effect> {
        match op {
            Op::SetSelf(short) => self.config.short = u32::from(short.get()),
            Op::Install(..) if self.fault == Some(Break::ForgetFlows) => {}
            Op::Install(key, action) => {
                let flow = decode::flow(action, self.config.epoch, self.redirect_peer);
                self.flows.insert(key, Cell::new(flow));
            }
            Op::Remove(..) if self.fault == Some(Break::KeepFlows) => {}
            Op::Remove(key) => _ = self.flows.remove(&key),
            Op::BumpEpoch => self.config.epoch += 1,
            Op::Execute(frame, ways) => return self.execute(&frame.bytes, &ways),
            Op::SetPeer(short, route) => self.set_peer(u32::from(short.get()), route),
            Op::SetSource { remote, neighbour } => self.set_source(remote, neighbour),
            Op::SetTree { origin, parent, hops } => {
                let hops = hops.iter().map(|hop| u32::from(hop.get())).collect();
                self.trees.insert(u32::from(origin.get()), Tree { parent: parent.map(|address| address.octets()), hops });
            }
            Op::SetFloodPorts(ports) => self.flood_ports = ports,
            Op::Heartbeat { local, remote, port, datagram } => {
                let route = PeerRoute { remote, local, port, mtu: 0, tunnel: TunnelKind::Vxlan, big: false };
                return self.heartbeat(&self.slot(&route), &datagram).into_iter().collect();
            }
        }
        Vec::new()
    }

    fn execute(&self, frame: &[u8], ways: &[Egress]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for way in ways {
            match way {
                Egress::Port(port) => effects.extend(self.deliver(*port, frame)),
                Egress::Peer { to, origin } => match self.execute_to_peer(u32::from(to.get()), u32::from(origin.get()), frame) {
                    Ok(packet) => effects.push(packet),
                    Err(reason) => self.add(reason.index()),
                },
            }
        }
        effects
    }

    fn set_peer(&mut self, short: u32, route: Option<PeerRoute>) {
        let slot = route.map_or_else(PeerSlot::default, |route| self.slot(&route));
        if self.fault == Some(Break::FreezeSlots) && self.peers.get(&short).is_some_and(|old| old.flags & slot::VALID != 0) {
            return;
        }
        self.peers.insert(short, slot);
    }

    /// The route with the kernel's own next hop filled in.
    fn slot(&self, route: &PeerRoute) -> PeerSlot {
        if route.tunnel == TunnelKind::Sleeve {
            return weave_ebpf::sleeve::slot(SLEEVE, route.remote.octets(), route.local.octets());
        }
        let next_hop = self.direct.then(|| (UNDERLAY, underlay_mac(self.address), underlay_mac(route.remote)));
        vxlan::slot(&Path {
            local: route.local.octets(),
            remote: route.remote.octets(),
            port: route.port,
            mtu: u32::from(route.mtu),
            next_hop,
            esp: route.tunnel == TunnelKind::Esp,
            big: route.big,
        })
    }

    fn set_source(&mut self, remote: Ipv4Addr, neighbour: Option<datapath::Source>) {
        let remote: Ipv4 = remote.octets();
        match neighbour {
            Some(datapath::Source { short, local, least }) => {
                let flags = match least {
                    TunnelKind::Vxlan => 0,
                    TunnelKind::Esp => source::ESP,
                    TunnelKind::Sleeve => source::SEALED,
                };
                self.sources.insert(remote, Source { local: local.octets(), short: u32::from(short.get()), flags });
            }
            None => _ = self.sources.remove(&remote),
        }
    }
}

/// Every underlay address has its MAC here.
pub(crate) fn underlay_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x06, 0, a, b, c, d]
}
