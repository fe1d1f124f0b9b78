//! Waiting until everything works again, and checking that it does: properties 1, 4, 5, 6, 7 and 13.

use std::collections::BTreeSet;

use rand::RngExt;
use weave_agent::Time;
use weave_agent::addr::Mac;

use crate::frame::{FrameId, Payload};
use crate::ledger::Place;
use crate::model::{Container, certain_groups, wired_groups};
use crate::properties::{GRACE, SETTLES_WITHIN, Violation, ensure};
use crate::run::Run;
use crate::wire::{HostId, Noise};

/// A frame has met all hosts on its way by then, upcalls included.
pub(crate) const TRAVEL: Time = Time::from_millis(400);
/// Most pairs of containers that are tried.
const PAIRS: usize = 12;

/// A set of hosts that should all reach each other.
pub(crate) type Group = BTreeSet<HostId>;

impl Run {
    /// Ends all trouble: whole wires, running agents, no MAC twice.
    pub(crate) fn quiet_down(&mut self) -> Result<(), Violation> {
        self.world.wires.noise = Noise::default();
        self.heal();
        for host in 0..self.world.hosts.len() {
            self.world.launch(host);
        }
        if self.drop_twins() {
            // Until the contest is forgotten.
            self.world.run_for(Time::from_secs(25))?;
        }
        self.world.run_for(Time::from_secs(1))
    }

    /// Detaches all but one of those that share a MAC; whether there were any, or had been.
    fn drop_twins(&mut self) -> bool {
        let mut seen = BTreeSet::new();
        let twins = self.model.containers.iter().any(|container| container.twin);
        let containers = std::mem::take(&mut self.model.containers);
        for mut container in containers {
            if seen.insert(container.mac) {
                container.twin = false;
                self.model.containers.push(container);
            } else {
                self.unplug(container.place);
            }
        }
        twins
    }

    /// In the middle of trouble: only where the model is sure who can find whom.
    pub(crate) fn settle_midway(&mut self) -> Result<(), Violation> {
        let (hosts, wires) = (&self.world.hosts, &self.world.wires);
        let sure = hosts.iter().all(|host| host.agent.is_some()) && certain_groups(hosts, wires) == wired_groups(hosts, wires);
        if !sure {
            return Ok(());
        }
        let noise = std::mem::take(&mut self.world.wires.noise);
        self.world.run_for(Time::from_secs(1))?;
        self.settled(false)?;
        self.world.wires.noise = noise;
        Ok(())
    }

    /// Waits for quiescence and checks what then holds.
    pub(crate) fn settled(&mut self, whole: bool) -> Result<(), Violation> {
        let groups = wired_groups(&self.world.hosts, &self.world.wires);
        debug_assert!(!whole || groups.len() == 1, "the generator joins all hosts");
        self.converge(&groups)?;
        let calm = (self.world.launched + GRACE).saturating_sub(self.world.now);
        self.world.run_for(calm)?;
        let honest: Vec<Container> = self.model.honest().copied().collect();
        for container in &honest {
            self.announce(*container);
            self.world.run_for(Time::from_millis(10))?;
        }
        self.world.run_for(TRAVEL)?;
        let pairs = self.pairs(&groups);
        self.exchange(&pairs)?;
        let misses = self.misses();
        self.exchange(&pairs)?;
        let more = self.misses();
        ensure(5, misses == more, || format!("frames of known pairs were upcalls: {misses:?} before, {more:?} after (13: on relays)"))?;
        self.floods_reach_all(&groups)?;
        self.flows_tell_the_truth(&groups)
    }

    /// Frames that matched no flow so far, per host.
    pub(crate) fn misses(&self) -> Vec<u64> {
        self.world.hosts.iter().map(|host| host.misses).collect()
    }

    /// Property 4.
    pub(crate) fn converge(&mut self, groups: &[Group]) -> Result<(), Violation> {
        let deadline = self.world.now + SETTLES_WITHIN;
        while let Err(reason) = self.converged(groups) {
            ensure(4, self.world.now < deadline, || format!("not settled after {SETTLES_WITHIN:?}: {reason}"))?;
            self.world.run_for(Time::from_millis(500))?;
        }
        // Longer than any period of the agents that could undo it.
        self.world.run_for(Time::from_millis(3_500))?;
        self.converged(groups).or_else(|_| self.second_chance(groups))
    }

