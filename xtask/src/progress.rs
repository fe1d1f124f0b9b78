//! What is being done, and how long it took.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Does one step of a longer job: says what it is, then what came of it and when.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    println!("==> {name}");
    let started = Instant::now();
    let (value, outcome) = work()?;
    println!("    {outcome} [{}]", seconds(started.elapsed()));
    Ok(value)
}

/// A duration as these commands print it.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
