//! Hosts whose frames the openvswitch module carries, among others. On a kernel without the module these are skipped.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Host, Lab, LabConfig, root_or_skip, wait_for};
use weave_agent::io::datapath::odp::kernel::Kernel;

use crate::observe::{SOON, count, lab, pid, ping, pinged};

const ODP: &[&str] = &["--datapath", "odp"];
const USERSPACE: &[&str] = &["--datapath", "userspace"];

fn module_or_skip() -> bool {
    let there = Kernel::open().is_ok();
    if !there {
        println!("skipped: this kernel has no openvswitch module");
    }
    there
}

fn datapath(host: &Host<'_>) -> Result<String> {
    Ok(host.status()?["datapath"].as_str().context("status has no datapath")?.to_owned())
}

#[test]
fn containers_on_hosts_of_all_three_kinds_talk() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 3, ..LabConfig::named("three") };
    let lab = lab(config.launching(1, ODP).launching(3, USERSPACE))?;
    for (number, kind) in [(1, "odp"), (2, "ebpf"), (3, "userspace")] {
        ensure!(datapath(&lab.host(number)?)?.starts_with(kind), "{}", datapath(&lab.host(number)?)?);
    }
    // One after another: an emulated processor is late for what all begin at once.
    for (from, to) in [("h1c1", "h2c1"), ("h1c1", "h3c1"), ("h2c1", "h1c1"), ("h2c1", "h3c1"), ("h3c1", "h1c1"), ("h3c1", "h2c1")] {
        pinged(ping(&lab.container(from)?, lab.overlay_address(to)?, 50, "0.02")?)?
            .lossless()
            .with_context(|| format!("{from} to {to}"))?;
    }
    let h1 = lab.host(1)?;
    let listed = h1.weave(["odp", "flow", "list", "weave-odp"])?;
    ensure!(listed.contains("tunnel(") && listed.contains("output("), "{listed}");
    // Somebody else's datapath in the same namespace stays as it is.
    h1.weave(["odp", "datapath", "add", "theirs"])?;
    h1.weave(["reset"])?;
    let left = h1.weave(["odp", "datapath", "list"])?;
    ensure!(left.contains("theirs") && !left.contains("weave-odp"), "{left}");
    Ok(())
}

#[test]
fn the_module_relays_and_its_agent_is_not_asked() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 3, containers: 1, ..LabConfig::named("orelay") }.launching(2, ODP);
    let mut lab = Lab::scenario(config.without_agents())?;
    lab.cut(1, 3)?;
    lab.start_agents(None)?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h3c1")?);
    wait_for("a way through h2", SOON, || from.reaches(to))?;
    let upcalls = count(&lab.host(2)?, "upcalls")?;
    pinged(ping(&from, to, 200, "0.02")?)?.lossless()?;
    let more = count(&lab.host(2)?, "upcalls")? - upcalls;
    ensure!(more < 20, "h2's agent was asked {more} times about 400 packets");
    Ok(())
}

#[test]
fn an_agent_of_the_module_s_that_is_killed_and_comes_back_loses_nothing() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 2, containers: 1, ..LabConfig::named("okill") };
    let lab = lab(config.launching(1, ODP))?;
    let (h1, from, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    let running = ping(&from, to, 200, "0.05")?;
    let before = pid(&h1)?;
    h1.exec(["kill", "-9", &before.to_string()])?;
    thread::sleep(Duration::from_secs(3));
    h1.weave(["launch", "--datapath", "odp"])?;
    ensure!(pid(&h1)? != before, "the same agent");
    pinged(running)?.lossless()
}
