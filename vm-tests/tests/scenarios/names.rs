//! Containers have names, on every host, as long as they live.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{Lab, LabConfig, Node, root_or_skip, wait_for};

use crate::observe::{SOON, lab, memory, pid, traffic};

/// What every container has in its resolv.conf.
const SERVER: &str = "@169.254.83.53";

fn dig(from: &Node<'_>, words: &[&str]) -> Result<String> {
    from.exec(["dig", "+tries=2", "+time=2", SERVER].iter().chain(words))
}

/// Addresses, or names.
fn short(from: &Node<'_>, words: &[&str]) -> Result<Vec<String>> {
    let text = dig(from, &[&["+short"], words].concat())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Three hosts with a container each: web1, web2, web3.
fn named(name: &str, launch: &[&str]) -> Result<(Lab, Vec<Vec<IpAddr>>)> {
    let lab = lab(LabConfig { hosts: 3, containers: 1, ..LabConfig::named(name) }.unattached(launch))?;
    let given: Result<_> = (1..=3).map(|number| lab.host(number)?.attach_free(1, &["--name", &format!("web{number}")])).collect();
    Ok((lab, given?))
}

#[test]
fn every_container_finds_every_other_by_name_over_both_families() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, given) = named("names", &["--ipalloc-range", "10.32.0.0/12,fd00:10:32::/64"])?;
    for host in 1..=3 {
        let from = lab.container(&format!("h{host}c1"))?;
        for (number, addresses) in (1..).zip(&given) {
            let name = format!("WEB{number}.weave.local");
            let found = || Ok(short(&from, &[&name])? == [addresses[0].to_string()]);
            wait_for(&format!("{name} at h{host}c1"), SOON, found)?;
            ensure!(short(&from, &[&name, "AAAA", "+tcp"])? == [addresses[1].to_string()]);
            ensure!(short(&from, &["-x", &addresses[0].to_string()])? == [format!("web{number}.weave.local.")]);
            ensure!(short(&from, &["-x", &addresses[1].to_string()])? == [format!("web{number}.weave.local.")]);
            ensure!(from.reaches(addresses[0])? && from.reaches(addresses[1])?, "h{host}c1 does not reach {addresses:?}");
        }
    }
    let from = lab.container("h1c1")?;
    let unknown = dig(&from, &["nobody.weave.local"])?;
    ensure!(unknown.contains("status: NXDOMAIN") && unknown.contains("SOA"), "{unknown}");
    let empty = dig(&from, &["web2.weave.local", "MX"])?;
    ensure!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0") && empty.contains("SOA"), "{empty}");
    Ok(())
}

#[test]
fn a_name_is_answered_as_long_as_its_container_lives_whatever_becomes_of_the_agent() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, given) = named("dead", &[])?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    let from = lab.container("h3c1")?;
    h1.weave(["dns-add", "printer", "10.40.0.9", "10.40.0.10"])?;
    let has = |name: &str, count: usize| {
        wait_for(&format!("{count} addresses of {name}"), SOON, || Ok(short(&from, &[name])?.len() == count)).map(drop)
    };
    has("web1.weave.local", 1)?;
    has("printer.weave.local", 2)?;
    // A killed agent's names are still there when the next one is; and those given by hand.
    let here = lab.container("h1c1")?;
    ensure!(short(&here, &["web2.weave.local"])? == [given[1][0].to_string()]);
    kill(Pid::from_raw(pid(&h1)?), Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(200));
    h1.launch(&[])?;
    // At once, however busy the way to the last agent's server just was.
    ensure!(short(&here, &["+tries=2", "+time=1", "web1.weave.local"])? == [given[0][0].to_string()], "h1c1 has lost its name server");
    lab.meshed()?;
    has("web1.weave.local", 1)?;
    has("printer.weave.local", 2)?;
    ensure!(short(&lab.container("h1c1")?, &["web2.weave.local"])? == [given[1][0].to_string()], "h1c1 has lost its name server");
    // A container that goes takes its name with it: asked to, or because its interface died.
    h2.detach(1)?;
    has("web2.weave.local", 0)?;
    lab.container("h1c1")?.exec(["ip", "link", "del", "ethwe"])?;
    has("web1.weave.local", 0)?;
    h1.weave(["dns-remove", "printer", "10.40.0.9"])?;
    has("printer.weave.local", 1)?;
    let told = h1.weave(["dns-lookup", "printer"])?;
    ensure!(told.trim() == "10.40.0.10", "{told}");
    let refused = h1.weave(["dns-add", "printer.example.com", "10.40.0.9"]).err().context("a name of another domain was taken")?;
    ensure!(format!("{refused:#}").contains("weave.local"), "{refused:#}");
    Ok(())
}

