//! `cargo xtask bench sleeve`: the encrypted tunnel in user space. Both peers and both ends share the machine's CPUs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vm_tests::{Lab, LabConfig, Place, Running, Underlay, lab_dir, wait_for};

use super::contender::{Path, like_conditions};
use super::measure::{listening, number};
use super::report::median;

const PORT: &str = "5201";
/// 64-byte datagrams offered per second, and what the project promises of them.
const OFFERED: u32 = 150_000;
/// Clock ticks per second, of which the kernel tells CPU time (`sysconf(_SC_CLK_TCK)`, 100 on Linux).
const TICKS: f64 = 100.0;

/// A way from one place to another, and who works for it.
struct Way<'a> {
    title: &'static str,
    path: Path<'a>,
    /// Processes that carry it.
    workers: Vec<u32>,
}

/// Labs and tunnels; they go when this is dropped.
struct Bed {
    bare: Lab,
    aes: Lab,
    chacha: Lab,
    wireguard: Vec<Running>,
}

impl Bed {
    fn make() -> Result<Self> {
        let config = |name: &str| LabConfig { containers: 1, underlay: Underlay::Direct, ..LabConfig::named(name) };
        let sealed = |name: &str, env: &[(&str, &str)]| LabConfig {
            launch: ["--password", "only for measuring"].map(str::to_owned).to_vec(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..config(name)
        };
        let bare = Lab::scenario(config("bare").without_agents())?;
        super::contender::bridge(&bare)?;
        let wireguard = wireguard(&bare)?;
        let (aes, chacha) = (Lab::scenario(sealed("aes", &[]))?, Lab::scenario(sealed("chacha", &[("WEAVE_NO_AES", "1")]))?);
        let bed = Self { bare, aes, chacha, wireguard };
        for way in bed.ways()? {
            let address = way.path.address.parse::<std::net::IpAddr>()?;
            wait_for(way.title, Duration::from_secs(20), || way.path.from.reaches(address))?;
        }
        for lab in [&bed.bare, &bed.aes, &bed.chacha] {
            lab.config().places().into_iter().try_for_each(|place| like_conditions(&lab.node(place)?))?;
        }
        Ok(bed)
    }

    fn ways(&self) -> Result<Vec<Way<'_>>> {
        let (hosts, containers) = ([Place::Host(1), Place::Host(2)], [Place::Container(1, 1), Place::Container(2, 1)]);
        let overlay = |lab: &Lab| lab.overlay_address("h2c1").map(|address| address.to_string());
        Ok(vec![
            way("host to host", &self.bare, hosts, self.bare.host(2)?.address().to_string(), Vec::new())?,
            way("bridge + kernel vxlan", &self.bare, containers, "10.33.0.2".to_owned(), Vec::new())?,
            way("wireguard-go", &self.bare, hosts, "10.34.0.2".to_owned(), self.wireguard.iter().map(Running::pid).collect())?,
            way("sleeve, AES-256-GCM", &self.aes, containers, overlay(&self.aes)?, agents(&self.aes)?)?,
            way("sleeve, ChaCha20-Poly1305", &self.chacha, containers, overlay(&self.chacha)?, agents(&self.chacha)?)?,
        ])
    }
}

fn way<'a>(title: &'static str, lab: &'a Lab, [from, to]: [Place; 2], address: String, workers: Vec<u32>) -> Result<Way<'a>> {
    Ok(Way { title, path: Path { from: lab.node(from)?, to: lab.node(to)?, address }, workers })
}

