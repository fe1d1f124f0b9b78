//! One byte there and back, both ends on one CPU, so that waking another does not drown what the path adds.

use anyhow::Result;

use crate::bench::bed::Path;
use crate::bench::measure::{ONE_CPU, ends, number};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "latency",
    what: "TCP and UDP ping-pong, both ends on one CPU",
    work: Work::Compare(Comparison::between_hosts(&[
        Traffic {
            figures: &[
                Figure::new("TCP ping-pong", "thousand/s").gate(Gate::Ratios(&[0.80, 1.30])),
                Figure::new("TCP ping-pong, p50", "µs"),
                Figure::new("TCP ping-pong, p99", "µs"),
                Figure::new("TCP ping-pong, p50 added one way", "µs").added_one_way().gate(Gate::AtMost(0.8)),
            ],
            measure: |path, seconds| ping_pong(path, seconds, &[]),
        },
        Traffic {
            figures: &[
                Figure::new("UDP ping-pong", "thousand/s"),
                Figure::new("UDP ping-pong, p50", "µs"),
                Figure::new("UDP ping-pong, p99", "µs"),
                Figure::new("UDP ping-pong, p50 added one way", "µs").added_one_way(),
            ],
            measure: |path, seconds| ping_pong(path, seconds, &["--udp"]),
        },
    ])),
};

/// Thousands per second, p50 and p99 of the round trip, and p50 again for what is added.
pub(super) fn ping_pong(path: &Path<'_>, seconds: f64, options: &[&str]) -> Result<Vec<f64>> {
    let seconds = seconds.to_string();
    let result = ends(path, ONE_CPU, &[&["pong"], options].concat(), &[&["ping", "--seconds", &seconds], options].concat())?;
    let [rate, p50, p99] = [number(&result, "/per_second")?, number(&result, "/p50_us")?, number(&result, "/p99_us")?];
    Ok(vec![rate / 1e3, p50, p99, p50])
}
