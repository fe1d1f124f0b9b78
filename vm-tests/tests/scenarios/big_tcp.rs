//! `--big-tcp`: segments longer than an IPv4 packet can be go whole to who takes them, and in packets to who does not.

use std::time::Duration;

use anyhow::{Result, ensure};
use vm_tests::{Lab, LabConfig, Node, Underlay, root_or_skip, wait_for};

use crate::observe::{lab, listener};

/// A second of one TCP stream, and whether `at` saw packets of more than 70,000 bytes that fit `filter` meanwhile.
fn stream_seen(lab: &Lab, [from, to]: [&str; 2], at: &Node<'_>, filter: &str) -> Result<bool> {
    let longer = format!("{filter} and greater 70000");
    let mut capture = at.spawn(["tcpdump", "-n", "-i", "eth0", "-c", "20", &longer])?;
    wait_for("tcpdump to listen", Duration::from_secs(5), || Ok(capture.written()?.contains("listening on")))?;
    let server = listener(lab, to, &[])?;
    let address = lab.overlay_address(to)?.to_string();
    lab.container(from)?.exec(["iperf3", "-c", &address, "-C", "cubic", "-t", "1"])?;
    server.finish()?;
    Ok(capture.ended()?.is_some())
}

#[test]
fn long_segments_go_whole_between_hosts_that_both_take_them() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let launch = vec!["--big-tcp".to_owned()];
    let lab = lab(LabConfig { hosts: 2, containers: 1, underlay: Underlay::Direct, launch, ..LabConfig::named("bigtcp") })?;
    let (h1, h2) = (lab.host(1)?, lab.host(2)?);
    if h1.weave(["status"])?.contains("Linux 6.3 has") {
        eprintln!("skipped: this kernel has no BIG TCP for IPv4");
        return Ok(());
    }
    let whole = |pair, at| stream_seen(&lab, pair, at, "udp port 6784");
    for (pair, at) in [(["h1c1", "h2c1"], &h2), (["h2c1", "h1c1"], &h1)] {
        // Interfaces are set a moment after containers and neighbours are there.
        wait_for("long segments", Duration::from_secs(20), || whole(pair, at))?;
    }
    let drops = h2.weave(["status"])?;
    h2.weave(["stop"])?;
    h2.weave(["launch", "--big-tcp=false"])?;
    lab.meshed()?;
    wait_for("h1 to send h2 packets only", Duration::from_secs(20), || Ok(!whole(["h1c1", "h2c1"], &h2)?))?;
    ensure!(!whole(["h2c1", "h1c1"], &h1)?, "h2 still sends them");
    ensure!(!drops.contains("too-big"), "{drops}");
    h1.weave(["reset"])?;
    let server = h2.spawn(["iperf3", "-s", "-1"])?;
    let mut capture = h1.spawn(["tcpdump", "-n", "-i", "eth0", "-c", "1", "tcp port 5201 and greater 70000"])?;
    wait_for("tcpdump to listen", Duration::from_secs(5), || Ok(capture.written()?.contains("listening on")))?;
    wait_for("iperf3 to listen", Duration::from_secs(5), || Ok(h2.exec(["ss", "-Hltn"])?.contains(":5201")))?;
    h1.exec(["iperf3", "-c", &h2.address().to_string(), "-t", "1"])?;
    server.finish()?;
    ensure!(capture.ended()?.is_none(), "the underlay's interface still is as we set it: {}", capture.written()?);
    Ok(())
}
