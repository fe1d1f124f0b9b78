//! Which datapath carries the frames, and why.

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::programs::ProgramType;

use super::ebpf::{self, Ebpf};
use super::userspace::{self, Userspace};
use super::{Datapath, Upcalls};
use crate::config::Choice;
use crate::io::net::{self, Netlink, VxlanDevice};
use crate::io::{bpffs, object};

/// What lies behind a refusal to load programs.
const REFUSAL: &str = "CAP_BPF, kernel.unprivileged_bpf_disabled, lockdown";

/// A datapath that is ready.
pub struct Opened {
    /// It.
    pub datapath: Box<dyn Datapath>,
    /// What it asks.
    pub upcalls: Upcalls,
    /// The device that it needs, if it needs one.
    pub vxlan: Option<VxlanDevice>,
    /// Why it is not the one that would be better.
    pub why: Option<String>,
}

/// Opens the datapath of this choice, and removes what another one left. `pins`: where the BPF filesystem is, or was.
///
/// # Errors
/// When it cannot be had; with `auto`, when none can.
pub async fn open(choice: Choice, host: &Netlink, pins: &Path, tunnel_port: u16) -> Result<Opened> {
    match choice {
        Choice::Ebpf => {
            let opened = open_ebpf(host, pins, tunnel_port).await;
            opened.context("the datapath ebpf cannot be had; `--datapath auto` takes another")
        }
        Choice::Userspace => open_userspace(host, pins, tunnel_port, "--datapath userspace".to_owned()).await,
        Choice::Auto => match open_ebpf(host, pins, tunnel_port).await {
            Ok(opened) => Ok(opened),
            Err(error) => {
                let why = explain(&error);
                tracing::warn!("frames are carried in user space, not by eBPF programs: {why}");
                let opened = open_userspace(host, pins, tunnel_port, why.clone()).await;
                opened.with_context(|| format!("no datapath can be had: not ebpf ({why}), nor userspace"))
            }
        },
    }
}

/// One line, with what stands behind a bare "not permitted".
fn explain(error: &anyhow::Error) -> String {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        kind == Some(std::io::ErrorKind::PermissionDenied)
    };
    let text = format!("{error:#}");
    if error.chain().any(refused) { format!("{text} ({REFUSAL})") } else { text }
}

async fn open_ebpf(host: &Netlink, pins: &Path, tunnel_port: u16) -> Result<Opened> {
    let object = object::programs()?;
    // Before anything is made that it would need.
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => {}
        Ok(false) => bail!("the kernel has no BPF programs for traffic control (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF)"),
        Err(error) => return Err(error).context("the kernel refuses BPF programs"),
    }
    let vxlan = net::ensure_vxlan(host, tunnel_port).await?;
    bpffs::ensure(pins)?;
    let options = ebpf::Options { pins: pins.to_owned(), vxlan_ifindex: vxlan.ifindex, tunnel_port, tcx: None };
    let (datapath, upcalls) = Ebpf::load(object, &options)?;
    // What user space left to itself is the programs' now.
    userspace::shield::remove().context("cannot remove the nftables table netdev weave-agent")?;
    Ok(Opened { datapath: Box::new(datapath), upcalls, vxlan: Some(vxlan), why: None })
}

async fn open_userspace(host: &Netlink, pins: &Path, tunnel_port: u16, why: String) -> Result<Opened> {
    // Programs that nobody tells anything would go on forwarding, and the device has the tunnel's port.
    ebpf::leave(pins)?;
    bpffs::remove(pins)?;
    if net::remove_vxlan(host, tunnel_port).await? {
        tracing::info!("the eBPF programs of an earlier agent and their vxlan device are gone");
    }
    let (datapath, upcalls) = Userspace::open(tunnel_port)?;
    Ok(Opened { datapath: Box::new(datapath), upcalls, vxlan: None, why: Some(why) })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_refusal_says_what_may_stand_behind_it() {
        let refused = anyhow::Error::from(io::Error::from_raw_os_error(libc::EPERM)).context("the kernel refuses BPF programs");
        let text = explain(&refused);
        assert!(text.starts_with("the kernel refuses BPF programs: Operation not permitted") && text.contains("CAP_BPF"), "{text}");
        assert_eq!(explain(&anyhow::anyhow!("built without")), "built without");
    }
}
