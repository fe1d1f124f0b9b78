//! The reference model: sets. Which container is where, and which hosts should reach each other.

use std::collections::BTreeSet;

use weave_agent::addr::Mac;
use weave_agent::datapath::PortId;

use crate::host::Host;
use crate::ledger::Place;
use crate::wire::{HostId, Wires};
use crate::world::address;

/// A container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Container {
    pub(crate) mac: Mac,
    /// Where it is attached.
    pub(crate) place: Place,
    /// Has the MAC of another: nothing is promised to either.
    pub(crate) twin: bool,
}

/// What ought to be.
#[derive(Default)]
pub(crate) struct Model {
    /// The attached containers.
    pub(crate) containers: Vec<Container>,
    macs: u32,
    ports: u32,
}

impl Model {
    /// A MAC that nobody has.
    pub(crate) fn new_mac(&mut self) -> Mac {
        self.macs += 1;
        let [_, a, b, c] = self.macs.to_be_bytes();
        Mac([0x02, 0x5c, 0, a, b, c])
    }

    /// An interface that never was.
    pub(crate) fn new_port(&mut self) -> PortId {
        self.ports += 1;
        PortId(100 + self.ports)
    }

    /// One of the attached containers, counted round.
    pub(crate) fn pick(&self, number: usize) -> Option<usize> {
        number.checked_rem(self.containers.len())
    }

    /// Containers that share their MAC with nobody.
    pub(crate) fn honest(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| !container.twin)
    }

    /// The honest container with this MAC.
    pub(crate) fn with_mac(&self, mac: Mac) -> Option<&Container> {
        self.honest().find(|container| container.mac == mac)
    }
}

/// Hosts that can all reach each other by wires that work.
pub(crate) fn wired_groups(hosts: &[Host], wires: &Wires) -> Vec<BTreeSet<HostId>> {
    groups(hosts.len(), |a, b| wires.joins(a, b))
}

/// Hosts that can also find each other from nothing: along wires that work, one has the other as target.
pub(crate) fn certain_groups(hosts: &[Host], wires: &Wires) -> Vec<BTreeSet<HostId>> {
    let targets = |a: HostId, b: HostId| hosts[a].state.targets.iter().any(|target| *target == address(b).to_string());
    groups(hosts.len(), |a, b| wires.joins(a, b) && (targets(a, b) || targets(b, a)))
}

fn groups(hosts: usize, joined: impl Fn(HostId, HostId) -> bool) -> Vec<BTreeSet<HostId>> {
    let mut left: BTreeSet<HostId> = (0..hosts).collect();
    let mut groups = Vec::new();
    while let Some(first) = left.pop_first() {
        let mut group = BTreeSet::from([first]);
        let mut queue = vec![first];
        while let Some(host) = queue.pop() {
            let near: Vec<HostId> = left.iter().copied().filter(|other| joined(host, *other)).collect();
            for other in near {
                left.remove(&other);
                group.insert(other);
                queue.push(other);
            }
        }
        groups.push(group);
    }
    groups
}
