//! What the programs cost: the verifier when they are loaded, each packet when they run.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Instant;

use aya::programs::SchedClassifier;
use aya::sys::{Stats, enable_stats};
use vm_tests::figure;
use vm_tests::kernel::has_for;
use weave_agent::datapath::{Action, Op};
use weave_agent::peer::ShortId;
use weave_ebpf::flow::{Config, Flow, FlowKey, INGRESS_TUNNEL, Mac, Source, action, feature, port, vni};
use weave_ebpf::vxlan::{self, Fields};

use crate::context::Context;
use crate::host::Host;
use crate::kernel::{Kernel, Maps, run, run_early};
use crate::place::{is_emulated, one_cpu, private, private_async};
use crate::trampoline;
use crate::wires::{LOCAL, TUNNEL_PORT};

/// The kernel gives up at a million (`BPF_COMPLEXITY_LIMIT_INSNS`); older verifiers need more than newer ones.
const MOST_INSTRUCTIONS: u32 = 200_000;
/// What is wanted of them, so that there is room to grow.
const WANTED_INSTRUCTIONS: u32 = 50_000;
/// Runs in a batch, and batches. The median batch counts.
const RUNS: u32 = 5_000;
const BATCHES: usize = 7;
/// So many times fewer where a run takes long.
const FEWER: u32 = 20;

const SRC: Mac = [2, 0, 0, 0, 0, 1];
const DST: Mac = [2, 0, 0, 0, 0, 2];
const REMOTE: [u8; 4] = [10, 0, 0, 2];
const OWN: u32 = 1;
const PEER: u32 = 2;
const THIRD: u32 = 3;

#[test]
fn the_verifier_has_no_trouble_with_any_program() {
    private(|pins| {
        let kernel = Kernel::load(pins);
        for name in kernel.programs() {
            let info = kernel.info(&name);
            let translated = info.size_translated().unwrap() / 8;
            // Linux 5.16, commit aba64c7da983.
            let Some(verified) = info.verified_instruction_count() else {
                println!("{name:16}     ? instructions processed by the verifier, {translated:5} in the program");
                has_for("the verifier's count of instructions", "verified_insns", (5, 16));
                continue;
            };
            figure::say(&format!("{name}, processed by the verifier"), verified.into(), "instructions");
            figure::say(&format!("{name}, in the program"), translated.into(), "instructions");
            if verified > WANTED_INSTRUCTIONS {
                println!("{name}: more than wanted, {WANTED_INSTRUCTIONS}");
            }
            assert!(verified <= MOST_INSTRUCTIONS, "{name}: {verified} instructions");
        }
    });
}

#[test]
fn what_a_packet_costs() {
    private(|pins| {
        one_cpu();
        let mut kernel = Kernel::load(pins);
        let mut maps = kernel.maps();
        fill(&mut maps);
        let nothing = trampoline::nothing(pins);
        let frame = frame();
        println!("a run of nothing takes {} ns, which are taken off", measure(&nothing, &frame, 0));
        for (what, name, packet, code) in cases(&frame) {
            if what == TO_PEER && !has_for("what a packet to a peer costs", "ENCAP_L2_ETH", (5, 13)) {
                continue;
            }
            let program = kernel.program(name);
            let context = Context::default();
            assert_eq!(run(program, &packet, &context, 1).code, code, "{what}");
            let cost = measure(program, &packet, code).saturating_sub(measure(&nothing, &packet, 0));
            figure::say(&format!("{name}, {what}"), cost as f64, "ns");
            // Far above what any machine takes: a loop or a copy that should not be there.
            assert!(cost < 5_000 || is_emulated(), "{what}: {cost} ns");
        }
        of_helpers(pins, &nothing, &frame);
        headers_in_headers(kernel.program("from_underlay"), &frame);
        repeated(&mut kernel, &frame);
    });
}

/// What of it the kernel's helpers take, which no program can do without.
fn of_helpers(pins: &Path, nothing: &SchedClassifier, frame: &[u8]) {
    if !has_for("what helpers cost", "ENCAP_L2_ETH", (5, 13)) {
        return;
    }
    let (on, off) = (trampoline::helpers_that_encapsulate(pins), trampoline::helpers_that_decapsulate(pins));
    for (what, program, packet) in [("on", &on, frame.to_vec()), ("off", &off, tunnelled(frame, vni(OWN, PEER)))] {
        let cost = measure(program, &packet, REDIRECTED).saturating_sub(measure(nothing, frame, 0));
        figure::say(&format!("helpers that put headers {what}"), cost as f64, "ns");
    }
}

