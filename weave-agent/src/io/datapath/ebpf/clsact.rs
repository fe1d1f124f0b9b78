//! The clsact qdisc, which filters need and TCX does not: made where it is missing, and removed again only if it was us
//! who made it and nobody else has put a filter on it since.
//!
//! That it was us is noted by a directory beside the pins: a bpffs has no files of other kinds, and the note has to
//! live as long as the filters do.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// `linux/rtnetlink.h`.
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
/// `linux/netlink.h`: flags, and the types of an answer that are not data.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_EXCLUSIVELY: u16 = 0x600;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `linux/pkt_sched.h`.
const CLSACT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TCA_KIND`, "clsact" and its zero, padded.
const KIND: [u8; 12] = [11, 0, 1, 0, b'c', b'l', b's', b'a', b'c', b't', 0, 0];

/// Makes the qdisc if there is none, and notes that.
pub(super) fn ensure(ifindex: u32, note: &Path) -> Result<()> {
    match request(NEW_QDISC, CREATE_EXCLUSIVELY, ifindex, HANDLE, CLSACT, &KIND) {
        Ok(_) => mark(note),
        Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).context("cannot make a clsact qdisc"),
    }
}

/// Removes the qdisc if the note is ours and no filter is left on it.
pub(super) fn release(ifindex: u32, note: &Path) -> Result<()> {
    if !note.is_dir() {
        return Ok(());
    }
    match (filters(ifindex, INGRESS), filters(ifindex, EGRESS)) {
        (Ok(0), Ok(0)) => {}
        // An interface that is gone took its qdisc along.
        (Err(Errno::ENODEV), _) => return unmark(note),
        (ingress, egress) => return ingress.and(egress).map(drop).context("cannot list the filters of a clsact qdisc"),
    }
    match request(DELETE_QDISC, 0, ifindex, HANDLE, CLSACT, &[]) {
        Ok(_) | Err(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL) => unmark(note),
        Err(error) => Err(error).context("cannot remove a clsact qdisc"),
    }
}

/// Notes something.
pub(super) fn mark(note: &Path) -> Result<()> {
    match fs::create_dir(note) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error).with_context(|| note.display().to_string()),
        _ => Ok(()),
    }
}

/// Forgets it.
pub(super) fn unmark(note: &Path) -> Result<()> {
    match fs::remove_dir(note) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| note.display().to_string()),
        _ => Ok(()),
    }
}

fn filters(ifindex: u32, parent: u32) -> nix::Result<usize> {
    request(GET_FILTER, DUMP, ifindex, 0, parent, &[])
}

/// One request with a `struct tcmsg`; says how many filters the answer lists.
fn request(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32, attributes: &[u8]) -> nix::Result<usize> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let len = 36 + attributes.len() as u32;
    let mut message = Vec::new();
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | ACK | flags).to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([0; 4]);
    [ifindex, handle, parent, 0].iter().for_each(|word| message.extend(word.to_ne_bytes()));
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
