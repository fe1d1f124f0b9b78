//! A host whose frames the openvswitch module carries. On a kernel without the module these are skipped.

use anyhow::Result;
use vm_tests::root_or_skip;
use weave_agent::io::datapath::odp::kernel::Kernel;

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
