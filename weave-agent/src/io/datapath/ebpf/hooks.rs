//! Programs on interfaces: TCX links where the kernel has them (6.6), clsact filters else. Both outlive the agent and
//! are replaced in place by the next one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;

use super::{clsact, link};
use crate::io::net::sys::ifname;

/// Where our filter stands among a clsact's.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7765);

/// One program on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// `from_port` on the ingress of a port.
    Port,
    /// `from_underlay` on the ingress of an underlay interface.
    Underlay,
    /// `from_vxlan` on the ingress of the vxlan device.
    VxlanIn,
    /// `to_vxlan` on its egress.
    VxlanOut,
    /// `from_sleeve` on the ingress of the sleeve's TAP device.
    Sleeve,
}

impl Hook {
    pub(super) const ALL: [Self; 5] = [Self::Port, Self::Underlay, Self::VxlanIn, Self::VxlanOut, Self::Sleeve];

    /// Name of the program in the object, and of the pins.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Port => "from_port",
            Self::Underlay => "from_underlay",
            Self::VxlanIn => "from_vxlan",
            Self::VxlanOut => "to_vxlan",
            Self::Sleeve => "from_sleeve",
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::Port | Self::Underlay | Self::VxlanIn | Self::Sleeve => TcAttachType::Ingress,
            Self::VxlanOut => TcAttachType::Egress,
        }
    }
}

/// Whether this kernel has TCX (Linux 6.6, commit e420bed02507).
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Puts the program on the interface, in place of an earlier agent's if there is one.
pub(super) fn attach(program: &mut SchedClassifier, hook: Hook, ifindex: u32, links: &Path, tcx: bool) -> Result<()> {
    let name = name_of(ifindex)?;
    let attached =
        if tcx { attach_tcx(program, hook, &name, &pin(links, hook, ifindex)) } else { attach_clsact(program, hook, ifindex, links) };
    attached.with_context(|| format!("cannot attach {} to {name}", hook.program()))
}

/// Takes it off again; an interface that is gone took its program along.
pub(super) fn detach(hook: Hook, ifindex: u32, links: &Path, tcx: bool) -> Result<()> {
    let pin = pin(links, hook, ifindex);
    if tcx { remove_pin(&pin) } else { detach_clsact(hook, ifindex, links) }
}

/// Takes this hook's programs off all interfaces but these.
pub(super) fn keep_only(hook: Hook, these: &[u32], links: &Path, tcx: bool) -> Result<()> {
    let others = interfaces(links, hook.program()).into_iter().filter(|ifindex| !these.contains(ifindex));
    others.map(|other| detach(hook, other, links, tcx)).fold(Ok(()), Result::and)
}

/// Takes off everything that `links` tells of.
pub(super) fn detach_all(links: &Path) -> Result<()> {
    let all = Hook::ALL.into_iter().flat_map(|hook| interfaces(links, hook.program()).into_iter().map(move |ifindex| (hook, ifindex)));
    all.map(|(hook, ifindex)| detach(hook, ifindex, links, !pin(links, hook, ifindex).is_dir())).fold(Ok(()), Result::and)
}

/// The interfaces that `links` says this program is on.
pub(super) fn interfaces(links: &Path, program: &str) -> Vec<u32> {
    let names = std::fs::read_dir(links).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix(program)?.strip_prefix('-')?.parse().ok()).collect()
}

fn pin(links: &Path, hook: Hook, ifindex: u32) -> PathBuf {
    links.join(format!("{}-{ifindex}", hook.program()))
}

fn attach_tcx(program: &mut SchedClassifier, hook: Hook, name: &str, pin: &Path) -> Result<()> {
    if replace_pinned(program, pin).is_ok() {
        return Ok(());
    }
    // No pin, or one of an interface that is gone and whose index was given anew.
    remove_pin(pin)?;
    let id = program.attach_with_options(name, hook.direction(), TcAttachOptions::TcxOrder(LinkOrder::default()))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

/// One system call changes the program under live traffic: no packet sees none.
fn replace_pinned(program: &mut SchedClassifier, pin: &Path) -> Result<()> {
    let id = program.attach_to_link(pinned(pin)?.try_into()?)?;
    // Still pinned; closing our descriptor changes nothing.
    drop(program.take_link(id)?);
    Ok(())
}

/// The link that an earlier agent pinned.
pub(super) fn pinned(pin: &Path) -> Result<FdLink> {
    Ok(PinnedLink::from_pin(pin)?.into())
}

pub(super) fn remove_pin(pin: &Path) -> Result<()> {
    if let Err(error) = link::detach(pin) {
        // There is none, or it cannot be detached any more; without its pin it goes anyway.
        tracing::debug!(%error, pin = %pin.display(), "link");
    }
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| pin.display().to_string()),
        _ => Ok(()),
    }
}

/// A filter has nothing to pin; a directory of the pin's name says that there is one.
fn attach_clsact(program: &mut SchedClassifier, hook: Hook, ifindex: u32, links: &Path) -> Result<()> {
    let name = name_of(ifindex)?;
    clsact::ensure(ifindex, &qdisc(links, ifindex))?;
    let old = SchedClassifierLink::attached(&name, hook.direction(), PRIORITY, HANDLE, None)?;
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(&name, hook.direction(), TcAttachOptions::Netlink(options))?
        }
    };
    // The filter stays when the agent goes.
    std::mem::forget(program.take_link(id)?);
    clsact::mark(&pin(links, hook, ifindex))
}

fn detach_clsact(hook: Hook, ifindex: u32, links: &Path) -> Result<()> {
    if let Ok(name) = name_of(ifindex) {
        // Dropping what is not leaked detaches it.
        drop(SchedClassifierLink::attached(&name, hook.direction(), PRIORITY, HANDLE, None));
    }
    clsact::unmark(&pin(links, hook, ifindex))?;
    clsact::release(ifindex, &qdisc(links, ifindex))
}

/// Where it is noted that we made an interface's clsact qdisc.
fn qdisc(links: &Path, ifindex: u32) -> PathBuf {
    links.join(format!("clsact-{ifindex}"))
}

pub(super) fn name_of(ifindex: u32) -> Result<String> {
    ifname(ifindex).with_context(|| format!("no interface has index {ifindex}"))
}
