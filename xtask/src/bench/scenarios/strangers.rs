//! What strangers' packets cost those of the network: one host is flooded while it receives from a neighbour.

use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Lab, LabConfig, Node, Place, Underlay, process};

use super::latency::ping_pong;
use crate::bench::Bench;
use crate::bench::bed::Path;
use crate::bench::compare::interleaved;
use crate::bench::conditions::{CPUS, settle, steer};
use crate::bench::measure::{ONE_CPU, bulk, number, this_program};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Table};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "strangers",
    what: "What a flood of strangers' VXLAN takes from a neighbour's traffic, by --xdp",
    work: Work::Alone(run),
};

/// What the agents are launched with, and the figures of that.
const MODES: [(&str, [Figure; 3]); 2] = [
    (
        "off",
        [
            Figure::new("--xdp off: TCP bulk", "Gbit/s"),
            Figure::new("--xdp off: TCP ping-pong", "thousand/s"),
            Figure::new("--xdp off: strangers' packets", "thousand/s"),
        ],
    ),
    (
        "filter",
        [
            Figure::new("--xdp filter: TCP bulk", "Gbit/s").gate(Gate::Ratios(&[0.90])),
            Figure::new("--xdp filter: TCP ping-pong", "thousand/s").gate(Gate::Ratios(&[0.90])),
            Figure::new("--xdp filter: strangers' packets", "thousand/s"),
        ],
    ),
];
/// The second host's, beside that which the network knows.
const STRANGER: &str = "10.99.0.77";
/// The port of VXLAN.
const PORT: u16 = 6784;
/// Packets of strangers per second: as many as one CPU makes and hands to the other in either mode.
const RATE: &str = "250000";
/// The flood begins so long before what it is to disturb.
const BEFORE: f64 = 0.3;
/// It goes on for so much longer than a run takes: what starts and ends one takes its time, too.
const LONGER: f64 = 3.0;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let labs = MODES.map(|(mode, _)| make(mode)).into_iter().collect::<Result<Vec<_>>>()?;
    let columns = ["alone", "beside strangers"].map(str::to_owned).to_vec();
    let figures = MODES.map(|(_, figures)| figures).concat();
    let rows = interleaved(bench.rounds, &figures, &columns, |column| {
        let all = labs.iter().map(|lab| measure(lab, bench.seconds, column == 1)).collect::<Result<Vec<_>>>()?;
        Ok(all.concat())
    })?;
    let notes = vec![
        "Strangers: one CPU has both ends and takes all that comes to the hosts, as from a card with one queue; the other one only makes the \
         strangers' packets."
            .to_owned(),
    ];
    Ok(Table { scenario, columns, references: vec![0], rows, notes })
}

/// Two hosts, everything that comes to them on the first CPU.
fn make(mode: &str) -> Result<Lab> {
    let launch = ["--xdp", mode].map(str::to_owned).to_vec();
    let lab =
        Lab::scenario(LabConfig { containers: 1, underlay: Underlay::Direct, launch, ..LabConfig::named(&format!("strangers{mode}")) })?;
    lab.meshed()?;
    settle(&lab)?;
    for number in [1, 2] {
        let host = lab.node(Place::Host(number))?;
        // With a program in the driver a veth has NAPI; without, whoever sends puts it into the backlog of a CPU.
        if mode == "off" { steer(&host, 1)? } else { by_thread(&host)? }
    }
    let far = lab.host(2)?;
    far.exec(["ip", "address", "add", &format!("{STRANGER}/32"), "dev", "eth0"])?;
    // Cut apart before the cable: they are packets of many machines.
    far.exec(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])?;
    Ok(lab)
}

/// What comes to this host is taken by a thread on the first CPU (NAPI, `napi.rst`, "Threaded NAPI") instead of by whoever sent it.
fn by_thread(host: &Node<'_>) -> Result<()> {
    let before = takers()?;
    let script = "echo 1 > /sys/class/net/eth0/threaded";
    process::output(Command::new("ip").args(["netns", "exec", &host.netns(), "sh", "-ec", script]))?;
    let new: Vec<_> = takers()?.into_iter().filter(|pid| !before.contains(pid)).collect();
    ensure!(!new.is_empty(), "no thread takes what comes to {}", host.place());
    let told = |program: &str, words: [&str; 3], pid: &str| process::output(Command::new(program).args(words).arg(pid)).map(drop);
    new.iter().try_for_each(|pid| {
        told("taskset", ["-c", "-p", CPUS[0]], pid)?;
        // Before any process, as interrupts are.
        told("chrt", ["--fifo", "--pid", "1"], pid)
    })
}

/// The threads that take what comes to some interface.
fn takers() -> Result<Vec<String>> {
    let is_taker = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("napi/eth0"));
    let names = fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
    Ok(names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(is_taker).collect())
}

/// The figures of one mode: the flood is between the two hosts that also have the traffic, and ends at the first one.
fn measure(lab: &Lab, seconds: f64, flooded: bool) -> Result<Vec<f64>> {
    let (from, to) = (lab.node(Place::Container(2, 1))?, lab.node(Place::Container(1, 1))?);
    let path = Path { from, to, address: lab.overlay_address("h1c1")?.to_string() };
    path.works()?;
    let (streamed, first) = beside(lab, seconds, flooded, || bulk(&path, ONE_CPU, seconds, &[]))?;
    let (played, second) = beside(lab, seconds, flooded, || ping_pong(&path, seconds, &[]))?;
    let rounds = *played.first().context("ping-pong without figures")?;
    Ok(vec![streamed, rounds, f64::midpoint(first, second)])
}

/// Does this while strangers send, or nobody does; also how many thousand packets they sent per second.
fn beside<T>(lab: &Lab, seconds: f64, flooded: bool, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    if !flooded {
        return Ok((work()?, 0.0));
    }
    let (this, to, time) = (this_program()?, format!("{}:{PORT}", lab.host(1)?.address()), seconds.ceil() + LONGER);
    let seconds = time.to_string();
    let words =
        ["taskset", "-c", CPUS[1], &this, "bench-node", "strangers", &to, "--from", STRANGER, "--rate", RATE, "--seconds", &seconds];
    let begun = Instant::now();
    let strangers = lab.host(2)?.spawn(words)?;
    thread::sleep(Duration::from_secs_f64(BEFORE));
    let done = work()?;
    ensure!(begun.elapsed().as_secs_f64() < time, "the strangers were silent before what they are to disturb had ended");
    let said: Value = serde_json::from_str(&strangers.finish()?).context("the strangers wrote no JSON")?;
    Ok((done, number(&said, "/sent")? / number(&said, "/seconds")? / 1e3))
}
