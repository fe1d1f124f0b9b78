//! The tables that the fast path looks things up in, as plain ones.

use std::cell::Cell;
use std::collections::BTreeMap;
#[expect(clippy::disallowed_types, reason = "its order is never looked at, and a lookup is the price of each frame")]
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::time::{ClockId, clock_gettime};
use weave_ebpf::fastpath::{self, CachedFlow, take_token};
use weave_ebpf::flow::{
    Bucket, Config, Flow, FlowKey, HEARTBEAT_BUCKET, Ipv4, NEIGHBOUR_BUCKET, PeerSlot, SHORT_IDS, Source, feature, port, slot, source,
};
use weave_ebpf::sleeve;
use weave_ebpf::stats::{COUNTERS, Counter, DropReason};
use weave_ebpf::vxlan::{self, Path};

use super::{UPCALL_BURST, UPCALL_RATE, entry};
use crate::datapath::{self, Action, FlowEntry, Op, PeerRoute, TunnelKind};
use crate::peer::ShortId;

/// As many as the kernel's table takes.
const MOST_FLOWS: usize = 1 << 18;

#[expect(clippy::disallowed_types, reason = "see above")]
type Flows = HashMap<FlowKey, Cached>;

/// All tables.
pub(super) struct Tables {
    pub(super) config: Config,
    flows: Flows,
    peers: Vec<PeerSlot>,
    sources: BTreeMap<Ipv4, Source>,
    trees: BTreeMap<u32, Tree>,
    pub(super) flood_ports: Vec<u32>,
    buckets: BTreeMap<u32, Cell<Bucket>>,
    /// The sleeve's TAP device; zero without one.
    sleeve: u32,
    counts: [Cell<u64>; COUNTERS as usize],
    /// As of the last batch.
    now: u64,
}

/// The broadcast tree of one origin, seen from here.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    parent: Ipv4,
    pub(super) hops: Vec<u16>,
}

impl Tables {
    pub(super) fn new(tunnel_port: u16) -> Self {
        let config = Config {
            port: tunnel_port.into(),
            features: feature::DECAP_IPV6,
            upcall_rate: UPCALL_RATE,
            upcall_burst: UPCALL_BURST,
            ..Config::default()
        };
        Self {
            config,
            flows: Flows::default(),
            peers: vec![PeerSlot::default(); SHORT_IDS as usize],
            sources: BTreeMap::new(),
            trees: BTreeMap::new(),
            flood_ports: Vec::new(),
            buckets: BTreeMap::new(),
            sleeve: 0,
            counts: [const { Cell::new(0) }; COUNTERS as usize],
            now: now(),
        }
    }

    /// Once per batch: reading the clock for each frame would cost as much as looking it up.
    pub(super) fn tick(&mut self) {
        self.now = now();
    }

