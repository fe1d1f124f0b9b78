//! XDP on underlay interfaces: strangers' packets end in the driver, before an skb is made of them.
//!
//! Nothing depends on it: where it is not, the programs of the other hooks drop the same packets later, under the same reasons. So it
//! is put only where that was asked for or costs nothing, in native mode only (generic XDP is given an skb), and never in
//! another program's place; and what stands in its way is told, and no error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use aya::programs::links::FdLink;
use aya::programs::xdp::{XdpError, XdpMode};
use aya::programs::{ProgramError, Xdp as XdpProgram};

use super::hooks;
use super::load::{any_program, is_at_least, verify};
use crate::config::Xdp;
use crate::io::net::driver_of;

/// What pins are called, whichever of the programs it is.
const PIN: &str = "strangers";

/// The filter on all interfaces.
pub(super) struct Filter {
    when: Xdp,
    links: PathBuf,
    /// The verifier has seen the program.
    verified: bool,
    /// Of each interface, by index: its name, and why it has none.
    told: BTreeMap<u32, (String, Option<String>)>,
}

impl Filter {
    pub(super) fn new(when: Xdp, links: &Path) -> Self {
        Self { when, links: links.to_owned(), verified: false, told: BTreeMap::new() }
    }

    /// Puts it on an interface, in place of an earlier agent's; or takes that off where none is wanted.
    ///
    /// # Errors
    /// When the interface is gone, or the kernel does not let an earlier one go.
    pub(super) fn put(&mut self, object: &mut aya::Ebpf, ifindex: u32) -> Result<()> {
        if self.when == Xdp::Off {
            return self.take(ifindex);
        }
        let name = hooks::name_of(ifindex)?;
        let driver = driver_of(&name).unwrap_or_default();
        let put = match self.when {
            Xdp::Auto => is_free(&driver).map_err(str::to_owned),
            Xdp::Filter | Xdp::Off => Ok(()),
        };
        let put = put.and_then(|()| self.attach(object, ifindex).map_err(|error| explain(&error)));
        if put.is_err() {
            hooks::remove_pin(&self.pin(ifindex))?;
        }
        self.tell(ifindex, name, put.err().map(|why| if driver.is_empty() { why } else { format!("{driver}: {why}") }));
        Ok(())
    }

    /// Takes it off again, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses; an interface that is gone is no error.
    pub(super) fn take(&mut self, ifindex: u32) -> Result<()> {
        self.told.remove(&ifindex);
        hooks::remove_pin(&self.pin(ifindex))
    }

    /// Takes it off all other interfaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn keep_only(&mut self, these: &[u32]) -> Result<()> {
        let others: Vec<_> = hooks::interfaces(&self.links, PIN).into_iter().filter(|ifindex| !these.contains(ifindex)).collect();
        others.into_iter().map(|ifindex| self.take(ifindex)).fold(Ok(()), Result::and)
    }

    /// A line for each interface.
    pub(super) fn lines(&self) -> Vec<String> {
        self.told.values().map(|(name, why)| line(name, self.when, why.as_deref())).collect()
    }

    /// Whoever asked for it is warned where it is not.
    fn tell(&mut self, ifindex: u32, name: String, why: Option<String>) {
        let text = line(&name, self.when, why.as_deref());
        match (self.when, &why) {
            (Xdp::Filter, Some(_)) => tracing::warn!("XDP on {text}"),
            _ => tracing::info!("XDP on {text}"),
        }
        self.told.insert(ifindex, (name, why));
    }

    fn attach(&mut self, object: &mut aya::Ebpf, ifindex: u32) -> Result<(), ProgramError> {
        let pin = self.pin(ifindex);
        let Ok(program) = any_program(object, fitting()) else {
            return Err(ProgramError::UnexpectedProgramType);
        };
        if !self.verified {
            verify(program)?;
            self.verified = true;
        }
        let program: &mut XdpProgram = program.try_into()?;
        if replace(program, &pin).is_ok() {
            return Ok(());
        }
        // No pin, or one of an interface that is gone and whose index was given anew; if it cannot go, pinning says so.
        let _ = hooks::remove_pin(&pin);
        let id = program.attach_to_if_index(ifindex, XdpMode::Driver)?;
        // Not a link where a kernel does not know of them (5.9): dropping it takes it off.
        let link: FdLink = program.take_link(id)?.try_into().map_err(|_| ProgramError::UnexpectedProgramType)?;
        link.pin(pin).map_err(|error| ProgramError::IOError(std::io::Error::other(error)))?;
        Ok(())
    }

    fn pin(&self, ifindex: u32) -> PathBuf {
        self.links.join(format!("{PIN}-{ifindex}"))
    }
}

