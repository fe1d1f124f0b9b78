//! BIG TCP: segments of up to 192 kB, next to host to host with the usual 64 kB and with as much.

use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::{Lab, LabConfig, Place, Underlay, wait_for};

use crate::bench::Bench;
use crate::bench::bed::Path;
use crate::bench::compare::interleaved;
use crate::bench::conditions::settle;
use crate::bench::measure::{ONE_CPU, bulk};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Table};

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "big-tcp", what: "One TCP stream with --big-tcp, next to host to host with and without", work: Work::Alone(run) };

const FIGURES: &[Figure] = &[Figure::new("TCP bulk, BIG TCP", "Gbit/s").gate(Gate::Ratios(&[1.1]))];

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let config = |name| LabConfig { containers: 1, underlay: Underlay::Direct, ..LabConfig::named(name) };
    let usual = Lab::scenario(config("usual").without_agents())?;
    let big = Lab::scenario(LabConfig { launch: vec!["--big-tcp".to_owned()], ..config("big") })?;
    let ways = [("host to host", hosts(&usual)?), ("host to host, BIG TCP", hosts(&big)?), ("weave-agent --big-tcp", containers(&big)?)];
    ways.iter().try_for_each(|(_, path)| path.works())?;
    [&usual, &big].into_iter().try_for_each(settle)?;
    wait_for("--big-tcp to be in force", Duration::from_secs(20), || in_force(&big, &ways[2].1))?;
    let columns = ways.iter().map(|(title, _)| (*title).to_owned()).collect::<Vec<_>>();
    let rows = interleaved(bench.rounds, FIGURES, &columns, |column| {
        let (title, path) = &ways[column];
        Ok(vec![bulk(path, ONE_CPU, bench.seconds, &[]).with_context(|| (*title).to_owned())?])
    })?;
    Ok(Table { scenario, columns, references: vec![0], rows, notes: Vec::new() })
}

/// Whether long segments come out of the cable. Agents say it to interfaces a moment after containers and neighbours are there.
fn in_force(lab: &Lab, path: &Path<'_>) -> Result<bool> {
    let mut capture = lab.host(2)?.spawn(["tcpdump", "-n", "-i", "eth0", "-c", "20", "udp port 6784 and greater 70000"])?;
    wait_for("tcpdump to listen", Duration::from_secs(5), || Ok(capture.written()?.contains("listening on")))?;
    bulk(path, ONE_CPU, 1.0, &[])?;
    Ok(capture.ended()?.is_some())
}

fn hosts(lab: &Lab) -> Result<Path<'_>> {
    Ok(Path { from: lab.node(Place::Host(1))?, to: lab.node(Place::Host(2))?, address: lab.host(2)?.address().to_string() })
}

fn containers(lab: &Lab) -> Result<Path<'_>> {
    let (from, to) = (lab.node(Place::Container(1, 1))?, lab.node(Place::Container(2, 1))?);
    Ok(Path { from, to, address: lab.overlay_address("h2c1")?.to_string() })
}
