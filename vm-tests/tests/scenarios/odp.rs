//! A host whose frames the openvswitch module carries. On a kernel without the module these are skipped.

use anyhow::{Result, ensure};
use vm_tests::{Lab, LabConfig, root_or_skip, wait_for};
use weave_agent::io::datapath::odp::kernel::Kernel;

use crate::observe::{SOON, count, ping, pinged};

pub(crate) const ODP: &[&str] = &["--datapath", "odp"];

/// Whether a test can run here; if not, it says so.
pub(crate) fn module_or_skip() -> bool {
    let there = Kernel::open().is_ok();
    if !there {
        println!("skipped: this kernel has no openvswitch module");
    }
    there
}

#[test]
fn the_module_relays_and_its_agent_is_not_asked() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let config = LabConfig { hosts: 3, containers: 1, ..LabConfig::named("orelay") }.launching(2, ODP);
    let mut lab = Lab::scenario(config.without_agents())?;
    lab.cut(1, 3)?;
    lab.start_agents(None)?;
    let (from, to) = (lab.container("h1c1")?, lab.overlay_address("h3c1")?);
    wait_for("a way through h2", SOON, || from.reaches(to))?;
    let upcalls = count(&lab.host(2)?, "upcalls")?;
    pinged(ping(&from, to, 200, "0.02")?)?.lossless()?;
    let more = count(&lab.host(2)?, "upcalls")? - upcalls;
    ensure!(more < 20, "h2's agent was asked {more} times about 400 packets");
    Ok(())
}
