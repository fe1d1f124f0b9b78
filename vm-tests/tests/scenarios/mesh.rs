//! Every container on every host is on one Ethernet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Lab, LabConfig, Node, Place, Underlay, root_or_skip, wait_for};

use crate::observe::{SOON, lab, ping, pinged, traffic};

/// Names of all containers.
pub(crate) fn containers(lab: &Lab) -> Vec<String> {
    lab.config().places().iter().filter(|place| matches!(place, Place::Container(..))).map(Place::to_string).collect()
}

pub(crate) fn everyone_pings_everyone(lab: &Lab) -> Result<()> {
    let names = containers(lab);
    let mut pings = Vec::new();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            pings.push((from, to, ping(&lab.container(from)?, lab.overlay_address(to)?, 100, "0.02")?));
        }
    }
    for (from, to, running) in pings {
        let pings = pinged(running)?;
        pings.lossless().with_context(|| format!("{from} to {to}"))?;
        let first = pings.first.context("no answer")?;
        ensure!(first < 100.0, "{from} to {to}: the first answer took {first} ms");
    }
    Ok(())
}

#[test]
fn every_container_pings_every_other_at_once() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    everyone_pings_everyone(&lab(LabConfig { hosts: 3, ..LabConfig::named("all") })?)
}

#[test]
fn two_containers_of_one_host_talk() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 1, ..LabConfig::named("one") })?;
    let (from, to) = (lab.container("h1c1")?, lab.container("h1c2")?);
    let captures = [from, to].map(|node| node.spawn(["tcpdump", "-e", "-n", "-l", "-i", "ethwe"]));
    let told = pinged(ping(&from, lab.overlay_address("h1c2")?, 20, "0.05")?)?;
    let mut seen = String::new();
    for capture in captures {
        seen += &capture?.written()?;
    }
    let more = [from, to].map(|node| node.exec(["sh", "-c", "ip neigh; ip -s link show ethwe; grep -E '^(Ip|Icmp):' /proc/net/snmp"]));
    told.lossless().with_context(|| format!("{more:?} {seen} {:?}", lab.host(1).and_then(|host| host.weave(["status", "flows"]))))
}

#[test]
fn they_do_so_over_a_routed_underlay_and_when_an_uplink_goes() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 3, underlay: Underlay::Routed, ..LabConfig::named("routed") })?;
    everyone_pings_everyone(&lab)?;
    lab.unplug(2, 0)?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    wait_for("the second uplink to take over", SOON, || from.reaches(to))?;
    lab.plug(2, 0)?;
    wait_for("both uplinks", SOON, || from.reaches(to))?;
    Ok(())
}

#[test]
fn large_pings_and_ipv6_link_local_get_through() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, ..LabConfig::named("large") })?;
    let (from, to) = (lab.container("h1c1")?, lab.container("h2c1")?);
    from.exec(["ping", "-n", "-W2", "-c3", "-s9000", "-i0.1", &lab.overlay_address("h2c1")?.to_string()])?;
    let v6 = format!("{}%ethwe", link_local(&to)?);
    from.exec(["ping", "-6", "-n", "-W2", "-c3", "-i0.1", &v6])?;
    from.exec(["ping", "-6", "-n", "-W2", "-c3", "-s9000", "-i0.1", &v6]).map(drop)
}

fn link_local(node: &Node<'_>) -> Result<IpAddr> {
    let text = node.exec(["ip", "-j", "-6", "addr", "show", "dev", "ethwe", "scope", "link"])?;
    let links: Value = serde_json::from_str(&text)?;
    let address = links.pointer("/0/addr_info/0/local").and_then(Value::as_str).context("no link-local address")?;
    Ok(address.parse()?)
}

#[test]
fn a_broadcast_ping_is_answered_by_every_member_once() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 3, ..LabConfig::named("bcast") })?;
    let names = containers(&lab);
    for name in &names {
        lab.container(name)?.exec(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts"])?;
    }
    let text = lab.container("h1c1")?.spawn(["ping", "-n", "-b", "-c5", "-i0.3", "-W1", "10.32.255.255"])?.finish()?;
    let mut answers = BTreeMap::<(String, String), u32>::new();
    for line in text.lines().filter(|line| line.contains("bytes from")) {
        let mut words = line.split([' ', ':']).skip(3);
        let address = words.next().context("no address")?.to_owned();
        let sequence = words.find(|word| word.starts_with("icmp_seq=")).context("no sequence")?.to_owned();
        *answers.entry((address, sequence)).or_default() += 1;
    }
    for name in names.iter().filter(|name| *name != "h1c1") {
        let address = lab.overlay_address(name)?.to_string();
        // ping ends with the first answer to its last request.
        for sequence in 1..5 {
            let times = answers.get(&(address.clone(), format!("icmp_seq={sequence}"))).copied().unwrap_or(0);
            ensure!(times == 1, "{name} answered ping {sequence} {times} times:\n{text}");
        }
    }
    Ok(())
}

#[test]
fn a_multicast_stream_reaches_every_member_once() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    multicast_reaches_everybody_once(&lab(LabConfig { hosts: 3, ..LabConfig::named("mcast") })?)
}

pub(crate) fn multicast_reaches_everybody_once(lab: &Lab) -> Result<()> {
    let program = traffic()?;
    let names: Vec<_> = containers(lab).into_iter().filter(|name| name != "h2c1").collect();
    let mut listeners = Vec::new();
    for name in &names {
        let on = lab.overlay_address(name)?.to_string();
        let words = [&program, "listen", "--group", "239.7.7.7", "--on", &on, "--silence", "2000"];
        listeners.push(lab.container(name)?.spawn(words)?);
    }
    wait_for("all to listen", SOON, || listeners.iter().try_fold(true, |all, one| Ok(all && one.written()?.contains("listening"))))?;
    let from = lab.overlay_address("h2c1")?.to_string();
    lab.container("h2c1")?.exec([&program, "send", "--group", "239.7.7.7", "--from", &from, "--count", "500"])?;
    for (name, listener) in names.iter().zip(listeners) {
        let text = listener.finish()?;
        let heard: Value = serde_json::from_str(text.lines().last().context("no result")?)?;
        ensure!(heard["received"] == 500 && heard["different"] == 500, "{name} heard {heard} of 500");
    }
    Ok(())
}
