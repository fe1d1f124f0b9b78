//! Peers that cannot see each other talk through one that sees both, in its kernel.

use anyhow::{Result, ensure};
use vm_tests::{Lab, LabConfig, root_or_skip, wait_for};

use crate::observe::{SOON, count, ping, pinged};

#[test]
fn the_host_in_the_middle_relays_in_its_kernel() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let mut lab = Lab::scenario(LabConfig { hosts: 3, containers: 1, ..LabConfig::named("relay") }.without_agents())?;
    lab.cut(1, 3)?;
    lab.start_agents(None)?;
    // They were told of each other, which is in vain; all know h2.
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h3c1")?);
    wait_for("a way through h2", SOON, || from.reaches(to))?;
    let upcalls = count(&lab.host(2)?, "upcalls")?;
    pinged(ping(&from, to, 500, "0.005")?)?.lossless()?;
    let more = count(&lab.host(2)?, "upcalls")? - upcalls;
    ensure!(more < 20, "h2's agent was asked {more} times about 1,000 packets");
    Ok(())
}
