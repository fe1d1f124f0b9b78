//! Containers get addresses by themselves, on any host, and never the same one twice.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_tests::{Host, Lab, LabConfig, root_or_skip, wait_for};

use crate::observe::{SOON, json, lab, pid, ping, pinged};

/// How long a host may be told that there is no way to another before it knows.
const NOTICED: Duration = Duration::from_secs(10);

/// Addresses by port, as the keeper of addresses has them.
fn owned(host: &Host<'_>) -> Result<BTreeMap<String, Vec<String>>> {
    let status = json(host, &["status", "ipam"])?;
    serde_json::from_value(status["owned"].clone()).context("status ipam has no owners")
}

/// Addresses by port, as the containers have them.
fn attached(host: &Host<'_>) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Port {
        interface: String,
        addresses: Vec<String>,
    }
    let ports: Vec<Port> = serde_json::from_value(json(host, &["ps"])?)?;
    Ok(ports.into_iter().map(|port| (port.interface, port.addresses)).collect())
}

/// No address is there twice.
fn distinct<'a>(all: impl IntoIterator<Item = &'a IpAddr>) -> Result<usize> {
    let mut seen = std::collections::BTreeSet::new();
    for address in all {
        ensure!(seen.insert(*address), "{address} was given out twice");
    }
    Ok(seen.len())
}

fn milliseconds(sorted: &[Duration], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// How much there is of something: fewer in CI than when somebody wants to know.
fn scale(variable: &str, default: u8) -> u8 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Each container of a host finds others by name, and they answer: `WEAVE_SAMPLE` of them, on all hosts. All namespaces of a machine
/// share one neighbour table of `net.ipv4.neigh.default.gc_thresh3` entries, 1,024 by default: more than a few want a larger one.
fn find_others(lab: &Lab, host: u8, containers: u8) -> Result<usize> {
    let sample = u32::from(scale("WEAVE_SAMPLE", 2));
    let config = std::env::temp_dir().join(format!("{}-resolv.conf", lab.config().name));
    std::fs::write(&config, "nameserver 169.254.83.53\nsearch weave.local\n")?;
    for container in 1..=containers {
        let other = |step: u32| {
            // Far apart, and on another host each time.
            let number = (u32::from(container) + step * 37) % u32::from(containers) + 1;
            format!("n{}-{number}", (u32::from(host) + step) % 3 + 1)
        };
        let names = (1..=sample).map(other).collect::<Vec<_>>().join(" ");
        let find =
            format!("mount --bind {} /etc/resolv.conf && for n in {names}; do ping -q -n -c1 -W2 $n >&2 || exit 1; done", config.display());
        let from = lab.container(&format!("h{host}c{container}"))?;
        from.exec(["unshare", "--mount", "sh", "-c", &find]).with_context(|| format!("looking for {names}"))?;
    }
    Ok(usize::from(containers) * sample as usize)
}

/// `WEAVE_ATTACHES` containers on each of three hosts, attached on all of them at the same time.
#[test]
fn hosts_that_attach_at_the_same_moment_give_out_distinct_addresses() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let containers = scale("WEAVE_ATTACHES", 50);
    let lab = lab(LabConfig { hosts: 3, containers, ..LabConfig::named("alloc") }.unattached(&[]))?;
    let started = Instant::now();
    let one_host = |number: u8| -> Result<Vec<(IpAddr, Duration)>> {
        let host = lab.host(number)?;
        let one = |container| {
            let before = Instant::now();
            let given = host.attach_free(container, &["--name", &format!("n{number}-{container}")])?;
            Ok((*given.first().context("no address")?, before.elapsed()))
        };
        (1..=containers).map(one).collect()
    };
    let given: Result<Vec<_>> = std::thread::scope(|scope| {
        let hosts = [1, 2, 3].map(|number| scope.spawn(move || one_host(number)));
        hosts.into_iter().map(|host| host.join().map_err(|_| anyhow::anyhow!("a host's thread panicked"))?).collect()
    });
    let given: Vec<(IpAddr, Duration)> = given?.into_iter().flatten().collect();
    let took = started.elapsed();
    ensure!(distinct(given.iter().map(|(address, _)| address))? == 3 * usize::from(containers), "some got none");
    let mut times: Vec<Duration> = given.iter().map(|(_, time)| *time).collect();
    times.sort();
    let answers = lab.host(1)?.weave(["status", "ipam", "--json"])?;
    let answers: serde_json::Value = serde_json::from_str(&answers)?;
    println!(
        "{} containers in {:.1} s; attach p50 {:.0} ms, p99 {:.0} ms; the address alone on h1: {}",
        given.len(),
        took.as_secs_f64(),
        milliseconds(&times, 50),
        milliseconds(&times, 99),
        answers["answered"]
    );
    let started = Instant::now();
    let pings: Result<Vec<usize>> = std::thread::scope(|scope| {
        let lab = &lab;
        let hosts = [1, 2, 3].map(|number| scope.spawn(move || find_others(lab, number, containers)));
        hosts.into_iter().map(|host| host.join().map_err(|_| anyhow::anyhow!("a host's thread panicked"))?).collect()
    });
    println!("{} pings by name in {:.1} s", pings?.iter().sum::<usize>(), started.elapsed().as_secs_f64());
    Ok(())
}

