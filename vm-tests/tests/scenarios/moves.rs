//! A MAC that turns up elsewhere.

use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::{Lab, LabConfig, Node, root_or_skip, wait_for};

use crate::observe::{lab, ping, pinged, traffic};

/// Gives a container the address that another one had, on the same network: as a migrated one has.
fn become_other(node: &Node<'_>, mac: &str, address: &str) -> Result<()> {
    let script = format!(
        "ip link set ethwe down && ip link set ethwe address {mac} && ip link set ethwe up && ip addr flush dev ethwe scope global && ip addr add {address}/16 dev ethwe"
    );
    node.exec(["sh", "-c", &script]).map(drop)
}

fn mac(node: &Node<'_>) -> Result<String> {
    Ok(node.exec(["cat", "/sys/class/net/ethwe/address"]).or_else(|_| sysless_mac(node))?.trim().to_owned())
}

/// The lab's /sys may be another namespace's.
fn sysless_mac(node: &Node<'_>) -> Result<String> {
    let text = node.exec(["ip", "-o", "link", "show", "dev", "ethwe"])?;
    Ok(text.split_once("link/ether ").context("no MAC")?.1.split(' ').next().context("no MAC")?.to_owned())
}

fn moving(name: &str) -> Result<(Lab, String, String)> {
    let lab = lab(LabConfig { hosts: 3, containers: 1, ..LabConfig::named(name) })?;
    let mac = mac(&lab.container("h1c1")?)?;
    let address = lab.overlay_address("h1c1")?.to_string();
    for name in ["h2c1", "h3c1"] {
        pinged(ping(&lab.container(name)?, lab.overlay_address("h1c1")?, 5, "0.05")?)?.lossless()?;
    }
    Ok((lab, mac, address))
}

#[test]
fn a_mac_that_moved_is_reached_within_a_second_of_its_first_frame() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, mac, address) = moving("move")?;
    // It moves from h1 to h2; h3 goes on talking to it.
    become_other(&lab.container("h1c1")?, "02:00:00:00:99:01", "10.32.9.9")?;
    become_other(&lab.container("h2c1")?, &mac, &address)?;
    let first = [traffic()?.as_str(), "frame", "--source", &mac].map(str::to_owned);
    lab.container("h2c1")?.exec(first)?;
    let (from, to) = (lab.container("h3c1")?, lab.overlay_address("h1c1")?);
    wait_for("the MAC at its new place", Duration::from_secs(1), || from.reaches(to))?;
    let old = lab.container("h1c1")?;
    wait_for("the MAC at its new place, seen from the old one", Duration::from_secs(1), || old.reaches(to))?;
    // And back.
    become_other(&lab.container("h2c1")?, "02:00:00:00:99:02", "10.32.9.8")?;
    become_other(&old, &mac, &address)?;
    old.exec([traffic()?.as_str(), "frame", "--source", &mac])?;
    wait_for("the MAC back at its old place", Duration::from_secs(1), || from.reaches(to)).map(drop)
}

#[test]
fn two_containers_with_one_mac_disturb_nobody_else() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 2, ..LabConfig::named("twin") })?;
    let mac = mac(&lab.container("h1c1")?)?;
    let twin = lab.container("h2c1")?;
    twin.exec(["sh", "-c", &format!("ip link set ethwe down && ip link set ethwe address {mac} && ip link set ethwe up")])?;
    let script = |to: &str| format!("for i in $(seq 200); do ping -n -c1 -W0.05 {to} >/dev/null; done; true");
    let mut noise = Vec::new();
    for (from, to) in [("h1c1", "10.32.2.2"), ("h2c1", "10.32.1.2")] {
        noise.push(lab.container(from)?.spawn(["sh", "-c", &script(to)])?);
    }
    let others = ping(&lab.container("h1c2")?, lab.overlay_address("h2c2")?, 300, "0.01")?;
    pinged(others)?.lossless()?;
    drop(noise);
    Ok(())
}
