//! Generated tables: a few peers, neighbours, trees, ports and buckets of every kind, right and wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use weave_ebpf::flow::source::{ESP, SEALED};
use weave_ebpf::flow::{
    Bucket, Config, FloodPorts, Flow, FlowKey, HEARTBEAT_BUCKET, Ipv4, MAX_FANOUT, NEIGHBOUR_BUCKET, PeerSlot, Source, Tree, action,
    feature, port, slot,
};
use weave_ebpf::stats::DropReason;
use weave_ebpf::vxlan::{self, Path};

use crate::host::decapsulates_ipv6;
use crate::kernel::Maps;
use crate::tables::{Memory, NO_TREE};
use crate::wires::{LOCAL, TUNNEL_PORT, Wires, neighbour_mac};

/// The short ids in use, the ends of their range among them.
pub(crate) const SHORTS: [u32; 10] = [0, 1, 2, 3, 4, 5, 0x7ff, 0x800, 0xffe, 0xfff];
/// An interface that is not there.
pub(crate) const NOWHERE: u32 = 4_000;

/// Tables and what generators need to know of them.
pub(crate) struct World {
    pub(crate) memory: Memory,
    /// Outer addresses that are some neighbour's.
    pub(crate) neighbours: Vec<Ipv4>,
}

impl World {
    pub(crate) fn generate(rng: &mut StdRng, wires: &Wires) -> Self {
        let short = *SHORTS.choose(rng).unwrap();
        let neighbours: Vec<Ipv4> = (0..6).map(|_| address(rng)).collect();
        let memory = Memory {
            config: config(rng, wires, short),
            flows: BTreeMap::new(),
            peers: SHORTS.iter().map(|&short| (short, peer(rng, wires, &neighbours))).collect(),
            sources: neighbours.iter().map(|&address| (address, source(rng, address))).collect(),
            trees: SHORTS.iter().map(|&short| (short, tree(rng, &neighbours))).collect(),
            flood_ports: flood_ports(rng, wires),
            buckets: RefCell::new(buckets(rng, wires)),
            counts: Memory::no_counts(),
            refilled: Cell::new(None),
            given: Cell::new(0),
        };
        Self { memory, neighbours }
    }

    /// Writes the kernel's maps as these tables are.
    pub(crate) fn install(&self, maps: &mut Maps) {
        maps.clear();
        maps.set_config(&self.memory.config);
        self.memory.peers.iter().for_each(|(&short, slot)| maps.set_peer(short, slot));
        self.memory.sources.iter().for_each(|(&address, source)| maps.set_source(address, source));
        self.memory.trees.iter().for_each(|(&origin, tree)| maps.set_tree(origin, tree));
        maps.set_flood_ports(&self.memory.flood_ports);
        self.memory.buckets.borrow().iter().for_each(|(&key, bucket)| maps.set_bucket(key, bucket));
    }

    /// Caches some decision for a key, in both.
    pub(crate) fn cache(&mut self, rng: &mut StdRng, maps: &mut Maps, wires: &Wires, key: FlowKey) {
        let flow = flow(rng, wires, &self.memory.config, key.ingress);
        maps.set_flow(&key, &flow);
        self.memory.flows.insert(key, Cell::new(flow));
    }
}

fn config(rng: &mut StdRng, wires: &Wires, short: u32) -> Config {
    Config {
        epoch: rng.random_range(0..3),
        short,
        vxlan_ifindex: wires.vxlan,
        port: TUNNEL_PORT.into(),
        features: if rng.random_bool(0.8) && decapsulates_ipv6() { feature::DECAP_IPV6 } else { 0 },
        // Fills any bucket at once, or none ever: what is left does not depend on the moment.
        upcall_rate: if rng.random_bool(0.5) { 1_000_000_000 } else { 0 },
        upcall_burst: rng.random_range(0..20),
        reserved: 0,
    }
}

fn address(rng: &mut StdRng) -> Ipv4 {
    [10, rng.random_range(0..2), 0, rng.random_range(2..10)]
}

