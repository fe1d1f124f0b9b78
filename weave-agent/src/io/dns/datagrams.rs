//! A UDP socket that answers from the address it was asked at.
//!
//! One that is bound to an address does so by itself. One that is bound to all of them must be told: the kernel would take the address of
//! the interface that the answer leaves by, and clients do not believe that one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Who asked, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    remote: SocketAddr,
    local: Option<IpAddr>,
}

/// The socket.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UdpSocket,
    everywhere: bool,
}

impl Datagrams {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?.ip();
        match local {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            _ => {}
        }
        Ok(Self { socket, everywhere: local.is_unspecified() })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next query, if there is one.
    pub(super) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        if self.everywhere {
            return self.socket.try_io(Interest::READABLE, || receive(&self.socket, buffer));
        }
        self.socket.try_recv_from(buffer).map(|(length, remote)| (length, Asker { remote, local: None }))
    }

    /// Sends, if there is room.
    pub(super) fn try_send(&self, reply: &[u8], to: Asker) -> io::Result<()> {
        match to.local {
            None => self.socket.try_send_to(reply, to.remote).map(drop),
            Some(local) => self.socket.try_io(Interest::WRITABLE, || send(&self.socket, reply, to.remote, local)),
        }
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let remote = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into()),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
        _ => None,
    });
    Ok((message.bytes, Asker { remote, local }))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| std::net::SocketAddrV4::from(*address).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| std::net::SocketAddrV6::from(*address).into()))
}

fn send(socket: &UdpSocket, reply: &[u8], remote: SocketAddr, local: IpAddr) -> io::Result<()> {
    let remote = SockaddrStorage::from(remote);
    let parts = [IoSlice::new(reply)];
    let send = |control| sendmsg(socket.as_raw_fd(), &parts, &[control], MsgFlags::empty(), Some(&remote));
    let sent = match local {
        IpAddr::V4(local) => {
            let local = libc::in_addr { s_addr: u32::from(local).to_be() };
            // The interface is for the routes to choose.
            send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: local, ipi_addr: local }))
        }
        IpAddr::V6(local) => {
            let local = libc::in6_addr { s6_addr: local.octets() };
            send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_addr: local, ipi6_ifindex: 0 }))
        }
    };
    Ok(sent.map(drop)?)
}
