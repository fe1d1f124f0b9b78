//! The mirror: which flows the datapath holds because of us, indexed by everything that can make one wrong.

use std::collections::{BTreeMap, BTreeSet};

use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, Ipv4, short_ids};
use weave_ebpf::stats::DropReason;

use super::Config;
use super::recency::Recency;
use super::status::FlowCounts;
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, PortId};
use crate::peer::ShortId;

/// Uses are noted this coarsely: see `fdb`.
const GRAIN: Time = Time::from_secs(5);

/// Where the frames of a flow come from; the unit of quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Port(PortId),
    Neighbour(Ipv4),
}

impl Source {
    pub(super) const fn of(key: &FlowKey) -> Self {
        if key.ingress == INGRESS_TUNNEL { Self::Neighbour(key.outer_src) } else { Self::Port(PortId(key.ingress)) }
    }
}

/// Something a flow depends on: when it changes, its flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Facet {
    /// Source or destination.
    Mac(Mac),
    /// Ingress or egress.
    Port(PortId),
    /// Origin, destination or tree.
    Peer(ShortId),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    action: Action,
    installed: Time,
    used: Time,
    /// The last list that it was in.
    listed: u32,
}

/// Mirror of the flows installed.
#[derive(Debug)]
pub(super) struct Flows {
    entries: BTreeMap<FlowKey, Entry>,
    facets: BTreeSet<(Facet, FlowKey)>,
    order: Recency<Source, FlowKey>,
    counts: FlowCounts,
    /// Number of the list that is being heard, or comes next.
    list: u32,
    quota: usize,
    total: usize,
}

impl Flows {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            entries: BTreeMap::new(),
            facets: BTreeSet::new(),
            order: Recency::new(),
            counts: FlowCounts::default(),
            list: 1,
            quota: config.source_flows,
            total: config.flows,
        }
    }

    pub(super) fn action(&self, key: &FlowKey) -> Option<Action> {
        self.entries.get(key).map(|entry| entry.action)
    }

    /// Notes an installed flow, last used at `used`. Returns the one that has to make room for it.
    pub(super) fn insert(&mut self, now: Time, used: Time, key: FlowKey, action: Action) -> Option<FlowKey> {
        self.remove(&key);
        let victim = self.order.victim(&Source::of(&key), self.quota, self.total);
        if let Some(victim) = victim {
            self.remove(&victim);
        }
        self.entries.insert(key, Entry { action, installed: now, used, listed: 0 });
        self.facets.extend(facets(&key, action).map(|facet| (facet, key)));
        self.order.insert(Source::of(&key), used, key);
        *self.count(action) += 1;
        victim
    }

    pub(super) fn remove(&mut self, key: &FlowKey) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        for facet in facets(key, entry.action) {
            self.facets.remove(&(facet, *key));
        }
        self.order.remove(Source::of(key), entry.used, *key);
        *self.count(entry.action) -= 1;
        true
    }

    fn count(&mut self, action: Action) -> &mut usize {
        match action {
            Action::Drop(_) => &mut self.counts.drop,
            Action::Port(_) => &mut self.counts.port,
            Action::Peer(_) => &mut self.counts.peer,
            Action::Flood(_) => &mut self.counts.flood,
        }
    }

    /// Forgets all, as the datapath does when the epoch changes.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.facets.clear();
        self.order = Recency::new();
        self.counts = FlowCounts::default();
    }

    /// The flows that depend on `facet`.
    pub(super) fn with(&self, facet: Facet) -> Vec<FlowKey> {
        let first = (facet, FlowKey::default());
        self.facets.range(first..).take_while(|(other, _)| *other == facet).map(|&(_, key)| key).collect()
    }

    /// Whether any does.
    pub(super) fn depend_on(&self, facet: Facet) -> bool {
        self.facets.range((facet, FlowKey::default())..).next().is_some_and(|(other, _)| *other == facet)
    }

    /// The flows of frames that come from `source`.
    pub(super) fn begun_at(&self, source: Source) -> Vec<FlowKey> {
        self.order.keys(&source).collect()
    }

    pub(super) fn floods(&self) -> Vec<FlowKey> {
        self.entries.iter().filter(|(_, entry)| matches!(entry.action, Action::Flood(_))).map(|(key, _)| *key).collect()
    }

    /// The flows that drop frames of a contested MAC.
    pub(super) fn contested(&self, mac: Mac) -> Vec<FlowKey> {
        let contested = |key: &FlowKey| key.src == mac.0 && self.action(key) == Some(Action::Drop(DropReason::Contested));
        self.with(Facet::Mac(mac)).into_iter().filter(contested).collect()
    }

    /// A flow was used.
    pub(super) fn refresh(&mut self, used: Time, key: &FlowKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if used.saturating_sub(entry.used) >= GRAIN {
            self.order.remove(Source::of(key), entry.used, *key);
            self.order.insert(Source::of(key), used, *key);
            entry.used = used;
        }
    }

    /// Flows not used since `cutoff`.
    pub(super) fn unused(&self, cutoff: Time) -> Vec<FlowKey> {
        self.order.stale(cutoff)
    }

    /// The datapath has this flow.
    pub(super) fn listed(&mut self, key: &FlowKey) -> Option<Action> {
        let entry = self.entries.get_mut(key)?;
        entry.listed = self.list;
        Some(entry.action)
    }

    /// The list has ended: flows installed before `cutoff` that were not in it.
    pub(super) fn missing(&mut self, cutoff: Time) -> Vec<FlowKey> {
        let list = self.list;
        self.list = list.wrapping_add(1);
        let missing = |(_, entry): &(&FlowKey, &Entry)| entry.installed < cutoff && entry.listed != list;
        self.entries.iter().filter(missing).map(|(key, _)| *key).collect()
    }

    pub(super) fn count_from(&self, source: Source) -> usize {
        self.order.owned(&source)
    }

    pub(super) const fn counts(&self) -> FlowCounts {
        self.counts
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowKey, Action)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.action))
    }
}

