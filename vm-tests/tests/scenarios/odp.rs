//! A host whose frames the openvswitch module carries. On a kernel without the module these are skipped.

use anyhow::{Result, ensure};
use vm_tests::{Host, LabConfig, root_or_skip};
use weave_agent::io::datapath::odp::kernel::Kernel;

use crate::observe::{datapath, lab, ping_on, unbroken};
use crate::relay::relays_unasked;

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
    relays_unasked("orelay", ODP, 200, "0.02").map(drop)
}

/// Programs are refused only when nearly all is ready for them: what carries frames until then must not have been touched.
#[test]
fn an_automatic_choice_that_falls_back_goes_on_with_what_it_finds() -> Result<()> {
    if !root_or_skip() || !module_or_skip() {
        return Ok(());
    }
    let launch = ODP.iter().map(|word| (*word).to_owned()).collect();
    let lab = lab(LabConfig { launch, ..LabConfig::named("oauto") })?;
    let h1 = lab.host(1)?;
    let before = index(&h1)?;
    let pings = ping_on(&lab.container("h1c1")?, lab.overlay_address("h2c1")?, "0.05")?;
    for _ in 0..2 {
        h1.weave(["stop"])?;
        // Without this it may not mount what programs are pinned in.
        h1.exec(["setpriv", "--bounding-set=-sys_admin", "weave-agent", "launch", "--datapath", "auto"])?;
        let told = datapath(&h1)?;
        ensure!(told.starts_with("odp") && told.contains("CAP_SYS_ADMIN"), "{told}");
        ensure!(index(&h1)? == before, "the datapath is another one");
    }
    unbroken(pings).map(drop)
}

fn index(host: &Host<'_>) -> Result<String> {
    let shown = host.exec(["ip", "-o", "link", "show", "dev", "weave-odp"])?;
    Ok(shown.split(':').next().unwrap_or_default().to_owned())
}
