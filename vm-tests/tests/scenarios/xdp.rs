//! Strangers' packets end in the driver where that is asked for, and nobody else's do.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{Host, LabConfig, Node, root_or_skip, wait_for};

use crate::observe::{SOON, Stream, count, lab, pid, ping, pinged, traffic};

/// VXLAN packets that a stranger sends at a time.
const FLOOD: u64 = 2_000;
/// What may come to the vxlan device meanwhile: neighbours' ARP, and what is no IP.
const FEW: u64 = 200;

/// What its status says of its underlay.
fn says(host: &Host<'_>, words: &str) -> Result<()> {
    wait_for(&format!("status to say {words:?}"), SOON, || {
        let status = host.status()?;
        let lines = status["xdp"].as_array().context("status has no xdp")?;
        Ok(lines.iter().any(|line| line.as_str().is_some_and(|line| line.starts_with("eth0: ") && line.contains(words))))
    })
    .map(drop)
}

/// Whether its underlay has a program in the driver.
fn has_program(host: &Node<'_>) -> Result<bool> {
    Ok(host.exec(["ip", "-d", "link", "show", "dev", "eth0"])?.contains("prog/xdp"))
}

/// Sends what a neighbour's would be, were it one.
fn flood(stranger: &Node<'_>, to: &Host<'_>) -> Result<()> {
    let to = format!("{}:6784", to.address());
    stranger.exec([traffic()?.as_str(), "vxlan", "--to", &to, "--vni", "0,4097", "--count", &(FLOOD / 2).to_string()]).map(drop)
}

#[test]
fn strangers_end_in_the_driver_whoever_runs_and_neighbours_lose_nothing() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let launch = ["--xdp", "filter"].map(str::to_owned).to_vec();
    let lab = lab(LabConfig { hosts: 3, containers: 1, launch, ..LabConfig::named("xdp") })?;
    let [h1, h2, h3] = [lab.host(1)?, lab.host(2)?, lab.host(3)?];
    says(&h1, "end in the driver")?;
    ensure!(has_program(&h1)?, "no program on eth0");
    // h3 was a peer once.
    h3.weave(["reset"])?;
    ensure!(!has_program(&h3)?, "reset left a program on eth0");
    wait_for("h3 to be forgotten", SOON, || Ok(h1.status()?["peers"] == 2 && h2.status()?["peers"] == 2))?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;

    let before = (count(&h1, "stranger")?, count(&h1, "vxlan-in")?);
    let (pings, datagrams) = (ping(&from, to, 600, "0.01")?, Stream::udp(&lab, "h1c1", "h2c1", 6)?);
    flood(&h3, &h1)?;
    kill(Pid::from_raw(pid(&h1)?), Signal::SIGKILL)?;
    wait_for("the agent to end", SOON, || Ok(h1.status().is_err()))?;
    ensure!(has_program(&h1)?, "it went with the agent");
    flood(&h3, &h1)?;
    // As it was told last.
    h1.weave(["launch"])?;
    says(&h1, "end in the driver")?;
    flood(&h3, &h1)?;
    pinged(pings)?.lossless()?;
    datagrams.lossless()?;
    let after = (count(&h1, "stranger")?, count(&h1, "vxlan-in")?);
    ensure!(after.0 - before.0 >= 3 * FLOOD, "{} of {} were counted", after.0 - before.0, 3 * FLOOD);
    ensure!(after.1 - before.1 <= FEW, "{} came to the vxlan device", after.1 - before.1);

    for (choice, says_so) in [("off", None), ("auto", Some("veth"))] {
        h1.weave(["stop"])?;
        h1.weave(["launch", "--xdp", choice])?;
        lab_of_two(&h1, &h2)?;
        says_so.map_or(Ok(()), |words| says(&h1, words))?;
        wait_for("no program on eth0", SOON, || Ok(!has_program(&h1)?))?;
        flood(&h3, &h1)?;
    }
    pinged(ping(&from, to, 50, "0.02")?)?.lossless()?;
    // The vxlan device saw those.
    ensure!(count(&h1, "vxlan-in")? - after.1 >= 2 * FLOOD, "who dropped them?");
    h2.weave(["reset"])?;
    ensure!(!has_program(&h2)?, "reset left a program on eth0");
    Ok(())
}

fn lab_of_two(h1: &Host<'_>, h2: &Host<'_>) -> Result<()> {
    wait_for("both hosts to be one network", SOON, || Ok(h1.sees_all(2)? && h2.sees_all(2)?)).map(drop)
}