/// Debian's wireguard-go between the two hosts, 10.34.0.1 and .2.
fn wireguard(lab: &Lab) -> Result<Vec<Running>> {
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    let keys = [one.exec(["wg", "genkey"])?, two.exec(["wg", "genkey"])?];
    let mut running = Vec::new();
    for (at, host) in [&one, &two].into_iter().enumerate() {
        let (own, other) = (&keys[at], &keys[1 - at]);
        let file = |name: &str| lab_dir(&lab.config().name).join(format!("{name}{at}")).display().to_string();
        let (private, public) = (file("private"), file("public"));
        fs::write(&private, own)?;
        fs::write(&public, other)?;
        let public = host.exec(["sh", "-c", &format!("wg pubkey < {public}")])?;
        // Names of WireGuard's control sockets are the machine's, not the namespace's.
        let device = format!("wgbench{at}");
        running.push(host.spawn(["wireguard-go", "-f", &device])?);
        wait_for("wireguard-go", Duration::from_secs(10), || Ok(host.exec(["ip", "link", "show", &device]).is_ok()))?;
        let peer = lab.host(2 - at as u8)?.address();
        let own_port = format!("5182{at}");
        let endpoint = format!("{peer}:5182{}", 1 - at);
        let words = ["wg", "set", &device, "listen-port", &own_port, "private-key", &private, "peer", public.trim()];
        host.exec(words.into_iter().chain(["endpoint", &endpoint, "allowed-ips", "10.34.0.0/24"]))?;
        host.exec(["ip", "address", "add", &format!("10.34.0.{}/24", at + 1), "dev", &device])?;
        host.exec(["ip", "link", "set", &device, "mtu", "1470", "up"])?;
    }
    Ok(running)
}

fn agents(lab: &Lab) -> Result<Vec<u32>> {
    let pid = |number| -> Result<u32> { Ok(lab.host(number)?.status()?["pid"].as_u64().context("no pid")? as u32) };
    Ok(vec![pid(1)?, pid(2)?])
}

/// CPU seconds that processes have used, of their own and in the kernel.
fn used(pids: &[u32]) -> [f64; 2] {
    let ticks = |pid: &u32| -> Option<[f64; 2]> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some([fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?])
    };
    pids.iter().filter_map(ticks).fold([0.0; 2], |sum, of| [sum[0] + of[0] / TICKS, sum[1] + of[1] / TICKS])
}

/// Everything of one way.
#[derive(Default)]
struct Figures {
    gbits: Vec<f64>,
    /// CPU milliseconds per Gbit: of the two ends, of the workers themselves, of the kernel for the workers.
    cpu_ms: [Vec<f64>; 3],
    kpps: Vec<f64>,
    lost: Vec<f64>,
    p50_us: Vec<f64>,
}

