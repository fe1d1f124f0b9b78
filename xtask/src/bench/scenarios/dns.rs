//! `cargo xtask bench dns`: one client asks the name server at a fixed rate, whatever comes back.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vm_tests::process;

use crate::bench::Bench;
use crate::bench::compare::interleaved;
use crate::bench::measure::number;
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Table, quantile};
use crate::workspace::Workspace;

/// What the project promises: so many queries per second from one client, and this for the slowest but one in a hundred.
const RATE: u32 = 20_000;
const P99_US: f64 = 2_000.0;
/// The names of `examples/dns_server.rs`.
const NAMES: u64 = 1000;
/// How long answers are waited for after the last query.
const LATE: Duration = Duration::from_secs(1);
/// What the client sleeps when it has nothing to do: part of each figure.
const NAP: Duration = Duration::from_micros(50);

/// Where client and server run.
const PLACES: [(&str, &str, &str); 2] = [("client and server on a CPU each", "0", "1"), ("both on one CPU", "0", "0")];

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "dns", what: "20,000 queries per second from one client to the name server", work: Work::Alone(run) };

const FIGURES: &[Figure] = &[
    Figure::new("DNS answers of 20,000 queries/s", "/s"),
    Figure::new("DNS queries, p50", "µs"),
    Figure::new("DNS queries, p99", "µs").gate(Gate::AtMost(P99_US)),
    Figure::new("DNS queries lost", ""),
];

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    process::run(bench.workspace.cargo("build").args(["--release", "--package", "weave-agent", "--example", "dns_server"]))?;
    let columns: Vec<_> = PLACES.iter().map(|(title, ..)| (*title).to_owned()).collect();
    let rows = interleaved(bench.rounds, FIGURES, &columns, |column| {
        let (_, client, server) = PLACES[column];
        let result = once(bench.workspace, [client, server], bench.seconds)?;
        ["/per_second", "/p50_us", "/p99_us", "/lost"].iter().map(|figure| number(&result, figure)).collect()
    })?;
    Ok(Table { scenario, columns, references: Vec::new(), rows, notes: Vec::new() })
}

fn once(workspace: &Workspace, [client, server]: [&str; 2], seconds: f64) -> Result<Value> {
    let (_server, address) = Server::start(workspace, server)?;
    let this = std::env::current_exe()?;
    let seconds = seconds.to_string();
    // What measures must not wait for its turn on a busy machine; the server does.
    let mut command = Command::new("chrt");
    command.args(["-f", "1", "taskset", "-c", client]).arg(this);
    command.args(["bench-node", "dns", &address, "--rate", &RATE.to_string(), "--seconds", &seconds]);
    serde_json::from_str(&process::output(&mut command)?).context("the client wrote no JSON")
}

/// The example server; it ends when this is dropped.
struct Server {
    child: Child,
}

impl Server {
    fn start(workspace: &Workspace, cpu: &str) -> Result<(Self, String)> {
        let program = workspace.agent().with_file_name("examples").join("dns_server");
        let mut command = Command::new("taskset");
        command.args(["-c", cpu]).arg(program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| process::not_started(&command, error))?;
        let mut address = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        ensure!(!address.is_empty(), "the server did not start");
        Ok((Self { child }, address.trim().to_owned()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself now; if not, there is nobody left to tell.
        let _ = self.child.wait();
    }
}

/// The client's end: asks, and prints what that gave as JSON. Queries have their time to be sent, and a query that is late because the
/// client was, is late.
pub(in crate::bench) fn client(to: SocketAddr, rate: u32, time: Duration) -> Result<()> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    let mut client = Client { socket, start: Instant::now(), due: vec![None; 1 << 16], latencies: Vec::new(), sent: 0, wrong: 0 };
    let step = Duration::from_secs(1) / rate;
    loop {
        let now = client.start.elapsed();
        while now < time && step * u32::try_from(client.sent)? <= now {
            client.ask(step * u32::try_from(client.sent)?)?;
        }
        client.collect()?;
        if now > time && (client.latencies.len() as u64 == client.sent || now > time + LATE) {
            break;
        }
        std::thread::sleep(NAP);
    }
    println!("{}", client.figures(time));
    Ok(())
}

struct Client {
    socket: UdpSocket,
    start: Instant,
    /// By id of the query: when it was due.
    due: Vec<Option<Duration>>,
    latencies: Vec<Duration>,
    sent: u64,
    wrong: u64,
}

impl Client {
    fn ask(&mut self, due: Duration) -> Result<()> {
        let id = self.sent as u16;
        let name = format!("c{}", self.sent % NAMES);
        let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8], name.as_bytes()].concat();
        query.extend_from_slice(b"\x05weave\x05local\0\0\x01\0\x01");
        self.due[usize::from(id)] = Some(due);
        self.sent += 1;
        // A query that the kernel has no room for is lost like any other.
        match self.socket.send(&query) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn collect(&mut self) -> Result<()> {
        let mut buffer = [0; 512];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) if length > 12 => {
                    let now = self.start.elapsed();
                    let due = self.due[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))].take();
                    self.latencies.extend(due.map(|due| now.saturating_sub(due)));
                    self.wrong += u64::from(buffer[7] != 1);
                }
                Ok(_) => self.wrong += 1,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn figures(&self, time: Duration) -> Value {
        let mut latencies: Vec<_> = self.latencies.iter().map(|latency| latency.as_secs_f64() * 1e6).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let micros = |share: f64| quantile(&latencies, share);
        let answered = self.latencies.len() as u64;
        json!({
            "sent": self.sent, "answered": answered, "lost": self.sent - answered, "wrong": self.wrong,
            "per_second": answered as f64 / time.as_secs_f64(),
            "p50_us": micros(0.5), "p99_us": micros(0.99), "p999_us": micros(0.999), "max_us": micros(1.0),
        })
    }
}
