//! Sending vxlan heartbeats.

use std::io;
use std::net::Ipv4Addr;

/// One UDP socket per address of ours, with DF set and path-MTU knowledge ignored: a heartbeat proves its size or is lost.
#[derive(Debug, Default)]
pub struct Heartbeats {}

impl Heartbeats {
    /// No socket yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Send a datagram. Never blocks; an error is of this datagram only.
    pub fn send(
        &mut self,
        local: Ipv4Addr,
        remote: Ipv4Addr,
        port: u16,
        datagram: &[u8],
    ) -> io::Result<()> {
        let _ = (local, remote, port, datagram);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An address of ours has gone: so does its socket.
    pub fn address_gone(&mut self, local: Ipv4Addr) {
        let _ = local;
    }

    /// Datagrams that could not be sent.
    pub fn errors(&self) -> u64 {
        0
    }
}
