//! `reset` removes every trace.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vm_tests::{Host, Lab, LabConfig, lab_dir, root_or_skip};

use crate::observe::pid;

/// Interfaces, qdiscs, programs on interfaces, NAT, mounts and files: all that an agent could leave.
fn traces(host: &Host<'_>, directory: &Path) -> Result<BTreeSet<String>> {
    let links = host.exec(["ip", "-o", "link"])?;
    let qdiscs = host.exec(["tc", "qdisc"])?;
    let routes = host.exec(["ip", "route"])?;
    let rules = host.exec(["nft", "list", "ruleset"])?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let name = directory.display().to_string();
    let mounts = mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned);
    let links = links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned);
    let lines = qdiscs.lines().chain(routes.lines()).chain(rules.lines()).map(str::to_owned).collect::<Vec<_>>();
    Ok(links.chain(lines).chain(mounts).chain(files(directory)?).collect())
}

fn files(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        let below = if path.is_dir() { files(&path)? } else { Vec::new() };
        found.push(path.display().to_string());
        found.extend(below);
    }
    Ok(found)
}

fn host_directory(lab: &Lab) -> std::path::PathBuf {
    lab_dir(&lab.config().name).join("h1")
}

/// A process that has ended is none, even if nobody has waited for it yet.
fn runs(process: i32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn reset_leaves_nothing_behind_with_the_agent_alive_or_dead() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    for dead in [false, true] {
        let config = LabConfig { hosts: 2, containers: 2, ..LabConfig::named("trace") };
        let mut lab = Lab::scenario(config.without_agents())?;
        let before = traces(&lab.host(1)?, &host_directory(&lab))?;
        lab.start_agents(None)?;
        let host = lab.host(1)?;
        host.weave(["expose", "10.32.200.1/16"])?;
        lab.meshed()?;
        ensure!(host.exec(["nft", "list", "ruleset"])?.contains("masquerade"), "an exposed host has NAT");
        let process = pid(&host)?;
        if dead {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL)?;
        }
        host.weave(["reset"]).with_context(|| format!("agent dead: {dead}"))?;
        let after = traces(&host, &host_directory(&lab))?;
        // The lab itself writes down how its launch went.
        let left: Vec<_> = after.difference(&before).filter(|line| !line.ends_with("launch.log")).collect();
        ensure!(left.is_empty(), "agent dead: {dead}: left behind: {left:#?}");
        ensure!(!runs(process), "the agent still runs");
    }
    Ok(())
}
