//! A container that floods with random MACs costs the others nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Lab, LabConfig, root_or_skip};

use crate::observe::{count, lab, listener, memory, traffic};

/// Gbit/s of one stream, both ends on CPU 0.
fn stream(lab: &Lab) -> Result<f64> {
    let server = listener(lab, "h2c1", &["taskset", "-c", "0"])?;
    let to = lab.overlay_address("h2c1")?.to_string();
    let text = lab.container("h1c1")?.exec(["taskset", "-c", "0", "iperf3", "-c", &to, "-C", "cubic", "-t", "4", "-J"])?;
    server.finish()?;
    let result: Value = serde_json::from_str(&text)?;
    result.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64).map(|bits| bits / 1e9).context("iperf3's result")
}

#[test]
fn a_flood_of_random_macs_leaves_other_flows_alone() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 2, ..LabConfig::named("flood") })?;
    let quiet = stream(&lab)?;
    let program = traffic()?;
    // The flood keeps to the other CPU, as a noisy neighbour with a CPU quota would.
    let words = ["taskset", "-c", "1", &program, "flood", "--per-second", "100000", "--seconds", "10"];
    let flood = lab.container("h1c2")?.spawn(words)?;
    std::thread::sleep(Duration::from_secs(1));
    let loud = stream(&lab)?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    let used = memory(&h1)?.max(memory(&h2)?);
    println!("one stream: {quiet:.1} Gbit/s, beside the flood {loud:.1} ({:.2}); agents use {} MB", loud / quiet, used >> 20);
    println!("flood: {}", flood.finish()?.trim());
    ensure!(used < 200 << 20, "an agent uses {used} bytes");
    let dropped = count(&h1, "upcall-rate")?;
    ensure!(dropped > 100_000, "only {dropped} upcalls were refused");
    // Two single runs differ by more than the flood costs: here the stream only must not collapse, and the figures are printed.
    ensure!(loud > quiet / 2.0, "{loud} Gbit/s instead of {quiet}");
    Ok(())
}
