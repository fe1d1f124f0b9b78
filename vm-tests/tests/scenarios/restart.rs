//! The data plane outlives the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{LabConfig, root_or_skip};

use crate::observe::{json, lab, listener, pid, ping, pinged};

#[test]
fn killed_and_restarted_agents_lose_no_packet_of_established_flows() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 2, ..LabConfig::named("kill") })?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    let server = listener(&lab, "h2c1", &[])?;
    let stream = from.spawn(["iperf3", "-c", &to.to_string(), "-C", "cubic", "-t", "14", "-b", "200M"])?;
    let pings = ping(&from, to, 1500, "0.01")?;
    std::thread::sleep(Duration::from_secs(2));
    for host in [&h1, &h2] {
        kill(Pid::from_raw(pid(host)?), Signal::SIGKILL)?;
    }
    std::thread::sleep(Duration::from_secs(4));
    h1.launch(&[])?;
    h2.launch(&[h1.address()])?;
    pinged(pings)?.lossless()?;
    stream.finish()?;
    server.finish()?;
    lab.meshed()?;
    // What is attached or new after that works too.
    let (from, to) = (lab.container("h1c2")?, lab.overlay_address("h2c2")?);
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    h1.weave(["detach", &lab.container("h1c2")?.netns()])?;
    h1.attach(2)?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    let ports = json(&h1, &["ps"])?;
    ensure!(ports.as_array().is_some_and(|ports| ports.len() == 2), "{ports}");
    Ok(())
}

#[test]
fn stop_leaves_established_flows_forwarding() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 1, ..LabConfig::named("stop") })?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    lab.host(1)?.weave(["stop"])?;
    lab.host(2)?.weave(["stop"])?;
    pinged(ping(&from, to, 200, "0.02")?)?.lossless()
}
