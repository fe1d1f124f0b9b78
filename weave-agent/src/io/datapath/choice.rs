//! Which datapath carries the frames, and why.

use anyhow::{Context, Result, bail};
use aya::programs::ProgramType;

use super::ebpf::{self, Ebpf};
use super::odp::{self, Odp};
use super::userspace::{self, Userspace};
use super::{Datapath, Upcalls};
use crate::config::{Choice, Xdp};
use crate::io::net::{self, Netlink, VxlanDevice};
use crate::io::paths::Paths;
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

/// Where it is to be.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The host's namespace.
    pub host: &'a Netlink,
    /// The agent's directories.
    pub paths: &'a Paths,
    /// The tunnel's UDP port.
    pub tunnel_port: u16,
    /// Where strangers' packets end before the stack: of the datapath ebpf only.
    pub xdp: Xdp,
}

/// Opens the datapath of this choice, and removes what another one left.
///
/// # Errors
/// When it cannot be had; with `auto`, when none can.
pub async fn open(choice: Choice, place: &Place<'_>) -> Result<Opened> {
    let mut opened = open_one(choice, place).await?;
    if let Some(why) = opened.why.as_mut().filter(|_| place.xdp == Xdp::Filter) {
        tracing::warn!("--xdp filter is of no use here: only the datapath ebpf has it");
        why.push_str("; without --xdp filter, which only ebpf has");
    }
    Ok(opened)
}

async fn open_one(choice: Choice, place: &Place<'_>) -> Result<Opened> {
    match choice {
        Choice::Ebpf => {
            let opened = open_ebpf(place).await;
            opened.context("the datapath ebpf cannot be had; `--datapath auto` takes another")
        }
        Choice::Odp => {
            let opened = open_odp(place, "--datapath odp".to_owned()).await;
            opened.context("the datapath odp cannot be had; `--datapath auto` takes another")
        }
        Choice::Userspace => open_userspace(place, "--datapath userspace".to_owned()).await,
        Choice::Auto => match open_ebpf(place).await {
            Ok(opened) => Ok(opened),
            Err(error) => open_next(place, explain(&error)).await,
        },
    }
}

/// The best besides ebpf, which cannot be had for this reason.
async fn open_next(place: &Place<'_>, why: String) -> Result<Opened> {
    let odp = match open_odp(place, why.clone()).await {
        Ok(opened) => {
            tracing::warn!("frames are carried by the openvswitch module, not by eBPF programs: {why}");
            return Ok(opened);
        }
        Err(error) => explain(&error),
    };
    tracing::warn!("frames are carried in user space, not by eBPF programs ({why}) or the openvswitch module ({odp})");
    let opened = open_userspace(place, format!("{why}; {odp}")).await;
    opened.with_context(|| format!("no datapath can be had: not ebpf ({why}), nor odp ({odp}), nor userspace"))
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

async fn open_ebpf(place: &Place<'_>) -> Result<Opened> {
    let object = object::programs()?;
    // Before anything is made that it would need.
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => {}
        Ok(false) => bail!("the kernel has no BPF programs for traffic control (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF)"),
        Err(error) => return Err(error).context("the kernel refuses BPF programs"),
    }
    let pins = place.paths.pins();
    let vxlan = own_vxlan(place).await?;
    bpffs::ensure(&pins)?;
    let options = ebpf::Options { pins, vxlan_ifindex: vxlan.ifindex, tunnel_port: place.tunnel_port, tcx: None, xdp: place.xdp };
    let (datapath, upcalls) = Ebpf::load(object, &options)?;
    // Not before nothing can fail any more: another datapath that the choice falls back to goes on as it was.
    leave_odp(place)?;
    // What user space left to itself is the programs' now.
    userspace::shield::remove().context("cannot remove the nftables table netdev weave-agent")?;
    Ok(Opened { datapath: Box::new(datapath), upcalls, vxlan: Some(vxlan), why: None })
}

async fn open_odp(place: &Place<'_>, why: String) -> Result<Opened> {
    // Before anything is removed.
    odp::probe()?;
    leave_ebpf(place).await?;
    userspace::shield::remove().context("cannot remove the nftables table netdev weave-agent")?;
    let vxlan = own_vxlan(place).await?;
    let options = odp::Options { tunnel_port: place.tunnel_port, vxlan_ifindex: vxlan.ifindex, kept: Some(place.paths.odp()) };
    let (datapath, upcalls) = Odp::open(&options)?;
    Ok(Opened { datapath: Box::new(datapath), upcalls, vxlan: Some(vxlan), why: Some(why) })
}

async fn open_userspace(place: &Place<'_>, why: String) -> Result<Opened> {
    leave_odp(place)?;
    leave_ebpf(place).await?;
    net::remove_vxlans(place.host, None).await?;
    let (datapath, upcalls) = Userspace::open(place.tunnel_port)?;
    Ok(Opened { datapath: Box::new(datapath), upcalls, vxlan: None, why: Some(why) })
}

/// The vxlan device of the tunnel's port, and of no other.
async fn own_vxlan(place: &Place<'_>) -> Result<VxlanDevice> {
    let own = net::ensure_vxlan(place.host, place.tunnel_port).await?;
    if net::remove_vxlans(place.host, Some(place.tunnel_port)).await? {
        tracing::info!("the vxlan device of an earlier agent, of another port, is gone");
    }
    Ok(own)
}

/// Programs that nobody tells anything would go on forwarding.
async fn leave_ebpf(place: &Place<'_>) -> Result<()> {
    let pins = place.paths.pins();
    let was_there = pins.exists();
    ebpf::leave(&pins)?;
    bpffs::remove(&pins)?;
    // Programs of kernels without TCX may still be on the device; one that the openvswitch module's datapath has goes on.
    if was_there && !odp::is_there() && net::remove_vxlans(place.host, None).await? {
        tracing::info!("the eBPF programs of an earlier agent and their vxlan device are gone");
    }
    Ok(())
}

/// The same of the openvswitch module's datapath.
fn leave_odp(place: &Place<'_>) -> Result<()> {
    // It is there whatever became of the file; the file alone means nothing.
    if !place.paths.odp().exists() && !odp::is_there() {
        return Ok(());
    }
    if odp::leave().context("cannot delete the openvswitch datapath of an earlier agent")? {
        tracing::info!("the openvswitch datapath of an earlier agent is gone");
    }
    let _ = std::fs::remove_file(place.paths.odp());
    Ok(())
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
