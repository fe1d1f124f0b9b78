//! Which driver an interface has.

use std::ffi::{CStr, c_char};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `linux/ethtool.h`: the command, and what it fills in.
const GET_DRIVER: u32 = 3;

/// `struct ethtool_drvinfo`, as far as we care.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [c_char; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The driver's own name: `veth`, `virtio_net`, `ixgbe`, …. Asked of the calling thread's network namespace, which the files of `/sys`
/// need not be of.
///
/// # Errors
/// When there is no such interface, or its driver does not say.
pub fn driver_of(interface: &str) -> io::Result<String> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
    // SAFETY: a plain C structure, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request names the interface, with a zero after its name, and points to as much room as the command fills; both live here.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    info.driver[31] = 0;
    // SAFETY: inside the structure, and there is a zero at the end whatever the kernel wrote.
    let name = unsafe { CStr::from_ptr(info.driver.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_driver_has_none() {
        assert!(driver_of("nowhere").is_err());
        assert!(driver_of("a name that no interface can have").is_err());
    }
}