fn peer(rng: &mut StdRng, wires: &Wires, neighbours: &[Ipv4]) -> PeerSlot {
    let remote = *neighbours.choose(rng).unwrap();
    let underlay = usize::from(remote[1]);
    let next_hop = (wires.underlay[underlay], wires.underlay_mac[underlay], neighbour_mac(remote));
    let path = Path {
        local: LOCAL[underlay],
        remote,
        port: TUNNEL_PORT,
        mtu: *[60, 1_000, 1_450, 9_000].choose(rng).unwrap(),
        next_hop: rng.random_bool(0.6).then_some(next_hop),
        esp: rng.random_bool(0.1),
        big: rng.random_bool(0.1),
    };
    let mut made = vxlan::slot(&path);
    match rng.random_range(0..10) {
        0 => PeerSlot::default(),
        // Never written so, but nothing may be sent to it.
        1 => {
            made.flags &= !slot::VALID;
            made
        }
        _ => made,
    }
}

fn source(rng: &mut StdRng, address: Ipv4) -> Source {
    let local = if rng.random_bool(0.9) { LOCAL[usize::from(address[1])] } else { [192, 0, 2, 1] };
    Source { local, short: *SHORTS.choose(rng).unwrap(), flags: *[0, 0, 0, 0, 0, 0, 0, 0, SEALED, ESP].choose(rng).unwrap() }
}

fn tree(rng: &mut StdRng, neighbours: &[Ipv4]) -> Tree {
    let len = if rng.random_bool(0.05) { MAX_FANOUT } else { rng.random_range(0..6) };
    let mut tree = Tree { parent: *neighbours.choose(rng).unwrap(), len: len as u32, ..NO_TREE };
    tree.hops.fill_with(|| *SHORTS.choose(rng).unwrap() as u16);
    tree
}

fn flood_ports(rng: &mut StdRng, wires: &Wires) -> FloodPorts {
    let len = if rng.random_bool(0.05) { MAX_FANOUT } else { rng.random_range(0..6) };
    let mut list = FloodPorts { len: len as u32, ports: [0; MAX_FANOUT] };
    list.ports.fill_with(|| if rng.random_bool(0.05) { NOWHERE } else { *wires.ports.choose(rng).unwrap() });
    list
}

/// Missing, empty, never to be filled, and full ones.
fn buckets(rng: &mut StdRng, wires: &Wires) -> BTreeMap<u32, Bucket> {
    let neighbours = SHORTS.iter().flat_map(|short| [NEIGHBOUR_BUCKET | short, HEARTBEAT_BUCKET | short]);
    let keys: Vec<u32> = wires.ports.iter().copied().chain(neighbours).filter(|_| rng.random_bool(0.9)).collect();
    let bucket = |rng: &mut StdRng| Bucket {
        refilled_ns: if rng.random_bool(0.5) { 0 } else { u64::MAX / 2 },
        tokens: *[0, 1, 1_000].choose(rng).unwrap(),
    };
    keys.into_iter().map(|key| (key, bucket(rng))).collect()
}

fn flow(rng: &mut StdRng, wires: &Wires, config: &Config, ingress: u32) -> Flow {
    let epoch = if rng.random_bool(0.9) { config.epoch } else { config.epoch.wrapping_sub(1) };
    let (action, target, flags) = match rng.random_range(0..10) {
        0 => (action::DROP, DropReason::Switch.index(), 0),
        1 => (action::DROP, rng.random_range(0..40), 0),
        2 => (action::PORT, ingress, port::REDIRECT_PEER),
        3 => (action::PORT, *wires.ports.choose(rng).unwrap(), 0),
        4 => (action::PORT, *wires.ports.choose(rng).unwrap(), port::REDIRECT_PEER),
        5 | 6 => (action::PEER, *SHORTS.choose(rng).unwrap(), 0),
        // No peer can have this number.
        7 if rng.random_bool(0.2) => (action::PEER, 5_000, 0),
        7 => (rng.random_range(4..9), rng.random_range(0..40), 0),
        _ => (action::FLOOD, *SHORTS.choose(rng).unwrap(), 0),
    };
    Flow { epoch, action, target, flags, packets: rng.random_range(0..100), bytes: rng.random_range(0..10_000), ..Flow::default() }
}
