//! What is done to a network that works, to see it go on working: properties 8, 10, 14 and 15.

use rand::RngExt;
use weave_agent::Time;
use weave_ebpf::flow::PeerSlot;

use crate::case::Step;
use crate::frame::{FrameId, Payload};
use crate::model::{Container, wired_groups};
use crate::properties::{COMES_BACK_WITHIN, FAILS_OVER_WITHIN, MOVES_WITHIN, Violation, ensure};
use crate::run::Run;
use crate::settle::TRAVEL;
use crate::wire::HostId;

/// Between two frames of a pair.
const PERIOD: Time = Time::from_millis(50);

/// Rounds of a flood, a [`PERIOD`] each: long enough to meet every quota.
const FLOOD_ROUNDS: u32 = 160;
/// Frames per container and round.
const FLOOD_FRAMES: u32 = 10;

/// A frame on its way between two containers.
type Probe = (FrameId, Container, Container);

impl Run {
    /// Property 8.
    pub(crate) fn moved_macs_are_found(&mut self) -> Result<(), Violation> {
        for keeps_port in [false, true] {
            self.one_move(keeps_port)?;
            // Moves are damped: this is not about that.
            self.world.run_for(Time::from_secs(12))?;
        }
        let groups = wired_groups(&self.world.hosts, &self.world.wires);
        self.flows_tell_the_truth(&groups)
    }

    /// Moves one MAC; its old port may stay, silent.
    fn one_move(&mut self, keeps_port: bool) -> Result<(), Violation> {
        let Some(index) = self.model.pick(self.world.rng.random_range(0..64)) else {
            return Ok(());
        };
        let to = self.world.rng.random_range(0..self.world.hosts.len());
        let old = if keeps_port { self.model.containers.remove(index) } else { self.take(index) };
        let Some(moved) = self.attach(to, old.mac, false) else {
            return Ok(());
        };
        let others: Vec<Container> = self.model.honest().copied().filter(|other| other.mac != moved.mac).collect();
        if let (Some(other), true) = (others.first(), self.world.rng.random_bool(0.5)) {
            self.send(moved, other.mac, Payload::Ipv4);
        } else {
            self.announce(moved);
        }
        self.world.run_for(MOVES_WITHIN)?;
        let mut probes = Vec::new();
        for other in others {
            probes.push((self.send(other, moved.mac, Payload::Ipv4), other, moved));
            probes.push((self.send(moved, other.mac, Payload::Ipv4), moved, other));
        }
        self.world.run_for(TRAVEL)?;
        if keeps_port {
            self.unplug(old.place);
        }
        // Copies may come out elsewhere, too: whoever did not hear of it floods.
        self.all_arrived(8, &probes)
    }

    fn take(&mut self, index: usize) -> Container {
        let container = self.model.containers[index];
        self.detach(index);
        container
    }

    /// One copy of each at its destination (property 2 sees to it that there are no more), whoever else got one.
    fn all_arrived(&self, property: u8, probes: &[Probe]) -> Result<(), Violation> {
        probes.iter().try_for_each(|(id, from, to)| {
            let there = self.world.ledger.get(*id).is_none_or(|sent| sent.copies.contains_key(&to.place));
            ensure(property, there, || format!("{id:?} from {from:?} to {to:?} did not arrive"))
        })
    }

    fn arrived(&self, property: u8, probes: &[Probe]) -> Result<(), Violation> {
        probes.iter().try_for_each(|(id, from, to)| self.arrived_once(property, *id, *from, *to))
    }

    /// Every pair sends a frame each way, every [`PERIOD`], for some time.
    fn chatter(&mut self, pairs: &[(Container, Container)], time: Time) -> Result<Vec<Probe>, Violation> {
        let mut probes = Vec::new();
        let end = self.world.now + time;
        while self.world.now < end {
            for (a, b) in pairs {
                probes.push((self.send(*a, b.mac, Payload::Ipv4), *a, *b));
                probes.push((self.send(*b, a.mac, Payload::Other), *b, *a));
            }
            self.world.run_for(PERIOD)?;
        }
        Ok(probes)
    }

    /// Property 10: some or all agents die and come back, at their own time.
    pub(crate) fn crashes_cost_nothing(&mut self) -> Result<(), Violation> {
        let groups = wired_groups(&self.world.hosts, &self.world.wires);
        let mut pairs = self.pairs(&groups);
        pairs.truncate(3);
        self.exchange(&pairs)?;
        self.exchange(&pairs)?;
        let all = self.world.rng.random_bool(0.5);
        let crashing: Vec<HostId> = (0..self.world.hosts.len()).filter(|_| all || self.world.rng.random_bool(0.5)).collect();
        let mut probes = self.chatter(&pairs, Time::from_millis(500))?;
        // The sleeve lives in the agent and dies with it.
        let outlives = self.world.is_carried_by_kernels();
        for host in &crashing {
            self.world.crash(*host);
        }
        let down = Time::from_millis(self.world.rng.random_range(50..15_000));
        probes.extend(self.chatter(&pairs, down)?);
        for host in &crashing {
            self.world.launch(*host);
            let pause = Time::from_millis(self.world.rng.random_range(0..500));
            probes.extend(self.chatter(&pairs, pause)?);
        }
        probes.extend(self.chatter(&pairs, Time::from_secs(14))?);
        self.world.run_for(TRAVEL)?;
        // A new agent may ask the way again and flood: nothing is lost, that is all.
        if outlives {
            self.all_arrived(10, &probes)?;
        }
        // "A container attached after that works."
        self.step(&Step::Attach(crashing.first().copied().unwrap_or_default()))?;
        self.settled(true)
    }

