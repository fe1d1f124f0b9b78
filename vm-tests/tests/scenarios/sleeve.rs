//! Where the kernel's tunnel does not get through, or may not be used: user space carries the frames, sealed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{Host, Lab, LabConfig, Node, Running, Underlay, lab_dir, root_or_skip, wait_for};

use crate::observe::{Pings, SOON, count, json, lab, memory, tunnel};

const VXLAN: u16 = 6784;
const SLEEVE: u16 = 6783;
/// Where in a datagram a middle byte of its number is.
const NUMBER: usize = 9;

fn secret(name: &str) -> LabConfig {
    let launch = ["--password", "what only they know"].map(str::to_owned).to_vec();
    LabConfig { containers: 1, launch, ..LabConfig::named(name) }
}

/// Both ends of the way between h1 and h2 are of this kind.
fn both(lab: &Lab, kind: &str) -> Result<bool> {
    Ok(tunnel(&lab.host(1)?, 2)?.as_deref() == Some(kind) && tunnel(&lab.host(2)?, 1)?.as_deref() == Some(kind))
}

/// Why h1 does not use the kernel's tunnel to its only neighbour.
fn reason(host: &Host<'_>) -> Result<String> {
    let all = json(host, &["status", "connections"])?;
    let reason = all.as_array().into_iter().flatten().find_map(|entry| entry.pointer("/tunnel/reason")?.as_str().map(str::to_owned));
    reason.with_context(|| format!("no reason in {all}"))
}

/// iperf3 between two containers, a report line every 0.1 s.
fn stream(lab: &Lab, seconds: u32) -> Result<(Running, Running)> {
    let (from, to) = (lab.container("h1c1")?, lab.container("h2c1")?);
    let server = to.spawn(["iperf3", "-s", "-1"])?;
    wait_for("iperf3 to listen", SOON, || Ok(to.exec(["ss", "-Hltn", "sport = :5201"])?.contains("5201")))?;
    let address = lab.overlay_address("h2c1")?.to_string();
    let seconds = seconds.to_string();
    let client = from.spawn(["iperf3", "-c", &address, "-C", "cubic", "-t", &seconds, "-i", "0.1", "-J"])?;
    Ok((server, client))
}

/// Longest time without a byte, seconds, and whether the stream came to its end.
fn longest_stall(text: &str) -> Result<f64> {
    let result: Value = serde_json::from_str(text).with_context(|| format!("iperf3 said {text}"))?;
    ensure!(result.get("error").is_none(), "{}", result["error"]);
    let intervals = result["intervals"].as_array().context("no intervals")?;
    let (mut longest, mut stall) = (0.0_f64, 0.0);
    for interval in intervals.iter().map(|interval| &interval["sum"]) {
        let is_dead = interval["bytes"].as_f64().unwrap_or(0.0) == 0.0;
        stall = if is_dead { stall + interval["seconds"].as_f64().unwrap_or(0.0) } else { 0.0 };
        longest = longest.max(stall);
    }
    Ok(longest)
}

#[test]
fn a_stream_goes_on_when_udp_6784_is_blocked_and_comes_back_to_vxlan() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { containers: 1, ..LabConfig::named("block") })?;
    let (_server, mut client) = stream(&lab, 22)?;
    std::thread::sleep(Duration::from_secs(1));
    lab.block(1, 2, VXLAN)?;
    let over = wait_for("both to use the sleeve", Duration::from_secs(3), || both(&lab, "sleeve"))?;
    let why = reason(&lab.host(1)?)?;
    ensure!(why.starts_with("vxlan unanswered for") && why.ends_with("UDP 6784 blocked?"), "{why}");
    std::thread::sleep(Duration::from_secs(3));
    lab.unblock(1, 2, VXLAN)?;
    let back = wait_for("both to be back", Duration::from_secs(15), || both(&lab, "vxlan"))?;
    println!("on the sleeve after {over:.1?}, back {back:.1?} after the block's end");
    wait_for("iperf3 to end", Duration::from_secs(60), || Ok(client.ended()?.is_some()))?;
    let stall = longest_stall(&client.written()?)?;
    println!("the stream stood still for {stall:.1} s at most");
    ensure!(stall < 3.0, "the stream stood still for {stall} s");
    Ok(())
}

