//! Learning, forgetting, and the flows that go with it.

use std::net::Ipv4Addr;

use weave_ebpf::flow::FlowKey;

use super::fdb::Learned;
use super::flows::{Facet, Source};
use super::status::Location;
use super::{Output, Switch};
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, Op};
use crate::mesh::View;
use crate::peer::PeerName;

/// Contested MACs are all counted, but written about no more often than this.
const WARN: Time = Time::from_secs(1);
/// Between a peer's coming into reach and what it is told.
const CALM: Time = Time::from_secs(1);

impl Switch {
    /// `mac` was seen at `at`. False if it is contested and held elsewhere.
    pub(super) fn learn(&mut self, now: Time, mac: Mac, at: Location) -> bool {
        match self.fdb.learn(now, mac, at) {
            Learned::Known => true,
            Learned::Held => false,
            Learned::New(evicted) => {
                self.counters.learned += 1;
                self.settle(now, mac, at, evicted);
                true
            }
            Learned::Moved(from, evicted) => {
                tracing::debug!(%mac, ?from, to = ?at, "MAC moved");
                self.counters.moves += 1;
                self.settle(now, mac, at, evicted);
                true
            }
            Learned::Contested(place) => {
                self.counters.contests += 1;
                self.warn_contested(now, mac, place, at);
                false
            }
        }
    }

    fn warn_contested(&mut self, now: Time, mac: Mac, place: Location, at: Location) {
        if self.warned.is_none_or(|warned| now.saturating_sub(warned) >= WARN) {
            self.warned = Some(now);
            tracing::warn!(%mac, "same MAC in two places, {place} and {at}: for now it stays at {place}");
        }
    }

    /// A MAC is in a place it was not in before: what was decided about it is void, and others should know.
    fn settle(&mut self, now: Time, mac: Mac, at: Location, evicted: Option<Mac>) {
        self.void(mac, evicted);
        if matches!(at, Location::Port(_)) && !self.announcer.push(now, mac) {
            self.counters.unannounced += 1;
        }
    }

    fn void(&mut self, mac: Mac, evicted: Option<Mac>) {
        self.remove_flows(Facet::Mac(mac));
        if let Some(evicted) = evicted {
            self.counters.fdb_evictions += 1;
            self.remove_flows(Facet::Mac(evicted));
        }
    }

    /// Hearsay of an earlier agent: it moves nothing that is known, and is not announced, because that agent did.
    pub(super) fn inherit(&mut self, now: Time, mac: Mac, at: Location) {
        if !mac.is_group() && self.fdb.find(mac).is_none() {
            let evicted = self.fdb.inherit(now, mac, at);
            self.void(mac, evicted);
        }
    }

    /// Another peer says that it has these MACs. What we know elsewhere moves; what we do not know we need not know.
    pub(super) fn announced(&mut self, now: Time, peer: PeerName, macs: &[Mac]) {
        if !self.view.as_ref().is_some_and(|view| view.peers.contains_key(&peer)) {
            return;
        }
        for &mac in macs {
            if self.fdb.find(mac).is_some() {
                self.learn(now, mac, Location::Peer(peer));
            }
        }
    }

    pub(super) fn announce(&mut self, now: Time) {
        let mut macs = self.announcer.poll(now);
        macs.retain(|mac| matches!(self.fdb.find(*mac), Some(Location::Port(_))));
        if !macs.is_empty() {
            self.counters.announced += macs.len() as u64;
            self.out.push_back(Output::Announce(macs));
        }
    }

    /// A peer that comes into reach may have missed announcements: they are repeated once things have calmed down.
    pub(super) fn meet(&mut self, now: Time, view: &View) {
        let reached = |view: &View, name: &PeerName| view.peers.get(name).is_some_and(|peer| peer.next_hop.is_some());
        let met = |name: &PeerName| reached(view, name) && !self.view.as_ref().is_some_and(|old| reached(old, name));
        if view.peers.keys().any(met) {
            self.introduction.get_or_insert(now + CALM);
        }
    }

    /// Announces what came here lately. Of older moves nobody has memories: those are forgotten if not used.
    pub(super) fn introduce(&mut self, now: Time) {
        if self.introduction.is_none_or(|at| now < at) {
            return;
        }
        self.introduction = None;
        for mac in self.fdb.arrivals(now.saturating_sub(self.config.fdb_idle)) {
            if !self.announcer.push(now, mac) {
                self.counters.unannounced += 1;
            }
        }
    }

    /// Lets contested MACs move again whose time is over.
    pub(super) fn release(&mut self, now: Time) {
        for mac in self.fdb.release(now) {
            for key in self.flows.contested(mac) {
                self.remove_flow(&key);
            }
        }
    }

    pub(super) fn forget_location(&mut self, at: Location) {
        let macs = self.fdb.forget_location(at);
        self.forget_flows(macs);
    }

    pub(super) fn forget_unused(&mut self, now: Time) {
        if let Some(cutoff) = now.checked_sub(self.config.fdb_idle) {
            let macs = self.fdb.forget_unused(cutoff);
            self.forget_flows(macs);
        }
    }

    fn forget_flows(&mut self, macs: Vec<Mac>) {
        for mac in macs {
            self.remove_flows(Facet::Mac(mac));
        }
    }

    pub(super) fn install(&mut self, now: Time, key: FlowKey, action: Action) {
        if let Some(victim) = self.flows.insert(now, now, key, action) {
            self.evicted(victim);
        }
        self.use_tunnel(action);
        self.counters.installed += 1;
        self.order(Op::Install(key, action));
    }

    /// A flow had to make room for another.
    pub(super) fn evicted(&mut self, victim: FlowKey) {
        self.counters.flow_evictions += 1;
        self.counters.removed += 1;
        self.order(Op::Remove(victim));
    }

    pub(super) fn remove_flow(&mut self, key: &FlowKey) {
        if self.flows.remove(key) {
            self.counters.removed += 1;
            self.order(Op::Remove(*key));
        }
    }

    pub(super) fn remove_flows(&mut self, facet: Facet) {
        for key in self.flows.with(facet) {
            self.remove_flow(&key);
        }
    }

    pub(super) fn remove_flows_from(&mut self, neighbour: Ipv4Addr) {
        for key in self.flows.begun_at(Source::Neighbour(neighbour.octets())) {
            self.remove_flow(&key);
        }
    }

    /// All flows are forgotten, here and in the datapath.
    pub(super) fn bump_epoch(&mut self) {
        self.flows.clear();
        self.order(Op::BumpEpoch);
    }
}