    /// What settled may be stirred once more by what was on its way, but not for long.
    fn second_chance(&mut self, groups: &[Group]) -> Result<(), Violation> {
        let deadline = self.world.now + Time::from_secs(20);
        while let Err(reason) = self.converged(groups) {
            ensure(4, self.world.now < deadline, || format!("settled, and came apart again: {reason}"))?;
            self.world.run_for(Time::from_millis(500))?;
        }
        self.world.run_for(Time::from_millis(3_500))?;
        let again = self.converged(groups);
        ensure(4, again.is_ok(), || format!("settled, and came apart twice: {again:?}"))
    }

    fn converged(&self, groups: &[Group]) -> Result<(), String> {
        for group in groups {
            self.views_agree(group)?;
            for a in group {
                self.world.flood_covers(*a, group)?;
                for b in group.iter().filter(|b| *b != a) {
                    self.world.way(*a, *b)?;
                    self.world.direct(*a, *b)?;
                }
            }
        }
        Ok(())
    }

    /// Some ordered pairs of containers that can reach each other.
    pub(crate) fn pairs(&mut self, groups: &[Group]) -> Vec<(Container, Container)> {
        let honest: Vec<Container> = self.model.honest().copied().collect();
        let mut pairs = Vec::new();
        for (index, a) in honest.iter().enumerate() {
            for b in &honest[index + 1..] {
                if groups.iter().any(|group| group.contains(&a.place.0) && group.contains(&b.place.0)) {
                    pairs.push((*a, *b));
                }
            }
        }
        while pairs.len() > PAIRS {
            let index = self.world.rng.random_range(0..pairs.len());
            pairs.swap_remove(index);
        }
        pairs
    }

    /// Property 1: every pair sends a frame each way.
    pub(crate) fn exchange(&mut self, pairs: &[(Container, Container)]) -> Result<(), Violation> {
        let mut sent = Vec::new();
        for (a, b) in pairs {
            for (from, to) in [(a, b), (b, a)] {
                let payload = [Payload::Ipv4, Payload::Ipv6, Payload::Other][self.world.rng.random_range(0..3)];
                // The payload is no part of a flow's key.
                sent.push((self.send(*from, to.mac, payload), *from, *to));
                self.world.run_for(Time::from_millis(1))?;
            }
        }
        self.world.run_for(TRAVEL)?;
        sent.iter().try_for_each(|(id, from, to)| self.arrived_once(1, *id, *from, *to))
    }

    /// One copy at its destination, and nobody else bothered.
    pub(crate) fn arrived_once(&self, property: u8, id: FrameId, from: Container, to: Container) -> Result<(), Violation> {
        let Some(sent) = self.world.ledger.get(id) else {
            return Ok(());
        };
        let copies: Vec<(Place, u32)> = sent.copies.iter().map(|(place, copies)| (*place, *copies)).collect();
        ensure(property, copies == [(to.place, 1)], || {
            let lost = if sent.lost { ", lost on a wire" } else { "" };
            format!("{id:?} from {from:?} sent at {:?} to {to:?} came out at {copies:?}{lost}", sent.at)
        })
    }

    /// Property 7, for a first and a second frame of each.
    fn floods_reach_all(&mut self, groups: &[Group]) -> Result<(), Violation> {
        let senders: Vec<Container> = self.model.honest().copied().collect();
        for dst in [Mac::BROADCAST, Mac([0x33, 0x33, 0, 0, 0, 1]), Mac::BROADCAST] {
            let mut sent = Vec::new();
            for sender in &senders {
                sent.push((*sender, self.send(*sender, dst, Payload::Ipv6)));
                self.world.run_for(Time::from_millis(1))?;
            }
            self.world.run_for(TRAVEL)?;
            for (sender, id) in sent {
                self.flooded(groups, sender, id)?;
            }
        }
        Ok(())
    }

    fn flooded(&self, groups: &[Group], sender: Container, id: FrameId) -> Result<(), Violation> {
        let group = groups.iter().find(|group| group.contains(&sender.place.0));
        let members = self.model.containers.iter().map(|member| member.place);
        let expected: BTreeSet<Place> =
            members.filter(|place| *place != sender.place && group.is_some_and(|group| group.contains(&place.0))).collect();
        let copies = self.world.ledger.get(id).map(|sent| sent.copies.clone()).unwrap_or_default();
        let right = copies.keys().copied().collect::<BTreeSet<Place>>() == expected && copies.values().all(|copies| *copies == 1);
        ensure(7, right, || format!("{id:?} of {sender:?} came out at {copies:?}, not once at each of {expected:?}"))
    }
}
