//! The same packets and tables through the programs in the kernel and through the library: the same must come of both.

use std::env;
use std::path::Path;

use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use weave_ebpf::stats::{Counter, DropReason};

use crate::capture::{Capture, Seen};
use crate::carry::{Carrier, Given, Outcome, REDIRECT, SHOT};
use crate::context::Context;
use crate::frames::{self, Tunnel};
use crate::kernel::{Kernel, Maps, Ring, run};
use crate::place::{is_emulated, one_cpu, private};
use crate::stack::{self, without_choices};
use crate::tables::now;
use crate::trampoline;
use crate::wires::Wires;
use crate::world::{SHORTS, World};

const WORLDS: usize = 40;
/// Where each takes long.
const FEW_WORLDS: usize = 6;
const PACKETS: usize = 250;
/// How far the coarse clock, by which the kernel notes the last match, may be behind: a busy machine loses timer ticks.
const LATE: u64 = 1_000_000_000;

/// Which program a packet is for.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Port,
    Underlay,
    Vxlan(Tunnel),
    Execute,
}

/// One packet for one program.
#[derive(Debug)]
struct Case {
    entry: Entry,
    packet: Vec<u8>,
    context: Context,
}

/// The programs, with all that shows what they did.
struct Bench {
    kernel: Kernel,
    trampoline: SchedClassifier,
    maps: Maps,
    ring: Ring,
    capture: Capture,
    wires: Wires,
}

impl Bench {
    fn new(pins: &Path) -> Self {
        one_cpu();
        let wires = Wires::make();
        let mut kernel = Kernel::load(pins);
        let (maps, ring) = (kernel.maps(), kernel.ring(0));
        let trampoline = trampoline::load(kernel.program("from_vxlan"), pins);
        // Below Linux 6.6 aya makes a filter, and that needs a qdisc.
        qdisc_add_clsact("vx").unwrap();
        // Copies pass it: a mark left on them would be taken for user space's.
        kernel.program_mut("to_vxlan").attach("vx", TcAttachType::Egress).unwrap();
        Self { kernel, trampoline, maps, ring, capture: Capture::open(), wires }
    }

    fn observe(&mut self, case: &Case) -> Outcome {
        let program = match case.entry {
            Entry::Port => self.kernel.program("from_port"),
            Entry::Underlay => self.kernel.program("from_underlay"),
            Entry::Vxlan(_) => &self.trampoline,
            Entry::Execute => self.kernel.program("to_vxlan"),
        };
        self.capture.sent();
        let run = run(program, &case.packet, &case.context, 1);
        let passed = run.code != SHOT;
        Outcome {
            code: run.code,
            packet: passed.then_some(run.packet),
            mark: passed.then_some(run.mark),
            copies: self.capture.sent(),
            samples: self.ring.drain(),
        }
    }
}

#[test]
fn the_programs_do_what_the_library_says() {
    let seed = env::var("PROGRAMS_SEED").map_or_else(|_| now(), |seed| seed.parse().unwrap());
    println!("PROGRAMS_SEED={seed}");
    if !tells_local() {
        println!("no packets for from_vxlan: they need Linux 6.0 (the local address in a tunnel key)");
    }
    let worlds = if is_emulated() { FEW_WORLDS } else { WORLDS };
    private(move |pins| {
        let mut bench = Bench::new(pins);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut counts = vec![0; bench.maps.counts().len()];
        for number in 0..worlds {
            let world = World::generate(&mut rng, &bench.wires);
            compare_world(&mut bench, world, &mut rng, &mut counts, &format!("PROGRAMS_SEED={seed}, world {number}"));
        }
        // Fewer make every case, but not each time.
        if worlds >= WORLDS {
            nothing_was_left_out(&counts);
        }
    });
}

fn compare_world(bench: &mut Bench, mut world: World, rng: &mut StdRng, counts: &mut Vec<u64>, which: &str) {
    world.memory.counts.replace(counts.clone());
    world.install(&mut bench.maps);
    for number in 0..PACKETS {
        let case = generate(rng, &mut world, bench);
        if !stack::takes(&case.packet) {
            continue;
        }
        compare(bench, &world, &case, &format!("{which}, packet {number}"));
    }
    counts.clone_from(&world.memory.counts.borrow());
}

fn generate(rng: &mut StdRng, world: &mut World, bench: &mut Bench) -> Case {
    let gso = rng.random_bool(0.1);
    let mut context = Context {
        mark: if rng.random_bool(0.2) { rng.random() } else { 0 },
        cb: rng.random(),
        gso_segs: if gso { rng.random_range(0..40) } else { 0 },
        gso_size: if gso { *[1, 500, 1_400, 8_000].choose(rng).unwrap() } else { 0 },
        ..Context::default()
    };
    let (entry, made) = match rng.random_range(0..10) {
        0..4 => {
            context.ifindex = *bench.wires.ports.choose(rng).unwrap();
            (Entry::Port, frames::from_port(rng, context.ifindex))
        }
        4..8 => {
            context.ifindex = *bench.wires.underlay.choose(rng).unwrap();
            (Entry::Underlay, frames::from_underlay(rng, world))
        }
        // What a trampoline has to put beside the packet no older kernel takes.
        8 if tells_local() => {
            let tunnel = Tunnel::generate(rng, world);
            context.ifindex = bench.wires.vxlan;
            context.cb[..3].copy_from_slice(&[tunnel.vni, u32::from_be_bytes(tunnel.remote), tunnel.ttl.into()]);
            (Entry::Vxlan(tunnel), frames::from_vxlan(rng, world, tunnel))
        }
        _ => {
            context.ifindex = bench.wires.vxlan;
            context.mark = if rng.random_bool(0.8) { 1 << 31 | SHORTS.choose(rng).unwrap() << 12 | 1 } else { rng.random() };
            (Entry::Execute, frames::from_port(rng, 0))
        }
    };
    if rng.random_bool(0.75) {
        world.cache(rng, &mut bench.maps, &bench.wires, made.key);
    }
    Case { entry, packet: made.packet, context }
}

