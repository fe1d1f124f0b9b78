//! What is at the other ends of a host's wires: containers and neighbours, as packet sockets.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, socket};

use crate::capture::{Capture, Seen};
use crate::host::collect;
use crate::stack::without_choices;
use crate::wires::{PORTS, Wires, index_of};

/// `linux/if_packet.h`.
const PACKET_VNET_HDR: i32 = 15;

/// Sockets in the namespace of the other ends.
pub(crate) struct Outside {
    capture: Capture,
    containers: Vec<Sender>,
    underlay: Vec<Sender>,
}

impl Outside {
    pub(crate) fn open(wires: &Wires) -> Self {
        wires.outside.enter(|| Self {
            capture: Capture::open(),
            containers: (0..PORTS).map(|port| Sender::open(&format!("c{port}"))).collect(),
            underlay: (0..2).map(|underlay| Sender::open(&format!("w{underlay}"))).collect(),
        })
    }

    /// A container sends a frame.
    pub(crate) fn send_from(&self, port: usize, frame: &[u8]) {
        self.containers[port].send(frame);
    }

    /// A container sends a large TCP segment.
    pub(crate) fn send_large_from(&self, port: usize, frame: &[u8], gso_size: u16) {
        self.containers[port].send_large(frame, gso_size);
    }

    /// A neighbour sends a packet.
    pub(crate) fn send_to_underlay(&self, underlay: usize, packet: &[u8]) {
        self.underlay[underlay].send(packet);
    }

    pub(crate) fn container(&self, port: usize) -> u32 {
        self.containers[port].ifindex
    }

    pub(crate) fn wire(&self, underlay: usize) -> u32 {
        self.underlay[underlay].ifindex
    }

    /// All that arrives, in order, once `wanted` have; without what is the kernel's choice.
    pub(crate) fn arrivals(&self, wanted: usize) -> Vec<Seen> {
        let mut seen = collect(wanted, || self.capture.received());
        seen.iter_mut().for_each(|seen| seen.bytes = without_choices(std::mem::take(&mut seen.bytes)));
        seen.sort();
        seen
    }

    /// How many have arrived so far.
    pub(crate) fn arrived(&self) -> usize {
        self.capture.received().len()
    }

    /// Forgets what arrived.
    pub(crate) fn clear(&self) {
        self.capture.received();
    }
}

/// A socket that sends whole frames by one interface.
pub(crate) struct Sender {
    socket: OwnedFd,
    ifindex: u32,
}

impl Sender {
    pub(crate) fn open(interface: &str) -> Self {
        let ifindex = index_of(interface);
        // No protocol: it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>).unwrap();
        bind(socket.as_raw_fd(), &address(ifindex)).unwrap();
        Self { socket, ifindex }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(len) => assert_eq!(len, frame.len()),
            // A program on the egress dropped it.
            Err(Errno::ENOBUFS) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a TCP segment in pieces of `gso_size`: as a container's kernel does, in one large frame. From then on the
    /// socket wants such a header before every frame.
    pub(crate) fn send_large(&self, frame: &[u8], gso_size: u16) {
        let on = 1i32;
        // SAFETY: the option takes an int of the size given.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, (&raw const on).cast(), size_of_val(&on) as u32)
        };
        assert_eq!(result, 0);
        // `struct virtio_net_hdr`: checksum unfinished, TCP over IPv4, headers of 54 bytes, checksum at 16 from 34 on.
        let [low, high] = gso_size.to_le_bytes();
        let header = [1, 1, 54, 0, low, high, 34, 0, 16, 0];
        self.send(&[header.as_slice(), frame].concat());
    }

    /// The mark of all that it sends.
    pub(crate) fn mark(&self, mark: u32) {
        nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::Mark, &mark).unwrap();
    }
}

fn address(ifindex: u32) -> nix::sys::socket::LinkAddr {
    use nix::sys::socket::{LinkAddr, SockaddrLike};
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: an address of the family and size that the type is for.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }.unwrap()
}