    /// Property 14: the wire between two hosts that a third can join is cut and mended.
    pub(crate) fn cuts_are_survived(&mut self) -> Result<(), Violation> {
        let Some((a, b)) = self.redundant_wire() else {
            return Ok(());
        };
        let [ca, cb] = [a, b].map(|host| self.fresh_container(host));
        let pair = [(ca, cb)];
        self.world.run_for(TRAVEL)?;
        self.exchange(&pair)?;
        self.exchange(&pair)?;
        if self.world.rng.random_bool(0.3) {
            self.cut(&[(a, b)]);
        } else {
            self.cut(&[(a, b), (b, a)]);
        }
        self.chatter(&pair, FAILS_OVER_WITHIN)?;
        let cut_for = Time::from_secs(*[5, 10, 60].get(self.world.rng.random_range(0..3)).unwrap_or(&5));
        let probes = self.chatter(&pair, cut_for)?;
        self.world.run_for(TRAVEL)?;
        self.arrived(14, &probes)?;
        self.mend(a, b);
        self.chatter(&pair, COMES_BACK_WITHIN)?;
        for (from, to) in [(a, b), (b, a)] {
            let slot = self.slot(from, to);
            let direct = slot.is_some_and(|slot| slot.remote == self.world.hosts[to].kernel.address.octets());
            ensure(14, direct, || format!("{COMES_BACK_WITHIN:?} after the mend h{from} reaches h{to} by {slot:?}"))?;
        }
        let probes = self.chatter(&pair, Time::from_secs(2))?;
        self.world.run_for(TRAVEL)?;
        self.arrived(14, &probes)?;
        self.settled(true)
    }

    fn slot(&self, from: HostId, to: HostId) -> Option<PeerSlot> {
        self.world.hosts[from].kernel.peers.get(&self.world.hosts[to].kernel.config.short).copied()
    }

    /// Two hosts with a wire, and a third with wires to both.
    fn redundant_wire(&self) -> Option<(HostId, HostId)> {
        let hosts = 0..self.world.hosts.len();
        let wires = &self.world.wires;
        let pairs = hosts.clone().flat_map(|a| (0..a).map(move |b| (a, b)));
        pairs
            .filter(|(a, b)| wires.exists(*a, *b))
            .find(|(a, b)| hosts.clone().any(|c| c != *a && c != *b && wires.exists(*a, c) && wires.exists(c, *b)))
    }

    /// A new container that has said hello.
    fn fresh_container(&mut self, host: HostId) -> Container {
        let mac = self.model.new_mac();
        let Some(container) = self.attach(host, mac, false) else {
            unreachable!("every agent runs at the end");
        };
        self.announce(container);
        container
    }

    /// Property 15: all containers of one host send to and from random addresses, faster than upcalls are granted.
    pub(crate) fn floods_are_bounded(&mut self) -> Result<(), Violation> {
        let groups = wired_groups(&self.world.hosts, &self.world.wires);
        let Some(index) = self.model.pick(self.world.rng.random_range(0..64)) else {
            return Ok(());
        };
        let host = self.model.containers[index].place.0;
        let floods: Vec<usize> = (0..self.model.containers.len()).filter(|other| self.model.containers[*other].place.0 == host).collect();
        let mut pairs = self.pairs(&groups);
        pairs.retain(|(a, b)| a.place.0 != host && b.place.0 != host);
        pairs.truncate(3);
        self.exchange(&pairs)?;
        self.exchange(&pairs)?;
        let mut probes = Vec::new();
        for _ in 0..FLOOD_ROUNDS {
            for flood in &floods {
                self.step(&Step::RandomMacs(*flood, FLOOD_FRAMES))?;
            }
            probes.extend(self.chatter(&pairs, PERIOD)?);
            self.within_limits()?;
        }
        self.world.run_for(Time::from_secs(2))?;
        self.within_limits()?;
        // Flooded copies may come out elsewhere, too: addresses that were pushed out are unknown again.
        self.all_arrived(15, &probes)?;
        // Upcalls are granted again, and what the flood pushed out is found again.
        self.world.run_for(Time::from_secs(10))?;
        self.settled(true)
    }

    fn within_limits(&self) -> Result<(), Violation> {
        for (id, host) in self.world.hosts.iter().enumerate() {
            let limits = crate::host::limits(&host.state);
            let flows = host.kernel.dump().len();
            ensure(15, flows <= limits.flows, || format!("h{id} has {flows} flows"))?;
            let Some(agent) = &host.agent else {
                continue;
            };
            let status = agent.router.status(self.world.clock(id)).switch;
            ensure(15, status.fdb.len() <= limits.macs, || format!("h{id} knows {} addresses", status.fdb.len()))?;
            for port in &status.ports {
                let within = port.macs <= limits.port_macs && port.flows <= limits.source_flows;
                ensure(15, within, || format!("h{id}: {port:?} has more than its share"))?;
            }
        }
        Ok(())
    }
}
