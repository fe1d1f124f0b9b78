//! A network with a password: who has it joins, who has not is told, and nothing on the wire tells who is who.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Host, Lab, LabConfig, lab_dir, root_or_skip, wait_for};

use crate::observe::{Pings, SOON, json};

const OLD: &str = "the old password";
const NEW: &str = "the new password";

/// Three hosts that trust the network between them: it is the agents' connections that this is about.
fn config(name: &str) -> LabConfig {
    let launch = ["--password", OLD, "--trusted-subnets", "10.99.0.0/24"].map(str::to_owned).to_vec();
    LabConfig { hosts: 3, containers: 1, launch, ..LabConfig::named(name) }
}

/// A file on a host with these passwords.
fn file(lab: &Lab, host: u8, passwords: &[&str]) -> Result<String> {
    let path = lab_dir(&lab.config().name).join(format!("h{host}/password"));
    fs::write(&path, passwords.iter().map(|password| format!("{password}\n")).collect::<String>())?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

fn log(lab: &Lab, host: u8) -> Result<String> {
    let path = lab_dir(&lab.config().name).join(format!("h{host}/run/agent.log"));
    fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

/// What is known of connections of this host that are no links.
fn complaints(host: &Host<'_>) -> Result<Vec<String>> {
    let all = json(host, &["status", "connections"])?;
    let all = all.as_array().context("status connections is no list")?;
    Ok(all.iter().filter(|entry| entry["peer"].is_null()).filter_map(|entry| entry["info"].as_str().map(str::to_owned)).collect())
}

/// How many links a host has, all of which have this protection.
fn links(host: &Host<'_>, protection: &str) -> Result<usize> {
    let all = json(host, &["status", "connections"])?;
    let up: Vec<&Value> = all.as_array().context("no list")?.iter().filter(|entry| entry["state"] == "established").collect();
    ensure!(up.iter().all(|entry| entry["encryption"] == protection), "{all}");
    Ok(up.len())
}

#[test]
fn hosts_with_one_password_meet_and_no_name_or_address_of_theirs_is_on_the_wire() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let bare = Lab::scenario(config("secret").without_agents())?;
    let captured: PathBuf = lab_dir(&bare.config().name).join("captured");
    let capture =
        bare.host(1)?.spawn(["tcpdump", "-n", "-i", "any", "-U", "-s0", "-w", &captured.display().to_string(), "tcp port 6783"])?;
    wait_for("tcpdump to listen", SOON, || Ok(capture.written()?.contains("listening")))?;
    let mut lab = bare;
    lab.start_agents(None)?;
    lab.meshed()?;
    for number in 1..=3 {
        let host = lab.host(number)?;
        ensure!(host.status()?["encrypted"] == true && links(&host, "trusted")? == 2, "{}", host.status()?);
        host.weave(["dns-add", &format!("nameofhost{number}"), "10.77.0.9"])?;
    }
    let found = || Ok(lab.host(3)?.weave(["dns-lookup", "nameofhost1"]).is_ok_and(|said| said.contains("10.77.0.9")));
    wait_for("the name to be known everywhere", SOON, found)?;
    let name = lab.host(1)?.status()?["name"].as_str().context("no name")?.to_owned();
    let mac: Vec<u8> = name.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    drop(capture);
    let bytes = fs::read(&captured)?;
    ensure!(bytes.len() > 3000, "only {} bytes were captured", bytes.len());
    for (what, needle) in
        [("a name", &b"nameofhost"[..]), ("a channel", b"weave"), ("the domain", b"local"), ("an address", &[10, 77, 0, 9])]
    {
        ensure!(!bytes.windows(needle.len()).any(|window| window == needle), "{what} is on the wire in clear");
    }
    ensure!(!bytes.windows(6).any(|window| window == mac), "the peer's name is on the wire in clear");
    ensure!(log(&lab, 1)?.lines().all(|line| !line.contains(OLD)), "the password is in the log");
    let status = lab.host(1)?.weave(["report"])?;
    let pid = lab.host(1)?.status()?["pid"].to_string();
    let words = fs::read(format!("/proc/{pid}/cmdline"))?;
    let state = fs::read(lab_dir(&lab.config().name).join("h1/state/agent.redb"))?;
    for (what, bytes) in [("report", status.as_bytes()), ("command line", &words), ("state", &state)] {
        ensure!(!bytes.windows(OLD.len()).any(|window| window == OLD.as_bytes()), "the password is in the agent's {what}");
    }
    Ok(())
}

#[test]
fn a_host_with_another_password_or_none_does_not_join_and_both_ends_say_why() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::scenario(config("wrongpw"))?;
    lab.meshed()?;
    let (host, other) = (lab.host(1)?, lab.host(3)?);
    other.weave(["stop"])?;
    // It is not started in clear by leaving the password out.
    let log_file = fs::File::create(lab_dir(&lab.config().name).join("refused"))?;
    let launched = other.agent()?.arg("launch").stdout(Stdio::null()).stderr(log_file).status()?;
    let said = fs::read_to_string(lab_dir(&lab.config().name).join("refused"))?;
    ensure!(launched.code() == Some(1) && said.contains("this agent had a password when it ran last"), "{said}");
    let wrong = file(&lab, 3, &["something else"])?;
    let launch = |words: &[&str]| other.agent()?.arg("launch").args(words).stdout(Stdio::null()).status().context("launch");
    ensure!(launch(&["--password-file", &wrong])?.success());
    let says = |host: &Host<'_>, text: &str| -> Result<bool> { Ok(complaints(host)?.iter().any(|info| info.contains(text))) };
    wait_for("h1 to say why", SOON, || says(&host, "it has another password"))?;
    wait_for("h3 to say why", SOON, || says(&other, "it does not accept our password"))?;
    ensure!(log(&lab, 1)?.contains("it has another password") && log(&lab, 3)?.contains("it does not accept our password"));
    ensure!(links(&host, "trusted")? == 1 && links(&other, "trusted")? == 0);
    other.weave(["stop"])?;
    ensure!(launch(&["--no-password"])?.success());
    wait_for("h1 to say why", SOON, || says(&host, "it has no password and this host has one"))?;
    wait_for("h3 to say why", SOON, || says(&other, "its network has a password and this host has none"))?;
    // Given the right one it need not be started again, nor waited for.
    let right = file(&lab, 3, &[OLD])?;
    other.weave(["passwords", "--password-file", &right])?;
    lab.meshed()
}