#[test]
fn with_a_password_nothing_is_on_the_wire_in_clear_and_nothing_forged_gets_in() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::scenario(secret("sealed").without_agents())?;
    let captured: PathBuf = lab_dir(&lab.config().name).join("captured");
    let words = ["tcpdump", "-n", "-i", "eth0", "-U", "-s0", "-w", &captured.display().to_string()].map(str::to_owned);
    let capture = lab.host(1)?.spawn(words)?;
    wait_for("tcpdump to listen", SOON, || Ok(capture.written()?.contains("listening")))?;
    lab.start_agents(None)?;
    wait_for("both to use the sleeve", SOON, || both(&lab, "sleeve"))?;
    let to = lab.overlay_address("h2c1")?.to_string();
    let marker = "c0ffee5ea1edc0ffee5ea1ed";
    let ping = ["ping", "-n", "-c20", "-i0.05", "-W1", "-s600", "-p", &marker[..24], &to].map(str::to_owned);
    let pings = Pings::read(&lab.container("h1c1")?.exec(ping)?)?;
    ensure!(pings.received == 20, "{pings:?}");
    lab.host(1)?.weave(["dns-add", "nameofsecret", "10.77.0.9"])?;
    std::thread::sleep(Duration::from_millis(500));
    drop(capture);
    let bytes = fs::read(&captured)?;
    ensure!(bytes.len() > 20_000, "only {} bytes were captured", bytes.len());
    let [a, b, c, d] = lab.overlay_address("h1c1")?.octets();
    let needles = [("payload", &b"\xc0\xff\xee\x5e\xa1\xed"[..]), ("a name", b"nameofsecret"), ("an address", &[a, b, c, d, 10, 32])];
    for (what, needle) in needles {
        ensure!(!bytes.windows(needle.len()).any(|window| window == needle), "{what} is on the wire in clear");
    }
    forge(&lab, &bytes)
}

/// UDP payloads to the sleeve's port in a capture of an Ethernet interface.
fn datagrams(capture: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = capture.get(24..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((packet, next)) = after.split_at_checked(length) else { break };
        rest = next;
        let Some(ip) = packet.get(14..).filter(|ip| ip.len() > 28 && ip[0] == 0x45 && ip[9] == 17) else { continue };
        let to = [u16::from_be_bytes([ip[20], ip[21]]), u16::from_be_bytes([ip[22], ip[23]])];
        if to == [SLEEVE; 2] {
            found.push(ip[28..].to_vec());
        }
    }
    found
}

/// The whole capture again, with bits flipped, and noise.
fn forge(lab: &Lab, capture: &[u8]) -> Result<()> {
    let datagrams = datagrams(capture);
    ensure!(datagrams.len() > 40, "only {} datagrams were captured", datagrams.len());
    let host = lab.host(2)?;
    let before = memory(&host)?;
    let heard = lab.container("h2c1")?.spawn(["tcpdump", "-n", "-l", "-i", "ethwe", "icmp"])?;
    wait_for("tcpdump to listen", SOON, || Ok(heard.written()?.contains("listening")))?;
    let file = lab_dir(&lab.config().name).join("datagrams");
    fs::write(&file, serde_json::to_vec(&datagrams)?)?;
    let forger =
        [std::env::current_exe()?.display().to_string(), "--exact".to_owned(), "sleeve::forger".to_owned(), "--ignored".to_owned()];
    let mut command = lab.host(1)?.command(&forger[0])?;
    command.args(&forger[1..]).env("WEAVE_FORGE", &file).env("WEAVE_FORGE_TO", host.address().to_string());
    ensure!(vm_tests::process::captured(&mut command)?.status.success(), "the forger failed");
    let status = json(&host, &["report"])?;
    let sleeve = status.pointer("/sleeve/counters").context("no sleeve in the report")?;
    println!("after replay, flips and noise: {sleeve}");
    // Flipped ones with a number of their own get as far as the cipher, and the others are known by their number.
    for reason in ["refused-forged", "refused-replayed", "refused-stranger"] {
        let counters = sleeve.as_array().into_iter().flatten();
        let counted = counters.filter(|counter| counter[0] == reason).find_map(|counter| counter[1].as_u64());
        ensure!(counted > Some(100), "{reason}: {sleeve}");
    }
    ensure!(heard.written()?.lines().all(|line| !line.contains("ICMP")), "a forged frame was delivered: {}", heard.written()?);
    let after = memory(&host)?;
    ensure!(after < before + (32 << 20), "the agent grew from {before} to {after} bytes");
    let to = lab.overlay_address("h2c1")?.to_string();
    lab.container("h1c1")?.exec(["ping", "-n", "-c3", "-W1", &to]).map(drop)
}

