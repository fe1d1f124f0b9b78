//! The most datagrams that arrive with less than 1 % lost, found by search: a flood says what is left of too many, which is
//! another question.

use anyhow::Result;

use crate::bench::bed::Path;
use crate::bench::measure::{TWO_CPUS, ends, number};
use crate::bench::scenario::{Comparison, Scenario, Traffic, Work};
use crate::bench::table::Figure;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "packets",
    what: "The most UDP datagrams of 64, 512 and 1,400 bytes with under 1 % lost, found by search",
    work: Work::Compare(Comparison::between_hosts(&[
        Traffic { figures: &[Figure::new("UDP 64 B, under 1 % lost", "kpps")], measure: |path, seconds| searched(path, 64, seconds) },
        Traffic { figures: &[Figure::new("UDP 512 B, under 1 % lost", "kpps")], measure: |path, seconds| searched(path, 512, seconds) },
        Traffic { figures: &[Figure::new("UDP 1,400 B, under 1 % lost", "kpps")], measure: |path, seconds| searched(path, 1400, seconds) },
    ])),
};

/// Share of those sent that may be lost.
const LOST: f64 = 0.01;
/// Datagrams per second that are tried first.
const FIRST: f64 = 100_000.0;
/// The search ends when the bounds are this close.
const CLOSE: f64 = 1.04;
/// A source that sends less than this share of what it was asked for cannot send more.
const KEPT_UP: f64 = 0.97;
/// A trial takes this share of a run.
const TRIAL: f64 = 0.2;
/// Bytes that may wait at the receiver: some milliseconds, which are no more than those 1 % of a trial.
const ROOM: usize = 1 << 19;

/// What one trial gave.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trial {
    /// Received per second.
    received: f64,
    is_good: bool,
    /// The source sent as many as it was asked for.
    kept_up: bool,
}

fn searched(path: &Path<'_>, size: usize, seconds: f64) -> Result<Vec<f64>> {
    Ok(vec![search(|rate| trial(path, size, rate, seconds * TRIAL))? / 1e3])
}

/// Doubles the rate until it is too much, then halves the distance.
fn search(mut trial: impl FnMut(f64) -> Result<Trial>) -> Result<f64> {
    let (mut good, mut bad, mut best, mut rate) = (0.0, f64::INFINITY, 0.0_f64, FIRST);
    while bad > good * CLOSE && bad > 1.0 {
        let Trial { received, is_good, kept_up } = trial(rate)?;
        if is_good {
            good = rate;
            best = best.max(received);
        } else {
            bad = rate;
        }
        if is_good && !kept_up {
            break;
        }
        rate = if bad.is_finite() { f64::midpoint(good, bad) } else { 2.0 * rate };
    }
    Ok(best)
}

fn trial(path: &Path<'_>, size: usize, rate: f64, seconds: f64) -> Result<Trial> {
    let [size, at, seconds] = [size.to_string(), rate.to_string(), seconds.to_string()];
    let near = ["source", "--size", &size, "--rate", &at, "--seconds", &seconds];
    let result = ends(path, TWO_CPUS, &["sink", "--room", &ROOM.to_string()], &near)?;
    let [sent, received, time] = [number(&result, "/sent")?, number(&result, "/received")?, number(&result, "/seconds")?];
    Ok(Trial { received: received / time, is_good: received > sent * (1.0 - LOST), kept_up: sent / time > rate * KEPT_UP })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that takes `most` per second from a source that sends `able` at most.
    fn found(most: f64, able: f64) -> f64 {
        let trial = |rate: f64| {
            let sent = rate.min(able);
            Ok(Trial { received: sent.min(most), is_good: sent <= most, kept_up: sent > rate * KEPT_UP })
        };
        search(trial).unwrap()
    }

    #[test]
    fn the_search_finds_what_a_path_takes() {
        for most in [1_000.0, 50_000.0, 99_000.0, 100_000.0, 432_100.0, 3e6] {
            let found = found(most, 1e9);
            assert!(found <= most && found * CLOSE >= most, "{found} of {most}");
        }
    }

    #[test]
    fn a_source_that_cannot_send_more_ends_it() {
        assert_eq!(found(1e9, 480_000.0), 480_000.0);
    }

    #[test]
    fn a_path_that_takes_nothing_has_nothing() {
        assert_eq!(found(0.0, 1e9), 0.0);
    }
}