#[test]
fn a_network_changes_its_password_host_by_host_and_loses_no_frame() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::scenario(config("rekey"))?;
    lab.meshed()?;
    let to = lab.overlay_address("h3c1")?.to_string();
    ensure!(lab.container("h1c1")?.reaches(lab.overlay_address("h3c1")?)?);
    let mut ping = lab.container("h1c1")?.spawn(["ping", "-n", "-i0.01", "-c1500", "-W1", &to])?;
    for (round, passwords) in [&[OLD, NEW][..], &[NEW, OLD], &[NEW]].into_iter().enumerate() {
        for number in 1..=3 {
            let said = lab.host(number)?.weave(["passwords", "--password-file", &file(&lab, number, passwords)?])?;
            ensure!(said.contains(if passwords.len() == 1 { "accepts no other" } else { "accepts 2" }), "{said}");
            wait_for("all links", SOON, || (1..=3).try_fold(true, |all, host| Ok(all && links(&lab.host(host)?, "trusted")? == 2)))
                .with_context(|| format!("round {round}, after h{number}"))?;
        }
    }
    ensure!(ping.ended()?.is_none(), "the ping ended before the change did");
    wait_for("ping to end", std::time::Duration::from_secs(30), || Ok(ping.ended()?.is_some()))?;
    let pings = Pings::read(&ping.written()?)?;
    ensure!(pings.received == pings.sent && pings.sent == 1500, "{pings:?}");
    // The old one is worth nothing now, not even after a start.
    let late = lab.host(2)?;
    late.weave(["stop"])?;
    let old = file(&lab, 2, &[OLD])?;
    ensure!(late.agent()?.args(["launch", "--password-file", &old]).stdout(Stdio::null()).status()?.success());
    wait_for("h2 to be refused", SOON, || Ok(complaints(&late)?.iter().any(|info| info.contains("does not accept our password")))).map(drop)
}