/// Run by [`forge`] in a host's namespace: it is a host's address that forged datagrams come from.
#[test]
#[ignore = "it is a part of another test"]
fn forger() -> Result<()> {
    let datagrams: Vec<Vec<u8>> = serde_json::from_slice(&fs::read(std::env::var("WEAVE_FORGE")?)?)?;
    let to = (std::env::var("WEAVE_FORGE_TO")?.parse::<std::net::Ipv4Addr>()?, SLEEVE);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        // Marsaglia, Xorshift RNGs (2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let send = |bytes: &[u8]| drop(socket.send_to(bytes, to));
    for datagram in &datagrams {
        send(datagram);
        for round in 0..16 {
            let mut flipped = datagram.clone();
            let at = random() as usize % (flipped.len() * 8);
            flipped[at / 8] ^= 1 << (at % 8);
            if round % 2 == 0 {
                // Far beyond every number that was used: it is not refused as a replay.
                flipped[NUMBER] ^= 0x40;
            }
            send(&flipped);
        }
    }
    let mut noise = [0; 1400];
    for _ in 0..1_000_000 {
        noise.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random().to_ne_bytes()));
        send(&noise[..random() as usize % 1400]);
    }
    Ok(())
}

/// Lossless so far: how many pings of a hundred per second came back.
fn ping(from: &Node<'_>, to: &str, count: u32) -> Result<Running> {
    from.spawn(["ping", "-n", "-i0.01", "-W1", "-c", &count.to_string(), to])
}

#[test]
fn a_password_is_changed_host_by_host_under_a_ping_that_loses_nothing() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 3, ..secret("reseal") })?;
    wait_for("both to use the sleeve", SOON, || both(&lab, "sleeve"))?;
    let to = lab.overlay_address("h2c1")?.to_string();
    ensure!(lab.container("h1c1")?.reaches(lab.overlay_address("h2c1")?)?);
    let mut pings = ping(&lab.container("h1c1")?, &to, 2000)?;
    let (old, new) = ("what only they know", "what they know now");
    for passwords in [&[old, new][..], &[new, old], &[new]] {
        for number in 1..=3 {
            let words: Vec<&str> = passwords.iter().flat_map(|password| ["--password", password]).collect();
            lab.host(number)?.weave([&["passwords"], &words[..]].concat())?;
            let all = || (1..=3).try_fold(true, |all, host| Ok(all && lab.host(host)?.sees_all(3)?));
            wait_for("all links", SOON, all)?;
        }
    }
    wait_for("ping to end", Duration::from_secs(60), || Ok(pings.ended()?.is_some()))?;
    let pings = Pings::read(&pings.written()?)?;
    ensure!(pings.received == pings.sent && pings.duplicates == 0, "{pings:?}");
    Ok(())
}

#[test]
fn the_first_password_of_a_running_network_ends_what_goes_in_clear_at_once() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { containers: 1, ..LabConfig::named("first") })?;
    let to = lab.overlay_address("h2c1")?;
    ensure!(lab.container("h1c1")?.reaches(to)? && both(&lab, "vxlan")?);
    let marker = "c0ffee5ea1edc0ffee5ea1ed";
    let ping = ["ping", "-n", "-c400", "-i0.02", "-W1", "-p", marker, &to.to_string()].map(str::to_owned);
    let _pings = [lab.container("h1c1")?.spawn(ping)?];
    let word = ["passwords", "--password", "what only they know"];
    lab.host(1)?.weave(word)?;
    let captured: PathBuf = lab_dir(&lab.config().name).join("captured");
    // What h1 sends; h2 has been told nothing yet.
    let words = ["tcpdump", "-n", "-i", "eth0", "-Q", "out", "-U", "-s0", "-w", &captured.display().to_string()].map(str::to_owned);
    let capture = lab.host(1)?.spawn(words)?;
    wait_for("tcpdump to listen", SOON, || Ok(capture.written()?.contains("listening")))?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(count(&lab.host(1)?, "unsealed")? > 10, "h2's frames in clear are refused: {}", lab.host(1)?.status()?);
    lab.host(2)?.weave(word)?;
    // Where the kernel can do it, its tunnel is sealed in the end.
    wait_for("both to seal what they send", Duration::from_secs(60), || Ok(both(&lab, "sleeve")? || both(&lab, "esp")?))?;
    wait_for("frames", SOON, || lab.container("h1c1")?.reaches(to))?;
    drop(capture);
    let bytes = fs::read(&captured)?;
    ensure!(bytes.len() > 1000, "only {} bytes were captured", bytes.len());
    let needle = b"\xc0\xff\xee\x5e\xa1\xed";
    ensure!(!bytes.windows(needle.len()).any(|window| window == needle), "a frame is on the wire in clear");
    Ok(())
}

