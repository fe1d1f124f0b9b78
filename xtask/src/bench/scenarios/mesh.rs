//! What a mesh of many peers says, and how long a change takes: simulated, so that many fit on one machine.

use anyhow::Result;
use vm_tests::process;

use crate::bench::Bench;
use crate::bench::heard::heard;
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Gate, Row, Table};

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "mesh", what: "Simulated meshes: what peers say at rest, and how long a change takes", work: Work::Alone(run) };

/// How many peers there are.
const PEERS: &str = "10,100,1000";
/// What the project promises for a thousand.
const MOST_BYTES: f64 = 5_000.0;
const MOST_MS: f64 = 5_000.0;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let test = || {
        let mut cargo = bench.workspace.cargo("test");
        cargo.args(["--release", "--package", "weave-agent", "--no-default-features", "--lib"]);
        cargo.args(["--", "mesh::scale::", "--nocapture", "--test-threads=1"]).env("MESH_PEERS", PEERS);
        process::output(&mut cargo)
    };
    // One seed is one run: a second would say the same.
    let rows = heard(1, test)?.into_iter().map(promised).collect();
    let notes =
        vec!["Meshes: links and gossip of topology in simulated time, without heartbeats of tunnels, addresses and names.".to_owned()];
    Ok(Table { scenario, columns: vec!["simulated".to_owned()], references: Vec::new(), rows, notes })
}

fn promised(row: Row) -> Row {
    match row.unit() {
        "ms" => row.gate(Gate::AtMost(MOST_MS)),
        _ => row.gate(Gate::AtMost(MOST_BYTES)),
    }
}
