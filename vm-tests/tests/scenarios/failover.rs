//! A cut wire: traffic goes round it, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::{LabConfig, Running, root_or_skip, wait_for};

use crate::observe::{Pings, lab, tunnel};

/// Longest silence in a ping's answers, in request intervals of 20 ms.
fn longest_gap(text: &str) -> u32 {
    let sequence = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u32>().ok();
    let answered: Vec<_> = text.lines().filter_map(sequence).collect();
    answered.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(u32::MAX)
}

fn running(ping: &mut Running) -> Result<bool> {
    Ok(ping.ended()?.is_none())
}

#[test]
fn traffic_goes_round_a_cut_within_3_s_and_back_within_10() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = lab(LabConfig { hosts: 3, containers: 1, ..LabConfig::named("cut") })?;
    let to = lab.overlay_address("h2c1")?.to_string();
    let mut ping = lab.container("h1c1")?.spawn(["ping", "-n", "-i0.02", "-c1200", "-W1", &to])?;
    std::thread::sleep(Duration::from_secs(1));
    lab.cut(1, 2)?;
    let cut = Instant::now();
    wait_for("h1 and h2 to relay", Duration::from_secs(3), || {
        Ok(tunnel(&lab.host(1)?, 2)?.as_deref() == Some("relay") && tunnel(&lab.host(2)?, 1)?.as_deref() == Some("relay"))
    })?;
    lab.container("h1c1")?.exec(["ping", "-n", "-c1", "-W1", &to]).context("after the relay was chosen")?;
    ensure!(cut.elapsed() < Duration::from_secs(4), "the first answer after the cut took {:?}", cut.elapsed());
    lab.mend(1, 2)?;
    wait_for("the direct path", Duration::from_secs(10), || {
        Ok(tunnel(&lab.host(1)?, 2)?.as_deref() == Some("vxlan") && tunnel(&lab.host(2)?, 1)?.as_deref() == Some("vxlan"))
    })?;
    ensure!(running(&mut ping)?, "the ping ended before the path was mended");
    wait_for("ping to end", Duration::from_secs(60), || Ok(!running(&mut ping)?))?;
    let text = ping.written()?;
    let (gap, pings) = (longest_gap(&text), Pings::read(&text)?);
    ensure!(gap <= 150, "{gap} pings of 20 ms in a row were lost");
    ensure!(pings.duplicates == 0, "{} answers came twice", pings.duplicates);
    Ok(())
}
