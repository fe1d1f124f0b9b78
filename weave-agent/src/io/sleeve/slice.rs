//! How long a thread may go on while others wait.

use std::io;

use crate::Time;

/// Longer than the kernel's own (about 3 ms): whoever is woken and has the usual slice goes first. On a host whose CPUs are
/// all busy that is the container a frame was just delivered to: its socket holds 2 ms of small datagrams.
pub(super) const SLICE: Time = Time::from_millis(10);

/// Asks for slices of this length for the calling thread (`sched_setattr(2)`, `sched_runtime` of `SCHED_OTHER`). Kernels before
/// 6.12 have one length for all, and do not mind.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn ask(slice: Time) -> io::Result<()> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes to a structure that lives here; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    // Somebody who gave the agent another policy knows better.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes of the same structure.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_it() {
        ask(SLICE).unwrap();
    }
}