/// Two hosts are cut off from three.
fn partition(lab: &mut Lab, cut: bool) -> Result<()> {
    for (a, b) in [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)] {
        if cut { lab.cut(a, b)? } else { lab.mend(a, b)? }
    }
    Ok(())
}

/// Attaches until there is nothing left, and says what came and what the end was.
fn exhaust(host: &Host<'_>, containers: u8) -> Result<(Vec<IpAddr>, String)> {
    let mut given = Vec::new();
    for container in 1..=containers {
        match host.attach_free(container, &[]) {
            Ok(addresses) => given.extend(addresses),
            Err(error) => return Ok((given, format!("{error:#}"))),
        }
    }
    anyhow::bail!("{} addresses, and still some left", given.len())
}

#[test]
fn both_sides_of_a_partition_go_on_and_a_dead_hosts_space_can_be_taken_over() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let flags = ["--ipalloc-range", "10.32.0.0/26"];
    let mut lab = lab(LabConfig { hosts: 5, containers: 62, ..LabConfig::named("split") }.unattached(&flags))?;
    let mut all = Vec::new();
    for number in 1..=5 {
        all.extend(lab.host(number)?.attach_free(1, &[])?);
    }
    distinct(&all)?;
    partition(&mut lab, true)?;
    for number in 1..=5 {
        // Two more each: from their own space, or from that of their side.
        all.extend(lab.host(number)?.attach_free(2, &[]).with_context(|| format!("h{number} in the partition"))?);
    }
    distinct(&all)?;
    let reachable = |host: &Host<'_>| anyhow::Ok(host.status()?["reachable"].as_u64());
    wait_for("h1 to know that it is cut off", NOTICED, || Ok(reachable(&lab.host(1)?)? == Some(2)))?;
    let (given, end) = exhaust(&lab.host(1)?, 62)?;
    // The two containers it has are not attached anew.
    all.extend(given.iter().filter(|address| !all.contains(address)).copied().collect::<Vec<_>>());
    distinct(&all)?;
    println!("h1 with h2 alone: {end}");
    ensure!(["h3", "h4", "h5"].iter().all(|name| end.contains(name)) && end.contains("unreachable"), "{end}");

    partition(&mut lab, false)?;
    wait_for("h1 to see all", SOON, || Ok(reachable(&lab.host(1)?)? == Some(5)))?;
    let next = u8::try_from(given.len() + 1)?;
    all.extend(lab.host(1)?.attach_free(next, &[]).context("after the partition")?);
    distinct(&all)?;

    take_over(&lab, &mut all)
}

/// Whether a host can ask another one for space.
fn asked(host: &Host<'_>, owner: &str) -> Result<bool> {
    let status = json(host, &["status", "ipam"])?;
    let owners = status["ranges"].as_array().into_iter().flatten().flat_map(|range| range["owners"].as_array()).flatten();
    let mut of = owners.filter(|other| other["nickname"] == owner || other["name"] == owner).peekable();
    ensure!(of.peek().is_some(), "{owner} owns nothing: {status}");
    Ok(of.any(|other| other["reachable"] == true))
}

