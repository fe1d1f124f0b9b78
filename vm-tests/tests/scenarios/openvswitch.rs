//! Open vSwitch's own programs on the module that carries our frames: each leaves the other's alone, and sees it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Host, Lab, LabConfig, OpenVswitch, root_or_skip, wait_for};

use crate::observe::{SOON, json, lab, ping, ping_on, pinged, unbroken};
use crate::odp::{ODP, module_or_skip};

/// Of their bridge's own interface, and of a container on it.
const THEIRS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// A bridge with an interface of its own and one to a container.
fn make_bridge(theirs: &OpenVswitch, lab: &Lab, host: &Host<'_>) -> Result<()> {
    let container = lab.container("h1c2")?;
    host.exec(["ip", "link", "add", "their0", "type", "veth", "peer", "name", "their1", "netns", &container.netns()])?;
    host.exec(["ip", "link", "set", "their0", "up"])?;
    theirs.set(host, &["add-br", "theirs", "--", "add-port", "theirs", "their0"])?;
    let [own, other] = THEIRS.map(|address| format!("{address}/24"));
    host.exec(["ip", "addr", "add", &own, "dev", "theirs"])?;
    host.exec(["ip", "link", "set", "theirs", "up"])?;
    container.exec(["ip", "addr", "add", &other, "dev", "their1"])?;
    container.exec(["ip", "link", "set", "their1", "up"]).map(drop)
}

/// The flows of our datapath that have all of these in them, as Debian's tool shows them, with their packets.
fn shown(host: &Host<'_>, parts: &[String]) -> Result<Vec<(String, u64)>> {
    let text = host.exec(["ovs-dpctl", "dump-flows", "weave-odp"])?;
    let flows = text.lines().filter(|line| parts.iter().all(|part| line.contains(part.as_str())));
    flows.map(|line| Ok((line.to_owned(), packets(line).with_context(|| line.to_owned())?))).collect()
}

fn packets(flow: &str) -> Option<u64> {
    flow.split_once("packets:")?.1.split(',').next()?.parse().ok()
}

fn mac(lab: &Lab, container: &str) -> Result<String> {
    let text = lab.container(container)?.exec(["ip", "-j", "link", "show", "ethwe"])?;
    let links: Value = serde_json::from_str(&text)?;
    Ok(links.pointer("/0/address").and_then(Value::as_str).context("no address")?.to_owned())
}

/// Short ids of h1 and h2.
fn shorts(host: &Host<'_>) -> Result<[u64; 2]> {
    let peers = json(host, &["status", "peers"])?;
    let of = |name: &str| {
        let peer = peers.as_array()?.iter().find(|peer| peer["nickname"] == name)?;
        peer["short_id"].as_u64()
    };
    Ok([of("h1").with_context(|| peers.to_string())?, of("h2").with_context(|| peers.to_string())?])
}

/// Keys and actions are those of Weave Net's fast datapath: port and addresses, of the tunnel too; a number out of destination
/// and source; don't fragment.
fn their_tool_shows_our_flows(lab: &Lab) -> Result<()> {
    let h1 = lab.host(1)?;
    let (here, there, [own, other]) = (mac(lab, "h1c1")?, mac(lab, "h2c1")?, shorts(&h1)?);
    let (from, to) = (h1.address(), lab.host(2)?.address());
    let out = [
        "in_port(".to_owned(),
        format!("eth(src={here},dst={there})"),
        format!("set(tunnel(tun_id={:#x},src={from},dst={to},ttl=64", other << 12 | own),
        "flags(df".to_owned(),
    ];
    let into = [
        format!("tunnel(tun_id={:#x},src={to},dst={from},", own << 12 | other),
        format!("eth(src={there},dst={here})"),
        "actions:".to_owned(),
    ];
    let ping = || pinged(ping(&lab.container("h1c1")?, lab.overlay_address("h2c1")?, 20, "0.05")?)?.lossless();
    ping()?;
    for flow in [&out[..], &into[..]] {
        let before = shown(&h1, flow)?;
        ensure!(before.len() == 1, "{flow:?} is shown as {before:?}: {}", h1.exec(["ovs-dpctl", "dump-flows", "weave-odp"])?);
        ping()?;
        let after = shown(&h1, flow)?;
        ensure!(after.len() == 1 && after[0].1 >= before[0].1 + 20, "20 more packets, but {before:?} became {after:?}");
    }
    Ok(())
}