#[test]
fn a_host_behind_a_nat_is_reached_both_ways_and_survives_another_port() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::scenario(LabConfig { containers: 1, underlay: Underlay::Routed, ..LabConfig::named("nat") }.without_agents())?;
    lab.masquerade(2, 20_000..=20_099)?;
    lab.start_agents(None)?;
    wait_for("both to use the sleeve", SOON, || both(&lab, "sleeve"))?;
    let reaches = |from: &str, to: &str| -> Result<bool> { lab.container(from)?.reaches(lab.overlay_address(to)?) };
    ensure!(reaches("h1c1", "h2c1")? && reaches("h2c1", "h1c1")?);
    lab.masquerade(2, 30_000..=30_099)?;
    let from_inside = wait_for("the way out to work again", Duration::from_secs(5), || reaches("h2c1", "h1c1"))?;
    let from_outside = wait_for("the way in to work again", Duration::from_secs(5), || reaches("h1c1", "h2c1"))?;
    println!("after another port: out in {from_inside:.1?}, in {from_outside:.1?} more");
    Ok(())
}

/// Largest UDP datagrams of 1,400 bytes that come through in a second, once `sleeve` or `vxlan` carries them.
fn narrows(kind: &str, config: LabConfig) -> Result<()> {
    let lab = lab(LabConfig { underlay: Underlay::Routed, mtu: 1500, ..config })?;
    wait_for("the tunnels", SOON, || both(&lab, kind))?;
    let (_server, mut client) = stream(&lab, 15)?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?.to_string());
    let mut pings = from.spawn(["ping", "-n", "-i0.05", "-s1372", "-Mdont", "-W1", "-c260", &to])?;
    std::thread::sleep(Duration::from_secs(2));
    // In the middle, where nobody is told of it.
    lab.on_wire(["ip", "link", "set", "h2-eth0", "mtu", "1280"])?;
    lab.host(2)?.exec(["ip", "link", "set", "eth0", "mtu", "1280"])?;
    wait_for("iperf3 to end", Duration::from_secs(60), || Ok(client.ended()?.is_some()))?;
    let stall = longest_stall(&client.written()?)?;
    wait_for("ping to end", Duration::from_secs(60), || Ok(pings.ended()?.is_some()))?;
    let text = pings.written()?;
    let sequence = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u32>().ok();
    let answered: Vec<_> = text.lines().filter_map(sequence).collect();
    let gap = answered.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(u32::MAX);
    println!("{kind}: the stream stood still for {stall:.1} s, packets of 1,400 bytes for {:.1} s", f64::from(gap) * 0.05);
    ensure!(stall < 3.0 && gap < 60, "{stall} s, {gap} pings of 50 ms");
    sweep(&lab)
}

/// What may not be cut gets through up to the MTU of the way, and from one byte more on it is told what that is.
fn sweep(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h2c1")?.to_string());
    let all = json(&lab.host(1)?, &["status", "connections"])?;
    let mtu = all.pointer("/0/tunnel/mtu").and_then(Value::as_u64).with_context(|| format!("no MTU in {all}"))?;
    for size in [mtu - 600, mtu - 100, mtu - 1, mtu, mtu + 1, mtu + 2, mtu + 100] {
        // Each is told anew.
        from.exec(["ip", "route", "flush", "cache"])?;
        let words = ["ping", "-n", "-c2", "-i0.2", "-W1", "-Mdo", "-s", &(size - 28).to_string(), &to].map(str::to_owned);
        let output = from.command(&words[0])?.args(&words[1..]).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if size <= mtu {
            ensure!(Pings::read(&said)?.received == 2, "{size} of {mtu} bytes: {said}");
        } else {
            // By us, or by its own kernel once its interface has followed.
            let told = [format!("(mtu = {mtu})"), format!("mtu={mtu}")].iter().any(|error| said.contains(error));
            ensure!(told, "{size} of {mtu} bytes: {said}");
        }
    }
    println!("packets that may not be cut: all of up to {mtu} bytes, and who sends more is told");
    Ok(())
}

#[test]
fn a_path_that_narrows_holds_up_a_stream_and_large_packets_for_less_than_3_s() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    narrows("vxlan", LabConfig { containers: 1, ..LabConfig::named("narrow") })?;
    narrows("sleeve", secret("narrows"))
}
