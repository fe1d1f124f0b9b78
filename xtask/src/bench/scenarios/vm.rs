//! On a kernel that has what this machine's may lack, in a virtual machine: next to Open vSwitch, the kernel's WireGuard, and our own
//! way over the openvswitch module.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Lab, LabConfig, OpenVswitch, Place, Running, Underlay};

use super::connect::connections;
use super::latency::ping_pong;
use crate::bench::Bench;
use crate::bench::bed::Path;
use crate::bench::compare::interleaved;
use crate::bench::conditions::settle;
use crate::bench::measure::{ONE_CPU, bulk};
use crate::bench::rivals::{self, BRIDGED, SEALED, SWITCHED};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Row, Table};
use crate::vm;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "vm",
    what: "In a virtual machine: next to Open vSwitch, the kernel's WireGuard, and our own datapath of the openvswitch module",
    work: Work::Alone(run),
};

/// The kernel that the machine boots.
const KERNEL: &str = "6.12";
/// What these contenders call, besides what the kernels' tests call.
const PROGRAMS: [&str; 2] = ["taskset", "wg"];
/// The modules that they want besides those of the tests.
const MODULES: [&str; 1] = ["wireguard"];
const CONTENDERS: [&str; 6] = [
    "host to host",
    "bridge + kernel vxlan",
    "kernel WireGuard",
    "openvswitch",
    "weave-agent --datapath odp",
    "weave-agent --datapath ebpf",
];
/// Whom ours is compared with: Open vSwitch with its own flows, and with those that Weave Net had.
const REFERENCES: [usize; 2] = [3, 4];

const FIGURES: &[Figure] = &[
    Figure::new("VM: TCP bulk", "Gbit/s"),
    Figure::new("VM: TCP ping-pong", "thousand/s").gate(Gate::Ratios(&[1.5, 1.5])),
    Figure::new("VM: TCP ping-pong, p50", "µs"),
    Figure::new("VM: new TCP connections", "thousand/s"),
];

/// By figure, contender and round.
type Runs = Vec<Vec<Vec<f64>>>;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let words = ["bench-node", "vm", "--rounds", &bench.rounds.to_string(), "--seconds", &bench.seconds.to_string()].map(str::to_owned);
    let program = vm::Program { words: words.to_vec(), programs: &PROGRAMS, modules: &MODULES };
    let done = program.run(bench.workspace, KERNEL)?;
    let runs: Runs = serde_json::from_str(done.lines.last().map_or("", String::as_str)).context("the machine wrote no figures")?;
    let whole = runs.len() == FIGURES.len() && runs.iter().all(|figure| figure.len() == CONTENDERS.len());
    ensure!(whole, "the machine did not give {} figures of {} contenders", FIGURES.len(), CONTENDERS.len());
    let rows = FIGURES.iter().zip(runs).map(|(figure, runs)| Row::of(figure, runs)).collect();
    let notes = vec![format!(
        "VM: Linux {} in QEMU ({}), both ends on one of two processors. An emulated processor is many times as slow as this one, \
         and takes for each instruction about the same: ratios say how many a path executes, not what its memory costs.",
        done.release, done.accelerator
    )];
    Ok(Table { scenario, columns: CONTENDERS.map(str::to_owned).to_vec(), references: REFERENCES.to_vec(), rows, notes })
}

/// The part that runs in the machine: prints [`Runs`] as JSON.
pub(crate) fn inside(rounds: usize, time: Duration) -> Result<()> {
    let bed = Bed::make()?;
    let paths = bed.paths()?;
    for (title, path) in CONTENDERS.iter().zip(&paths) {
        path.works().with_context(|| (*title).to_owned())?;
    }
    let seconds = time.as_secs_f64();
    let rows = interleaved(rounds, FIGURES, &CONTENDERS.map(str::to_owned), |column| {
        let path = &paths[column];
        let streamed = bulk(path, ONE_CPU, seconds, &[])?;
        let [rate, p50] = *ping_pong(path, seconds, &[])?.first_chunk().context("ping-pong without figures")?;
        Ok(vec![streamed, rate, p50, connections(path, seconds)?])
    })?;
    let runs: Runs = rows.iter().map(|row| (0..CONTENDERS.len()).map(|column| row.runs(column).to_vec()).collect()).collect();
    println!("{}", serde_json::to_string(&runs)?);
    Ok(())
}

/// Labs and tunnels; they go when this is dropped.
struct Bed {
    _switches: Vec<OpenVswitch>,
    _wireguard: Vec<Running>,
    bare: Lab,
    odp: Lab,
    ebpf: Lab,
}

impl Bed {
    fn make() -> Result<Self> {
        let config = |name: &str| LabConfig { containers: 2, underlay: Underlay::Direct, ..LabConfig::named(name) };
        let ours = |datapath: &str| LabConfig { launch: vec!["--datapath".to_owned(), datapath.to_owned()], ..config(datapath) };
        let bare = Lab::scenario(config("bare").without_agents())?;
        rivals::bridge(&bare)?;
        let (wireguard, switches) = (rivals::wireguard(&bare, rivals::in_kernel)?, rivals::openvswitch(&bare)?);
        let bed =
            Self { bare, odp: Lab::scenario(ours("odp"))?, ebpf: Lab::scenario(ours("ebpf"))?, _wireguard: wireguard, _switches: switches };
        [&bed.odp, &bed.ebpf].into_iter().try_for_each(Lab::meshed)?;
        [&bed.bare, &bed.odp, &bed.ebpf].into_iter().try_for_each(settle)?;
        Ok(bed)
    }

    /// In the order of [`CONTENDERS`].
    fn paths(&self) -> Result<Vec<Path<'_>>> {
        let hosts = [Place::Host(1), Place::Host(2)];
        let containers = |number| [Place::Container(1, number), Place::Container(2, number)];
        let overlay = |lab: &Lab| lab.overlay_address("h2c1").map(|address| address.to_string());
        let all = [
            (&self.bare, hosts, self.bare.host(2)?.address().to_string()),
            (&self.bare, containers(1), BRIDGED[1].to_owned()),
            (&self.bare, hosts, SEALED[1].to_owned()),
            (&self.bare, containers(2), SWITCHED[1].to_owned()),
            (&self.odp, containers(1), overlay(&self.odp)?),
            (&self.ebpf, containers(1), overlay(&self.ebpf)?),
        ];
        all.into_iter().map(|(lab, [from, to], address)| Ok(Path { from: lab.node(from)?, to: lab.node(to)?, address })).collect()
    }
}
