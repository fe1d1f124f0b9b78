//! Two containers on one host next to two that are joined by one cable.

use anyhow::Result;

use super::latency::ping_pong;
use crate::bench::bed::Course;
use crate::bench::conditions::Conditions;
use crate::bench::measure::{ONE_CPU, bulk};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "local",
    what: "Two containers on one host next to one bare veth pair, both ends on one CPU",
    work: Work::Compare(Comparison {
        course: Course::OnOneHost,
        conditions: Conditions::USUAL,
        traffic: &[
            Traffic {
                figures: &[Figure::new("one host: TCP bulk", "Gbit/s").gate(Gate::Ratios(&[0.90]))],
                measure: |path, seconds| Ok(vec![bulk(path, ONE_CPU, seconds, &[])?]),
            },
            Traffic {
                figures: &[
                    Figure::new("one host: TCP ping-pong", "thousand/s").gate(Gate::Ratios(&[0.90])),
                    Figure::new("one host: TCP ping-pong, p50", "µs"),
                    Figure::new("one host: TCP ping-pong, p99", "µs"),
                    Figure::new("one host: p50 added one way", "µs").added_one_way(),
                ],
                measure: |path, seconds| -> Result<_> { ping_pong(path, seconds, &[]) },
            },
        ],
    }),
};
