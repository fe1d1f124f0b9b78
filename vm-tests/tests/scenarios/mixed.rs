//! One mesh of three kinds: h1's frames are carried by the openvswitch module, h2's by programs, h3's by its agent.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{Lab, LabConfig, root_or_skip, wait_for};

use crate::mesh::{containers, multicast_reaches_everybody_once};
use crate::observe::{SOON, Stream, datapath, json, lab, pid, ping, ping_on, pinged, stream, unbroken};
use crate::odp::{ODP, module_or_skip};

/// Seconds of a stream that begins before an agent is killed: to be back takes most guests 9 of them. The pings go on for as long as it takes.
const KILLED: u32 = 15;
const USERSPACE: &[&str] = &["--datapath", "userspace"];

fn three(name: &str, containers: u8) -> Result<Lab> {
    let config = LabConfig { hosts: 3, containers, ..LabConfig::named(name) };
    let lab = lab(config.launching(1, ODP).launching(2, &["--datapath", "ebpf"]).launching(3, USERSPACE))?;
    for (number, kind) in [(1, "odp"), (2, "ebpf"), (3, "userspace")] {
        ensure!(datapath(&lab.host(number)?)?.starts_with(kind), "{}", datapath(&lab.host(number)?)?);
    }
    Ok(lab)
}

/// Of two containers whose frames did not all arrive: why frames were dropped, and what they know of each other.
fn what_is_known(lab: &Lab, from: &str, to: &str) -> String {
    let hosts = (1..=3)
        .filter_map(|number| lab.host(number).ok()?.status().ok())
        .map(|status| format!("{} {}", status["drops"], status["counters"]));
    let neighbours = |name: &str| lab.container(name).and_then(|node| node.exec(["ip", "neigh"])).unwrap_or_default();
    let flows = from.parse().ok().and_then(|place: vm_tests::Place| lab.host(place.host()).ok()?.weave(["status", "flows"]).ok());
    let known = hosts.chain([from, to].map(|name| format!("{name}: {}", neighbours(name)))).collect::<Vec<_>>().join("; ");
    format!("{known}; {}", flows.unwrap_or_default()).replace('\n', " / ")
}

#[test]
fn all_pairs_talk_multicast_arrives_once_and_streams_cross() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let lab = three("three", 2)?;
    let names = containers(&lab);
    for from in &names {
        let others = names.iter().filter(|to| *to != from);
        let pings = others.map(|to| Ok((to, ping(&lab.container(from)?, lab.overlay_address(to)?, 30, "0.05")?)));
        for (to, running) in pings.collect::<Result<Vec<_>>>()? {
            pinged(running)?.lossless().with_context(|| format!("{from} to {to}: {}", what_is_known(&lab, from, to)))?;
        }
    }
    multicast_reaches_everybody_once(&lab)?;
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h1c1"), ("h1c1", "h3c1"), ("h3c1", "h1c1"), ("h2c1", "h3c1"), ("h3c1", "h2c1")] {
        let speed = stream(&lab, from, to, 2)?;
        println!("{from} -> {to}: {speed:.3} Gbit/s");
        ensure!(speed > 0.005, "{from} to {to}: {speed} Gbit/s");
    }
    for number in 1..=3 {
        let flows = json(&lab.host(number)?, &["status", "flows"])?;
        let flows = flows.as_array().context("status flows is no list")?;
        ensure!(flows.iter().any(|flow| flow["action"]["do"] == "peer" && flow["packets"].as_u64() > Some(30)), "h{number}: {flows:?}");
    }
    Ok(())
}

#[test]
fn agents_that_are_killed_and_come_back_lose_nothing_that_a_kernel_carries() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let lab = three("kills", 1)?;
    for killed in 1..=3 {
        let host = lab.host(killed)?;
        let streams = between_those_that_stay(&lab, killed)?;
        let datagrams = Stream::udp(&lab, "h1c1", "h2c1", KILLED)?;
        wait_for("all streams to flow", SOON, || streams.iter().try_fold(true, |all, (_, ping)| Ok(all && answers(ping)? > 3)))?;
        let before = pid(&host)?;
        kill(Pid::from_raw(before), Signal::SIGKILL)?;
        let flowed = streams.iter().map(|(_, ping)| answers(ping)).collect::<Result<Vec<_>>>()?;
        let goes_on = |(number, (_, ping)): (usize, &(_, vm_tests::Running))| Ok(answers(ping)? > flowed[number] + 20);
        wait_for("all streams to flow on without the agent", SOON, || {
            streams.iter().enumerate().map(goes_on).try_fold(true, |all, one: Result<bool>| Ok(all && one?))
        })?;
        host.launch(&[])?;
        ensure!(pid(&host)? != before, "the same agent");
        lab.meshed()?;
        for (name, ping) in streams {
            unbroken(ping).with_context(|| format!("{name} while h{killed}'s agent was dead and came back"))?;
        }
        let sent = datagrams.lossless().with_context(|| format!("h1c1 to h2c1 while h{killed}'s agent was dead and came back"))?;
        println!("h{killed}'s agent killed: none of {sent} datagrams lost");
        let (from, to) = (lab.container(&format!("h{killed}c1"))?, lab.overlay_address(if killed == 2 { "h1c1" } else { "h2c1" })?);
        wait_for("its own container to be reached", SOON, || from.reaches(to))?;
    }
    Ok(())
}

/// Pings between all hosts but one whose agent carries frames itself, if that is to be killed.
fn between_those_that_stay(lab: &Lab, killed: u8) -> Result<Vec<(String, vm_tests::Running)>> {
    let pairs = [(1, 2), (2, 1), (1, 3), (2, 3)].into_iter().filter(|(_, to)| killed != 3 || *to != 3);
    let start = |(from, to): (u8, u8)| {
        let (from, to) = (format!("h{from}c1"), format!("h{to}c1"));
        Ok((format!("{from} to {to}"), ping_on(&lab.container(&from)?, lab.overlay_address(&to)?, "0.05")?))
    };
    pairs.map(start).collect()
}

fn answers(ping: &vm_tests::Running) -> Result<usize> {
    Ok(ping.written()?.matches("icmp_seq=").count())
}
