//! Looking at a lab: what its agents say, what its containers hear.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vm_tests::{Host, Lab, LabConfig, Node, Running, wait_for};

/// Plenty for what takes milliseconds, on a machine that is busy with other things.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// A lab in which every host reaches every other by a tunnel of its own.
pub(crate) fn lab(config: LabConfig) -> Result<Lab> {
    let lab = Lab::scenario(config)?;
    lab.meshed()?;
    Ok(lab)
}

/// How `host` sends to host `peer`: `vxlan`, `relay`, `down`; none while they are not connected.
pub(crate) fn tunnel(host: &Host<'_>, peer: u8) -> Result<Option<String>> {
    let connections = json(host, &["status", "connections"])?;
    let connections = connections.as_array().context("status connections is no list")?;
    let kind = |entry: &Value| entry.pointer("/tunnel/kind").and_then(Value::as_str).map(str::to_owned);
    Ok(connections.iter().filter(|entry| entry["nickname"] == format!("h{peer}")).find_map(kind))
}

/// What a command of the agent's says with `--json`.
pub(crate) fn json(host: &Host<'_>, words: &[&str]) -> Result<Value> {
    let text = host.weave(words.iter().chain(&["--json"]))?;
    serde_json::from_str(&text).with_context(|| format!("{words:?} is no JSON: {text}"))
}

/// Who carries a host's frames, as its status says: `ebpf (tcx)`.
pub(crate) fn datapath(host: &Host<'_>) -> Result<String> {
    Ok(host.status()?["datapath"].as_str().context("status has no datapath")?.to_owned())
}

/// An `iperf3` that listens in a container, for one client; `by`: words before it, such as `taskset`.
pub(crate) fn listener(lab: &Lab, container: &str, by: &[&str]) -> Result<Running> {
    let server = lab.container(container)?.spawn(by.iter().chain(&["iperf3", "-s", "-1"]))?;
    wait_for("iperf3 to listen", SOON, || Ok(lab.container(container)?.exec(["ss", "-Hltn"])?.contains(":5201")))?;
    Ok(server)
}

/// An `iperf3` between containers that goes on while something else happens.
pub(crate) struct Stream {
    server: Running,
    client: Running,
}

/// A little, evenly: what the queues of a busy machine take.
const DATAGRAMS: [&str; 5] = ["-u", "-b", "800K", "-l", "500"];

impl Stream {
    /// TCP, as fast as it goes.
    pub(crate) fn tcp(lab: &Lab, from: &str, to: &str, seconds: u32) -> Result<Self> {
        Self::start(lab, from, to, seconds, &["-C", "cubic"])
    }

    /// 200 datagrams a second.
    pub(crate) fn udp(lab: &Lab, from: &str, to: &str, seconds: u32) -> Result<Self> {
        Self::start(lab, from, to, seconds, &DATAGRAMS)
    }

    fn start(lab: &Lab, from: &str, to: &str, seconds: u32, kind: &[&str]) -> Result<Self> {
        let server = listener(lab, to, &[])?;
        let (address, seconds) = (lab.overlay_address(to)?.to_string(), seconds.to_string());
        let client = lab.container(from)?.spawn([&["iperf3", "-c", &address, "-t", &seconds, "-J"], kind].concat())?;
        Ok(Self { server, client })
    }

    /// Waits for its end: Gbit/s that were received.
    pub(crate) fn speed(self) -> Result<f64> {
        let result = self.finish()?;
        let bits = result.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        bits.map(|bits| bits / 1e9).with_context(|| format!("iperf3's result: {result}"))
    }

    /// Waits for the end of one of datagrams: how many were sent. Fails if one was lost.
    pub(crate) fn lossless(self) -> Result<u64> {
        let result = self.finish()?;
        let number = |name: &str| result["end"]["sum"][name].as_u64().with_context(|| format!("iperf3's result: {result}"));
        let (sent, lost) = (number("packets")?, number("lost_packets")?);
        ensure!(lost == 0 && sent > 0, "{lost} of {sent} datagrams were lost");
        Ok(sent)
    }

