//! How agents begin and end: one in each network namespace, in whatever directories, as it was told last.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{Host, Lab, LabConfig, lab_dir, root_or_skip, wait_for};

use crate::observe::{SOON, pid};

/// A lab of one host, and a directory for other agents' files.
fn alone(name: &str) -> Result<(Lab, std::path::PathBuf)> {
    let lab = Lab::scenario(LabConfig { hosts: 1, containers: 1, ..LabConfig::named(name) })?;
    let directory = lab_dir(&lab.config().name).join("h1");
    Ok((lab, directory))
}

/// `weave-agent` with other directories, relative to `at`.
fn other(host: &Host<'_>, at: &Path) -> Result<Command> {
    let mut command = host.agent()?;
    command.current_dir(at).env("WEAVE_RUN_DIR", "run2").env("WEAVE_STATE_DIR", "./state2");
    Ok(command)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn links(host: &Host<'_>) -> Result<usize> {
    Ok(host.exec(["ip", "-o", "link"])?.lines().count())
}

#[test]
fn a_second_agent_is_refused_and_its_reset_touches_nothing_of_the_first() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, directory) = alone("second")?;
    let host = lab.host(1)?;
    let (process, before) = (pid(&host)?, links(&host)?);
    for words in [&["launch", "--port", "7000"][..], &["reset"][..]] {
        let output = other(&host, &directory)?.args(words).output()?;
        let text = said(&output);
        ensure!(output.status.code() == Some(1), "{words:?}: {text}");
        ensure!(text.contains(&format!("(pid {process})")) && text.contains(&directory.join("run").display().to_string()), "{text}");
    }
    ensure!(pid(&host)? == process && links(&host)? == before && !directory.join("run2").exists());
    // With nobody here what is left goes, whoever left it.
    kill(Pid::from_raw(process), Signal::SIGKILL)?;
    wait_for("the network namespace to be free", SOON, || Ok(other(&host, &directory)?.arg("reset").output()?.status.success()))?;
    ensure!(
        links(&host)? == before - 4,
        "the vxlan device, the sleeve's, the port and the name server's are gone: {}",
        host.exec(["ip", "-o", "link"])?
    );
    Ok(())
}

#[test]
fn relative_directories_are_those_of_whoever_launches() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, directory) = alone("relative")?;
    let host = lab.host(1)?;
    host.weave(["reset"])?;
    fs::create_dir_all(&directory)?;
    // Not through a pipe: the agent would keep it open.
    let launched = other(&host, &directory)?.arg("launch").stdout(std::process::Stdio::null()).status()?;
    ensure!(launched.success() && directory.join("run2/agent.sock").exists() && directory.join("state2/agent.redb").exists());
    let output = other(&host, &directory)?.arg("reset").output()?;
    ensure!(output.status.success() && !directory.join("run2").exists(), "{}", said(&output));
    Ok(())
}

#[test]
fn an_agent_whose_socket_is_gone_is_stopped_and_launched_again_as_it_was_told_last() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, directory) = alone("socket")?;
    let host = lab.host(1)?;
    let process = pid(&host)?;
    // SIGHUP opens the log again, and ends nothing.
    let log = directory.join("run/agent.log");
    fs::rename(&log, directory.join("run/rotated"))?;
    kill(Pid::from_raw(process), Signal::SIGHUP)?;
    wait_for("a new log", SOON, || Ok(fs::read_to_string(&log).is_ok_and(|text| text.contains("SIGHUP"))))?;
    fs::remove_file(directory.join("run/agent.sock"))?;
    let output = host.agent()?.arg("status").output()?;
    ensure!(said(&output).contains("`weave-agent stop && weave-agent launch`"), "{}", said(&output));
    host.weave(["stop"])?;
    let launched = host.agent()?.arg("launch").stdout(std::process::Stdio::null()).status()?;
    ensure!(launched.success() && host.status()?["nickname"] == "h1", "{}", host.status()?);
    Ok(())
}
