//! The deterministic simulator: real routers and the real fast path on hosts and wires that are made up.
//!
//! `properties.rs` says what must hold. Environment: `SIM_SEED=n` runs one seed, `SIM_CASES=n` so many, `SIM_FIRST=n`
//! from that seed on, `SIM_LOG=1` prints what the agents log, `SIM_NO_SHRINK=1` leaves a failing case as it is.

mod agents;
mod carry;
mod case;
mod decode;
mod endings;
mod frame;
mod host;
mod ipsec;
mod kernel;
mod ledger;
mod links;
mod model;
mod mutants;
mod ops;
mod properties;
mod run;
mod scenarios;
mod settle;
mod shrink;
mod sleeve;
mod steps;
mod stream;
mod trace;
mod truth;
mod views;
mod ways;
mod wire;
mod world;

use std::time::Duration;

/// Cases in a release build, where the optimiser has done its work.
const CASES: u64 = 1000;
/// Cases in a debug build.
const DEBUG_CASES: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn generated_cases_keep_all_properties() {
    let default = if cfg!(debug_assertions) { DEBUG_CASES } else { CASES };
    let first = number("SIM_SEED").or(number("SIM_FIRST")).unwrap_or(1);
    let cases = if number("SIM_SEED").is_some() { 1 } else { number("SIM_CASES").unwrap_or(default) };
    let (mut frames, mut simulated, clock) = (0, Duration::ZERO, stopwatch());
    let mut failures = Vec::new();
    for seed in first..first + cases {
        match shrink::check(seed, None) {
            Ok(summary) => {
                frames += summary.frames;
                simulated += summary.time;
            }
            Err(failure) => {
                eprintln!("seed {seed}: {failure}");
                failures.push(seed);
            }
        }
    }
    let taken = clock.elapsed().as_secs_f64();
    println!("{cases} cases, {frames} frames, {simulated:.0?} simulated in {taken:.1} s: {:.1} cases/s", cases as f64 / taken);
    assert!(failures.is_empty(), "{} of {cases} cases failed: seeds {failures:?}", failures.len());
}

#[expect(clippy::disallowed_methods, reason = "measures the test itself; the simulated world never sees it")]
fn stopwatch() -> std::time::Instant {
    std::time::Instant::now()
}

#[test]
fn one_seed_is_one_run() {
    for seed in 1..=5 {
        let runs = [shrink::check(seed, None), shrink::check(seed, None)].map(|run| run.map_err(|failure| failure.to_string()));
        assert_eq!(runs[0], runs[1], "property 12 does not hold for seed {seed}");
    }
}
