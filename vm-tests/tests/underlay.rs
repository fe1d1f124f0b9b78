//! The lab itself: what the other scenarios take for granted.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use vm_tests::{Lab, LabConfig, Node, Running, Underlay, lab_dir, process, root_or_skip, wait_for};

const DEADLINE: Duration = Duration::from_secs(10);

fn bare(name: &str, hosts: u8, underlay: Underlay) -> Result<Lab> {
    let config = LabConfig { hosts, underlay, containers: 1, ..LabConfig::named(name) };
    Lab::scenario(config.without_agents())
}

fn everyone_reaches_everyone(lab: &Lab) -> Result<()> {
    let hosts = lab.config().hosts;
    for (a, b) in (1..=hosts).flat_map(|a| (1..=hosts).map(move |b| (a, b))) {
        ensure!(lab.host(a)?.reaches(lab.host(b)?.address())?, "h{a} does not reach h{b}");
    }
    Ok(())
}

/// Names of what a lab could leave behind on the machine.
fn traces(name: &str) -> Result<BTreeSet<String>> {
    let links = process::output(Command::new("ip").args(["-o", "link"]))?;
    let links = links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned);
    let namespaces = process::output(Command::new("ip").args(["netns", "list"]))?;
    let namespaces = namespaces.lines().filter(|line| line.contains(name)).map(str::to_owned);
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter(|line| line.contains(name)).map(str::to_owned);
    Ok(links.chain(namespaces).chain(mounts).collect())
}

#[test]
fn hosts_on_one_ethernet_reach_each_other() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    everyone_reaches_everyone(&bare("flat", 3, Underlay::Flat)?)
}

#[test]
fn hosts_behind_a_router_reach_each_other() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    everyone_reaches_everyone(&bare("routed", 3, Underlay::Routed)?)
}

#[test]
fn a_frame_of_the_whole_mtu_crosses_and_a_larger_one_does_not() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    for underlay in [Underlay::Flat, Underlay::Routed] {
        let lab = bare("mtu", 2, underlay)?;
        let there = lab.host(2)?.address().to_string();
        let ping = |payload: &str| lab.host(1)?.exec(["ping", "-c1", "-W1", "-M", "do", "-s", payload, &there]);
        ping("1522")?;
        ensure!(ping("1523").is_err(), "1551 bytes crossed {underlay:?}");
    }
    Ok(())
}

#[test]
fn a_second_uplink_takes_over_when_the_first_is_unplugged() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = bare("uplinks", 2, Underlay::Routed)?;
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    lab.unplug(2, 0)?;
    wait_for("the way in by the second uplink", DEADLINE, || one.reaches(two.address()))?;
    ensure!(two.reaches(one.address())?, "no way out by the second uplink");
    lab.plug(2, 0)?;
    lab.unplug(2, 1)?;
    wait_for("the way by the first uplink", DEADLINE, || one.reaches(two.address())).map(drop)
}

/// One direction between two hosts, with a capture at its far end.
struct Way<'a> {
    from: Node<'a>,
    to: String,
    capture: Running,
}

impl<'a> Way<'a> {
    fn between(lab: &'a Lab, from: u8, to: u8) -> Result<Self> {
        let capture = lab.host(to)?.spawn(["tcpdump", "-l", "-n", "--immediate-mode", "-i", "any", "udp or tcp"])?;
        wait_for("tcpdump", DEADLINE, || Ok(capture.written()?.contains("listening on")))?;
        Ok(Self { from: *lab.host(from)?, to: lab.host(to)?.address().to_string(), capture })
    }

    /// Sends a datagram and a SYN to this port.
    fn send(&self, port: u16) -> Result<()> {
        let to = &self.to;
        let script = format!("echo > /dev/udp/{to}/{port}; timeout 0.3 bash -c 'echo > /dev/tcp/{to}/{port}' || true");
        self.from.exec(["bash", "-c", &script]).map(drop)
    }

    fn saw(&self, port: u16, what: &str) -> Result<bool> {
        let line = format!("{}.{port}: {what}", self.to);
        Ok(self.capture.written()?.contains(&line))
    }