fn compare(bench: &mut Bench, world: &World, case: &Case, which: &str) {
    let before = now();
    let observed = bench.observe(case);
    world.memory.given.set(before);
    world.memory.refilled.set(refill(bench, world, before));
    let given = Given { bytes: &case.packet, context: &case.context };
    let carrier = Carrier { memory: &world.memory, wires: &bench.wires };
    let expected = match case.entry {
        Entry::Port => carrier.port(given),
        Entry::Underlay => carrier.underlay(given),
        Entry::Vxlan(tunnel) => carrier.vxlan(given, tunnel),
        Entry::Execute => carrier.execute(given),
    };
    assert_eq!(normal(observed), normal(expected), "kernel (left), library (right)\n{which}: {case:02x?}");
    let named = |counts: Vec<u64>| names().into_iter().zip(counts).collect::<Vec<_>>();
    let expected = world.memory.counts.borrow().clone();
    assert_eq!(named(bench.maps.counts()), named(expected), "counters of kernel and library\n{which}: {case:02x?}");
    compare_flows(bench, world, before, &format!("{which}: {case:02x?}"));
    compare_buckets(bench, world, &format!("{which}: {case:02x?}"));
}

/// In an order that does not depend on the way copies were made, and without what is the kernel's free choice.
fn normal(outcome: Outcome) -> Outcome {
    let copies = outcome.copies.into_iter().map(|seen| Seen { bytes: without_choices(seen.bytes), ..seen });
    let mut copies: Vec<Seen> = copies.collect();
    copies.sort();
    let sent = |packet| if outcome.code == REDIRECT { without_choices(packet) } else { packet };
    Outcome { packet: outcome.packet.map(sent), copies, ..outcome }
}

/// Every flow, whether the packet matched it or not. What the kernel says of the time is kept for the next packet.
fn compare_flows(bench: &Bench, world: &World, before: u64, what: &str) {
    let mut flows = bench.maps.flows();
    flows.sort_by_key(|(key, _)| *key);
    assert_eq!(flows.len(), world.memory.flows.len(), "{what}");
    for ((key, flow), (expected_key, cell)) in flows.into_iter().zip(&world.memory.flows) {
        let mut expected = cell.get();
        if expected.used_ns >= before {
            assert!(flow.used_ns + LATE >= before && flow.used_ns <= expected.used_ns, "last match of {key:?}, {what}");
            expected.used_ns = flow.used_ns;
        }
        assert_eq!((&key, flow), (expected_key, expected), "{what}");
        cell.set(expected);
    }
}

fn compare_buckets(bench: &Bench, world: &World, what: &str) {
    for (&key, expected) in world.memory.buckets.borrow().iter() {
        let bucket = bench.maps.bucket(key).unwrap();
        assert_eq!(bucket, *expected, "bucket {key:x}, {what}");
    }
}

/// When the kernel refilled a bucket, if it just did.
fn refill(bench: &Bench, world: &World, before: u64) -> Option<u64> {
    let buckets = world.memory.buckets.borrow();
    let moments = buckets.iter().map(|(&key, was)| (bench.maps.bucket(key).unwrap().refilled_ns, was.refilled_ns));
    let refilled = moments.filter(|(is, was)| is != was).map(|(is, _)| is).next();
    assert!(refilled.is_none_or(|moment| moment >= before && moment <= now()), "refilled at {refilled:?}, now is {before}");
    refilled
}

fn names() -> Vec<&'static str> {
    let drops = DropReason::ALL.iter().map(|reason| reason.name());
    drops.chain(Counter::ALL.iter().map(|counter| counter.name())).collect()
}

/// Whether a tunnel key has a local address (Linux 6.0, commit 26101f5ab6bd).
fn tells_local() -> bool {
    vm_tests::kernel::is_at_least(6, 0)
}

/// A generator that never makes a case proves nothing about it.
fn nothing_was_left_out(counts: &[u64]) {
    for (name, count) in names().into_iter().zip(counts) {
        println!("{name:16} {count}");
        // Said by the switch alone, or for rings and fan-outs that no test run can fill.
        let elsewhere = ["reserved-group", "contested-mac", "fanout", "upcall-lost"];
        let left_out = !tells_local() && ["stranger", "vxlan-in"].contains(&name);
        assert!(*count > 0 || left_out || elsewhere.contains(&name), "no packet was counted as {name}");
    }
}
