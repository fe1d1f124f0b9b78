//! `cargo xtask bench sleeve`: the encrypted tunnel in user space. Both peers and both ends share the machine's CPUs.

use anyhow::{Context, Result};
use vm_tests::{Lab, LabConfig, Place, Running, Underlay};

use crate::bench::Bench;
use crate::bench::bed::Path;
use crate::bench::compare::interleaved;
use crate::bench::conditions::settle;
use crate::bench::measure::{ANYWHERE, ONE_CPU, agent_pid, cpu_seconds, ends, iperf, number};
use crate::bench::rivals::{self, BRIDGED};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Table};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "sleeve",
    what: "The encrypted tunnel in user space next to host to host, kernel vxlan and wireguard-go",
    work: Work::Alone(run),
};

const FIGURES: &[Figure] = &[
    Figure::new("TCP, nothing pinned", "Gbit/s"),
    Figure::new("CPU of the ends", "ms/Gbit"),
    Figure::new("CPU of the tunnel", "ms/Gbit"),
    Figure::new("its kernel part", "ms/Gbit"),
    Figure::new("64 B UDP of 150 kpps", "kpps"),
    Figure::new("lost of them", "%"),
    Figure::new("ping-pong, p50", "µs"),
];

/// 64-byte datagrams offered per second, and what the project promises of them.
const OFFERED: u32 = 150_000;

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
        rivals::bridge(&bare)?;
        let wireguard = rivals::wireguard(&bare, rivals::in_user_space)?;
        let (aes, chacha) = (Lab::scenario(sealed("aes", &[]))?, Lab::scenario(sealed("chacha", &[("WEAVE_NO_AES", "1")]))?);
        let bed = Self { bare, aes, chacha, wireguard };
        for way in bed.ways()? {
            way.path.works().context(way.title)?;
        }
        [&bed.bare, &bed.aes, &bed.chacha].into_iter().try_for_each(settle)?;
        Ok(bed)
    }

    fn ways(&self) -> Result<Vec<Way<'_>>> {
        let (hosts, containers) = ([Place::Host(1), Place::Host(2)], [Place::Container(1, 1), Place::Container(2, 1)]);
        let overlay = |lab: &Lab| lab.overlay_address("h2c1").map(|address| address.to_string());
        Ok(vec![
            way("host to host", &self.bare, hosts, self.bare.host(2)?.address().to_string(), Vec::new())?,
            way("bridge + kernel vxlan", &self.bare, containers, BRIDGED[1].to_owned(), Vec::new())?,
            way("wireguard-go", &self.bare, hosts, rivals::SEALED[1].to_owned(), self.wireguard.iter().map(Running::pid).collect())?,
            way("sleeve, AES-256-GCM", &self.aes, containers, overlay(&self.aes)?, agents(&self.aes)?)?,
            way("sleeve, ChaCha20-Poly1305", &self.chacha, containers, overlay(&self.chacha)?, agents(&self.chacha)?)?,
        ])
    }
}

fn way<'a>(title: &'static str, lab: &'a Lab, [from, to]: [Place; 2], address: String, workers: Vec<u32>) -> Result<Way<'a>> {
    Ok(Way { title, path: Path { from: lab.node(from)?, to: lab.node(to)?, address }, workers })
}

fn agents(lab: &Lab) -> Result<Vec<u32>> {
    [1, 2].into_iter().map(|number| agent_pid(&lab.host(number)?)).collect()
}

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let bed = Bed::make()?;
    let ways = bed.ways()?;
    let columns: Vec<_> = ways.iter().map(|way| way.title.to_owned()).collect();
    let rows = interleaved(bench.rounds, FIGURES, &columns, |column| {
        let way = &ways[column];
        Ok([bulk(way, bench.seconds)?, packets(way, bench.seconds)?, ping_pong(way, bench.seconds)?].concat())
    })?;
    let note = "Both peers and both ends share the CPUs; in ping-pong the ends have one and the agents the other. The tunnel's own time is the \
                cipher, cutting and joining; its kernel part is reading and writing device and socket.";
    Ok(Table { scenario, columns, references: vec![0], rows, notes: vec![note.to_owned()] })
}

/// Gbit/s, and CPU milliseconds per Gbit: of the two ends, of the workers themselves, of the kernel for the workers.
fn bulk(way: &Way<'_>, seconds: f64) -> Result<Vec<f64>> {
    let before = cpu_seconds(&way.workers);
    let result = iperf(&way.path, ANYWHERE, seconds, &["-C", "cubic"])?;
    let after = cpu_seconds(&way.workers);
    let ends = number(&result, "/end/cpu_utilization_percent/host_total")? + number(&result, "/end/cpu_utilization_percent/remote_total")?;
    let gbits = number(&result, "/end/sum_received/bytes")? * 8.0 / 1e9;
    let time = number(&result, "/end/sum_received/seconds")?;
    let spent = [ends / 100.0 * time, after[0] - before[0], after[1] - before[1]];
    let figures = [number(&result, "/end/sum_received/bits_per_second")? / 1e9].into_iter();
    Ok(figures.chain(spent.map(|spent| spent * 1e3 / gbits)).collect())
}

/// Thousands received per second, and what is lost in percent.
fn packets(way: &Way<'_>, seconds: f64) -> Result<Vec<f64>> {
    let near = ["source", "--rate", &OFFERED.to_string(), "--seconds", &seconds.to_string()];
    let result = ends(&way.path, ANYWHERE, &["sink"], &near)?;
    let [sent, received, time] = [number(&result, "/sent")?, number(&result, "/received")?, number(&result, "/seconds")?];
    Ok(vec![received / time / 1e3, 100.0 * (sent - received) / sent])
}

/// The median round trip in µs.
fn ping_pong(way: &Way<'_>, seconds: f64) -> Result<Vec<f64>> {
    for pid in &way.workers {
        way.path.from.exec(["taskset", "-acp", "1", &pid.to_string()])?;
    }
    let result = ends(&way.path, ONE_CPU, &["pong"], &["ping", "--seconds", &seconds.to_string()])?;
    for pid in &way.workers {
        way.path.from.exec(["taskset", "-acp", "0-1", &pid.to_string()])?;
    }
    Ok(vec![number(&result, "/p50_us")?])
}
