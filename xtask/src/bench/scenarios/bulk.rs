//! One TCP stream, both ends on one CPU: what the path costs is what is missing.

use crate::bench::bed::Course;
use crate::bench::conditions::Conditions;
use crate::bench::measure::{ONE_CPU, bulk};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const BULK: Scenario = Scenario {
    name: "bulk",
    what: "One TCP stream, both ends on one CPU, offloads on",
    work: Work::Compare(Comparison::between_hosts(&[Traffic {
        figures: &[Figure::new("TCP bulk", "Gbit/s").gate(Gate::Ratios(&[0.97, 1.18]))],
        measure: |path, seconds| Ok(vec![bulk(path, ONE_CPU, seconds, &[])?]),
    }])),
};

pub(crate) const WIRE: Scenario = Scenario {
    name: "wire",
    what: "The same, segmented before it enters the underlay",
    work: Work::Compare(Comparison {
        course: Course::BetweenHosts,
        conditions: Conditions { wire: true, ..Conditions::USUAL },
        traffic: &[Traffic {
            figures: &[Figure::new("TCP bulk, wire mode", "Gbit/s").gate(Gate::Ratios(&[0.88, 1.05]))],
            measure: |path, seconds| Ok(vec![bulk(path, ONE_CPU, seconds, &[])?]),
        }],
    }),
};
