//! What others do to interfaces that we made is noticed and mended.

use anyhow::{Result, ensure};
use vm_tests::{LabConfig, root_or_skip, wait_for};

use crate::observe::{SOON, lab};

#[test]
fn a_deleted_vxlan_device_is_made_again_and_carries_frames() -> Result<()> {
    if !root_or_skip() {
        return Ok(());
    }
    let lab = lab(LabConfig { containers: 1, ..LabConfig::named("vxdel") })?;
    let (host, container, to) = (lab.host(1)?, lab.container("h1c1")?, lab.overlay_address("h2c1")?);
    ensure!(container.reaches(to)?);
    host.exec(["ip", "link", "del", "vxlan-6784"])?;
    wait_for("the vxlan device", SOON, || Ok(host.exec(["ip", "link", "show", "up"])?.contains("vxlan-6784")))?;
    // The address is asked for by broadcast, which only the new device can send.
    container.exec(["ip", "neigh", "flush", "dev", "ethwe"])?;
    wait_for("broadcasts", SOON, || container.reaches(to))?;
    host.exec(["ip", "link", "set", "vxlan-6784", "down"])?;
    wait_for("the device to be up", SOON, || Ok(host.exec(["ip", "link", "show", "up"])?.contains("vxlan-6784")))?;
    ensure!(host.status()?["warnings"] == serde_json::json!([]), "{}", host.status()?);
    Ok(())
}
