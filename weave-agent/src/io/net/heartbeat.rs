//! Sending vxlan heartbeats.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use super::sys;

/// One UDP socket per address of ours, with DF set and path-MTU knowledge ignored: a heartbeat proves its size or is lost.
#[derive(Debug, Default)]
pub struct Heartbeats {
    sockets: BTreeMap<Ipv4Addr, UdpSocket>,
    errors: u64,
}

impl Heartbeats {
    /// No socket yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Send a datagram. Never blocks; an error is of this datagram only.
    pub fn send(&mut self, local: Ipv4Addr, remote: Ipv4Addr, port: u16, datagram: &[u8]) -> io::Result<()> {
        let sent = self.socket(local).and_then(|socket| socket.send_to(datagram, (remote, port)));
        if sent.is_err() {
            self.errors += 1;
        }
        sent.map(drop)
    }

    /// An address of ours has gone: so does its socket.
    pub fn address_gone(&mut self, local: Ipv4Addr) {
        self.sockets.remove(&local);
    }

    /// Datagrams that could not be sent.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    fn socket(&mut self, local: Ipv4Addr) -> io::Result<&UdpSocket> {
        Ok(match self.sockets.entry(local) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(open(local)?),
        })
    }
}

fn open(local: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((local, 0))?;
    socket.set_nonblocking(true)?;
    // VXLAN over IPv4 goes without a UDP checksum (RFC 7348 section 5); the program that answers takes no other.
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    Ok(socket)
}
