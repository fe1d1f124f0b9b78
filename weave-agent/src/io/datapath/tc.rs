//! Traffic control by netlink: qdiscs and filters, one request at a time.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// `linux/rtnetlink.h`.
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
pub(super) const NEW_FILTER: u16 = 44;
pub(super) const DELETE_FILTER: u16 = 45;
pub(super) const GET_FILTER: u16 = 46;
/// `linux/netlink.h`: flags, and the types of an answer that are not data.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const EXCLUSIVELY: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `linux/pkt_sched.h`.
const CLSACT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
pub(super) const INGRESS: u32 = 0xffff_fff2;
pub(super) const EGRESS: u32 = 0xffff_fff3;
/// `TCA_KIND`, "clsact" and its zero, padded.
const KIND: [u8; 12] = [11, 0, 1, 0, b'c', b'l', b's', b'a', b'c', b't', 0, 0];

/// The rest of a `struct tcmsg`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) ifindex: u32,
    pub(super) handle: u32,
    pub(super) parent: u32,
    /// Of a filter: priority << 16 | protocol, in network order.
    pub(super) info: u32,
}

/// Makes the clsact qdisc of an interface.
///
/// # Errors
/// `EEXIST` if it has one.
pub(super) fn make_clsact(ifindex: u32) -> nix::Result<()> {
    request(NEW_QDISC, CREATE | EXCLUSIVELY, Place { ifindex, handle: HANDLE, parent: CLSACT, info: 0 }, &KIND).map(drop)
}

/// Removes it, with all its filters.
///
/// # Errors
/// When it is not there, or the kernel refuses.
pub(super) fn remove_clsact(ifindex: u32) -> nix::Result<()> {
    request(DELETE_QDISC, 0, Place { ifindex, handle: HANDLE, parent: CLSACT, info: 0 }, &[]).map(drop)
}

/// One request with a `struct tcmsg`; says how many filters the answer lists.
///
/// # Errors
/// What the kernel answers.
pub(super) fn request(kind: u16, flags: u16, place: Place, attributes: &[u8]) -> nix::Result<usize> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let len = 36 + attributes.len() as u32;
    let mut message = Vec::new();
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | ACK | flags).to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([0; 4]);
    [place.ifindex, place.handle, place.parent, place.info].iter().for_each(|word| message.extend(word.to_ne_bytes()));
    message.extend(attributes);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    answer(&socket)
}

fn answer(socket: &OwnedFd) -> nix::Result<usize> {
    let mut filters = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let received = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                ERROR => return outcome(body).map(|()| filters),
                DONE => return Ok(filters),
                NEW_FILTER => filters += 1,
                _ => {}
            }
            rest = next;
        }
    }
}

/// Type and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(16..len)?;
    Some((kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// `struct nlmsgerr`: zero or a negative error number.
fn outcome(body: &[u8]) -> nix::Result<()> {
    match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(Errno::from_raw(-error)),
        None => Err(Errno::EBADMSG),
    }
}