/// Host 5 dies for good; its space is used elsewhere; then it comes back.
fn take_over(lab: &Lab, all: &mut Vec<IpAddr>) -> Result<()> {
    let (h1, h5) = (lab.host(1)?, lab.host(5)?);
    let dead: Vec<String> = attached(&h5)?.into_values().flatten().collect();
    kill(Pid::from_raw(pid(&h5)?), Signal::SIGKILL)?;
    for container in 1..=2 {
        h5.exec(["ip", "-n", &lab.container(&format!("h5c{container}"))?.netns(), "link", "del", "ethwe"])?;
    }
    h5.exec(["ip", "link", "set", "eth0", "down"])?;
    // It is none of the others that is away for a moment.
    wait_for("h1 to know that h5 is gone", NOTICED, || Ok(!asked(&h1, "h5")? && h1.status()?["reachable"] == 4))?;
    // Its link ends at once; its kernel may have answered a heartbeat just before, and is believed to live until that is old.
    let taken = || match h1.weave(["rmpeer", "h5"]) {
        Ok(said) => Ok(Some(said)),
        Err(error) if format!("{error:#}").contains("its containers are still on the network") => Ok(None),
        Err(error) => Err(error),
    };
    let started = Instant::now();
    let mut said = None;
    wait_for("h1 to take h5 for dead", NOTICED, || {
        said = taken()?;
        Ok(said.is_some())
    })?;
    println!("rmpeer after {:.1} s: {}", started.elapsed().as_secs_f64(), said.unwrap_or_default().trim());
    let started = Instant::now();
    let (given, end) = exhaust(&lab.host(2)?, 62)?;
    println!("h2 got {} more within {:.1} s, then: {end}", given.len(), started.elapsed().as_secs_f64());
    ensure!(end.contains("all of them are in use"), "{end}");
    let former = |address: &IpAddr| dead.iter().any(|net| net.starts_with(&format!("{address}/")));
    ensure!(given.iter().any(former), "the dead host's addresses {dead:?} were not given out again");
    all.retain(|address| !former(address));
    all.extend(given.iter().filter(|address| !all.contains(address)).copied().collect::<Vec<_>>());
    distinct(&*all)?;
    // It comes back: nothing is given out twice.
    h5.exec(["ip", "link", "set", "eth0", "up"])?;
    h5.launch(&[h1.address()])?;
    wait_for("h5 to be back", SOON, || Ok(h1.status()?["reachable"] == 5))?;
    match h5.attach_free(1, &[]) {
        Ok(given) => all.extend(given),
        Err(error) => println!("h5, back again: {error:#}"),
    }
    distinct(&*all).map(drop)
}

/// `WEAVE_KILLS` times an agent dies while containers come and go.
#[test]
fn no_address_leaks_however_often_an_agent_is_killed() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let kills = scale("WEAVE_KILLS", 15);
    let lab = lab(LabConfig { hosts: 2, containers: 6, ..LabConfig::named("leak") }.unattached(&[]))?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    h2.attach_free(1, &[])?;
    let mut slowest = Duration::ZERO;
    for round in 0..kills {
        let at = Duration::from_millis(u64::from(round) * 37 % 200);
        let dead = pid(&h1)?;
        std::thread::scope(|scope| -> Result<()> {
            let load = scope.spawn(|| come_and_go(&h1));
            std::thread::sleep(at);
            kill(Pid::from_raw(dead), Signal::SIGKILL)?;
            load.join().map_err(|_| anyhow::anyhow!("the load panicked"))
        })?;
        // At once: what is left of the killed one is waited for.
        let before = Instant::now();
        h1.launch(&[])?;
        slowest = slowest.max(before.elapsed());
        wait_for("owned and attached to agree", SOON, || Ok(owned(&h1)? == attached(&h1)?))?;
        let both = [attached(&h1)?, attached(&h2)?];
        let all: Result<Vec<IpAddr>, _> =
            both.iter().flat_map(BTreeMap::values).flatten().map(|net| net.split('/').next().unwrap_or_default().parse()).collect();
        distinct(&all?)?;
    }
    println!("{kills} kills; the slowest start took {:.2} s", slowest.as_secs_f64());
    ensure!(slowest < Duration::from_secs(1), "a start took {slowest:?}");
    // Everything can be given back.
    for container in 1..=6 {
        let _ = h1.detach(container);
    }
    ensure!(owned(&h1)?.is_empty(), "{:?}", owned(&h1)?);
    Ok(())
}

/// Attaches and detaches until the agent is gone.
fn come_and_go(host: &Host<'_>) {
    for container in (1..=6).cycle().take(60) {
        if host.detach(container).is_err() && host.attach_free(container, &[]).is_err() && host.status().is_err() {
            return;
        }
    }
}

/// Whether the host has anything of ours.
fn ours(host: &Host<'_>) -> Result<bool> {
    let links = host.exec(["ip", "-o", "link"])?;
    Ok(["vxlan-", "vethwe", "weave"].iter().any(|name| links.contains(name)))
}

