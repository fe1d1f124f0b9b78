//! As many small datagrams as iperf3 can send; its sender and its receiver have a CPU each.

use anyhow::Result;

use crate::bench::bed::Path;
use crate::bench::measure::{TWO_CPUS, iperf, number};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::{Figure, Gate};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "udp",
    what: "A flood of 64-byte UDP datagrams, sender and receiver on two CPUs",
    work: Work::Compare(Comparison::between_hosts(&[Traffic {
        figures: &[Figure::new("UDP 64 B, two cores", "kpps").gate(Gate::Ratios(&[0.72, 1.65]))],
        measure: |path, seconds| flood(path, seconds).map(|figure| vec![figure]),
    }])),
};

/// Thousands received per second.
fn flood(path: &Path<'_>, seconds: f64) -> Result<f64> {
    let result = iperf(path, TWO_CPUS, seconds, &["-u", "-b", "0", "-l", "64"])?;
    let [sent, lost] = [number(&result, "/end/sum/packets")?, number(&result, "/end/sum/lost_packets")?];
    Ok((sent - lost) / number(&result, "/end/sum/seconds")? / 1e3)
}
