//! What comes from no peer gets nowhere.

use anyhow::{Result, ensure};
use vm_tests::{Lab, LabConfig, Place, root_or_skip, wait_for};

use crate::observe::{SOON, count, lab, memory, ping, pinged, traffic};

/// Frames a container has received so far.
fn received(lab: &Lab, name: &str) -> Result<u64> {
    let text = lab.container(name)?.exec(["sh", "-c", "grep ethwe /proc/net/dev"])?;
    let words: Vec<_> = text.split([':', ' ']).filter(|word| !word.is_empty()).collect();
    Ok(words[2].parse()?)
}

#[test]
fn a_strangers_vxlan_is_dropped_whatever_its_vni() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    // h3 was a peer once: now it is a stranger on the same wire.
    let mut bare = Lab::scenario(LabConfig { hosts: 3, containers: 1, ..LabConfig::named("alien") }.without_agents())?;
    bare.start_agents(None)?;
    let h3 = bare.host(3)?;
    bare.meshed()?;
    h3.weave(["reset"])?;
    let (h1, h2) = (bare.host(1)?, bare.host(2)?);
    wait_for("h3 to be forgotten", SOON, || Ok(h1.status()?["peers"] == 2 && h2.status()?["peers"] == 2))?;
    let [a, b] = [short_id(&h1)?, short_id(&h2)?];
    let before = (received(&bare, "h1c1")?, count(&h1, "stranger")?);
    let vnis = [a << 12 | b, b << 12 | a, a << 12 | a, 0, 0xff_ffff].map(|vni| vni.to_string()).join(",");
    h3.exec([traffic()?.as_str(), "vxlan", "--to", &format!("{}:6784", h1.address()), "--vni", &vnis, "--count", "200"])?;
    let after = (received(&bare, "h1c1")?, count(&h1, "stranger")?);
    ensure!(after.1 - before.1 >= 1000, "{} of 1,000 counted as strangers", after.1 - before.1);
    ensure!(after.0 - before.0 < 50, "{} frames reached a container", after.0 - before.0);
    Ok(())
}

fn short_id(host: &vm_tests::Host<'_>) -> Result<u32> {
    Ok(u32::try_from(host.status()?["short_id"].as_u64().unwrap_or_default())?)
}

#[test]
fn garbage_leaves_the_agent_up_and_its_memory_flat() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 1, ..LabConfig::named("junk") })?;
    let h1 = lab.host(1)?;
    let program = traffic()?;
    let (tcp, udp) = (format!("{}:6783", h1.address()), format!("{}:6784", h1.address()));
    let send = |count: &str, seed: &str| {
        lab.node(Place::Host(2))?.exec([&program, "garbage", "--tcp", &tcp, "--udp", &udp, "--count", count, "--seed", seed])
    };
    // The first thousand fill what is allocated once.
    send("1000", "1")?;
    let before = memory(&h1)?;
    send("10000", "2")?;
    let after = memory(&h1)?;
    // Neither TCP nor UDP goes uncounted.
    wait_for("garbage to be counted", SOON, || Ok(count(&h1, "malformed")? >= 1000))?;
    ensure!(after < before + (8 << 20), "memory grew from {before} to {after} bytes");
    pinged(ping(&lab.container("h1c1")?, lab.overlay_address("h2c1")?, 50, "0.02")?)?.lossless()
}
