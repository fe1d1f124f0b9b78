//! What an agent costs while nothing is asked of it, in networks of a few and of many hosts: real agents, all linked to all.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};
use std::{iter, thread};

use anyhow::{Context, Result};
use serde_json::Value;
use vm_tests::{Host, Lab, LabConfig, Underlay, wait_for};

use crate::bench::Bench;
use crate::bench::measure::{agent_pid, cpu_seconds};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Row, Table};

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "peers", what: "Memory and CPU of an idle agent with 1, 19, 49 and 199 peers", work: Work::Alone(run) };

/// How many hosts there are, and whether only the first one has tunnels to all: two hundred agents that all speak with all are more than a
/// few processors keep up with.
const HOSTS: [(u8, bool); 4] = [(2, false), (20, false), (50, false), (200, true)];
/// Until all have tunnels to all.
const PATIENCE: Duration = Duration::from_secs(300);
/// Until what the start left to do is done: more than the switch's grace.
const CALM: Duration = Duration::from_secs(35);
/// They are looked at no more often than that: at rest the looks hardly differ.
const LOOKS: usize = 2;
/// How long one look at their CPU time takes.
const LOOK: Duration = Duration::from_secs(10);

/// The gates are what the project promises.
const FIGURES: &[Figure] = &[
    Figure::new("Resident memory of an agent, the largest", "MB").gate(Gate::AtMost(60.0)),
    Figure::new("Kernel memory of its maps", "MB"),
    Figure::new("CPU of an idle agent, the mean", "% of a core").gate(Gate::AtMost(0.5)),
    Figure::new("Tunnels between all after the last start", "s"),
];

/// The one of them that is measured once.
const LINKED: usize = FIGURES.len() - 1;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let columns = HOSTS.map(|(hosts, star)| format!("{hosts} hosts{}", if star { ", a star" } else { "" })).to_vec();
    let all = HOSTS.map(|(hosts, star)| measure(hosts, star, bench.rounds.min(LOOKS)).with_context(|| format!("{hosts} hosts")));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    let row = |(at, figure): (usize, &Figure)| Row::of(figure, all.iter().map(|figures| figures[at].clone()).collect());
    let notes = vec![
        "Peers: every host is in a network of its own, linked to all others, without containers; in the star only the first is, and it is looked at \
         alone. What the kernel does for heartbeats is counted to the agent that sends them."
            .to_owned(),
    ];
    Ok(Table { scenario, columns, references: Vec::new(), rows: FIGURES.iter().enumerate().map(row).collect(), notes })
}

/// The runs of each of [`FIGURES`].
fn measure(hosts: u8, star: bool, rounds: usize) -> Result<Vec<Vec<f64>>> {
    // Behind a router each: all namespaces share one neighbour table, which all of them on one Ethernet would overflow.
    let config = LabConfig { hosts, containers: 0, star, underlay: Underlay::Routed, ..LabConfig::named("peers") };
    let lab = Lab::scenario(config)?;
    let others = usize::from(hosts) - 1;
    let hosts = (1..=if star { 1 } else { hosts }).map(|number| lab.host(number)).collect::<Result<Vec<_>>>()?;
    let linked = wait_for("tunnels to all hosts", PATIENCE, || all_linked(&hosts, others))?;
    thread::sleep(CALM);
    let pids = hosts.iter().map(agent_pid).collect::<Result<Vec<_>>>()?;
    let mut runs = vec![Vec::new(); FIGURES.len()];
    // It comes about once, however often they are looked at then.
    runs[LINKED].push(linked.as_secs_f64());
    for _ in 0..rounds {
        let (before, begun) = (cpu_seconds(&pids), Instant::now());
        thread::sleep(LOOK);
        let spent = cpu_seconds(&pids).iter().sum::<f64>() - before.iter().sum::<f64>();
        let resident = pids.iter().map(|pid| resident(*pid)).collect::<Result<Vec<_>>>()?;
        let figures =
            [resident.into_iter().fold(0.0, f64::max), maps(pids[0])?, 100.0 * spent / begun.elapsed().as_secs_f64() / pids.len() as f64];
        iter::zip(&mut runs, figures).for_each(|(runs, figure)| runs.push(figure));
    }
    Ok(runs)
}

/// Each of these hosts to so many others.
fn all_linked(hosts: &[Host<'_>], others: usize) -> Result<bool> {
    hosts.iter().try_fold(true, |all, host| Ok(all && working(host)? == others))
}

/// How many hosts this one has a working tunnel to.
fn working(host: &Host<'_>) -> Result<usize> {
    let text = host.weave(["status", "connections", "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("connections of {}: {text}", host.place()))?;
    Ok(all.iter().filter(|entry| entry["state"] == "established" && entry["tunnel"]["kind"] == "vxlan").count())
}

/// In MB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("agent {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS {line}"))?;
    Ok(kb / 1024.0)
}

/// What the kernel says it has for the BPF maps of a process, in MB.
fn maps(pid: u32) -> Result<f64> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut of_map = BTreeMap::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.clone())? {
        // A descriptor may be gone by now.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok();
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            of_map.insert(id, bytes);
        }
    }
    Ok(of_map.values().sum::<u64>() as f64 / (1 << 20) as f64)
}
