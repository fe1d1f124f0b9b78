//! One run of some traffic over one path.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vm_tests::{Host, wait_for};

use super::bed::Path;

const PORT: &str = "5201";
/// Clock ticks per second, of which the kernel tells CPU time (`sysconf(_SC_CLK_TCK)`, 100 on Linux).
const TICKS: f64 = 100.0;

/// Where the two ends run: what stands before their command lines, the near end's first.
pub(crate) type Places<'a> = [&'a [&'a str]; 2];

/// Both on the same CPU.
pub(crate) const ONE_CPU: Places<'_> = [&["taskset", "-c", "0"], &["taskset", "-c", "0"]];
/// One on each.
pub(crate) const TWO_CPUS: Places<'_> = [&["taskset", "-c", "0"], &["taskset", "-c", "1"]];
/// Wherever the kernel puts them.
pub(crate) const ANYWHERE: Places<'_> = [&[], &[]];

/// iperf3 from end to end: what it says of it.
pub(crate) fn iperf(path: &Path<'_>, places: Places<'_>, seconds: f64, options: &[&str]) -> Result<Value> {
    let server = path.to.spawn([places[1], &["iperf3", "-s", "-1", "-p", PORT]].concat())?;
    listening(path)?;
    // iperf3 takes whole seconds.
    let seconds = format!("{:.0}", seconds.ceil());
    let client: &[&str] = &["iperf3", "-c", &path.address, "-p", PORT, "-J", "-t", &seconds];
    let text = path.from.exec([places[0], client, options].concat())?;
    server.finish()?;
    serde_json::from_str(&text).context("iperf3 wrote no JSON")
}

/// TCP by iperf3: what arrived, in Gbit/s.
pub(crate) fn bulk(path: &Path<'_>, places: Places<'_>, seconds: f64, options: &[&str]) -> Result<f64> {
    let result = iperf(path, places, seconds, &[&["-C", "cubic"], options].concat())?;
    Ok(number(&result, "/end/sum_received/bits_per_second")? / 1e9)
}

/// Our own two ends: what the near one printed.
pub(crate) fn ends(path: &Path<'_>, places: Places<'_>, far: &[&str], near: &[&str]) -> Result<Value> {
    let this = this_program()?;
    let program: &[&str] = &[&this, "bench-node"];
    let server = path.to.spawn([places[1], program, far, &["--port", PORT]].concat())?;
    listening(path)?;
    let (name, options) = near.split_first().context("no end named")?;
    let address = format!("{}:{PORT}", path.address);
    let text = path.from.exec([places[0], program, &[name, &address], options].concat())?;
    server.finish()?;
    serde_json::from_str(&text).with_context(|| format!("the {name} end wrote no JSON"))
}

/// The path of this program, which is also both ends of what it measures.
pub(crate) fn this_program() -> Result<String> {
    let path = std::env::current_exe()?;
    path.to_str().map(str::to_owned).context("the path of xtask is no UTF-8")
}

fn listening(path: &Path<'_>) -> Result<()> {
    let socket = format!("sport = :{PORT}");
    let listens = || Ok(path.to.exec(["ss", "-Hltn", &socket])?.contains(PORT));
    wait_for("the far end to listen", Duration::from_secs(5), listens).map(drop)
}

pub(crate) fn number(result: &Value, pointer: &str) -> Result<f64> {
    result.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer} in {result}"))
}

/// CPU seconds that processes have used, of their own and in the kernel.
pub(crate) fn cpu_seconds(pids: &[u32]) -> [f64; 2] {
    let ticks = |pid: &u32| -> Option<[f64; 2]> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some([fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?])
    };
    pids.iter().filter_map(ticks).fold([0.0; 2], |sum, of| [sum[0] + of[0] / TICKS, sum[1] + of[1] / TICKS])
}

/// The process of a host's agent.
pub(crate) fn agent_pid(host: &Host<'_>) -> Result<u32> {
    Ok(host.status()?["pid"].as_u64().context("no pid in the status")? as u32)
}
