//! The programs as an object of aya's, for `BPF_PROG_TEST_RUN`, with their maps as bytes and their upcall ring.

use std::path::Path;
use std::time::Duration;

use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerfEventArray};
use aya::programs::{Program, ProgramError, ProgramInfo, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{EbpfLoader, VerifierLogLevel};
use weave_agent::io::datapath::ebpf::{loader, verify};
use weave_agent::io::object::OBJECT;
use weave_ebpf::flow::{Bucket, Config, FloodPorts, Flow, FlowKey, Ipv4, PeerSlot, Source, Tree, UpcallHeader};
use weave_ebpf::stats::COUNTERS;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::context::Context;

/// Pages of the upcall ring: room for some of the largest packets that a test run takes.
const PAGES: usize = 64;

/// Of the verifier, which can say a million lines.
const LAST_WORDS: usize = 40;

/// What a run of a program left.
#[derive(Debug)]
pub(crate) struct Run {
    /// The program's return value.
    pub(crate) code: i32,
    /// The packet as it is now.
    pub(crate) packet: Vec<u8>,
    /// Its mark.
    pub(crate) mark: u32,
    /// Time per repetition.
    pub(crate) duration: Duration,
}

/// An upcall as the ring had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) header: UpcallHeader,
    /// As many bytes as the header says; the ring pads.
    pub(crate) packet: Vec<u8>,
}

/// Loaded programs.
pub(crate) struct Kernel {
    object: aya::Ebpf,
}

impl Kernel {
    pub(crate) fn load(pins: &Path) -> Self {
        Self::made_by(loader(), pins)
    }

    /// With room for so many flows.
    pub(crate) fn with_room_for(pins: &Path, flows: u32) -> Self {
        let mut loader = loader();
        loader.map_max_entries("FLOWS", flows);
        Self::made_by(loader, pins)
    }

    fn made_by(mut loader: EbpfLoader<'_>, pins: &Path) -> Self {
        assert!(!OBJECT.is_empty(), "no BPF programs: run `cargo xtask build-ebpf`");
        let mut object = load_object(&mut loader, pins, log_level());
        for name in &taken(&object) {
            if verify(program_mut(&mut object, name)).is_err() {
                refused(name, pins);
            }
        }
        Self { object }
    }

    pub(crate) fn program(&self, name: &str) -> &SchedClassifier {
        self.object.program(name).unwrap_or_else(|| panic!("no program {name}")).try_into().unwrap()
    }

    pub(crate) fn program_mut(&mut self, name: &str) -> &mut SchedClassifier {
        program_mut(&mut self.object, name).try_into().unwrap()
    }

    /// The one that ends strangers' packets.
    pub(crate) fn filter(&mut self) -> &mut Xdp {
        let name = if takes_pieces() { "strangers" } else { "strangers_whole" };
        program_mut(&mut self.object, name).try_into().unwrap()
    }

    /// Names of all programs that are loaded.
    pub(crate) fn programs(&self) -> Vec<String> {
        taken(&self.object)
    }

    /// What the kernel says of one.
    pub(crate) fn info(&self, name: &str) -> ProgramInfo {
        self.object.program(name).unwrap().info().unwrap()
    }

    /// Opens the upcall ring of one CPU.
    pub(crate) fn ring(&mut self, cpu: u32) -> Ring {
        let mut map: PerfEventArray<MapData> = self.object.take_map("UPCALLS").unwrap().try_into().unwrap();
        let buffer = map.open(cpu, Some(PAGES)).unwrap();
        Ring { _map: map, buffer }
    }

    pub(crate) fn maps(&mut self) -> Maps {
        let mut take = |name| self.object.take_map(name).unwrap();
        Maps {
            config: take("CONFIG").try_into().unwrap(),
            flows: take("FLOWS").try_into().unwrap(),
            peers: take("PEERS").try_into().unwrap(),
            sources: take("SOURCES").try_into().unwrap(),
            locals: take("LOCALS").try_into().unwrap(),
            trees: take("TREES").try_into().unwrap(),
            flood_ports: take("FLOOD_PORTS").try_into().unwrap(),
            buckets: take("BUCKETS").try_into().unwrap(),
            counts: take("COUNTS").try_into().unwrap(),
        }
    }
}

/// Of packets in several pieces old kernels know nothing, and refuse who says that he does.
fn taken(object: &aya::Ebpf) -> Vec<String> {
    object.programs().map(|(name, _)| name.to_owned()).filter(|name| name != "strangers" || takes_pieces()).collect()
}

/// Packets in several pieces for XDP (Linux 5.18, commit c2f2cdbeffda).
pub(crate) fn takes_pieces() -> bool {
    vm_tests::kernel::is_at_least(5, 18)
}

fn load_object(loader: &mut EbpfLoader<'_>, pins: &Path, level: VerifierLogLevel) -> aya::Ebpf {
    loader.verifier_log_level(level).default_map_pin_directory(pins).load(OBJECT).unwrap()
}

/// Asks once more, for the reason.
fn refused(name: &str, pins: &Path) -> ! {
    let mut object = load_object(&mut loader(), pins, VerifierLogLevel::default());
    let Err(ProgramError::LoadError { io_error, verifier_log }) = verify(program_mut(&mut object, name)) else {
        panic!("{name}: refused at first, then not");
    };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
    let reason = last.iter().rfind(|line| !line.starts_with("processed ")).unwrap_or(&"");
    panic!("{name}: the verifier refuses it ({io_error}): {reason}\n{}", last.join("\n"));
}

