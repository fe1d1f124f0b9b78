//! The sockets: one on each port, and those of the tunnel.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::received::PACKET_AUXDATA;
use crate::io::net::sys;

/// `linux/if_packet.h`, `linux/if_ether.h`.
const PACKET_IGNORE_OUTGOING: i32 = 23;
const ETH_P_ALL: u16 = 3;
/// A burst of a hundred large frames.
const BUFFER: usize = 8 << 20;
/// As many source ports tell the underlay's switches which flows are different (RFC 7348 section 5).
const SENDERS: usize = 8;

/// A packet socket that takes all that comes in by an interface, and sends out of it.
pub(super) fn on_interface(ifindex: u32) -> Result<Socket> {
    let what = || format!("cannot open a packet socket on interface {ifindex}");
    open_packet(ifindex).with_context(what)
}

fn open_packet(ifindex: u32) -> io::Result<Socket> {
    // It receives nothing before it is bound.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    for option in [libc::PACKET_VNET_HDR, PACKET_AUXDATA] {
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, option, 1)?;
    }
    // Before Linux 4.20 each frame that is sent comes back, and is told by its type.
    let _ = sys::set_option(socket.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    widen(&socket);
    socket.bind(&sys::link_address(ifindex, ETH_P_ALL)?)?;
    Ok(socket)
}

/// Whoever may not have them large has them small, and loses more.
fn widen(socket: &Socket) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER);
    let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER);
}

/// The tunnel's UDP sockets.
pub(super) struct Tunnel {
    /// On the tunnel's port: receives, and answers heartbeats.
    pub(super) main: Socket,
    /// Without checksums, as RFC 7348 has it.
    plain: Vec<Socket>,
    /// With them: the kernel cuts no others into datagrams.
    summed: Vec<Socket>,
}

impl Tunnel {
    pub(super) fn open(port: u16) -> Result<Self> {
        let main = open_tunnel(port, false).with_context(|| format!("cannot listen on the tunnel's UDP port {port}"))?;
        for (level, option) in [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IP, libc::IP_RECVTTL)] {
            sys::set_option(main.as_fd(), level, option, 1)?;
        }
        // Before Linux 5.0 each datagram comes by itself.
        let _ = sys::set_option(main.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        let senders = |summed| (0..SENDERS).map(|_| open_tunnel(0, summed)).collect::<io::Result<Vec<_>>>();
        let (plain, summed) = (senders(false)?, senders(true)?);
        // Nobody reads these.
        plain.iter().chain(&summed).try_for_each(|socket| socket.set_recv_buffer_size(1))?;
        Ok(Self { main, plain, summed })
    }

    /// Who sends datagrams of a flow with this hash.
    pub(super) fn sender(&self, hash: u32, summed: bool) -> RawFd {
        let senders = if summed { &self.summed } else { &self.plain };
        senders.get(hash as usize % SENDERS).unwrap_or(&self.main).as_raw_fd()
    }
}

fn open_tunnel(port: u16, summed: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, i32::from(!summed))?;
    // DF, whatever the kernel believes of the path: the switch measures it.
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    widen(&socket);
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket)
}
