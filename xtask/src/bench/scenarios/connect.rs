//! New TCP connections, both ends on one CPU.

use anyhow::Result;

use crate::bench::bed::Path;
use crate::bench::measure::{ONE_CPU, ends, number};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "connect",
    what: "New TCP connections, one after the other, both ends on one CPU",
    work: Work::Compare(Comparison::between_hosts(&[Traffic {
        figures: &[Figure::new("new TCP connections", "thousand/s").gate(Gate::Ratios(&[0.78, 1.38]))],
        measure: |path, seconds| connections(path, seconds).map(|figure| vec![figure]),
    }])),
};

/// Thousands per second.
pub(super) fn connections(path: &Path<'_>, seconds: f64) -> Result<f64> {
    let result = ends(path, ONE_CPU, &["serve"], &["connect", "--seconds", &seconds.to_string()])?;
    Ok(number(&result, "/per_second")? / 1e3)
}
