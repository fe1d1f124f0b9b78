//! What the datapath's own list of flows tells: which are used, which are gone, which an earlier agent left.

use weave_ebpf::flow::INGRESS_TUNNEL;

use super::Switch;
use super::decide::{ends, outer_src};
use super::status::Location;
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, FlowEntry, Op, PortId};
use crate::peer::ShortId;

/// The list may have been made before the latest orders were carried out: a flow this new need not be in it.
const RECENT: Time = Time::from_secs(5);

impl Switch {
    /// A list, or part of one.
    pub(super) fn flows_listed(&mut self, now: Time, listed: &[FlowEntry]) {
        if self.listing.is_none() {
            self.listing = Some(now);
            // What is still strange is listed again.
            self.inheritance.clear();
        }
        for entry in listed {
            self.flow_listed(now, entry);
        }
    }

    /// That was all.
    pub(super) fn all_flows_listed(&mut self, now: Time) {
        let began = self.listing.take().unwrap_or(now);
        // Removed once more: so that the mirror is right even if the list was wrong.
        let mut gone = self.flows.missing(began.saturating_sub(RECENT));
        if let Some(cutoff) = now.checked_sub(self.config.flow_idle) {
            gone.extend(self.flows.unused(cutoff));
        }
        for key in gone {
            self.remove_flow(&key);
        }
        self.forget_unused(now);
    }

    fn flow_listed(&mut self, now: Time, entry: &FlowEntry) {
        match self.flows.listed(&entry.key) {
            Some(action) if action == entry.action => self.used(now, entry),
            Some(action) => self.order(Op::Install(entry.key, action)),
            None if self.settled => self.order(Op::Remove(entry.key)),
            None => self.consider(now, entry),
        }
    }

    /// A flow's last match is a sign of life of its source MAC, too.
    fn used(&mut self, now: Time, entry: &FlowEntry) {
        let Some(used) = entry.idle.map(|idle| now.saturating_sub(idle)) else { return };
        self.flows.refresh(used, &entry.key);
        if let Some(at) = self.source(&entry.key) {
            self.fdb.refresh(used, Mac(entry.key.src), at);
        }
    }

    /// Looks again at what an earlier agent left, once more ports or peers are known: until then frames to a MAC that
    /// only it knew would be floods.
    pub(super) fn reconsider(&mut self, now: Time) {
        if !std::mem::take(&mut self.acquainted) || self.settled {
            return;
        }
        for entry in std::mem::take(&mut self.inheritance) {
            if self.flows.action(&entry.key).is_none() {
                self.consider(now, &entry);
            }
        }
    }

    /// A flow of an earlier agent is taken over if it is what we would decide, knowing what it tells of its two MACs.
    fn consider(&mut self, now: Time, entry: &FlowEntry) {
        if !matches!(entry.action, Action::Drop(_)) {
            self.infer(now, entry);
        }
        if self.is_strange(entry) {
            self.inheritance.push(entry.clone());
            return;
        }
        let decision = self.decide(&entry.key);
        let idle = entry.idle.is_none_or(|idle| idle > self.config.flow_idle);
        let contradicted = self.source(&entry.key).is_some_and(|at| self.fdb.find(Mac(entry.key.src)) != Some(at));
        if idle || contradicted || !decision.cached || decision.action != entry.action {
            self.order(Op::Remove(entry.key));
            return;
        }
        self.counters.adopted += 1;
        let used = now.saturating_sub(entry.idle.unwrap_or_default());
        if let Some(victim) = self.flows.insert(now, used, entry.key, entry.action) {
            self.evicted(victim);
        }
    }

    /// It speaks of ports or peers that we do not know (yet): let it be until we have settled.
    fn is_strange(&self, entry: &FlowEntry) -> bool {
        let unknown_peer = |short: ShortId| short != self.short && self.directory.name(short).is_none();
        let key = &entry.key;
        let source = if key.ingress == INGRESS_TUNNEL {
            !self.told.sources.contains_key(&outer_src(key))
                || ends(key).is_none_or(|(to, origin)| unknown_peer(to) || unknown_peer(origin))
        } else {
            !self.ports.contains(&PortId(key.ingress))
        };
        let target = match entry.action {
            Action::Drop(_) => false,
            Action::Port(port) => !self.ports.contains(&port),
            Action::Peer(short) | Action::Flood(short) => unknown_peer(short),
        };
        source || target
    }

    /// Each end tells of itself, also if the other is not known yet.
    fn infer(&mut self, now: Time, entry: &FlowEntry) {
        if let Some(at) = self.source(&entry.key) {
            self.inherit(now, Mac(entry.key.src), at);
        }
        let target = match entry.action {
            Action::Port(port) => self.ports.contains(&port).then_some(Location::Port(port)),
            Action::Peer(short) => self.directory.name(short).map(Location::Peer),
            Action::Drop(_) | Action::Flood(_) => None,
        };
        if let Some(at) = target {
            self.inherit(now, Mac(entry.key.dst), at);
        }
    }
}