/// Each run takes one header off, so that a packet with many in each other is good for many runs: with warm caches, without a new skb for each.
fn headers_in_headers(program: &SchedClassifier, frame: &[u8]) {
    let packet = (0..NESTED).fold(frame.to_vec(), |packet, _| tunnelled(&packet, vni(OWN, PEER)));
    let batch = || {
        let runs = (0..fewer(RUNS) / NESTED).map(|_| {
            let run = run(program, &packet, &Context::default(), NESTED);
            assert_eq!((run.code, run.packet.len()), (REDIRECTED, frame.len()));
            run.duration.as_nanos() as u64
        });
        let runs: Vec<u64> = runs.collect();
        runs.iter().sum::<u64>() / runs.len() as u64
    };
    figure::say("from_underlay, to a local port, headers in headers", median(batch) as f64, "ns");
}

/// So many headers and a frame are less than a page.
const NESTED: u32 = 40;
/// `TC_ACT_REDIRECT`.
const REDIRECTED: i32 = 7;

/// Packets that are not changed can be run again and again.
fn repeated(kernel: &mut Kernel, frame: &[u8]) {
    let mut foreign = frame.to_vec();
    foreign[..6].copy_from_slice(&SRC);
    foreign[6..12].copy_from_slice(&DST);
    for (what, name, packet) in [("to a local port", "from_port", foreign), ("not ours", "from_underlay", frame.to_vec())] {
        let program = kernel.program(name);
        figure::say(&format!("{name}, {what}, same packet again and again"), measure_again(program, &packet) as f64, "ns");
    }
    let mut strangers = tunnelled(frame, vni(OWN, PEER));
    strangers[vxlan::OUTER_SOURCE + 3] = 99;
    let filter = kernel.filter();
    for (what, packet, code) in
        [("not ours", frame.to_vec(), 2), ("a neighbour's", tunnelled(frame, vni(OWN, PEER)), 2), ("a stranger's", strangers, 1)]
    {
        assert_eq!(run_early(filter, &packet, 1).0, code, "{what}");
        let batch = || run_early(filter, &packet, fewer(200_000)).2.as_nanos() as u64;
        figure::say(&format!("strangers, {what}, same packet again and again"), median(batch) as f64, "ns");
    }
}

const TO_PEER: &str = "to a peer (the hash not yet made)";

type Case = (&'static str, &'static str, Vec<u8>, i32);

fn cases(frame: &[u8]) -> Vec<Case> {
    let mut local = frame.to_vec();
    local[..6].copy_from_slice(&SRC);
    local[6..12].copy_from_slice(&DST);
    vec![
        ("to a local port", "from_port", local, 7),
        (TO_PEER, "from_port", frame.to_vec(), 7),
        ("not ours", "from_underlay", frame.to_vec(), 0),
        ("to a local port", "from_underlay", tunnelled(frame, vni(OWN, PEER)), 7),
        ("relayed", "from_underlay", tunnelled(frame, vni(THIRD, PEER)), 7),
        ("nothing to execute", "to_vxlan", frame.to_vec(), 0),
    ]
}

/// A TCP segment of 1,000 bytes.
pub(crate) fn frame() -> Vec<u8> {
    let mut frame = [DST, SRC].concat();
    frame.extend([8, 0, 0x45, 0, 3, 0xe8, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2, 0, 80, 0, 90]);
    frame.resize(14 + 1_000, 7);
    frame
}

fn tunnelled(frame: &[u8], vni: u32) -> Vec<u8> {
    let path = vxlan::Path {
        local: REMOTE,
        remote: LOCAL[0],
        port: TUNNEL_PORT,
        mtu: 9_000,
        next_hop: Some((1, [2; 6], [4; 6])),
        esp: false,
        big: false,
    };
    [vxlan::headers(&vxlan::slot(&path), vni, Fields::new(frame.len() as u32, 1)).as_slice(), frame].concat()
}

