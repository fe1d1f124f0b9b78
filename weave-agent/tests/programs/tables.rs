//! The tables in memory: what the library looks things up in when it is compared with the kernel.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use nix::time::{ClockId, clock_gettime};
use weave_ebpf::fastpath::{CachedFlow, Tables, take_token};
use weave_ebpf::flow::{Bucket, Config, FloodPorts, Flow, FlowKey, Ipv4, PeerSlot, SHORT_IDS, Source, Tree};
use weave_ebpf::stats::{COUNTERS, Counter, DropReason};

/// The same tables as the kernel's maps.
pub(crate) struct Memory {
    pub(crate) config: Config,
    pub(crate) flows: BTreeMap<FlowKey, Cell<Flow>>,
    pub(crate) peers: BTreeMap<u32, PeerSlot>,
    pub(crate) sources: BTreeMap<Ipv4, Source>,
    pub(crate) trees: BTreeMap<u32, Tree>,
    pub(crate) flood_ports: FloodPorts,
    pub(crate) buckets: RefCell<BTreeMap<u32, Bucket>>,
    pub(crate) counts: RefCell<Vec<u64>>,
    /// When the kernel refilled a bucket for the packet at hand, if it did. The library refills at the same moment,
    /// because a moment later a millisecond more may have passed.
    pub(crate) refilled: Cell<Option<u64>>,
    /// When that packet was given to the kernel.
    pub(crate) given: Cell<u64>,
}

impl Memory {
    /// Adds one to a drop reason or counter; other indexes are nobody's.
    pub(crate) fn add(&self, index: u32) {
        if let Some(count) = self.counts.borrow_mut().get_mut(index as usize) {
            *count += 1;
        }
    }

    pub(crate) fn add_drop(&self, reason: DropReason) {
        self.add(reason.index());
    }

    /// The origin's tree; the kernel's table has one for each short id.
    pub(crate) fn tree(&self, origin: u32) -> Tree {
        self.trees.get(&origin).copied().unwrap_or(NO_TREE)
    }

    pub(crate) fn no_counts() -> RefCell<Vec<u64>> {
        RefCell::new(vec![0; COUNTERS as usize])
    }
}

/// What an array map holds where nothing was written.
pub(crate) const NO_TREE: Tree = Tree { parent: [0; 4], len: 0, hops: [0; weave_ebpf::flow::MAX_FANOUT] };

struct Cached<'a>(&'a Cell<Flow>);

impl CachedFlow for Cached<'_> {
    fn epoch(&self) -> u32 {
        self.0.get().epoch
    }

    fn action(&self) -> u32 {
        self.0.get().action
    }

    fn target(&self) -> u32 {
        self.0.get().target
    }

    fn flags(&self) -> u32 {
        self.0.get().flags
    }

    fn count(&self, packets: u32, bytes: u32) {
        let mut flow = self.0.get();
        flow.packets += u64::from(packets);
        flow.bytes += u64::from(bytes);
        flow.used_ns = now();
        self.0.set(flow);
    }
}

impl Tables for Memory {
    fn flow(&self, key: &FlowKey) -> Option<impl CachedFlow> {
        self.flows.get(key).map(Cached)
    }

    fn peer(&self, short: u32) -> Option<PeerSlot> {
        (short < SHORT_IDS).then(|| self.peers.get(&short).copied().unwrap_or_default())
    }

    fn source(&self, address: Ipv4) -> Option<Source> {
        self.sources.get(&address).copied()
    }

    fn parent(&self, origin: u32) -> Option<Ipv4> {
        (origin < SHORT_IDS).then(|| self.tree(origin).parent)
    }

    fn admit(&self, key: u32, config: &Config) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let Some(bucket) = buckets.get_mut(&key) else {
            return false;
        };
        let moment = self.refilled.get().unwrap_or(bucket.refilled_ns);
        let due = self.given.get().saturating_sub(bucket.refilled_ns) >= 1_000_000;
        assert!(!due || self.refilled.get().is_some(), "the kernel did not refill {bucket:?}");
        take_token(bucket, moment, config.upcall_limits(key))
    }

    fn count(&self, counter: Counter) {
        self.add(counter.index());
    }

    fn refuse(&self, reason: DropReason) {
        self.add(reason.index());
    }
}

/// The clock of `bpf_ktime_get_ns`.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    std::time::Duration::from(now).as_nanos() as u64
}
