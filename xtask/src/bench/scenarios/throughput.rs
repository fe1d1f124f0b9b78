//! TCP by iperf3 with a CPU for each host, as on two machines: what comes to a host is taken by its own CPU.

use crate::bench::bed::Course;
use crate::bench::conditions::Conditions;
use crate::bench::measure::{TWO_CPUS, bulk};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "throughput",
    what: "One and four TCP streams, both directions, a CPU for each host (RPS)",
    work: Work::Compare(Comparison {
        course: Course::BetweenHosts,
        conditions: Conditions { steered: true, ..Conditions::USUAL },
        traffic: &[
            Traffic {
                figures: &[Figure::new("TCP bulk, two cores with RPS", "Gbit/s").gate(Gate::Ratios(&[1.00, 1.15]))],
                measure: |path, seconds| Ok(vec![bulk(path, TWO_CPUS, seconds, &[])?]),
            },
            Traffic {
                figures: &[Figure::new("the same, received", "Gbit/s")],
                measure: |path, seconds| Ok(vec![bulk(path, TWO_CPUS, seconds, &["-R"])?]),
            },
            Traffic {
                figures: &[Figure::new("4 streams, two cores with RPS", "Gbit/s")],
                measure: |path, seconds| Ok(vec![bulk(path, TWO_CPUS, seconds, &["-P", "4"])?]),
            },
            Traffic {
                figures: &[Figure::new("4 streams, received", "Gbit/s")],
                measure: |path, seconds| Ok(vec![bulk(path, TWO_CPUS, seconds, &["-P", "4", "-R"])?]),
            },
        ],
    }),
};
