//! What others do to interfaces that we made is noticed and mended.

use anyhow::{Context, Result, ensure};
use vm_tests::{Lab, LabConfig, Node, root_or_skip, wait_for};

use crate::observe::{SOON, lab};

#[test]
fn a_deleted_vxlan_device_is_made_again_and_carries_frames() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { containers: 1, ..LabConfig::named("vxdel") })?;
    let (host, container, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    ensure!(container.reaches(to)?);
    host.exec(["ip", "link", "del", "vxlan-6784"])?;
    wait_for("the vxlan device", SOON, || Ok(host.exec(["ip", "link", "show", "up"])?.contains("vxlan-6784")))?;
    // The address is asked for by broadcast, which only the new device can send.
    container.exec(["ip", "neigh", "flush", "dev", "ethwe"])?;
    wait_for("broadcasts", SOON, || container.reaches(to))?;
    host.exec(["ip", "link", "set", "vxlan-6784", "down"])?;
    wait_for("the device to be up", SOON, || Ok(host.exec(["ip", "link", "show", "up"])?.contains("vxlan-6784")))?;
    ensure!(host.status()?["warnings"] == serde_json::json!([]), "{}", host.status()?);
    Ok(())
}

#[test]
fn a_deleted_sleeve_device_is_made_again_and_carries_frames() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(secret("slvdel"))?;
    let (host, container, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    ensure!(container.reaches(to)?);
    for tampering in [&["del", "weave-sleeve"][..], &["set", "weave-sleeve", "down"], &["set", "weave-sleeve", "name", "theirs"]] {
        host.exec([&["ip", "link"], tampering].concat())?;
        wait_for("the sleeve's device", SOON, || Ok(host.exec(["ip", "link", "show", "up"])?.contains("weave-sleeve")))?;
        wait_for("frames", SOON, || container.reaches(to))?;
    }
    ensure!(host.status()?["warnings"] == serde_json::json!([]), "{}", host.status()?);
    Ok(())
}

/// Hosts that must speak encrypted.
fn secret(name: &str) -> LabConfig {
    let launch = ["--password", "what only they know"].map(str::to_owned).to_vec();
    LabConfig { containers: 1, launch, ..LabConfig::named(name) }
}

#[test]
fn attached_containers_follow_the_mtu_of_the_underlay() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    follows(&lab(LabConfig { containers: 1, ..LabConfig::named("mtu") })?, 50)?;
    // Sealed, full packets go in one datagram, too.
    follows(&lab(secret("mtusealed"))?, 79)
}

/// So much less than the underlay's is the MTU of containers, whatever becomes of it.
fn follows(lab: &Lab, headers: u32) -> Result<()> {
    let (container, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?.to_string());
    let underlay = mtu(&container)? + headers;
    ensure!(underlay == u32::from(lab.config().mtu), "{underlay}");
    for smaller in [underlay - 200, underlay] {
        for host in [lab.host(1)?, lab.host(2)?] {
            host.exec(["ip", "link", "set", "eth0", "mtu", &smaller.to_string()])?;
        }
        let wanted = smaller - headers;
        for name in ["h1c1", "h2c1"] {
            wait_for("the container's MTU", SOON, || Ok(mtu(&lab.container(name)?)? == wanted))?;
        }
        let payload = (wanted - 28).to_string();
        let ping = ["ping", "-n", "-c1", "-W1", "-Mdo", "-s", &payload, &to];
        wait_for("full packets", SOON, || Ok(container.exec(ping).is_ok()))?;
    }
    Ok(())
}

fn mtu(container: &Node<'_>) -> Result<u32> {
    let link = container.exec(["ip", "-o", "link", "show", "ethwe"])?;
    let words: Vec<_> = link.split(' ').collect();
    let place = words.iter().position(|word| *word == "mtu").context("no mtu")?;
    Ok(words.get(place + 1).context("no mtu")?.parse()?)
}
