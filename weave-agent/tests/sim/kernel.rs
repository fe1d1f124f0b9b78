//! A host's kernel: the tables that stay when the agent dies, looked up by the real fast path.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use weave_agent::Time;
use weave_agent::datapath::{FlowEntry, PortId};
use weave_ebpf::fastpath::{CachedFlow, Tables, take_token};
use weave_ebpf::flow::{Bucket, Config, Flow, FlowKey, INGRESS_TUNNEL, Ipv4, PeerSlot, Source, short_ids};
use weave_ebpf::stats::{COUNTERS, Counter, DropReason};

use crate::decode;
use crate::ipsec::Ipsec;

/// UDP port of every tunnel here.
pub(crate) const TUNNEL_PORT: u16 = 6784;
/// Upcalls per second and bucket.
const UPCALL_RATE: u32 = 100;
/// Upcalls a bucket may make at once.
const UPCALL_BURST: u32 = 200;

/// Deliberate faults, to see that the properties notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Flows of any epoch match.
    IgnoreEpoch,
    /// A flood is also delivered to the port it came from.
    FloodToIngress,
    /// Floods are accepted from any neighbour.
    IgnoreParent,
    /// Any address is a neighbour's, and no part of a flow's key.
    TrustStrangers,
    /// `Op::Remove` does nothing.
    KeepFlows,
    /// `Op::SetPeer` works once per peer.
    FreezeSlots,
    /// Nothing is ever cached.
    ForgetFlows,
    /// Heartbeats are not answered.
    MuteHeartbeats,
}

/// The broadcast tree of one origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) parent: Option<Ipv4>,
    pub(crate) hops: Vec<u32>,
}

/// Maps, devices and addresses of one host.
pub(crate) struct Kernel {
    pub(crate) address: Ipv4Addr,
    /// Whether next hops resolve, so that the program writes the outer headers; else frames go by the vxlan device.
    pub(crate) direct: bool,
    /// Whether ports can be delivered to straight from the underlay.
    pub(crate) redirect_peer: bool,
    pub(crate) config: Config,
    pub(crate) flows: BTreeMap<FlowKey, Cell<Flow>>,
    pub(crate) peers: BTreeMap<u32, PeerSlot>,
    pub(crate) sources: BTreeMap<Ipv4, Source>,
    pub(crate) trees: BTreeMap<u32, Tree>,
    pub(crate) flood_ports: Vec<PortId>,
    /// Interfaces that exist, whether the agent knows them or not.
    pub(crate) ports: BTreeSet<PortId>,
    pub(crate) fault: Option<Break>,
    /// The host's clock, set before every packet.
    pub(crate) now: Time,
    buckets: RefCell<BTreeMap<u32, Bucket>>,
    counters: RefCell<[u64; COUNTERS as usize]>,
    /// Why a packet was last dropped; for whoever looks for a frame.
    pub(crate) last_drop: Cell<Option<DropReason>>,
    pub(crate) ipsec: Ipsec,
    /// Outer source of the packet at hand, for [`Break::IgnoreParent`].
    pub(crate) outer_src: Ipv4,
}

impl Kernel {
    /// A kernel that no agent has touched.
    pub(crate) fn new(address: Ipv4Addr, direct: bool, redirect_peer: bool, fault: Option<Break>) -> Self {
        Self {
            ipsec: Ipsec::default(),
            address,
            direct,
            redirect_peer,
            // The zero epoch of an entry nobody wrote is never current.
            config: Config {
                epoch: 1,
                port: u32::from(TUNNEL_PORT),
                upcall_rate: UPCALL_RATE,
                upcall_burst: UPCALL_BURST,
                ..Config::default()
            },
            flows: BTreeMap::new(),
            peers: BTreeMap::new(),
            sources: BTreeMap::new(),
            trees: BTreeMap::new(),
            flood_ports: Vec::new(),
            ports: BTreeSet::new(),
            fault,
            now: Time::ZERO,
            buckets: RefCell::default(),
            counters: RefCell::new([0; COUNTERS as usize]),
            last_drop: Cell::new(None),
            outer_src: [0; 4],
        }
    }

