//! Opening the sockets of a place.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::datagrams::Datagrams;
use crate::io::net;

/// Bursts of queries wait here while the task runs elsewhere, bytes; a short query takes some 800 of them.
const RECEIVE_BUFFER: usize = 4 << 20;
const BACKLOG: i32 = 1024;
/// With port 0, how often a port that UDP has is tried for TCP.
const PORT_ATTEMPTS: usize = 16;

/// An address that cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel refused.
    #[error("cannot answer DNS queries at {address}: {source}{}", hint(source))]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot answer DNS queries at {address}: {source}")]
    Netns {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: net::Error,
    },
}

impl ListenError {
    pub(super) fn netns(address: SocketAddr, source: net::Error) -> Self {
        Self::Netns { address, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another name server listens there: choose another --dns-listen-address)",
        io::ErrorKind::AddrNotAvailable => " (no interface has that address: choose another --dns-listen-address)",
        _ => "",
    }
}

/// Open, and known to no runtime yet.
pub(super) struct Sockets {
    pub(super) address: SocketAddr,
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// To be called inside the runtime.
    pub(super) fn register(self) -> Result<(Datagrams, TcpListener), ListenError> {
        let address = self.address;
        let register = || Ok((Datagrams::new(UdpSocket::from_std(self.udp)?)?, TcpListener::from_std(self.tcp)?));
        register().map_err(|source| ListenError::Socket { address, source })
    }
}

/// In the calling thread's namespace.
pub(super) fn open(address: SocketAddr) -> Result<Sockets, ListenError> {
    let mut attempts = 0..if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        attempts.next();
        match open_both(address) {
            Err(_) if !attempts.is_empty() => {}
            opened => return opened.map_err(|source| ListenError::Socket { address, source }),
        }
    }
}

fn open_both(address: SocketAddr) -> io::Result<Sockets> {
    let udp = socket(address, Type::DGRAM, Protocol::UDP)?;
    // Beyond the system's limit if we may (CAP_NET_ADMIN), else as much as that allows.
    if setsockopt(&udp, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = udp.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    udp.bind(&address.into())?;
    let udp: std::net::UdpSocket = udp.into();
    let address = udp.local_addr()?;
    let tcp = socket(address, Type::STREAM, Protocol::TCP)?;
    // A restarted agent need not wait for the connections of the last one; two UDP sockets would share an address in silence.
    tcp.set_reuse_address(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    Ok(Sockets { address, udp, tcp: tcp.into() })
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
