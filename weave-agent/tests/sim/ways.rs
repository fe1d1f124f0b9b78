//! Following the kernels' tables from host to host, as a frame would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_ebpf::flow::{Ipv4, slot};

use crate::model::wired_groups;
use crate::wire::HostId;
use crate::world::World;

/// Most hosts a frame may meet on its way.
const MOST_HOPS: usize = 8;

impl World {
    /// Whether the slots lead from one host to another over wires that work, and why not.
    pub(crate) fn way(&self, from: HostId, to: HostId) -> Result<(), String> {
        let short = self.hosts[to].kernel.config.short;
        let mut at = from;
        let mut upstream = [0; 4];
        for _ in 0..MOST_HOPS {
            let next = self.next_hop(at, short, upstream)?;
            if next == to {
                return Ok(());
            }
            upstream = self.hosts[at].kernel.address.octets();
            at = next;
        }
        Err(format!("h{from} to h{to}: loops"))
    }

    /// Whether no host needs its agent to send to a peer.
    pub(crate) fn is_carried_by_kernels(&self) -> bool {
        self.hosts.iter().flat_map(|host| host.kernel.peers.values()).all(|slot| slot.flags & slot::SLEEVE == 0)
    }

    /// Whether two hosts with a wire between them use it.
    pub(crate) fn direct(&self, from: HostId, to: HostId) -> Result<(), String> {
        let next = self.next_hop(from, self.hosts[to].kernel.config.short, [0; 4])?;
        if next == to || !self.wires.joins(from, to) { Ok(()) } else { Err(format!("h{from} reaches h{to} by h{next}, not by its wire")) }
    }

    /// Where a frame for `short` goes next, if it gets there.
    fn next_hop(&self, at: HostId, short: u32, upstream: Ipv4) -> Result<HostId, String> {
        let slot = self.hosts[at].kernel.peers.get(&short).filter(|slot| slot.flags & slot::VALID != 0);
        let slot = slot.ok_or_else(|| format!("h{at} has no slot for {short}"))?;
        let next = self.host_at(slot.remote.into()).ok_or_else(|| format!("h{at}: slot {short} points to nobody"))?;
        if slot.remote == upstream {
            return Err(format!("h{at} would send what is for {short} back to h{next}"));
        }
        if !self.wires.joins(at, next) {
            return Err(format!("h{at}: slot {short} points to h{next}, where no wire goes"));
        }
        match self.hosts[next].kernel.sources.get(&self.hosts[at].kernel.address.octets()) {
            Some(source) if source.local == slot.remote => Ok(next),
            _ => Err(format!("h{next} takes nothing from h{at}")),
        }
    }

    /// Whether every tree that is in use covers every host that can be reached by wire, once.
    pub(crate) fn trees_agree(&self) -> bool {
        let groups = wired_groups(&self.hosts, &self.wires);
        groups.iter().all(|group| group.iter().all(|origin| self.flood_covers(*origin, group).is_ok()))
    }

    /// Whether a flood of `origin` comes to all of the group exactly once.
    pub(crate) fn flood_covers(&self, origin: HostId, group: &BTreeSet<HostId>) -> Result<(), String> {
        let short = self.hosts[origin].kernel.config.short;
        let mut copies: BTreeMap<HostId, u32> = BTreeMap::from([(origin, 1)]);
        let mut queue = VecDeque::from([origin]);
        while let Some(at) = queue.pop_front() {
            let tree = self.hosts[at].kernel.trees.get(&short);
            for hop in tree.into_iter().flat_map(|tree| &tree.hops) {
                let next = self.next_hop(at, *hop, [0; 4])?;
                let parent = self.hosts[next].kernel.trees.get(&short).and_then(|tree| tree.parent);
                if parent != Some(self.hosts[at].kernel.address.octets()) {
                    return Err(format!("h{next} does not take floods of h{origin} from h{at}, but from {parent:?}"));
                }
                *copies.entry(next).or_default() += 1;
                if copies[&next] == 1 {
                    queue.push_back(next);
                }
            }
        }
        let expected: BTreeMap<HostId, u32> = group.iter().map(|host| (*host, 1)).collect();
        if copies == expected { Ok(()) } else { Err(format!("a flood of h{origin} comes to {copies:?}, not once to each of {group:?}")) }
    }
}