    fn finish(self) -> Result<Value> {
        let text = self.client.finish()?;
        self.server.finish()?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// Gbit/s of a TCP stream between containers.
pub(crate) fn stream(lab: &Lab, from: &str, to: &str, seconds: u32) -> Result<f64> {
    Stream::tcp(lab, from, to, seconds)?.speed()
}

/// A counter or drop reason; zero if it never happened.
pub(crate) fn count(host: &Host<'_>, name: &str) -> Result<u64> {
    let status = host.status()?;
    let find = |list: &str| status[list][name].as_u64();
    Ok(find("counters").or_else(|| find("drops")).unwrap_or(0))
}

/// Most packets that any one flow of this kind of action counts.
pub(crate) fn busiest(host: &Host<'_>, action: &str) -> Result<u64> {
    let flows = json(host, &["status", "flows"])?;
    let flows = flows.as_array().context("status flows is no list")?;
    let packets = |flow: &Value| flow["packets"].as_u64();
    Ok(flows.iter().filter(|flow| flow["action"]["do"] == action).filter_map(packets).max().unwrap_or(0))
}

/// Resident memory of a host's agent, bytes.
pub(crate) fn memory(host: &Host<'_>) -> Result<u64> {
    let pid = pid(host)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// The agent's process.
pub(crate) fn pid(host: &Host<'_>) -> Result<i32> {
    let pid = host.status()?["pid"].as_i64().context("status has no pid")?;
    Ok(i32::try_from(pid)?)
}

/// What `ping` counted.
#[derive(Debug)]
pub(crate) struct Pings {
    /// Echo requests sent.
    pub(crate) sent: u32,
    /// Answers, duplicates not counted.
    pub(crate) received: u32,
    /// Answers that came twice.
    pub(crate) duplicates: u32,
    /// Milliseconds that the first answer took.
    pub(crate) first: Option<f64>,
    /// Numbers of the requests that were not answered, if that is known; of the first is 1.
    pub(crate) missing: Vec<u32>,
}

impl Pings {
    /// Reads what `ping` without `-q` wrote.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let summary = text.lines().find(|line| line.contains("packets transmitted")).with_context(|| format!("ping said: {text}"))?;
        let number = |word: &str| {
            summary.split(", ").find(|part| part.contains(word)).and_then(|part| part.split([' ', '+']).find_map(|w| w.parse().ok()))
        };
        let time = text.lines().find_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
        Ok(Self {
            sent: number("transmitted").context(summary.to_owned())?,
            received: number("received").context(summary.to_owned())?,
            duplicates: number("duplicates").unwrap_or(0),
            first: time,
            missing: Vec::new(),
        })
    }

    /// Fails unless every request was answered exactly once.
    pub(crate) fn lossless(&self) -> Result<()> {
        ensure!(self.received == self.sent && self.duplicates == 0 && self.missing.is_empty(), "{self:?}");
        Ok(())
    }
}

/// A ping on its way.
#[derive(Debug)]
pub(crate) struct Pinging {
    running: Running,
    count: u32,
}

/// Starts a ping: `count` requests, `interval` seconds apart, and as many more as take a second. Those do not count: `ping`
/// ends two round trips after its last request, and on a machine that is busy an answer that comes a little later is not lost.
pub(crate) fn ping(from: &Node<'_>, to: impl Into<IpAddr>, count: u32, interval: &str) -> Result<Pinging> {
    let more = (1.0 / interval.parse::<f64>()?).ceil() as u32;
    let words = ["ping", "-n", "-W2", "-i", interval, "-c", &(count + more).to_string(), &to.into().to_string()].map(str::to_owned);
    Ok(Pinging { running: from.spawn(words)?, count })
}

/// Waits for a ping to end; losing packets is no error yet.
pub(crate) fn pinged(mut ping: Pinging) -> Result<Pings> {
    wait_for("ping to end", Duration::from_secs(120), || Ok(ping.running.ended()?.is_some()))?;
    let text = ping.running.written()?;
    let pings = Pings::read(&text)?;
    let answered: Vec<_> = answered(&text).into_iter().filter(|number| *number <= ping.count).collect();
    let different: BTreeSet<u32> = answered.iter().copied().collect();
    let [received, duplicates] = [different.len(), answered.len() - different.len()].map(|count| count as u32);
    let missing = (1..=ping.count).filter(|number| !different.contains(number)).collect();
    Ok(Pings { sent: ping.count, received, duplicates, missing, ..pings })
}

/// Numbers of the requests that were answered, as the answers came.
fn answered(text: &str) -> Vec<u32> {
    let answers = text.lines().filter(|line| line.contains("bytes from"));
    answers.filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok()).collect()
}

/// Requests whose answers [`unbroken`] does not wait for: a second's, or two.
const ON_THEIR_WAY: u32 = 20;

/// Starts a ping that goes on until [`unbroken`] ends it.
pub(crate) fn ping_on(from: &Node<'_>, to: impl Into<IpAddr>, interval: &str) -> Result<Running> {
    from.spawn(["ping", "-n", "-W2", "-i", interval, &to.into().to_string()])
}

/// Ends a ping, and says how many requests were answered. Fails unless each was, once; of the last ones the answers may be on
/// their way.
pub(crate) fn unbroken(mut ping: Running) -> Result<u32> {
    kill(Pid::from_raw(i32::try_from(ping.pid())?), Signal::SIGINT)?;
    wait_for("ping to end", SOON, || Ok(ping.ended()?.is_some()))?;
    let text = ping.written()?;
    let pings = Pings::read(&text)?;
    ensure!(pings.duplicates == 0, "{pings:?}");
    let mut answered = answered(&text);
    answered.sort_unstable();
    let missing: Vec<u32> = (1..=answered.last().copied().unwrap_or(0)).filter(|number| answered.binary_search(number).is_err()).collect();
    ensure!(missing.is_empty() && pings.sent - pings.received <= ON_THEIR_WAY, "{pings:?}, not answered: {missing:?}");
    Ok(pings.received)
}

/// The traffic generator of this package's examples.
pub(crate) fn traffic() -> Result<String> {
    let test = std::env::current_exe()?;
    let built: PathBuf = test.ancestors().nth(2).context("the test's own path")?.join("examples/traffic");
    ensure!(built.is_file(), "no {}: `cargo test -p vm-tests` builds it", built.display());
    Ok(built.display().to_string())
}

#[test]
fn a_summary_of_ping_is_read() {
    let text = "64 bytes from 10.32.1.1: icmp_seq=1 ttl=64 time=0.5 ms\n\n--- x ---\n\
                4 packets transmitted, 3 received, +2 duplicates, 25% packet loss, time 3ms\n";
    let pings = Pings::read(text).unwrap();
    assert_eq!((pings.sent, pings.received, pings.duplicates, pings.first), (4, 3, 2, Some(0.5)));
    assert!(pings.lossless().is_err());
    let text = "64 bytes from 10.32.1.1: icmp_seq=2 ttl=64 time=0.5 ms\nFrom 10.32.1.1 icmp_seq=3 Destination Host Unreachable\n";
    assert_eq!(answered(text), [2]);
}
