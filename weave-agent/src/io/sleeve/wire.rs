//! The UDP sockets: one per thread, all on one port. Large sends and receives (GSO, GRO), never fragmented on the way.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::io::net::set_option;

/// Bytes in the kernel's queues: what 10 Gbit/s bring in a few milliseconds.
const BUFFER: i32 = 8 << 20;

/// One thread's socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    state: UdpSocketState,
}

impl Wire {
    /// Sockets on one port. What comes for `lane` goes to the one of that number (modulo their count), so that a lane stays in order.
    pub(super) fn open(address: SocketAddrV4, count: usize) -> io::Result<Vec<Self>> {
        let mut wires = Vec::with_capacity(count);
        let mut address = address;
        for _ in 0..count {
            let socket = open(address)?;
            // Port 0 is whatever the first one gets.
            address = socket.local_addr()?.as_socket_ipv4().unwrap_or(address);
            let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
            // quinn-udp wants the time of each packet, and the kernel would take it.
            set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)?;
            wires.push(Self { socket, state });
        }
        if let Some(first) = wires.first() {
            steer_by_lane(&first.socket, count as u32)?;
        }
        Ok(wires)
    }

    /// The same socket for another thread to send by, and its address.
    pub(super) fn twin(&self) -> io::Result<(Self, SocketAddrV4)> {
        let socket = self.socket.try_clone()?;
        let address = socket.local_addr()?.as_socket_ipv4().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)?;
        Ok((Self { socket, state }, address))
    }

    /// Datagrams that one call of [`Wire::send`] takes.
    pub(super) fn most(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Send datagrams of `stride` bytes each, but for the last.
    pub(super) fn send(&self, remote: SocketAddrV4, bytes: &[u8], stride: usize) -> io::Result<()> {
        let destination = SocketAddr::V4(remote);
        let transmit = Transmit { destination, ecn: None, contents: bytes, segment_size: Some(stride), src_ip: None };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    /// Receive as much as there is room for.
    pub(super) fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), buffers, metas)
    }

    /// A kernel before 6.13 says that a datagram is too long as if it could not segment, which would end segmentation for good.
    pub(super) fn forgive(&mut self) {
        if self.state.max_gso_segments() == 1
            && let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket))
        {
            self.state = state;
            // As in `open`; at worst it stays slower.
            let _ = set_option(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(address: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        let set = |name| set_option(socket.as_fd(), libc::SOL_SOCKET, name, BUFFER);
        set(force).or_else(|_| set(plain))?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// A classic BPF program for the group of sockets: the datagram's lane, modulo their count.
fn steer_by_lane(socket: &Socket, count: u32) -> io::Result<()> {
    const LANE: u32 = 4;
    let instruction = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, LANE),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        instruction(libc::BPF_RET | 0x10, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads a `sock_fprog` and the three instructions that it points to, which live here.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