    /// Adds one to a counter or drop reason.
    pub(crate) fn add(&self, index: u32) {
        if let Some(reason) = DropReason::from_index(index) {
            self.last_drop.set(Some(reason));
        }
        if let Some(counter) = self.counters.borrow_mut().get_mut(index as usize) {
            *counter += 1;
        }
    }

    /// The flows of the current epoch, as the datapath lists them to the switch.
    pub(crate) fn dump(&self) -> Vec<FlowEntry> {
        self.flows
            .iter()
            .filter(|(_, flow)| flow.get().epoch == self.config.epoch)
            .map(|(key, flow)| self.entry(key, &flow.get()))
            .collect()
    }

    /// The flows that the fast path takes for current, rightly or not.
    pub(crate) fn matching(&self) -> Vec<FlowEntry> {
        let current = |flow: &Cell<Flow>| Cached { flow, kernel: self }.epoch() == self.config.epoch;
        self.flows.iter().filter(|(_, flow)| current(flow)).map(|(key, flow)| self.entry(key, &flow.get())).collect()
    }

    fn entry(&self, key: &FlowKey, flow: &Flow) -> FlowEntry {
        FlowEntry {
            key: *key,
            action: decode::action(flow),
            packets: flow.packets,
            bytes: flow.bytes,
            idle: (flow.used_ns != 0).then(|| Time::from_nanos(nanoseconds(self.now).saturating_sub(flow.used_ns))),
        }
    }

    /// Frames that came through a relay flow of this pair, by short ids.
    pub(crate) fn relayed(&self, to: u32, origin: u32) -> u64 {
        let transit = |key: &FlowKey| key.ingress == INGRESS_TUNNEL && short_ids(key.vni) == (to, origin);
        self.flows.iter().filter(|(key, _)| transit(key)).map(|(_, flow)| flow.get().packets).sum()
    }
}

/// As `bpf_ktime_get_ns`, never 0.
pub(crate) fn nanoseconds(now: Time) -> u64 {
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A flow in the table, perhaps seen through a fault.
struct Cached<'a> {
    flow: &'a Cell<Flow>,
    kernel: &'a Kernel,
}

impl CachedFlow for Cached<'_> {
    fn epoch(&self) -> u32 {
        match self.kernel.fault {
            Some(Break::IgnoreEpoch) => self.kernel.config.epoch,
            _ => self.flow.get().epoch,
        }
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
        let mut flow = self.flow.get();
        flow.packets += u64::from(packets);
        flow.bytes += u64::from(bytes);
        flow.used_ns = nanoseconds(self.kernel.now);
        self.flow.set(flow);
    }
}

impl Tables for Kernel {
    fn flow(&self, key: &FlowKey) -> Option<impl CachedFlow> {
        let forged = |other: &&FlowKey| FlowKey { outer_src: key.outer_src, ..**other } == *key;
        let key = match self.fault {
            Some(Break::TrustStrangers) => self.flows.keys().find(forged)?,
            _ => key,
        };
        self.flows.get(key).map(|flow| Cached { flow, kernel: self })
    }

    fn peer(&self, short: u32) -> Option<PeerSlot> {
        self.peers.get(&short).copied()
    }

    fn source(&self, address: Ipv4) -> Option<Source> {
        match self.fault {
            Some(Break::TrustStrangers) => {
                Some(self.sources.get(&address).copied().unwrap_or(Source { local: self.address.octets(), short: 0, flags: 0 }))
            }
            _ => self.sources.get(&address).copied(),
        }
    }

    fn parent(&self, origin: u32) -> Option<Ipv4> {
        match self.fault {
            Some(Break::IgnoreParent) => Some(self.outer_src),
            _ => self.trees.get(&origin).and_then(|tree| tree.parent),
        }
    }

    fn admit(&self, key: u32, config: &Config) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let (now, limits) = (nanoseconds(self.now), config.upcall_limits(key));
        take_token(buckets.entry(key).or_insert(Bucket { refilled_ns: now, tokens: limits.1 }), now, limits)
    }

    fn count(&self, counter: Counter) {
        self.add(counter.index());
    }

    fn refuse(&self, reason: DropReason) {
        self.add(reason.index());
    }
}
