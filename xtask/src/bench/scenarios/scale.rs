//! What a packet costs by the number of flows: a test of the programs knows, and prints it.

use anyhow::{Context, Result};

use crate::bench::Bench;
use crate::bench::heard::{heard, tests_of_programs};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Gate, Row, Table};

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "scale", what: "ns per packet with 1,000 to 1,000,000 flows in the table, by test run", work: Work::Alone(run) };

const FLOWS: [&str; 4] = ["1000", "10000", "100000", "1000000"];
/// Which packets come: the same again and again, or each flow's in its turn, so that no cache of the CPU has what is looked up.
const KINDS: [&str; 2] = ["one pair", "pairs in turn"];
/// To fill the largest table takes longer than all measuring, and each figure is a median already.
const ROUNDS: usize = 2;
/// What the project promises of the largest table, next to the smallest.
const MOST: f64 = 1.10;

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let test = || tests_of_programs(bench, "scale::", &[("PROGRAMS_FLOWS", &FLOWS.join(","))]);
    let heard = heard(bench.rounds.min(ROUNDS), test)?;
    let of = |flows: &str, kind: &str| {
        let label = format!("from_port among {flows} flows, {kind}");
        let row = heard.iter().find(|row| row.label() == label);
        Ok(row.with_context(|| format!("the test did not say {label}"))?.runs(0).to_vec())
    };
    let row = |kind: &&str| {
        let runs = FLOWS.iter().map(|flows| of(flows, kind)).collect::<Result<Vec<_>>>()?;
        Ok(Row::new(format!("from_port, {kind}"), "ns", runs).gate(Gate::RatioAtMost(MOST)))
    };
    let columns = FLOWS.iter().map(|flows| format!("{flows} flows")).collect();
    let notes =
        vec!["Flows: with pairs in turn nothing of the table is in the CPU's caches, which is the price of any large table.".to_owned()];
    Ok(Table { scenario, columns, references: vec![0], rows: KINDS.iter().map(row).collect::<Result<_>>()?, notes })
}