    /// Carries out an order that concerns the tables.
    pub(super) fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::SetSelf(short) => self.config.short = short.get().into(),
            Op::Install(key, action) => self.install(key, *action)?,
            Op::Remove(key) => drop(self.flows.remove(key)),
            Op::BumpEpoch => self.config.epoch = self.config.epoch.wrapping_add(1),
            Op::SetPeer(short, route) => self.set_peer(*short, route.as_ref()),
            Op::SetSource { remote, neighbour } => self.set_source(*remote, *neighbour),
            Op::SetTree { origin, parent, hops } => self.set_tree(*origin, *parent, hops),
            Op::SetFloodPorts(ports) => self.flood_ports = ports.iter().map(|port| port.0).collect(),
            Op::Execute(..) | Op::Heartbeat { .. } => bail!("not an order to the tables"),
        }
        Ok(())
    }

    fn install(&mut self, key: &FlowKey, action: Action) -> Result<()> {
        if self.flows.len() >= MOST_FLOWS && !self.flows.contains_key(key) {
            bail!("the flow table is full: it has {MOST_FLOWS} entries");
        }
        // No port is delivered to by the stack.
        let flow = entry::flow(self.config.epoch, action, |_| port::REDIRECT_PEER);
        self.flows.insert(*key, Cached { flow: Cell::new(flow) });
        Ok(())
    }

    fn set_peer(&mut self, short: ShortId, route: Option<&PeerRoute>) {
        let Some(slot) = self.peers.get_mut(usize::from(short.get())) else { return };
        *slot = match route {
            Some(route) if route.tunnel == TunnelKind::Sleeve => sleeve::slot(self.sleeve, route.remote.octets(), route.local.octets()),
            Some(route) => by_vxlan(route),
            None => PeerSlot::default(),
        };
    }

    /// The sleeve's device has this index now.
    pub(super) fn set_sleeve(&mut self, ifindex: u32) {
        self.sleeve = ifindex;
        self.peers.iter_mut().filter(|slot| slot.flags & slot::SLEEVE != 0).for_each(|slot| slot.ifindex = ifindex);
    }

    fn set_source(&mut self, remote: Ipv4Addr, neighbour: Option<datapath::Source>) {
        let Some(datapath::Source { short, local, least }) = neighbour else {
            self.sources.remove(&remote.octets());
            return;
        };
        // Where ESP is asked for, the stack lets nothing else through to us.
        let (short, flags) = (u32::from(short.get()), if least == TunnelKind::Sleeve { source::SEALED } else { 0 });
        self.add_bucket(NEIGHBOUR_BUCKET | short);
        self.add_bucket(HEARTBEAT_BUCKET | short);
        self.sources.insert(remote.octets(), Source { local: local.octets(), short, flags });
    }

    /// Who may send tunnel frames.
    pub(super) fn sources(&self) -> Vec<Ipv4Addr> {
        self.sources.keys().map(|address| Ipv4Addr::from(*address)).collect()
    }

    /// What is known of an outer source.
    pub(super) fn neighbour(&self, remote: Ipv4Addr) -> Option<Source> {
        self.sources.get(&remote.octets()).copied()
    }

    fn set_tree(&mut self, origin: ShortId, parent: Option<Ipv4Addr>, hops: &[ShortId]) {
        let tree = Tree { parent: parent.map_or([0; 4], |parent| parent.octets()), hops: hops.iter().map(|hop| hop.get()).collect() };
        self.trees.insert(origin.get().into(), tree);
    }

    /// A full one.
    pub(super) fn add_bucket(&mut self, key: u32) {
        self.buckets.insert(key, Cell::new(Bucket { refilled_ns: 0, tokens: UPCALL_BURST.into() }));
    }

    pub(super) fn remove_bucket(&mut self, key: u32) {
        self.buckets.remove(&key);
    }

    /// Who gets copies of this origin's floods.
    pub(super) fn hops(&self, origin: u32) -> &[u16] {
        self.trees.get(&origin).map_or(&[], |tree| &tree.hops)
    }

    /// What the switch said of such frames, if it has in this epoch.
    pub(super) fn action(&self, key: &FlowKey) -> Option<Action> {
        let flow = self.flows.get(key)?.flow.get();
        if flow.epoch != self.config.epoch {
            return None;
        }
        entry::entry(*key, &flow, Duration::ZERO).map(|entry| entry.action)
    }

    /// Counts what somebody else matched for a flow: frames, bytes, and when the last one came (nanoseconds).
    pub(super) fn credit(&self, key: &FlowKey, packets: u64, bytes: u64, used_ns: u64) {
        if let Some(cached) = self.flows.get(key) {
            let flow = cached.flow.get();
            let (packets, bytes) = (flow.packets + packets, flow.bytes + bytes);
            cached.flow.set(Flow { packets, bytes, used_ns: flow.used_ns.max(used_ns), ..flow });
        }
    }

    /// When the clock was looked at last (monotonic).
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Counts something several times, under an index of the list.
    pub(super) fn add(&self, index: u32, times: u64) {
        if let Some(count) = self.counts.get(index as usize) {
            count.set(count.get() + times);
        }
    }

    /// All flows of this epoch. Those of an older one are swept out.
    pub(super) fn flows(&mut self) -> Vec<FlowEntry> {
        self.tick();
        let (epoch, now) = (self.config.epoch, Duration::from_nanos(self.now));
        self.flows.retain(|_, cached| cached.flow.get().epoch == epoch);
        self.flows.iter().filter_map(|(key, cached)| entry::entry(*key, &cached.flow.get(), now)).collect()
    }

    /// Every counter with its name, drop reasons first.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let names = DropReason::ALL.iter().map(|reason| reason.name()).chain(Counter::ALL.iter().map(|counter| counter.name()));
        names.zip(self.counts.iter().map(Cell::get)).collect()
    }

    /// Counts a frame that goes nowhere, under an index of the list.
    pub(super) fn drop_index(&self, index: u32) {
        self.add(index, 1);
    }

    pub(super) fn drop(&self, reason: DropReason) {
        self.drop_index(reason.index());
    }
}

/// The path is ours to write, whatever the next hop is.
fn by_vxlan(route: &PeerRoute) -> PeerSlot {
    vxlan::slot(&Path {
        local: route.local.octets(),
        remote: route.remote.octets(),
        port: route.port,
        mtu: route.mtu.into(),
        next_hop: Some((0, [0; 6], [0; 6])),
        // The stack's concern: to it the frame is as any other.
        esp: false,
        big: false,
    })
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A flow in the table.
struct Cached {
    flow: Cell<Flow>,
}

/// The same, at the moment of a match.
struct Found<'a> {
    flow: &'a Cell<Flow>,
    now: u64,
}

impl CachedFlow for Found<'_> {
    fn epoch(&self) -> u32 {
        self.flow.get().epoch
    }

    fn action(&self) -> u32 {
        self.flow.get().action
    }

    fn target(&self) -> u32 {
        self.flow.get().target
    }

    fn flags(&self) -> u32 {
        self.flow.get().flags
    }

    fn count(&self, packets: u32, bytes: u32) {
        let flow = self.flow.get();
        let (packets, bytes) = (flow.packets + u64::from(packets), flow.bytes + u64::from(bytes));
        self.flow.set(Flow { packets, bytes, used_ns: self.now, ..flow });
    }
}

impl fastpath::Tables for Tables {
    fn flow(&self, key: &FlowKey) -> Option<impl CachedFlow> {
        self.flows.get(key).map(|cached| Found { flow: &cached.flow, now: self.now })
    }

    fn peer(&self, short: u32) -> Option<PeerSlot> {
        self.peers.get(short as usize).copied()
    }

    fn source(&self, address: Ipv4) -> Option<Source> {
        self.sources.get(&address).copied()
    }

    fn parent(&self, origin: u32) -> Option<Ipv4> {
        (origin < SHORT_IDS).then(|| self.trees.get(&origin).map_or([0; 4], |tree| tree.parent))
    }

    fn admit(&self, key: u32, config: &Config) -> bool {
        let Some(bucket) = self.buckets.get(&key) else {
            return false;
        };
        let mut changed = bucket.get();
        let admitted = take_token(&mut changed, self.now, config.upcall_limits(key));
        bucket.set(changed);
        admitted
    }

    fn count(&self, counter: Counter) {
        // Nothing here is left to any stack.
        if !matches!(counter, Counter::VxlanIn | Counter::ViaStack) {
            self.drop_index(counter.index());
        }
    }

    fn refuse(&self, reason: DropReason) {
        self.drop(reason);
    }
}