/// Takes it off every interface that `links` tells of.
///
/// # Errors
/// With what the kernel refused.
pub(super) fn detach_all(links: &Path) -> Result<()> {
    Filter::new(Xdp::Off, links).keep_only(&[])
}

/// One system call changes the program under live traffic.
fn replace(program: &mut XdpProgram, pin: &Path) -> Result<()> {
    let id = program.attach_to_link(hooks::pinned(pin)?.try_into()?)?;
    // Still pinned; closing our descriptor changes nothing.
    drop(program.take_link(id)?);
    Ok(())
}

/// The one that this kernel takes.
fn fitting() -> &'static str {
    if takes_pieces() { "strangers" } else { "strangers_whole" }
}

/// Packets in several pieces, and with them MTUs above a page (Linux 5.18, commit c2f2cdbeffda).
fn takes_pieces() -> bool {
    is_at_least(5, 18)
}

/// Whether a program changes nothing else about an interface of this driver, neither now nor for other packets; if not, what it costs.
///
/// What is here was read in the drivers: only one of those that take any does no more than note the program.
fn is_free(driver: &str) -> Result<(), &'static str> {
    match driver {
        // `efx_xdp_setup_prog`: queues for it are there from the start.
        "sfc" => Ok(()),
        "veth" => Err("its other end would lose TSO and checksum offload"),
        "virtio_net" => Err("it would lose the segments that the host joins, and needs more queues"),
        "tun" => Err("every packet would be copied"),
        "bonding" | "team" => Err("the interfaces below would pay"),
        _ => Err("its driver has none, or sets its queues up anew for it"),
    }
}

fn line(name: &str, when: Xdp, why: Option<&str>) -> String {
    match (when, why) {
        (_, None) => format!("{name}: strangers' packets end in the driver"),
        (Xdp::Auto, Some(why)) => format!("{name}: none, it would not be free ({why}); --xdp filter puts it there all the same"),
        (_, Some(why)) => format!("{name}: none ({why})"),
    }
}

/// What the kernel or a driver means by its refusal.
fn explain(error: &ProgramError) -> String {
    let raw = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    match raw {
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is there already, and stays".to_owned(),
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP".to_owned(),
        Some(libc::ERANGE) if takes_pieces() => "the MTU is larger than the driver takes with XDP".to_owned(),
        Some(libc::ERANGE) => "the MTU is larger than the driver takes with XDP before Linux 5.18".to_owned(),
        _ => refusal(error),
    }
}

/// With what lies below: a driver's own words are there.
fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.to_string(),
        error => {
            let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
            std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_only_where_it_is_free() {
        assert_eq!(is_free("sfc"), Ok(()));
        for driver in ["veth", "virtio_net", "tun", "bonding", "team", "mlx5_core", "ixgbe", ""] {
            assert!(is_free(driver).is_err(), "{driver}");
        }
    }

    #[test]
    fn a_refusal_says_what_it_means() {
        let refused = |errno| {
            explain(&ProgramError::SyscallError(aya::sys::SyscallError {
                call: "bpf_link_create",
                io_error: std::io::Error::from_raw_os_error(errno),
            }))
        };
        assert!(refused(libc::EBUSY).contains("another XDP program"));
        assert!(refused(libc::EOPNOTSUPP).contains("no native XDP"));
        assert!(refused(libc::ERANGE).contains("MTU"));
        assert!(refused(libc::EPERM).contains("not permitted"), "{}", refused(libc::EPERM));
    }

    #[test]
    fn a_line_says_where_it_is_and_where_not_and_why() {
        assert_eq!(line("eth0", Xdp::Filter, None), "eth0: strangers' packets end in the driver");
        assert_eq!(line("eth0", Xdp::Filter, Some("tun: x")), "eth0: none (tun: x)");
        assert!(line("eth0", Xdp::Auto, Some("veth: x")).contains("--xdp filter"));
    }
}
