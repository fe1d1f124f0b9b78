//! The clock of the programs, which no time namespace moves.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How far this process's monotonic clock is ahead of the kernel's.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// Tells what `bpf_ktime_get_ns` would.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelClock {
    offset: i128,
}

impl KernelClock {
    pub(super) fn new() -> Self {
        // Kernels before 5.6 have no time namespaces, and no such file.
        let offsets = std::fs::read_to_string(OFFSETS).unwrap_or_default();
        Self { offset: monotonic(&offsets).unwrap_or(0) }
    }

    pub(super) fn now(self) -> Duration {
        let ours = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        shifted(ours, self.offset)
    }
}

fn shifted(ours: Duration, offset: i128) -> Duration {
    let nanos = i128::try_from(ours.as_nanos()).unwrap_or(i128::MAX).saturating_sub(offset);
    Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
}

/// Nanoseconds, from a line of clock, seconds and nanoseconds.
fn monotonic(offsets: &str) -> Option<i128> {
    let mut words = offsets.lines().find_map(|line| line.strip_prefix("monotonic"))?.split_whitespace();
    let mut number = || words.next()?.parse::<i128>().ok();
    Some(number()? * 1_000_000_000 + number()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_does_not_age_flows() {
        let offsets = "monotonic    90000000         5\nboottime     90000000         0\n";
        let offset = monotonic(offsets).unwrap();
        assert_eq!(shifted(Duration::from_secs(90_000_007), offset), Duration::new(6, 999_999_995));
        assert_eq!(monotonic("monotonic   -100   0\n"), Some(-100_000_000_000));
        assert_eq!((monotonic(""), monotonic("monotonic x 0")), (None, None));
        assert_eq!(shifted(Duration::from_secs(1), offset), Duration::ZERO);
    }
}