#[test]
fn a_range_that_the_host_uses_itself_is_refused_at_launch_and_nothing_is_left() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = Lab::scenario(LabConfig { hosts: 1, containers: 1, ..LabConfig::named("range") }.unattached(&[]))?;
    let host = lab.host(1)?;
    // Started anew with its containers and its own exposure: nothing is in the way.
    host.attach_free(1, &[])?;
    host.weave(["expose"])?;
    host.weave(["stop"])?;
    host.launch(&[])?;
    // A route that came later does not keep the agent from its containers.
    let route = |verb: &str, net: &str| host.exec(["ip", "route", verb, net, "dev", "eth0"]).map(drop);
    host.weave(["stop"])?;
    route("add", "10.40.0.0/16")?;
    host.launch(&[])?;
    let warnings = host.status()?["warnings"].to_string();
    ensure!(warnings.contains("10.32.0.0/12") && warnings.contains("10.40.0.0/16 (dev eth0)"), "{warnings}");
    host.weave(["reset"])?;
    let dir = vm_tests::lab_dir(&lab.config().name).join("h1");
    for (net, named) in [("10.40.0.0/16", "10.40.0.0/16 (dev eth0)"), ("10.0.0.0/8", "10.0.0.0/8 (dev eth0)")] {
        route("replace", net)?;
        for more in [&[][..], &["--foreground"]] {
            let output = host.agent()?.arg("launch").args(more).output()?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && told.contains(named) && told.contains("--ipalloc-range 10.32.0.0/12"), "{told}");
            ensure!(!ours(&host)? && !dir.join("state/agent.redb").exists() && !dir.join("run").exists(), "something is left");
        }
        route("del", net)?;
    }
    // Where an agent ran before, it is the agent that says it.
    host.launch(&[])?;
    host.weave(["stop"])?;
    host.exec(["ip", "address", "add", "10.33.0.9/32", "dev", "eth0"])?;
    let output = host.agent()?.arg("launch").output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && told.contains("10.33.0.9 of this host (eth0)"), "{told}");
    host.exec(["ip", "address", "del", "10.33.0.9/32", "dev", "eth0"])?;
    host.launch(&[])
}

#[test]
fn containers_of_both_families_talk_over_both_and_a_host_that_leaves_hands_on_its_space() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let flags = ["--ipalloc-range", "10.32.0.0/12,fd00:10:32::/64"];
    let lab = lab(LabConfig { hosts: 2, containers: 1, ..LabConfig::named("dual") }.unattached(&flags))?;
    lab.host(1)?.attach_free(1, &[])?;
    let given = lab.host(2)?.attach_free(1, &[])?;
    ensure!(given.len() == 2 && given[0].is_ipv4() && given[1].is_ipv6(), "{given:?}");
    for address in given {
        pinged(ping(&lab.container("h1c1")?, address, 20, "0.05")?)?.lossless()?;
    }
    lab.host(2)?.weave(["reset"])?;
    let owners = || -> Result<String> { Ok(json(&lab.host(1)?, &["status", "ipam"])?["ranges"].to_string()) };
    ensure!(!owners()?.contains("\"h2\""), "{}", owners()?);
    Ok(())
}

#[test]
fn what_cannot_be_had_is_refused_with_both_sides_named() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 2, ..LabConfig::named("refused") }.unattached(&[]))?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    let refused = |host: &Host<'_>, words: &[&str]| -> Result<String> {
        let error = host.weave(words).err().with_context(|| format!("{words:?} was not refused"))?;
        Ok(format!("{error:#}"))
    };
    let taken = h1.attach_free(1, &[])?[0];
    let c2 = lab.container("h2c2")?.netns();
    let told = refused(&h2, &["attach", &format!("{taken}/12"), &c2])?;
    ensure!(told.contains(&taken.to_string()) && told.contains("h1"), "{told}");
    let told = refused(&h2, &["attach", "net:10.64.0.0/24", &c2])?;
    ensure!(told.contains("10.64.0.0/24") && told.contains("10.32.0.0/12"), "{told}");
    h2.exec(["ip", "route", "add", "10.33.0.0/16", "dev", "eth0"])?;
    let told = refused(&h2, &["attach", &c2])?;
    ensure!(told.contains("10.33.0.0/16") && told.contains("eth0"), "{told}");
    h2.exec(["ip", "route", "del", "10.33.0.0/16", "dev", "eth0"])?;
    h2.attach_free(2, &[])?;
    // Another range in one mesh: both sides say so, and everything else goes on.
    h2.weave(["stop"])?;
    h2.weave(["launch", "--nickname", "h2", "--ipalloc-range", "10.48.0.0/12", &h1.address().to_string()])?;
    let warns = |host: &Host<'_>| -> Result<bool> {
        let text = host.status()?["warnings"].to_string();
        Ok(text.contains("10.32.0.0/12") && text.contains("10.48.0.0/12"))
    };
    h1.attach_free(2, &[])?;
    wait_for("both to say that their ranges differ", Duration::from_secs(45), || Ok(warns(&h1)? && warns(&h2)?))?;
    lab.meshed()
}
