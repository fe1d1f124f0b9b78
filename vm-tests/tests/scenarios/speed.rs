//! Large segments cross, and the switch is not asked about them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::{LabConfig, root_or_skip};

use crate::observe::{busiest, count, lab, listener};

#[test]
fn a_tcp_stream_crosses_in_large_segments_without_upcalls() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { hosts: 2, containers: 1, ..LabConfig::named("speed") })?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    let server = listener(&lab, "h2c1", &[])?;
    let before = count(&h1, "upcalls")? + count(&h2, "upcalls")?;
    let mut capture = h1.spawn(["tcpdump", "-n", "-i", "eth0", "-c", "1000", "udp port 6784 and greater 10000"])?;
    let to = lab.overlay_address("h2c1")?.to_string();
    let text = lab.container("h1c1")?.exec(["iperf3", "-c", &to, "-C", "cubic", "-t", "5", "-J"])?;
    server.finish()?;
    let upcalls = count(&h1, "upcalls")? + count(&h2, "upcalls")? - before;
    ensure!(upcalls < 100, "{upcalls} upcalls for one stream");
    let result: Value = serde_json::from_str(&text)?;
    let bytes = result.pointer("/end/sum_received/bytes").and_then(Value::as_u64).context("iperf3's result")?;
    let segments = bytes / 1500;
    let counted = busiest(&h1, "peer")?;
    ensure!(counted > segments / 2, "the flow counts {counted} packets, the stream had some {segments}");
    ensure!(capture.ended()?.is_some(), "fewer than 1,000 packets over 10 kB on the underlay: {}", capture.written()?);
    Ok(())
}