#[test]
fn a_name_is_there_when_attach_has_answered_and_can_be_taken_away_alone() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 1, containers: 3, ..LabConfig::named("atonce") }.unattached(&[]))?;
    let (host, from) = (lab.host(1)?, lab.container("h1c1")?);
    host.attach_free(1, &[])?;
    for round in 0..10 {
        let name = format!("web{round}");
        let given = host.attach_free(2, &["--name", &name])?;
        ensure!(short(&from, &[&format!("{name}.weave.local")])? == [given[0].to_string()], "{name} is not there at once");
        host.weave(["dns-add", &name, "10.40.0.9"])?;
        ensure!(short(&from, &[&format!("{name}.weave.local")])?.len() == 2, "{name} by hand is not there at once");
        host.detach(2)?;
        host.weave(["dns-remove", &name])?;
        ensure!(short(&from, &[&format!("{name}.weave.local")])?.is_empty(), "{name} is still there");
    }
    // Two names of one container, and one of two containers.
    let given = host.attach_free(2, &["--name", "shared"])?[0].to_string();
    host.attach_free(2, &["--name", "alone"])?;
    let other = host.attach_free(3, &["--name", "shared"])?[0].to_string();
    host.weave(["dns-remove", "shared", &given])?;
    let right = || -> Result<bool> {
        Ok(short(&from, &["shared.weave.local"])? == [other.clone()] && short(&from, &["alone.weave.local"])? == [given.clone()])
    };
    ensure!(right()?, "more or less is left than should be");
    kill(Pid::from_raw(pid(&host)?), Signal::SIGKILL)?;
    host.launch(&[])?;
    wait_for("the same after a restart", SOON, right)?;
    let nobody = dig(&from, &["-x", "10.47.9.9"])?;
    ensure!(nobody.contains("status: NXDOMAIN") && nobody.contains("SOA") && nobody.contains(" aa "), "{nobody}");
    for bad in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255"] {
        let told = format!("{:#}", host.weave(["dns-add", "x", bad]).err().context("an address of nobody was taken")?);
        ensure!(told.contains(bad), "{told}");
    }
    Ok(())
}

#[test]
fn sixty_addresses_of_one_name_are_cut_over_udp_and_whole_over_tcp() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, _) = named("many", &[])?;
    let addresses: Vec<String> = (1..=60).map(|last| format!("10.40.9.{last}")).collect();
    lab.host(1)?.weave(["dns-add", "many"].iter().map(ToString::to_string).chain(addresses))?;
    let from = lab.container("h2c1")?;
    wait_for("the name at h2", SOON, || Ok(!short(&from, &["many.weave.local"])?.is_empty()))?;
    let cut = dig(&from, &["+noedns", "+ignore", "many.weave.local"])?;
    ensure!(cut.lines().any(|line| line.contains("flags:") && line.contains(" tc")), "{cut}");
    ensure!(short(&from, &["+noedns", "+tcp", "many.weave.local"])?.len() == 60, "not whole over TCP");
    ensure!(short(&from, &["+noedns", "many.weave.local"])?.len() == 60, "dig did not go on over TCP");
    Ok(())
}

/// Garbage to the server: it answers or not, and goes on.
#[test]
fn ten_thousand_random_queries_leave_the_name_server_up_and_the_agents_memory_flat() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let (lab, given) = named("dnsjunk", &[])?;
    let (h1, from) = (lab.host(1)?, lab.container("h1c1")?);
    let before = memory(&h1)?;
    from.exec([&traffic()?, "garbage", "--udp", "169.254.83.53:53", "--count", "10000"])?;
    ensure!(short(&from, &["web2.weave.local"])? == [given[1][0].to_string()], "no answer after the garbage");
    let grown = memory(&h1)?.saturating_sub(before);
    ensure!(grown < 8 << 20, "the agent has grown by {grown} bytes");
    Ok(())
}