    /// What was sent to `mark` arrives, and nothing that was sent to `lost` before it did.
    fn is_open_and_lost(&self, mark: u16, lost: u16) -> Result<()> {
        wait_for("UDP and TCP on the mended wire", DEADLINE, || {
            self.send(mark)?;
            Ok(self.saw(mark, "UDP")? && self.saw(mark, "Flags [S]")?)
        })?;
        ensure!(!self.saw(lost, "")?, "the cut wire let a frame through to {}", self.to);
        Ok(())
    }
}

fn a_cut_holds_on(underlay: Underlay) -> Result<()> {
    let lab = bare("cut", 3, underlay)?;
    let ways = [Way::between(&lab, 1, 2)?, Way::between(&lab, 2, 1)?];
    let mut control = Lab::open(&lab.config().name)?;
    // With neighbours resolved, nothing waits in a host for an answer that the cut holds back.
    everyone_reaches_everyone(&lab)?;
    control.cut(2, 1)?;
    ways.iter().try_for_each(|way| way.send(1001))?;
    ensure!(!lab.host(2)?.reaches(lab.host(1)?.address())?, "cut, and h2 still reaches h1");
    ensure!(lab.host(1)?.reaches(lab.host(3)?.address())?, "h1 was not cut off from h3");
    ensure!(lab.host(3)?.reaches(lab.host(2)?.address())?, "h3 was not cut off from h2");
    control.mend(1, 2)?;
    ways.iter().try_for_each(|way| way.is_open_and_lost(1002, 1001))?;
    everyone_reaches_everyone(&lab)
}

#[test]
fn a_cut_drops_both_ways_and_mending_restores() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    a_cut_holds_on(Underlay::Flat)?;
    a_cut_holds_on(Underlay::Routed)
}

#[test]
fn a_cut_is_seen_by_another_process() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = bare("shared", 2, Underlay::Flat)?;
    Lab::open(&lab.config().name)?.cut(1, 2)?;
    ensure!(!lab.host(1)?.reaches(lab.host(2)?.address())?, "h1 still reaches h2");
    ensure!(Lab::open(&lab.config().name)?.record().cuts.contains(&(1, 2)), "the cut is not on record");
    Lab::open(&lab.config().name)?.mend(2, 1)?;
    // A host that is resolving a neighbour asks only once a second.
    wait_for("the mended wire", DEADLINE, || lab.host(1)?.reaches(lab.host(2)?.address())).map(drop)
}

#[test]
fn a_lab_that_is_down_leaves_nothing() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let before = traces("down")?;
    let lab = bare("down", 3, Underlay::Routed)?;
    let name = lab.config().name.clone();
    ensure!(lab.node("h1c1".parse()?)?.exec(["ip", "link"])?.contains("lo"), "h1c1 is no namespace");
    let mut left = lab.host(2)?.spawn(["sleep", "1000"])?;
    lab.down()?;
    assert!(left.ended()?.is_some(), "what ran in the lab outlived it");
    assert_eq!(traces("down")?, before);
    assert!(!lab_dir(&name).exists());
    Ok(())
}

#[test]
fn a_lab_goes_when_its_test_panics() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let before = traces("panic")?;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _lab = bare("panic", 2, Underlay::Flat).unwrap();
        assert_ne!(traces("panic").unwrap(), before);
        panic!("on purpose");
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert_eq!(traces("panic")?, before);
    Ok(())
}

#[test]
fn a_lab_whose_test_was_killed_goes_before_the_next() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = bare("killed", 1, Underlay::Flat)?;
    let name = lab.config().name.clone();
    let record = lab_dir(&name).join("lab.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&record)?)?;
    text["owner"] = u32::MAX.into();
    fs::write(&record, text.to_string())?;
    std::mem::forget(lab);
    bare("next", 1, Underlay::Flat)?;
    assert!(!traces("killed")?.iter().any(|trace| trace.contains(&name)));
    Ok(())
}