fn program_mut<'a>(object: &'a mut aya::Ebpf, name: &str) -> &'a mut Program {
    object.program_mut(name).unwrap_or_else(|| panic!("no program {name}"))
}

/// Runs an XDP program over a packet: its return value, and the packet as it is then.
pub(crate) fn run_early(program: &Xdp, packet: &[u8], repeat: u32) -> (u32, Vec<u8>, Duration) {
    let mut data_out = vec![0; packet.len() + 256];
    let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut data_out), repeat, ..TestRunOptions::default() };
    let result = program.test_run(options).unwrap_or_else(|error| panic!("{error:?} for {packet:02x?}"));
    data_out.truncate(result.data_size_out as usize);
    (result.return_value, data_out, result.duration)
}

/// Runs a program over a packet.
pub(crate) fn run(program: &SchedClassifier, packet: &[u8], context: &Context, repeat: u32) -> Run {
    // Headers may come on.
    let mut data_out = vec![0; packet.len() + 256];
    let mut after = Context::default();
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut data_out),
        ctx_in: Some(context.as_bytes()),
        ctx_out: Some(after.as_mut_bytes()),
        repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).unwrap_or_else(|error| panic!("{error:?} for {packet:02x?} with {context:?}"));
    data_out.truncate(result.data_size_out as usize);
    Run { code: result.return_value.cast_signed(), packet: data_out, mark: after.mark, duration: result.duration }
}

/// One CPU's upcalls.
pub(crate) struct Ring {
    _map: PerfEventArray<MapData>,
    buffer: PerfEventArrayBuffer<MapData>,
}

impl Ring {
    /// What came since the last time.
    pub(crate) fn drain(&mut self) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.buffer.for_each(|event| match event {
            PerfEvent::Sample { head, tail } => samples.push(sample(&[head, tail].concat())),
            PerfEvent::Lost { count } => panic!("{count} upcalls lost"),
        });
        samples
    }
}

fn sample(bytes: &[u8]) -> Sample {
    let (header, packet) = UpcallHeader::read_from_prefix(bytes).unwrap();
    Sample { header, packet: packet[..header.len as usize].to_vec() }
}

type Values<const N: usize> = Array<MapData, [u8; N]>;
type Table<const K: usize, const N: usize> = HashMap<MapData, [u8; K], [u8; N]>;

/// The maps, apart from the object, so that both can be borrowed.
pub(crate) struct Maps {
    config: Values<{ size_of::<Config>() }>,
    flows: Table<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>,
    peers: Values<{ size_of::<PeerSlot>() }>,
    sources: Table<4, { size_of::<Source>() }>,
    locals: Table<4, 4>,
    trees: Values<{ size_of::<Tree>() }>,
    flood_ports: Values<{ size_of::<FloodPorts>() }>,
    buckets: Table<4, { size_of::<Bucket>() }>,
    counts: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(crate) fn set_config(&mut self, value: &Config) {
        self.config.set(0, bytes(value), 0).unwrap();
    }

    pub(crate) fn set_flow(&mut self, key: &FlowKey, value: &Flow) {
        self.flows.insert(bytes(key), bytes(value), 0).unwrap();
    }

    pub(crate) fn set_peer(&mut self, short: u32, value: &PeerSlot) {
        self.peers.set(short, bytes(value), 0).unwrap();
    }

    pub(crate) fn set_source(&mut self, address: Ipv4, value: &Source) {
        self.sources.insert(address, bytes(value), 0).unwrap();
    }

    pub(crate) fn set_local(&mut self, address: Ipv4) {
        self.locals.insert(address, [0; 4], 0).unwrap();
    }

    pub(crate) fn set_tree(&mut self, origin: u32, value: &Tree) {
        self.trees.set(origin, bytes(value), 0).unwrap();
    }

    pub(crate) fn set_flood_ports(&mut self, value: &FloodPorts) {
        self.flood_ports.set(0, bytes(value), 0).unwrap();
    }

    pub(crate) fn set_bucket(&mut self, key: u32, value: &Bucket) {
        self.buckets.insert(key.to_ne_bytes(), bytes(value), 0).unwrap();
    }

    pub(crate) fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.flows.iter().map(Result::unwrap).map(|(key, value)| (read(&key), read(&value))).collect()
    }

    pub(crate) fn bucket(&self, key: u32) -> Option<Bucket> {
        self.buckets.get(&key.to_ne_bytes(), 0).ok().map(|value| read(&value))
    }

    /// All counters, summed over the CPUs.
    pub(crate) fn counts(&self) -> Vec<u64> {
        (0..COUNTERS).map(|index| self.counts.get(&index, 0).unwrap().iter().sum()).collect()
    }

    /// Empties the hash tables.
    pub(crate) fn clear(&mut self) {
        let flows: Vec<_> = self.flows.keys().map(Result::unwrap).collect();
        flows.iter().for_each(|key| self.flows.remove(key).unwrap());
        let sources: Vec<_> = self.sources.keys().map(Result::unwrap).collect();
        sources.iter().for_each(|key| self.sources.remove(key).unwrap());
        let buckets: Vec<_> = self.buckets.keys().map(Result::unwrap).collect();
        buckets.iter().for_each(|key| self.buckets.remove(key).unwrap());
    }
}

fn bytes<T: IntoBytes + Immutable, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().unwrap()
}

fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).unwrap()
}

/// What the verifier says of a program that it refuses can be a million lines: on demand only.
fn log_level() -> VerifierLogLevel {
    if std::env::var_os("PROGRAMS_LOG").is_some() { VerifierLogLevel::default() } else { VerifierLogLevel::DISABLE }
}
