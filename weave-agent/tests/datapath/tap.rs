//! The sleeve's side of its TAP device: what user space reads there, and writes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use weave_agent::virtio::VIRTIO_HEADER_LEN;

use crate::host::SOON;
use crate::place::ip;
use crate::wires::index_of;

/// `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// Unfinished checksums and large TCP segments are taken as they are.
const OFFLOADS: libc::c_ulong = 0xf;
const NAME: &str = "sleeve";

/// The device, and the file behind it.
pub(crate) struct Tap {
    file: File,
    pub(crate) ifindex: u32,
}

impl Tap {
    /// Makes it in the calling thread's namespace.
    pub(crate) fn make() -> Self {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
        // SAFETY: a plain C structure, for which zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(NAME.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request takes a `struct ifreq`, which lives here.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) }, 0);
        // SAFETY: the request takes its flags as they are.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) }, 0);
        ip(&format!("link set {NAME} mtu 65000 up"));
        Self { file, ifindex: index_of(NAME) }
    }

    /// The next packet: virtio header, and prefix and frame.
    pub(crate) fn read(&mut self) -> (Vec<u8>, Vec<u8>) {
        let mut buffer = vec![0; 1 << 17];
        let mut len = 0;
        let read = || {
            len = self.file.read(&mut buffer).unwrap_or(0);
            Ok(len > 0)
        };
        vm_tests::wait_for("a packet for the sleeve", SOON, read).unwrap();
        (buffer[..VIRTIO_HEADER_LEN].to_vec(), buffer[VIRTIO_HEADER_LEN..len].to_vec())
    }

    /// What was opened, with its prefix.
    pub(crate) fn write(&mut self, virtio: [u8; VIRTIO_HEADER_LEN], packet: &[u8]) {
        let bytes = [virtio.as_slice(), packet].concat();
        assert_eq!(self.file.write(&bytes).unwrap(), bytes.len());
    }
}
