//! Taking a pinned TCX link off its interface.
//!
//! Unpinning alone leaves that to a worker of the kernel, some time later: a port would still answer after it was
//! detached. `BPF_LINK_DETACH` (Linux 5.9) does it at once; aya has no call for it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OBJECT_GET: i32 = 7;
const LINK_DETACH: i32 = 34;

/// Takes the program off. A link whose interface is gone is off already.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // `pathname`, and zeros for descriptor and flags.
    let descriptor = bpf(OBJECT_GET, &[path.as_ptr() as u64, 0])?;
    // SAFETY: the command returned a new descriptor, which is nobody else's.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // Its first four bytes; every architecture that the programs are built for has these first.
    bpf(LINK_DETACH, &[u64::from(link.as_raw_fd().cast_unsigned())]).map(drop)
}

fn bpf(command: i32, attribute: &[u64]) -> io::Result<i32> {
    // SAFETY: the attribute is as long as it says, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(attribute)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
