//! UDP to the tunnel's port that is no VXLAN: the kernel's vxlan device drops it without a word, and without counting it.
//!
//! A packet socket on each underlay interface lets such packets alone through its filter. Nobody reads it: how many there
//! were is what the kernel counts.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use socket2::{Domain, SockFilter, Socket, Type};

use crate::io::net::sys;

/// `linux/if_ether.h`.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ALL: u16 = 3;

/// Classic BPF (`linux/filter.h`, `linux/bpf_common.h`).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_X: u16 = 0x48;
const LOAD_WORD_X: u16 = 0x40;
const LOAD_BYTE_X: u16 = 0x50;
const LOAD_X_IP_LENGTH: u16 = 0xb1;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`: whose the packet is; zero is ours.
const PACKET_KIND: u32 = (-0x1000_i32 + 4) as u32;
/// The first word of a VXLAN header: the number is valid, and nothing else.
const FIRST: u32 = 0x0800_0000;

/// Where in a packet, X being the length of the IP header.
const ETHERTYPE: u32 = 12;
const FRAGMENT: u32 = 20;
const PROTOCOL: u32 = 23;
const UDP_PORT: u32 = 14 + 2;
const UDP_LENGTH: u32 = 14 + 4;
const VXLAN: u32 = 14 + 8;
/// Bytes of a UDP datagram with a VXLAN header.
const WHOLE: u32 = 16;

/// Counts them on each interface.
#[derive(Debug)]
pub(super) struct Malformed {
    port: u16,
    sockets: BTreeMap<u32, Socket>,
    counted: u64,
}

impl Malformed {
    pub(super) fn new(port: u16) -> Self {
        Self { port, sockets: BTreeMap::new(), counted: 0 }
    }

    /// Looks at what comes in by this interface.
    ///
    /// # Errors
    /// When it is gone, or the kernel gives no packet sockets.
    pub(super) fn watch(&mut self, ifindex: u32) -> io::Result<()> {
        if !self.sockets.contains_key(&ifindex) {
            // It receives nothing before it is bound.
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
            socket.attach_filter(&filter(self.port))?;
            socket.set_recv_buffer_size(1)?;
            socket.bind(&sys::link_address(ifindex, ETH_P_ALL)?)?;
            self.sockets.insert(ifindex, socket);
        }
        Ok(())
    }

    /// No longer.
    pub(super) fn leave(&mut self, ifindex: u32) {
        if let Some(socket) = self.sockets.remove(&ifindex) {
            self.counted += sys::packets_since(socket.as_fd());
        }
    }

    /// How many there have been.
    pub(super) fn count(&mut self) -> u64 {
        self.counted += self.sockets.values().map(|socket| sys::packets_since(socket.as_fd())).sum::<u64>();
        self.counted
    }
}

/// Of IPv4, for us, unfragmented, UDP to this port: those without a header that the kernel takes.
fn filter(port: u16) -> [SockFilter; 19] {
    let op = |code, k| SockFilter::new(code, 0, 0, k);
    // How many instructions to skip if so, and if not: the last but one refuses, the last takes.
    let jump = |code, k, yes, no| SockFilter::new(code, yes, no, k);
    [
        op(LOAD_WORD, PACKET_KIND),
        jump(IF_EQUAL, 0, 0, 15),
        op(LOAD_HALF, ETHERTYPE),
        jump(IF_EQUAL, ETH_P_IP.into(), 0, 13),
        op(LOAD_BYTE, PROTOCOL),
        jump(IF_EQUAL, libc::IPPROTO_UDP as u32, 0, 11),
        op(LOAD_HALF, FRAGMENT),
        jump(IF_ANY_BIT, 0x3fff, 9, 0),
        op(LOAD_X_IP_LENGTH, 14),
        op(LOAD_HALF_X, UDP_PORT),
        jump(IF_EQUAL, port.into(), 0, 6),
        op(LOAD_HALF_X, UDP_LENGTH),
        jump(IF_AT_LEAST, WHOLE, 0, 5),
        op(LOAD_WORD_X, VXLAN),
        jump(IF_EQUAL, FIRST, 0, 3),
        op(LOAD_BYTE_X, VXLAN + 7),
        jump(IF_EQUAL, 0, 0, 1),
        op(RETURN, 0),
        op(RETURN, u32::MAX),
    ]
}