/// Measures, prints a table, returns the medians.
pub(super) fn run(seconds: u32, rounds: usize) -> Result<Vec<Value>> {
    let bed = Bed::make()?;
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    let ways = bed.ways()?;
    for round in 1..=rounds {
        for way in &ways {
            let entry = figures.entry(way.title).or_default();
            bulk(way, seconds, entry)?;
            packets(way, seconds, entry)?;
            ping_pong(way, seconds, entry)?;
            let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
            let (gbits, kpps, lost, p50) = (last(&entry.gbits), last(&entry.kpps), last(&entry.lost), last(&entry.p50_us));
            eprintln!("round {round}: {}: {gbits:.2} Gbit/s, {kpps:.0} kpps ({lost:.2} % lost), p50 {p50:.1} µs", way.title);
        }
    }
    let base = figures.get("host to host").map_or(f64::NAN, |host| median(&host.gbits));
    println!(
        "| | TCP, Gbit/s | of host to host | CPU ms/Gbit: ends | tunnel | its kernel part | 64 B UDP, kpps of {} | lost % | ping-pong p50 µs |",
        OFFERED / 1000
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for way in &ways {
        let Some(f) = figures.get(way.title) else { continue };
        let [gbits, kpps, lost, p50] = [&f.gbits, &f.kpps, &f.lost, &f.p50_us].map(|values| median(values));
        let [ends, own, kernel] = f.cpu_ms.each_ref().map(|values| median(values));
        let (title, share) = (way.title, gbits / base);
        println!("| {title} | {gbits:.2} | {share:.2} | {ends:.0} | {own:.0} | {kernel:.0} | {kpps:.0} | {lost:.2} | {p50:.1} |");
        let [ends, own, kernel] = &f.cpu_ms;
        rows.push(json!({ "scenario": "sleeve", "contender": title, "gbits": f.gbits,
            "cpu_ms_per_gbit": { "ends": ends, "tunnel": own, "kernel": kernel },
            "kpps": f.kpps, "lost_percent": f.lost, "p50_us": f.p50_us }));
    }
    println!(
        "\nMedians of {rounds}; both peers and both ends share the CPUs, in ping-pong the ends have one and the agents the other. The \
         tunnel's own time is the cipher, cutting and joining; its kernel part is reading and writing device and socket."
    );
    Ok(rows)
}

fn iperf(way: &Way<'_>, seconds: u32, options: &[&str]) -> Result<Value> {
    let server = way.path.to.spawn(["iperf3", "-s", "-1", "-p", PORT])?;
    listening(&way.path)?;
    let seconds = seconds.to_string();
    let words = ["iperf3", "-c", &way.path.address, "-p", PORT, "-J", "-t", &seconds];
    let text = way.path.from.exec(words.into_iter().chain(options.iter().copied()))?;
    server.finish()?;
    serde_json::from_str(&text).context("iperf3 wrote no JSON")
}

fn bulk(way: &Way<'_>, seconds: u32, figures: &mut Figures) -> Result<()> {
    let before = used(&way.workers);
    let result = iperf(way, seconds, &["-C", "cubic"])?;
    let after = used(&way.workers);
    let ends = number(&result, "/end/cpu_utilization_percent/host_total")? + number(&result, "/end/cpu_utilization_percent/remote_total")?;
    let gbits = number(&result, "/end/sum_received/bytes")? * 8.0 / 1e9;
    figures.gbits.push(number(&result, "/end/sum_received/bits_per_second")? / 1e9);
    let spent = [ends / 100.0 * f64::from(seconds), after[0] - before[0], after[1] - before[1]];
    for (figures, spent) in figures.cpu_ms.iter_mut().zip(spent) {
        figures.push(spent * 1e3 / gbits);
    }
    Ok(())
}

fn packets(way: &Way<'_>, seconds: u32, figures: &mut Figures) -> Result<()> {
    let result = ends(way, &["sink"], &["source", "--rate", &OFFERED.to_string(), "--seconds", &seconds.to_string()], &[])?;
    let [sent, received, time] = [number(&result, "/sent")?, number(&result, "/received")?, number(&result, "/seconds")?];
    figures.kpps.push(received / time / 1e3);
    figures.lost.push(100.0 * (sent - received) / sent);
    Ok(())
}

fn ping_pong(way: &Way<'_>, seconds: u32, figures: &mut Figures) -> Result<()> {
    for pid in &way.workers {
        way.path.from.exec(["taskset", "-acp", "1", &pid.to_string()])?;
    }
    let result = ends(way, &["pong"], &["ping", "--seconds", &seconds.to_string()], &["taskset", "-c", "0"])?;
    for pid in &way.workers {
        way.path.from.exec(["taskset", "-acp", "0-1", &pid.to_string()])?;
    }
    figures.p50_us.push(number(&result, "/p50_us")?);
    Ok(())
}

/// Our own two ends, run with `before` in front: what the second one printed.
fn ends(way: &Way<'_>, server: &[&str], client: &[&str], before: &[&str]) -> Result<Value> {
    let this = std::env::current_exe()?;
    let this = this.to_str().context("the path of xtask is no UTF-8")?;
    let words = |end: &[&str], rest: &[&str]| -> Vec<String> {
        [before, &[this, "bench-node"], end, rest].concat().into_iter().map(str::to_owned).collect()
    };
    let server = way.path.to.spawn(words(server, &["--port", PORT]))?;
    listening(&way.path)?;
    let address = format!("{}:{PORT}", way.path.address);
    let text = way.path.from.exec(words(&[client[0], &address], &client[1..]))?;
    server.finish()?;
    serde_json::from_str(&text).with_context(|| format!("the {} end wrote no JSON", client[0]))
}
