//! The kernel's tunnel under IPsec, where there is a password. On a kernel without ESP these are skipped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vm_tests::{Host, Lab, LabConfig, Running, lab_dir, process, root_or_skip, wait_for};

use crate::observe::{SOON, Stream, pid, ping, pinged, tunnel};

const PASSWORD: &str = "what only they know";
const ODP: &[&str] = &["--datapath", "odp"];
/// The way to ESP: a key is agreed on, the tunnel is found to work, and that is believed after some seconds.
const SEALED: Duration = Duration::from_secs(40);

fn esp_or_skip() -> bool {
    let words = ["ip", "xfrm", "state", "add", "src", "127.0.0.1", "dst", "127.0.0.1", "proto", "esp", "spi", "0x77"];
    let how = ["mode", "transport", "aead", "rfc4106(gcm(aes))", "0x0102030405060708090a0b0c0d0e0f1011121314", "128"];
    let inside = |words: &[&str]| Command::new("unshare").arg("--net").args(words).output();
    let said = match inside(&[&words[..], &how].concat()) {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("skipped: this kernel has no ESP with AES-GCM: {said}");
    false
}

/// Hosts with a password; the second one's frames are carried by the openvswitch module.
fn config(name: &str, hosts: u8) -> LabConfig {
    let launch = ["--password", PASSWORD, "--rekey-interval", "10"].map(str::to_owned).to_vec();
    let config = LabConfig { hosts, containers: 1, launch, ..LabConfig::named(name) };
    config.launching(2, ODP)
}

/// What comes and goes at a host's underlay.
struct Capture {
    file: PathBuf,
    running: Running,
}

impl Capture {
    fn of(lab: &Lab, number: u8) -> Result<Self> {
        let file = lab_dir(&lab.config().name).join(format!("captured{number}"));
        // What is in clear above all, and enough of the rest to see that there is some.
        let words = ["tcpdump", "-n", "-i", "eth0", "-U", "-s96", "-w", &file.display().to_string(), "not tcp port 6783 and not arp"];
        let running = lab.host(number)?.spawn(words)?;
        wait_for("tcpdump to listen", SOON, || Ok(running.written()?.contains("listening")))?;
        Ok(Self { file, running })
    }

    fn count(&self, filter: &str) -> Result<usize> {
        let text = process::output(Command::new("tcpdump").args(["-n", "-r"]).arg(&self.file).arg(filter))?;
        Ok(text.lines().count())
    }

    /// Between hosts there was nothing but ESP and the sleeve.
    fn sealed(self) -> Result<()> {
        // Its last packets are being written.
        thread::sleep(Duration::from_millis(500));
        let (esp, clear) = (self.count("esp")?, self.count("ip and not esp and not udp port 6783 and not icmp and not igmp")?);
        println!("{esp} packets of ESP, {clear} in clear");
        ensure!(esp > 100, "only {esp} packets of ESP were captured");
        ensure!(clear == 0, "{clear} packets went in clear: {}", self.file.display());
        drop(self.running);
        Ok(())
    }
}

/// All ways between these hosts are under ESP.
fn sealed(lab: &Lab) -> Result<bool> {
    let hosts = lab.config().hosts;
    for from in 1..=hosts {
        for to in (1..=hosts).filter(|to| *to != from) {
            if tunnel(&lab.host(from)?, to)?.as_deref() != Some("esp") {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Waits until they are; what there is instead is told.
fn wait_until_sealed(lab: &Lab) -> Result<()> {
    let waited = wait_for("all to use ESP", SEALED, || sealed(lab));
    if waited.is_err() {
        for number in 1..=lab.config().hosts {
            let host = lab.host(number)?;
            println!("h{number}: {}", host.weave(["status", "connections"])?);
            println!(
                "{}",
                host.exec([
                    "sh",
                    "-c",
                    "ip xfrm state list nokeys | grep -v bitmap; ip xfrm policy; nft list ruleset; grep -v ' 0$' /proc/net/xfrm_stat"
                ])?
            );
            println!("{}", std::fs::read_to_string(lab_dir(&lab.config().name).join(format!("h{number}/run/agent.log")))?);
        }
    }
    waited.map(drop)
}

/// Numbers of the associations that a host sends or receives with.
fn associations(host: &Host<'_>) -> Result<BTreeSet<String>> {
    let text = host.exec(["ip", "xfrm", "state"])?;
    let spi = |line: &str| Some(line.split_once("proto esp spi ")?.1.split(' ').next()?.to_owned());
    Ok(text.lines().filter_map(spi).collect())
}

fn nothing_is_left(host: &Host<'_>) -> Result<()> {
    let left = [host.exec(["ip", "xfrm", "state"])?, host.exec(["ip", "xfrm", "policy"])?, host.exec(["nft", "list", "tables"])?].concat();
    ensure!(!left.contains("esp") && !left.contains("dir "), "{left}");
    Ok(())
}

#[test]
fn encrypted_hosts_of_both_kinds_speak_esp_only_from_the_first_packet_on_and_mend_it() -> Result<()> {
    if !root_or_skip() || !esp_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::scenario(config("esp", 3).without_agents())?;
    let captures = (1..=3).map(|number| Capture::of(&lab, number)).collect::<Result<Vec<_>>>()?;
    lab.start_agents(None)?;
    // Before anything is set up.
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h3c1"), ("h3c1", "h1c1")] {
        ping(&lab.container(from)?, lab.overlay_address(to)?, 200, "0.05")?;
    }
    wait_until_sealed(&lab)?;
    for (from, to) in [("h1c1", "h2c1"), ("h2c1", "h1c1"), ("h2c1", "h3c1"), ("h3c1", "h1c1")] {
        let ping = ping(&lab.container(from)?, lab.overlay_address(to)?, 50, "0.02")?;
        pinged(ping)?.lossless().with_context(|| format!("{from} to {to}"))?;
    }
    mends(&lab)?;
    stays_closed_without_an_agent(&lab)?;
    for host in 1..=3 {
        lab.host(host)?.weave(["reset"])?;
        nothing_is_left(&lab.host(host)?).with_context(|| format!("h{host}"))?;
    }
    captures.into_iter().try_for_each(Capture::sealed)
}

/// What somebody removes is there again, and until then nothing goes.
fn mends(lab: &Lab) -> Result<()> {
    let (h1, from, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    let before = associations(&h1)?;
    let traffic = ping(&from, to, 200, "0.05")?;
    h1.exec(["ip", "xfrm", "state", "deleteall"])?;
    let works = || Ok(pinged(ping(&from, to, 3, "0.1")?)?.received == 3 && associations(&h1)?.is_disjoint(&before));
    let healed = wait_for("traffic to go on", Duration::from_secs(10), works)?;
    println!("all associations of h1 removed: traffic goes on after {healed:.1?}");
    drop(traffic);
    wait_until_sealed(lab)?;
    // One of the two keeps everything from going in clear while the other is away.
    let whole = || {
        let policies = h1.exec(["ip", "xfrm", "policy"])?;
        let rules = h1.exec(["nft", "list", "table", "inet", "weave-agent-esp"])?;
        Ok(policies.matches("dir ").count() == 4 && rules.matches("drop").count() == 4)
    };
    let traffic = ping(&from, to, 400, "0.05")?;
    for removed in [&["ip", "xfrm", "policy", "flush"][..], &["nft", "flush", "table", "inet", "weave-agent-esp"]] {
        // It may be put back before that is seen.
        let is_gone = (0..5).find_map(|_| h1.exec(removed).and_then(|_| whole()).map(|whole| (!whole).then_some(())).transpose());
        ensure!(is_gone.transpose()?.is_some(), "{removed:?} did nothing");
        let healed = wait_for("policies and rules to be back", SOON, whole)?;
        println!("{removed:?}: back after {healed:.1?}");
    }
    drop(traffic);
    Ok(())
}

/// What protects outlives the agent, and also that one half of it is removed, and that the next agent's frames are carried by others.
fn stays_closed_without_an_agent(lab: &Lab) -> Result<()> {
    let (h1, from, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    // Not by the sleeve, which ends with the agent.
    wait_until_sealed(lab)?;
    h1.exec(["kill", "-9", &pid(&h1)?.to_string()])?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless().context("without the agent of h1")?;
    h1.exec(["ip", "xfrm", "policy", "flush"])?;
    let open = pinged(ping(&from, to, 20, "0.05")?)?;
    ensure!(open.received == 0, "without policies frames went in clear: {open:?}");
    h1.weave([&["launch", "--password", PASSWORD], ODP].concat())?;
    wait_until_sealed(lab)?;
    pinged(ping(&from, to, 20, "0.05")?)?.lossless().context("h1 by the module")
}

/// Packets that the kernel refused for want of an association, or that an association refused, by reason.
fn refused(host: &Host<'_>) -> Result<String> {
    host.exec(["cat", "/proc/net/xfrm_stat"])
}

#[test]
fn keys_change_and_an_agent_is_killed_under_traffic_that_loses_nothing() -> Result<()> {
    if !root_or_skip() || !esp_or_skip() {
        return Ok(());
    }
    let lab = Lab::scenario(config("espkeys", 2))?;
    lab.meshed()?;
    wait_until_sealed(&lab)?;
    let h1 = lab.host(1)?;
    let before = associations(&h1)?;
    let refused_before = [refused(&h1)?, refused(&lab.host(2)?)?];
    // Longer than two keys live.
    let stream = Stream::tcp(&lab, "h2c1", "h1c1", 25)?;
    let traffic = ping(&lab.container("h1c1")?, lab.overlay_address("h2c1")?, 1000, "0.025")?;
    wait_for("all keys to have changed", Duration::from_secs(120), || Ok(associations(&h1)?.is_disjoint(&before)))?;
    let pings = pinged(traffic)?;
    println!("keys changed under {:.3} Gbit/s: {pings:?}", stream.speed()?);
    pings.lossless()?;
    ensure!([refused(&h1)?, refused(&lab.host(2)?)?] == refused_before, "packets were refused: {}", refused(&h1)?);
    killed_one_after_the_other(&lab)
}

/// Agents are killed under traffic and come back: what flows by ESP flows on, also when what the new ones found goes, after a minute.
fn killed_one_after_the_other(lab: &Lab) -> Result<()> {
    // The last of them goes a minute after the second agent's start, which is ten seconds after now: longer than that.
    let pings = [("h2c1", "h1c1"), ("h1c1", "h2c1")];
    let pings = pings.map(|(from, to)| ping(&lab.container(from)?, lab.overlay_address(to)?, 1400, "0.06"));
    for (number, flags) in [(1, &["--datapath", "ebpf"][..]), (2, ODP)] {
        let host = lab.host(number)?;
        host.exec(["kill", "-9", &pid(&host)?.to_string()])?;
        thread::sleep(Duration::from_secs(4));
        host.weave([&["launch", "--password", PASSWORD], flags].concat())?;
    }
    wait_until_sealed(lab)?;
    for ping in pings {
        let pings = pinged(ping?)?;
        println!("both agents killed: {pings:?}");
        pings.lossless()?;
    }
    Ok(())
}