/// Tables in which every case is a hit.
pub(crate) fn fill(maps: &mut Maps) {
    let path = |remote| {
        let next_hop = Some((1, [2; 6], [4; 6]));
        vxlan::slot(&vxlan::Path { local: LOCAL[0], remote, port: TUNNEL_PORT, mtu: 9_000, next_hop, esp: false, big: false })
    };
    maps.set_config(&Config { epoch: 1, short: OWN, port: TUNNEL_PORT.into(), features: feature::DECAP_IPV6, ..Config::default() });
    maps.set_peer(PEER, &path(REMOTE));
    maps.set_peer(THIRD, &path([10, 0, 0, 3]));
    maps.set_local(LOCAL[0]);
    maps.set_source(REMOTE, &Source { local: LOCAL[0], short: PEER, flags: 0 });
    let flow = |action, target| Flow { epoch: 1, action, target, flags: port::REDIRECT_PEER, ..Flow::default() };
    // A test run without a context comes in by the loopback interface, 1.
    let local = |src, dst| FlowKey { ingress: 1, vni: 0, outer_src: [0; 4], src, dst };
    let tunnel = |vni, src, dst| FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src: REMOTE, src, dst };
    maps.set_flow(&local(SRC, DST), &flow(action::PEER, PEER));
    maps.set_flow(&local(DST, SRC), &flow(action::PORT, 9));
    maps.set_flow(&tunnel(vni(OWN, PEER), SRC, DST), &flow(action::PORT, 9));
    // Of what is in a header that is in another.
    maps.set_flow(&tunnel(vni(OWN, PEER), [2; 6], [4; 6]), &flow(action::PORT, 9));
    maps.set_flow(&tunnel(vni(THIRD, PEER), [0; 6], [0; 6]), &flow(action::PEER, THIRD));
}

/// Median ns of a run, by the kernel's own count. Each run has a new packet, because most programs change theirs.
fn measure(program: &SchedClassifier, packet: &[u8], code: i32) -> u64 {
    measure_each(program, code, |_| packet.to_vec())
}

/// The same with a packet for each run, by its number.
pub(crate) fn measure_each(program: &SchedClassifier, code: i32, packet: impl Fn(u32) -> Vec<u8>) -> u64 {
    let _counting = enable_stats(Stats::RunTime).unwrap();
    let number = Cell::new(0);
    median(|| {
        let (time, runs) = spent(program);
        for _ in 0..fewer(RUNS) {
            assert_eq!(run(program, &packet(number.replace(number.get() + 1)), &Context::default(), 1).code, code);
        }
        let (after, runs_after) = spent(program);
        (after - time) / (runs_after - runs)
    })
}

/// Median ns of a run over the same packet again and again: with warm caches, and no skb made for each.
pub(crate) fn measure_again(program: &SchedClassifier, packet: &[u8]) -> u64 {
    median(|| run(program, packet, &Context::default(), fewer(200_000)).duration.as_nanos() as u64)
}

fn fewer(runs: u32) -> u32 {
    if is_emulated() { runs / FEWER } else { runs }
}

fn median(batch: impl Fn() -> u64) -> u64 {
    let mut batches: Vec<u64> = (0..BATCHES).map(|_| batch()).collect();
    batches.sort_unstable();
    batches[BATCHES / 2]
}

/// Time in ns and runs so far.
fn spent(program: &SchedClassifier) -> (u64, u64) {
    let path = format!("/proc/self/fdinfo/{}", program.fd().unwrap().as_fd().as_raw_fd());
    let text = fs::read_to_string(Path::new(&path)).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
    (field("run_time_ns:"), field("run_cnt:"))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "measures the read itself")]
fn sixteen_thousand_flows_are_read_whole_and_cost_the_loop_little() {
    private_async(async |pins| {
        let mut host = Host::new(&pins, None);
        let wanted: BTreeSet<_> = (0..16_000_u32).map(flow_number).collect();
        for key in &wanted {
            host.op(Op::Install(*key, Action::Peer(ShortId::new(2).unwrap())));
        }
        let begun = Instant::now();
        let flows = host.ebpf.flows().unwrap();
        println!("16,000 flows read in {:?}", begun.elapsed());
        assert_eq!(flows.len(), wanted.len());
        assert_eq!(flows.into_iter().map(|flow| flow.key).collect::<BTreeSet<_>>(), wanted);
    });
}

fn flow_number(number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey { ingress: 7, src: [2, 0, a, b, c, d], dst: [2, 1, a, b, c, d], ..FlowKey::default() }
}
