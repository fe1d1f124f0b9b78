//! Seeing packets: a packet socket on all interfaces of a namespace.

use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};

/// `linux/if_packet.h`: an option, and a status bit of what it gives.
const PACKET_AUXDATA: i32 = 8;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// A packet and where it was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) ifindex: u32,
    pub(crate) bytes: Vec<u8>,
}

/// All packets of the namespace it was opened in.
pub(crate) struct Capture {
    socket: OwnedFd,
}

impl Capture {
    pub(crate) fn open() -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        let on = 1i32;
        // SAFETY: the option takes an int of the size given.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_AUXDATA, (&raw const on).cast(), size_of_val(&on) as u32)
        };
        assert_eq!(result, 0);
        Self { socket }
    }

    /// What left through an interface since the last time.
    pub(crate) fn sent(&self) -> Vec<Seen> {
        self.drain(|kind| kind == libc::PACKET_OUTGOING)
    }

    /// What arrived on an interface since the last time.
    pub(crate) fn received(&self) -> Vec<Seen> {
        self.drain(|kind| kind != libc::PACKET_OUTGOING)
    }

    fn drain(&self, wanted: impl Fn(u8) -> bool) -> Vec<Seen> {
        let mut buffer = vec![0; 1 << 17];
        let next = std::iter::from_fn(|| self.next(&mut buffer));
        next.filter(|(kind, _)| wanted(*kind)).map(|(_, seen)| seen).collect()
    }

    /// The next packet and its kind; the VLAN tag that the kernel keeps beside it is put back.
    fn next(&self, buffer: &mut [u8]) -> Option<(u8, Seen)> {
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: plain C structures, for which zeros are values.
        let (mut from, mut header): (libc::sockaddr_ll, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = size_of_val(&from) as u32;
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        // SAFETY: every pointer in the header is to a local of the size given beside it.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
        let Ok(len) = usize::try_from(len) else {
            assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock);
            return None;
        };
        let mut bytes = buffer[..len].to_vec();
        assert_protocol(&bytes, u16::from_be(from.sll_protocol));
        // SAFETY: the kernel filled the header in.
        if let Some(tag) = unsafe { tag(&header) } {
            bytes.splice(12..12, tag);
        }
        Some((from.sll_pkttype, Seen { ifindex: from.sll_ifindex as u32, bytes }))
    }
}

/// What the kernel believes a frame carries, and would give it to, is what its EtherType says. (Below 1,536 it is a length.)
fn assert_protocol(frame: &[u8], believed: u16) {
    let said = u16::from_be_bytes([frame[12], frame[13]]);
    assert!(said < 1_536 || said == believed, "taken for {believed:04x}: {frame:02x?}");
}

/// # Safety
/// The header is one that recvmsg filled in, and its buffers are still there.
unsafe fn tag(header: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the caller's promise. PACKET_AUXDATA is the only control message that was asked for.
    let data = unsafe {
        let first = libc::CMSG_FIRSTHDR(header);
        if first.is_null() || (*first).cmsg_level != libc::SOL_PACKET || (*first).cmsg_type != PACKET_AUXDATA {
            return None;
        }
        libc::CMSG_DATA(first).cast::<libc::tpacket_auxdata>().read_unaligned()
    };
    let (tpid, tci) = (data.tp_vlan_tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
    (data.tp_status & TP_STATUS_VLAN_VALID != 0).then_some([tpid[0], tpid[1], tci[0], tci[1]])
}