/// What a flow depends on. Group and zero MACs are left out: they are never learned.
fn facets(key: &FlowKey, action: Action) -> impl Iterator<Item = Facet> {
    let mac = |mac| Some(Mac(mac)).filter(|mac| !mac.is_group() && *mac != Mac::ZERO).map(Facet::Mac);
    let (to, origin) = short_ids(key.vni);
    let peer = |id: u32| ShortId::new(id as u16).map(Facet::Peer);
    let ingress = match Source::of(key) {
        Source::Port(port) => [Some(Facet::Port(port)), None],
        Source::Neighbour(_) => [peer(to), peer(origin)],
    };
    let egress = match action {
        Action::Port(port) => Some(Facet::Port(port)),
        Action::Peer(short) | Action::Flood(short) => Some(Facet::Peer(short)),
        Action::Drop(_) => None,
    };
    [mac(key.src), mac(key.dst), egress].into_iter().chain(ingress).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PeerName;
    use weave_ebpf::flow::vni;

    fn short(n: u16) -> ShortId {
        ShortId::new(n).unwrap()
    }

    fn flows(quota: usize) -> Flows {
        Flows::new(&Config { source_flows: quota, ..Config::new(PeerName([9; 6]), short(1), 6784) })
    }

    fn local(port: u32, src: u8, dst: u8) -> FlowKey {
        FlowKey { ingress: port, src: [2, 0, 0, 0, 0, src], dst: [2, 0, 0, 0, 0, dst], ..FlowKey::default() }
    }

    fn mac(n: u8) -> Facet {
        Facet::Mac(Mac([2, 0, 0, 0, 0, n]))
    }

    #[test]
    fn a_flow_is_found_by_all_it_depends_on() {
        let mut flows = flows(10);
        let key = local(7, 1, 2);
        let relayed = FlowKey { vni: vni(5, 6), outer_src: [10, 0, 0, 1], ..FlowKey::default() };
        flows.insert(Time::ZERO, Time::ZERO, key, Action::Peer(short(5)));
        flows.insert(Time::ZERO, Time::ZERO, relayed, Action::Peer(short(5)));
        for facet in [mac(1), mac(2), Facet::Port(PortId(7))] {
            assert_eq!(flows.with(facet), [key], "{facet:?}");
        }
        assert_eq!(flows.with(Facet::Peer(short(5))), [relayed, key]);
        assert_eq!(flows.with(Facet::Peer(short(6))), [relayed]);
        assert_eq!(flows.begun_at(Source::Neighbour([10, 0, 0, 1])), [relayed]);
        assert!(flows.with(mac(0)).is_empty());
    }

    #[test]
    fn a_flow_made_anew_is_counted_once_and_one_removed_leaves_no_trace() {
        let mut flows = flows(10);
        flows.insert(Time::ZERO, Time::ZERO, local(7, 1, 2), Action::Flood(short(1)));
        flows.insert(Time::ZERO, Time::ZERO, local(7, 1, 2), Action::Port(PortId(8)));
        assert_eq!(flows.counts(), FlowCounts { port: 1, ..FlowCounts::default() });
        assert!(flows.remove(&local(7, 1, 2)));
        assert!(!flows.remove(&local(7, 1, 2)));
        assert!(flows.facets.is_empty());
        assert_eq!(flows.counts(), FlowCounts::default());
    }

    #[test]
    fn a_port_over_its_quota_loses_the_flow_it_used_least_recently() {
        let mut flows = flows(2);
        for n in 0..2 {
            flows.insert(Time::from_secs(n), Time::from_secs(n), local(7, 1, n as u8), Action::Port(PortId(8)));
        }
        flows.refresh(Time::from_secs(50), &local(7, 1, 0));
        let at = Time::from_secs(51);
        assert_eq!(flows.insert(at, at, local(8, 1, 9), Action::Port(PortId(7))), None);
        assert_eq!(flows.insert(at, at, local(7, 1, 9), Action::Port(PortId(8))), Some(local(7, 1, 1)));
    }
}
