//! Doing what the agents want.

use std::net::Ipv4Addr;

use rand::RngExt;
use weave_agent::Time;
use weave_agent::datapath::Op;
use weave_agent::router::{Input, Output};
use weave_agent::{esp, mesh, sleeve, switch};

use crate::wire::HostId;
use crate::world::{Event, World};

/// What VXLAN over IPv4 takes from the underlay's MTU, the inner Ethernet header included.
const OVERHEAD: usize = 50;

impl World {
    /// Does all that an agent wants, then arranges for it to be woken.
    pub(crate) fn drive(&mut self, host: HostId) {
        while let Some(output) = self.hosts[host].agent.as_mut().and_then(|agent| agent.router.poll_output()) {
            match output {
                Output::Datapath(op) => self.apply(host, op),
                Output::Mesh(output) => self.act(host, output),
                // Hosts in here have addresses of their own choice.
                Output::Answer { .. } | Output::Store { .. } | Output::Zone(_) | Output::Keep(_) => {}
                Output::Sleeve(op) => self.order_sleeve(host, op),
                Output::Esp(op) => self.order_esp(host, op),
            }
        }
        let (now, offset, incarnation) = (self.now, self.hosts[host].offset, self.hosts[host].incarnation);
        let Some(agent) = &mut self.hosts[host].agent else {
            return;
        };
        let Some(at) = agent.router.poll_timeout().map(|at| at.saturating_sub(offset).max(now)) else {
            return;
        };
        if agent.wake.is_none_or(|wake| at < wake) {
            agent.wake = Some(at);
            self.schedule(at - now, Event::Wake { host, incarnation });
        }
    }

    fn apply(&mut self, host: HostId, op: Op) {
        if let Op::Heartbeat { remote, .. } | Op::SetSource { remote, neighbour: Some(_) } = &op {
            self.tell_route(host, *remote);
        }
        if let Op::SetTree { origin, parent, .. } = &op {
            let origin = u32::from(origin.get());
            let old = self.hosts[host].kernel.trees.get(&origin).and_then(|tree| tree.parent);
            if old != parent.map(|parent| parent.octets()) {
                self.hosts[host].parents_changed.insert(origin, self.now);
            }
            self.trees_changed = self.now;
        }
        self.hosts[host].kernel.now = self.clock(host);
        let effects = self.hosts[host].kernel.apply(op);
        self.effects(host, effects);
    }

    fn order_esp(&mut self, host: HostId, op: esp::Op) {
        let incarnation = self.hosts[host].incarnation;
        if let Some(input) = self.hosts[host].kernel.ipsec.apply(op) {
            let took = Time::from_micros(self.rng.random_range(100..5_000));
            self.schedule(took, Event::Agent { host, incarnation, input: Box::new(Input::Esp(input)) });
        }
    }

    fn order_sleeve(&mut self, host: HostId, op: sleeve::Op) {
        let local = self.hosts[host].kernel.address;
        let probe = self.hosts[host].agent.as_mut().and_then(|agent| agent.sleeve.apply(local, op));
        probe.into_iter().for_each(|packet| self.transmit(host, packet));
    }

    /// `io` looks up the route to each neighbour that the switch begins to talk to.
    fn tell_route(&mut self, host: HostId, remote: Ipv4Addr) {
        let mtu = u16::try_from(self.wires.route_mtu - OVERHEAD).unwrap_or(u16::MAX);
        let incarnation = self.hosts[host].incarnation;
        let Some(agent) = &mut self.hosts[host].agent else {
            return;
        };
        if agent.routes_told.insert(remote) {
            let input = Box::new(Input::Switch(switch::Input::RouteMtu { remote, mtu }));
            self.schedule(Default::default(), Event::Agent { host, incarnation, input });
        }
    }

    fn act(&mut self, host: HostId, output: mesh::Output) {
        match output {
            mesh::Output::Dial(remote) => self.dial(host, remote),
            mesh::Output::Send { link, bytes } => self.send(host, link, bytes),
            mesh::Output::Close { link } => self.close(host, link),
            mesh::Output::Targets(targets) => self.hosts[host].state.targets = targets,
            mesh::Output::ShortId(short) => self.hosts[host].state.short = short,
            _ => {}
        }
    }
}
