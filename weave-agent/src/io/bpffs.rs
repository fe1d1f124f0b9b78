//! The BPF filesystem that holds an agent's pins: its own, so that `reset` leaves nothing in anybody else's.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Mount one at `path`, if there is none.
pub fn ensure(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    if is_mounted(path) {
        return Ok(());
    }
    let options = Some("mode=0700");
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount a BPF filesystem at {}: weave-agent must run as root, with CAP_SYS_ADMIN", path.display()))
}

/// Unmount it with everything pinned in it, and remove the directory.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    while is_mounted(path) {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}
