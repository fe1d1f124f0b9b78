//! One run of one scenario over one path.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Scenario;
use super::contender::Path;

const PORT: &str = "5201";

/// The scenario's figure, in the unit its title names.
pub(crate) fn run(path: &Path<'_>, scenario: Scenario, seconds: u32) -> Result<f64> {
    match scenario {
        Scenario::Bulk | Scenario::Wire => bulk(path, seconds),
        Scenario::PingPong => ping_pong(path, seconds),
        Scenario::Packets => packets(path, seconds),
        Scenario::Dns | Scenario::Sleeve => bail!("it has contenders of its own, or none"),
    }
}

fn bulk(path: &Path<'_>, seconds: u32) -> Result<f64> {
    let result = iperf(path, ["0", "0"], seconds, &["-C", "cubic"])?;
    Ok(number(&result, "/end/sum_received/bits_per_second")? / 1e9)
}

fn packets(path: &Path<'_>, seconds: u32) -> Result<f64> {
    let result = iperf(path, ["0", "1"], seconds, &["-u", "-b", "0", "-l", "64"])?;
    let sent = number(&result, "/end/sum/packets")?;
    let lost = number(&result, "/end/sum/lost_packets")?;
    Ok((sent - lost) / f64::from(seconds) / 1e3)
}

/// iperf3 from end to end, client and server each on its CPU.
fn iperf(path: &Path<'_>, [client_cpu, server_cpu]: [&str; 2], seconds: u32, options: &[&str]) -> Result<Value> {
    let server = path.to.spawn(["taskset", "-c", server_cpu, "iperf3", "-s", "-1", "-p", PORT])?;
    listening(path)?;
    let seconds = seconds.to_string();
    let mut words = vec!["taskset", "-c", client_cpu, "iperf3", "-c", &path.address, "-p", PORT, "-J", "-t", &seconds];
    words.extend(options);
    let text = path.from.exec(words)?;
    server.finish()?;
    serde_json::from_str(&text).context("iperf3 wrote no JSON")
}

fn ping_pong(path: &Path<'_>, seconds: u32) -> Result<f64> {
    let this = std::env::current_exe()?;
    let this = this.to_str().context("the path of xtask is no UTF-8")?;
    let server = path.to.spawn(["taskset", "-c", "0", this, "bench-node", "pong", "--port", PORT])?;
    listening(path)?;
    let address = format!("{}:{PORT}", path.address);
    let text = path.from.exec(["taskset", "-c", "0", this, "bench-node", "ping", &address, "--seconds", &seconds.to_string()])?;
    server.finish()?;
    let result: Value = serde_json::from_str(&text).context("the ping end wrote no JSON")?;
    Ok(number(&result, "/per_second")? / 1e3)
}

pub(crate) fn listening(path: &Path<'_>) -> Result<()> {
    let socket = format!("sport = :{PORT}");
    for _ in 0..250 {
        if path.to.exec(["ss", "-Hltn", &socket])?.contains(PORT) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing listens on port {PORT} after 5 s")
}

pub(crate) fn number(result: &Value, pointer: &str) -> Result<f64> {
    result.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer} in {result}"))
}
