//! What the BPF programs cost a packet and the verifier: a test of theirs knows, and prints it.

use anyhow::Result;

use crate::bench::Bench;
use crate::bench::heard::{heard, tests_of_programs};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Gate, Row, Table};

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "programs", what: "ns per packet and instructions of each BPF program, by test run", work: Work::Alone(run) };

/// What the project promises of each of them.
const MOST_NS: f64 = 90.0;
const MOST_INSTRUCTIONS: f64 = 50_000.0;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let rows = heard(bench.rounds, || tests_of_programs(bench, "cost::", &[]))?.into_iter().map(promised).collect();
    let notes =
        vec!["Programs: test runs with a new packet each, the run of an empty program taken off; statistics are included.".to_owned()];
    Ok(Table { scenario, columns: vec!["this kernel".to_owned()], references: Vec::new(), rows, notes })
}

fn promised(row: Row) -> Row {
    match row.unit() {
        // The kernel's own: what of the programs' time is not theirs.
        "ns" if row.label().starts_with("helpers") => row,
        "ns" => row.gate(Gate::AtMost(MOST_NS)),
        "instructions" => row.gate(Gate::AtMost(MOST_INSTRUCTIONS)),
        _ => row,
    }
}
