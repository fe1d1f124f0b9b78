//! Seeing packets: a packet socket on all interfaces of a namespace.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket, sockopt};

/// `PACKET_OUTGOING`: seen on its way out.
const OUTGOING: u8 = 4;

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
        Self { socket }
    }

    /// What left through an interface since the last time.
    pub(crate) fn sent(&self) -> Vec<Seen> {
        self.drain(|kind| kind == OUTGOING)
    }

    /// What arrived on an interface since the last time.
    pub(crate) fn received(&self) -> Vec<Seen> {
        self.drain(|kind| kind != OUTGOING)
    }

    fn drain(&self, wanted: impl Fn(u8) -> bool) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return seen,
                Err(error) => panic!("{error}"),
            };
            let (address, len) = (message.address.unwrap(), message.bytes);
            if wanted(address.pkttype()) {
                seen.push(Seen { ifindex: address.ifindex() as u32, bytes: buffer[..len].to_vec() });
            }
        }
    }
}
