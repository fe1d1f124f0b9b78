//! Peers that cannot see each other talk through one that sees both, in its kernel.

use anyhow::{Context, Result, ensure};
use vm_tests::{Host, Lab, LabConfig, root_or_skip, wait_for};

use crate::observe::{SOON, count, datapath, json, ping, pinged};

/// A lab whose h2, with these flags, is between the others, which were told of each other in vain. Its agent is not asked about
/// each of the packets that it relays.
pub(crate) fn relays_unasked(name: &str, flags: &[&str], packets: u32, interval: &str) -> Result<Lab> {
    let config = LabConfig { hosts: 3, containers: 1, ..LabConfig::named(name) }.launching(2, flags);
    let mut lab = Lab::scenario(config.without_agents())?;
    lab.cut(1, 3)?;
    lab.start_agents(None)?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h3c1")?);
    wait_for("a way through h2", SOON, || from.reaches(to))?;
    let before = asked(&lab.host(2)?)?;
    pinged(ping(&from, to, packets, interval)?)?.lossless()?;
    let more = asked(&lab.host(2)?)? - before;
    ensure!(more < 20, "h2's agent was asked {more} times about {} packets", 2 * packets);
    Ok(lab)
}

/// How often this host's kernel asked its agent: for the openvswitch module what that counts itself, for its agent answers some by itself.
fn asked(host: &Host<'_>) -> Result<u64> {
    if !datapath(host)?.starts_with("odp") {
        return count(host, "upcalls");
    }
    let all = json(host, &["odp", "datapath", "list"])?;
    let ours = all.as_array().and_then(|all| all.iter().find(|datapath| datapath["name"] == "weave-odp"));
    ours.and_then(|ours| ours["stats"]["missed"].as_u64()).with_context(|| format!("no weave-odp in {all}"))
}

#[test]
fn the_host_in_the_middle_relays_in_its_kernel() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    relays_unasked("relay", &[], 500, "0.005").map(drop)
}
