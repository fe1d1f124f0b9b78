//! A host whose agent carries the frames itself, among hosts whose kernels do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Host, LabConfig, root_or_skip, wait_for};

use crate::mesh::{everyone_pings_everyone, multicast_reaches_everybody_once};
use crate::observe::{SOON, count, datapath, lab, memory, pid, ping, pinged, stream};
use crate::relay::relays_unasked;

const USERSPACE: &[&str] = &["--datapath", "userspace"];

/// Whether the host has an interface of this kind.
fn has(host: &Host<'_>, kind: &str) -> Result<bool> {
    Ok(!host.exec(["ip", "-o", "link", "show", "type", kind])?.trim().is_empty())
}

#[test]
fn all_containers_of_a_mixed_mesh_talk_and_streams_cross() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 3, ..LabConfig::named("mixed") }.launching(2, USERSPACE))?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    ensure!(datapath(&h1)?.starts_with("ebpf") && datapath(&h2)?.starts_with("userspace"), "{} {}", datapath(&h1)?, datapath(&h2)?);
    ensure!(!has(&h2, "vxlan")?, "a host without programs needs no vxlan device");
    everyone_pings_everyone(&lab)?;
    multicast_reaches_everybody_once(&lab)?;
    let before = (memory(&h2)?, count(&h2, "upcalls")?);
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h1c1"), ("h2c1", "h2c2"), ("h1c1", "h3c1")] {
        let speed = stream(&lab, from, to, 4)?;
        println!("{from} -> {to}: {speed:.2} Gbit/s");
        ensure!(speed > 0.05, "{from} to {to}: {speed} Gbit/s");
    }
    let (used, upcalls) = (memory(&h2)?, count(&h2, "upcalls")? - before.1);
    println!("h2's agent: {} MB before the streams, {} MB after, {upcalls} upcalls", before.0 >> 20, used >> 20);
    ensure!(used < before.0 + (16 << 20), "h2's agent grew from {} to {used} bytes", before.0);
    ensure!(upcalls < 100, "{upcalls} upcalls for three streams");
    ensure!(count(&h2, "malformed")? == 0 && count(&h2, "kernel")? == 0, "{}", h2.status()?);
    Ok(())
}

#[test]
fn two_hosts_in_user_space_talk_and_the_exposed_host_and_names_are_reached() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 2, ..LabConfig::named("users") };
    let lab = lab(config.launching(1, USERSPACE).launching(2, USERSPACE))?;
    everyone_pings_everyone(&lab)?;
    println!("h1c1 -> h2c1: {:.2} Gbit/s", stream(&lab, "h1c1", "h2c1", 4)?);
    lab.host(1)?.weave(["expose", "--no-masq", "10.32.200.1/16"])?;
    for from in ["h1c1", "h2c1"] {
        pinged(ping(&lab.container(from)?, std::net::Ipv4Addr::new(10, 32, 200, 1), 20, "0.02")?)?.lossless().context(from)?;
    }
    lab.host(1)?.exec(["ping", "-n", "-c3", "-i0.1", "-W2", &lab.overlay_address("h2c2")?.to_string()])?;
    lab.host(2)?.weave(["dns-add", "printer", "10.32.77.7"])?;
    let from = lab.container("h1c2")?;
    let asked = || Ok(from.exec(["dig", "+short", "+time=1", "+tries=1", "@169.254.83.53", "printer.weave.local"])?.trim() == "10.32.77.7");
    wait_for("the name to be answered", SOON, asked).map(drop)
}

#[test]
fn a_host_in_user_space_relays_for_others() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = relays_unasked("urelay", USERSPACE, 500, "0.005")?;
    println!("h1c1 -> h3c1 by way of h2: {:.2} Gbit/s", stream(&lab, "h1c1", "h3c1", 4)?);
    Ok(())
}

/// What one leaves must not carry frames behind the other's back.
#[test]
fn a_host_changes_from_programs_to_user_space_and_back() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 1, ..LabConfig::named("change") })?;
    let (h1, from, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    let pins = || h1.exec(["sh", "-c", "ls $WEAVE_RUN_DIR/bpf 2>/dev/null | wc -l"]).map(|count| count.trim().to_owned());
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    for (flag, kind) in [("userspace", "userspace"), ("userspace", "userspace"), ("auto", "ebpf")] {
        let (before, outlives) = (pid(&h1)?, pins()? != "0");
        h1.weave(["stop"])?;
        ensure!(from.reaches(to)? == outlives, "frames are to flow without an agent: {outlives}");
        h1.weave(["launch", "--datapath", flag])?;
        ensure!(pid(&h1)? != before && datapath(&h1)?.starts_with(kind), "{}", datapath(&h1)?);
        ensure!(has(&h1, "vxlan")? == (kind == "ebpf"), "{kind} and the vxlan device");
        ensure!((pins()? == "0") == (kind == "userspace"), "{kind} and {} pins", pins()?);
        wait_for("frames to flow again", Duration::from_secs(30), || from.reaches(to))?;
        pinged(ping(&from, to, 50, "0.02")?)?.lossless()?;
    }
    // Remembered as other flags are.
    h1.weave(["stop"])?;
    h1.weave(["launch", "--datapath", "userspace"])?;
    h1.weave(["stop"])?;
    h1.weave(["launch"])?;
    ensure!(datapath(&h1)?.starts_with("userspace"), "{}", datapath(&h1)?);
    h1.weave(["reset"])?;
    let left = h1.exec(["nft", "list", "tables"])?;
    ensure!(!left.contains("weave-agent"), "reset left {left}");
    Ok(())
}
