//! The TAP device between the programs and the sleeve: one descriptor per queue, large segments and unfinished checksums included.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_uint};
use nix::sys::uio;

use crate::io::net::{Error, Netlink};
use crate::virtio::VIRTIO_HEADER_LEN;

/// `linux/if_tun.h`: the most that a TAP device takes, 65,535 less an Ethernet header.
const MTU: u32 = 65_521;
/// Frames that wait in each queue: some 10 ms of small ones, for a thread that does not get a CPU at once.
const WAITING: u32 = 2_048;
const DEVICE: &str = "/dev/net/tun";
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
/// What user space takes unfinished; with and without UDP segmentation, which came with Linux 6.2.
const OFFLOADS: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP_OFFLOADS: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// One queue. The device goes with the last.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    takes_datagrams: bool,
}

/// `struct ifreq` as `TUNSETIFF` has it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl Tap {
    fn open(name: &str) -> io::Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE)?;
        let mut request = Request { name: [0; libc::IFNAMSIZ], flags: FLAGS as u16, rest: [0; 22] };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the kernel reads and writes one `struct ifreq`, which `Request` has the size and layout of.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let length = VIRTIO_HEADER_LEN as c_int;
        // SAFETY: the kernel reads one `int`, which lives here.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
        let takes_datagrams = set_offloads(&file, OFFLOADS | UDP_OFFLOADS).is_ok();
        if !takes_datagrams {
            set_offloads(&file, OFFLOADS)?;
        }
        Ok(Self { file, takes_datagrams })
    }

    /// Does the kernel know many UDP datagrams in one?
    pub(super) const fn takes_datagrams(&self) -> bool {
        self.takes_datagrams
    }

    /// Read the next frame with its header; `WouldBlock` if there is none.
    pub(super) fn read(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(uio::readv(&self.file, parts)?)
    }

    /// Give the kernel a frame with its header.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        uio::writev(&self.file, parts)?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn set_offloads(file: &File, offloads: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number, nothing is read.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Make the device, with so many queues, up and with nothing of its own to say. Its index.
pub(super) async fn make(host: &Netlink, name: &str, queues: usize) -> Result<(u32, Vec<Tap>), Error> {
    let refused = |error| Error::new(format!("making the TAP device {name}"), error);
    let taps = (0..queues).map(|_| Tap::open(name)).collect::<io::Result<Vec<_>>>().map_err(refused)?;
    let link = host.link_named(name).await?.ok_or_else(|| refused(io::ErrorKind::NotFound.into()))?;
    settle(host, link.index).await?;
    Ok((link.index, taps))
}

/// Everything that is ours to say of the device.
pub(super) async fn settle(host: &Netlink, ifindex: u32) -> Result<(), Error> {
    host.without_ipv6(ifindex).await?;
    host.set_mtu(ifindex, MTU).await?;
    host.set_queue_len(ifindex, WAITING).await?;
    host.set_up(ifindex).await
}