fn our_command_shows_their_bridge(h1: &Host<'_>) -> Result<()> {
    let listed = h1.weave(["odp", "datapath", "list"])?;
    ensure!(listed.contains("ovs-system") && listed.contains("weave-odp"), "{listed}");
    let ports = h1.weave(["odp", "vport", "list", "ovs-system"])?;
    ensure!(ports.contains("theirs") && ports.contains("their0"), "{ports}");
    let flows = h1.weave(["odp", "flow", "list", "ovs-system"])?;
    ensure!(flows.contains("output("), "{flows}");
    Ok(())
}

/// Index of our datapath's own interface.
fn index(host: &Host<'_>) -> Result<String> {
    let text = host.exec(["ip", "-o", "link", "show", "dev", "weave-odp"])?;
    Ok(text.split(':').next().unwrap_or_default().to_owned())
}

#[test]
fn their_bridge_and_ours_live_on_one_module_and_each_side_sees_the_other() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 2, ..LabConfig::named("ovs") }.launching(1, ODP).launching(2, ODP);
    let mut lab = Lab::scenario(config.without_agents())?;
    let theirs = OpenVswitch::start(&lab.host(1)?)?;
    make_bridge(&theirs, &lab, &lab.host(1)?)?;
    let alone = ping_on(&lab.container("h1c2")?, THEIRS[0].parse::<std::net::IpAddr>()?, "0.1")?;
    lab.start_agents(None)?;
    lab.meshed()?;
    let h1 = lab.host(1)?;
    their_tool_shows_our_flows(&lab)?;
    our_command_shows_their_bridge(&h1)?;
    // Whatever their tool did to the datapath when it opened it: what is new still comes up.
    pinged(ping(&lab.container("h2c2")?, lab.overlay_address("h1c1")?, 10, "0.05")?)?.lossless()?;
    h1.weave(["stop"])?;
    pinged(ping(&lab.container("h1c1")?, lab.overlay_address("h2c1")?, 10, "0.05")?)?.lossless()?;
    h1.launch(&[])?;
    h1.weave(["reset"])?;
    let left = h1.weave(["odp", "datapath", "list"])?;
    ensure!(left.contains("ovs-system") && !left.contains("weave-odp"), "{left}");
    ensure!(theirs.set(&h1, &["list-ports", "theirs"])?.trim() == "their0", "their bridge has lost its port");
    let answered = unbroken(alone).context("over their bridge, through launch, stop and reset")?;
    ensure!(answered > 20, "only {answered} pings over their bridge");
    Ok(())
}

/// Their daemon deletes every datapath that it did not make when it makes its own.
#[test]
fn what_their_daemon_deletes_is_made_anew() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, ..LabConfig::named("ovsdel") }.launching(1, ODP))?;
    let (h1, from, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    pinged(ping(&from, to, 10, "0.05")?)?.lossless()?;
    let before = index(&h1)?;
    let mut theirs = OpenVswitch::start(&h1)?;
    make_bridge(&theirs, &lab, &h1)?;
    wait_for("our datapath to be another one", SOON, || Ok(index(&h1).is_ok_and(|now| now != before)))?;
    wait_for("containers to talk over it", SOON, || from.reaches(to))?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    pinged(ping(&lab.container("h2c2")?, lab.overlay_address("h1c2")?, 20, "0.05")?)?.lossless()?;
    // What the next agent needs is kept of the new one.
    h1.weave(["stop"])?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    h1.launch(&[])?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless()?;
    let before = index(&h1)?;
    theirs.start_daemon(&h1)?;
    theirs.set(&h1, &["set", "bridge", "theirs", "external-ids:restarted=yes"])?;
    wait_for("containers to talk when it has started again", SOON, || from.reaches(to))?;
    println!("their daemon's second start deleted our datapath: {}", index(&h1)? != before);
    Ok(())
}
