//! The system calls that no library wraps safely.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, sockaddr_ll, socklen_t};
use socket2::{SockAddr, SockAddrStorage};

/// The name of an interface of the calling thread's namespace. The library (nix 0.31) takes the null pointer that means none for a name,
/// which is empty then.
pub(in crate::io) fn ifname(ifindex: u32) -> io::Result<String> {
    let name = nix::net::if_::if_indextoname(ifindex)?.to_string_lossy().into_owned();
    if name.is_empty() { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok(name) }
}

/// An option of a socket that is an `int`.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: `fd` is open for as long as it is borrowed; the kernel reads `size_of::<c_int>()` bytes at `&value`, which lives here.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<c_int>() as socklen_t) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a packet socket sends to: an interface, with the EtherType that the frame has.
pub(in crate::io) fn link_address(ifindex: u32, ethertype: u16) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a sockaddr type of plain integers, smaller than the storage.
    let address = unsafe { storage.view_as::<sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = c_int::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: the storage was just filled as a `sockaddr_ll`, of that length.
    Ok(unsafe { SockAddr::new(storage, size_of::<sockaddr_ll>() as socklen_t) })
}

/// What a socket has lost because nobody took it in time; zero before Linux 4.12, which does not tell.
pub(in crate::io) fn dropped(fd: BorrowedFd<'_>) -> u64 {
    /// `linux/sock_diag.h`: how many words there are, and which one it is.
    const WORDS: usize = 9;
    const DROPS: usize = 8;
    let mut words = [0u32; WORDS];
    let mut len = size_of::<[u32; WORDS]>() as socklen_t;
    // SAFETY: `fd` is open for as long as it is borrowed; the kernel writes at most `len` bytes to `words`, which lives here.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, words.as_mut_ptr().cast(), &raw mut len) };
    if done == 0 { words[DROPS].into() } else { 0 }
}

/// How many packets a packet socket's filter has let through since this was asked last, taken or not.
pub(in crate::io) fn packets_since(fd: BorrowedFd<'_>) -> u64 {
    // `struct tpacket_stats`: packets, and those of them that found no room.
    let mut counts = [0u32; 2];
    let mut len = size_of::<[u32; 2]>() as socklen_t;
    // SAFETY: `fd` is open for as long as it is borrowed; the kernel writes at most `len` bytes to `counts`, which lives here.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, counts.as_mut_ptr().cast(), &raw mut len) };
    if done == 0 { counts[0].into() } else { 0 }
}
