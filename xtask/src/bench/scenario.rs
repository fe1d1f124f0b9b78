//! What can be measured, as a table: a new scenario is a new entry.

use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser};

use super::Bench;
use super::bed::{Course, Path};
use super::conditions::Conditions;
use super::scenarios::{
    big_tcp, bulk, connect, dns, latency, local, mesh, packets, peers, programs, scale, setup, sleeve, strangers, throughput, udp, vm,
};
use super::table::{Figure, Table};

/// One thing to measure.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// For `--help`.
    pub(crate) what: &'static str,
    pub(crate) work: Work,
}

pub(crate) enum Work {
    /// The same traffic over each contender of the test bed.
    Compare(Comparison),
    /// It has a bed of its own, or none.
    Alone(fn(&Bench<'_>, &'static str) -> Result<Table>),
}

/// What goes over each contender in turn, round by round.
pub(crate) struct Comparison {
    pub(crate) course: Course,
    pub(crate) conditions: Conditions,
    pub(crate) traffic: &'static [Traffic],
}

impl Comparison {
    /// Between two hosts, under the usual conditions.
    pub(crate) const fn between_hosts(traffic: &'static [Traffic]) -> Self {
        Self { course: Course::BetweenHosts, conditions: Conditions::USUAL, traffic }
    }
}

/// One kind of traffic, and the figures that a run of it gives.
pub(crate) struct Traffic {
    pub(crate) figures: &'static [Figure],
    /// As many figures, in their order; the second argument is how many seconds the run takes.
    pub(crate) measure: fn(&Path<'_>, f64) -> Result<Vec<f64>>,
}

/// In the order of the report: those that have the same contenders stand together, for they share a table.
pub(crate) const ALL: &[Scenario] = &[
    bulk::BULK,
    bulk::WIRE,
    throughput::SCENARIO,
    latency::SCENARIO,
    connect::SCENARIO,
    udp::SCENARIO,
    packets::SCENARIO,
    local::SCENARIO,
    big_tcp::SCENARIO,
    setup::SCENARIO,
    strangers::SCENARIO,
    programs::SCENARIO,
    scale::SCENARIO,
    peers::SCENARIO,
    mesh::SCENARIO,
    sleeve::SCENARIO,
    dns::SCENARIO,
    vm::SCENARIO,
];

/// The names, for the command line.
pub(crate) fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(ALL.iter().map(|scenario| PossibleValue::new(scenario.name).help(scenario.what)))
}

/// Those named, or all, in the order of the report.
pub(crate) fn chosen(names: &[String]) -> Vec<&'static Scenario> {
    ALL.iter().filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_scenarios_have_one_name() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn scenarios_are_run_in_the_order_of_the_report() {
        let names = |chosen: Vec<&Scenario>| chosen.iter().map(|scenario| scenario.name).collect::<Vec<_>>();
        assert_eq!(names(chosen(&["wire".into(), "bulk".into()])), ["bulk", "wire"]);
        assert_eq!(chosen(&[]).len(), ALL.len());
    }
}
