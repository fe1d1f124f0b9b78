//! `cargo xtask bench`: the same traffic over each contender in turn, interleaved in one run, medians and ratios.

mod against;
mod bed;
mod chart;
mod compare;
mod conditions;
mod heard;
mod measure;
pub(crate) mod node;
mod report;
mod rivals;
mod scenario;
mod scenarios;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use vm_tests::is_root;

use self::bed::{Base, Bed};
use self::scenario::{Scenario, Work};
use self::table::Table;
use crate::progress::{seconds, step};
use crate::workspace::Workspace;
use crate::{build_ebpf, packages, readme};

/// What contenders and measurements call.
const PROGRAMS: [&str; 11] = ["ip", "nft", "ss", "ping", "ethtool", "sysctl", "taskset", "tcpdump", "iperf3", "wireguard-go", "wg"];

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these; all by default
    #[arg(value_parser = scenario::names())]
    scenarios: Vec<String>,
    /// How often each contender runs each scenario
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one run takes
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Write every run and the medians here, not to target/bench/bench.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the tables of this run into README.md
    #[arg(long, conflicts_with = "scenarios")]
    readme: bool,
    /// Build the agent of this revision too, run it beside ours, and say what moved beyond noise
    #[arg(long, value_name = "REV", conflicts_with = "readme")]
    against: Option<String>,
}

/// What every scenario is told.
pub(crate) struct Bench<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// An agent of another revision that runs beside ours.
    pub(crate) base: Option<Base>,
}

/// Measures, prints the tables, writes the files.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(options.rounds >= 1 && options.seconds >= 0.1, "--rounds: at least 1; --seconds: at least 0.1");
    ensure!(is_root(), "bench needs root: it makes network namespaces");
    step("programs that are measured and measure", || packages::install_missing(&PROGRAMS))?;
    if !workspace.agent().exists() {
        build_ebpf::run(workspace, &build_ebpf::Options { no_install: true, ..Default::default() })?;
    }
    let base = options.against.as_deref().map(|revision| step("the other agent", || against::build(workspace, revision))).transpose()?;
    let bench = Bench { workspace, rounds: options.rounds, seconds: options.seconds, base };
    let started = Instant::now();
    let (tables, failures) = bench.all(&bench.chosen(&options.scenarios));
    write(workspace, options, &tables)?;
    let text = format!("{}\n{}", report::markdown(&tables), bench.note(options, started.elapsed()));
    println!("\n{text}");
    report::remarks(&tables).iter().chain(&bench.moved(&tables)).for_each(|remark| println!("{remark}"));
    ensure!(failures.is_empty(), "not measured: {}", failures.join("; "));
    if options.readme { readme::put(workspace, "bench", &text) } else { Ok(()) }
}

impl Bench<'_> {
    /// Those named, or all; with another agent, all that have a place for it.
    fn chosen(&self, names: &[String]) -> Vec<&'static Scenario> {
        let all = scenario::chosen(names).into_iter();
        all.filter(|scenario| self.base.is_none() || !names.is_empty() || matches!(scenario.work, Work::Compare(_))).collect()
    }

    /// What is other than at the other revision.
    fn moved(&self, tables: &[Table]) -> Vec<String> {
        let Some(base) = &self.base else { return Vec::new() };
        let moved = against::moved(tables, &base.title());
        if moved.is_empty() { vec![format!("nothing is other than at {}, beyond noise", base.revision)] } else { moved }
    }

    /// A scenario that fails costs the report nothing but itself.
    fn all(&self, scenarios: &[&'static Scenario]) -> (Vec<Table>, Vec<String>) {
        let (mut tables, mut failures, mut bed) = (Vec::new(), Vec::new(), None);
        for scenario in scenarios {
            let table = step(scenario.name, || {
                let table = self.measure(scenario, &mut bed)?;
                let outcome = format!("{} figures", table.rows.len());
                Ok((table, outcome))
            });
            match table {
                Ok(table) => {
                    if scenarios.len() > 1 {
                        println!("\n{}", report::markdown(std::slice::from_ref(&table)));
                    }
                    tables.push(table);
                }
                Err(error) => {
                    eprintln!("error: {}: {error:#}", scenario.name);
                    failures.push(format!("{}: {error:#}", scenario.name));
                }
            }
        }
        (tables, failures)
    }

    /// The test bed is made when the first one wants it, and goes when one wants to be alone.
    fn measure(&self, scenario: &'static Scenario, bed: &mut Option<Bed>) -> Result<Table> {
        match &scenario.work {
            Work::Alone(work) => {
                *bed = None;
                work(self, scenario.name)
            }
            Work::Compare(comparison) => {
                let bed = match bed.take() {
                    Some(there) => bed.insert(there),
                    None => bed.insert(Bed::make(self.base.as_ref())?),
                };
                compare::run(self, bed, scenario.name, comparison)
            }
        }
    }

    /// The line below the tables.
    fn note(&self, options: &Options, took: Duration) -> String {
        let words = if options.scenarios.is_empty() { String::new() } else { format!(" {}", options.scenarios.join(" ")) };
        let against = options.against.as_ref().map(|revision| format!(" --against {revision}")).unwrap_or_default();
        let command = format!("cargo xtask bench{words} --rounds {} --seconds {}{against}", self.rounds, self.seconds);
        let (kernel, cpus) = report::kernel_and_cpus();
        format!("One run of `{command}`, {}, Linux {kernel}, {cpus} CPUs, veth underlay, MTU 1550.", seconds(took))
    }
}

fn write(workspace: &Workspace, options: &Options, tables: &[Table]) -> Result<()> {
    let dir = workspace.own("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let json = report::json(tables, options_json(options));
    let file = options.json.clone().unwrap_or_else(|| dir.join("bench.json"));
    let chart = dir.join("bench.svg");
    for (file, text) in [(&file, serde_json::to_string_pretty(&json)?), (&chart, chart::svg(tables))] {
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}

fn options_json(options: &Options) -> Value {
    json!({ "scenarios": options.scenarios, "rounds": options.rounds, "seconds": options.seconds })
}
