//! What comes in by a port is the switch's alone: once our packet socket has had it, a chain of nftables drops it, so that
//! the host's stack neither answers nor forwards it.
//!
//! One chain per port, without rules, whose policy is to drop, on the port's own ingress hook (`netdev`, Linux 4.2). It
//! stays when the agent ends: without one nobody shall hear containers.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// The table, of the family `netdev`.
pub const TABLE: &str = "weave-agent";

/// `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const NETDEV: u8 = 5;
/// `linux/netlink.h`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVELY: u16 = 0x200;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;

/// Drops all that comes in by an interface and nobody took before. Repeating it is no error.
///
/// # Errors
/// When the kernel has no such chains, or the interface is gone.
pub(super) fn raise(ifindex: u32) -> nix::Result<()> {
    let device = if_indextoname(ifindex)?;
    let hook = [
        attribute(HOOK_NUMBER, &0u32.to_be_bytes()),
        // After everybody else's.
        attribute(HOOK_PRIORITY, &i32::MAX.to_be_bytes()),
        attribute(HOOK_DEVICE, device.as_bytes_with_nul()),
    ];
    let chain = [
        names(ifindex),
        attribute(CHAIN_HOOK | NESTED, &hook.concat()),
        attribute(CHAIN_POLICY, &0u32.to_be_bytes()),
        attribute(CHAIN_TYPE, b"filter\0"),
    ];
    let table = attribute(TABLE_NAME, &text(TABLE));
    match request(&[(NEW_TABLE, CREATE, table), (NEW_CHAIN, CREATE | EXCLUSIVELY, chain.concat())]) {
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

/// Lets it through to the stack again. What is not there is no error.
pub(super) fn lower(ifindex: u32) {
    if let Err(error) = request(&[(DELETE_CHAIN, 0, names(ifindex))]) {
        tracing::debug!(ifindex, %error, "no chain to remove");
    }
}

/// The same for all of them. False: there were none.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> nix::Result<bool> {
    match request(&[(DELETE_TABLE, 0, attribute(TABLE_NAME, &text(TABLE)))]) {
        Ok(()) => Ok(true),
        // Nor does a kernel without nftables have any.
        Err(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn names(ifindex: u32) -> Vec<u8> {
    [attribute(CHAIN_TABLE, &text(TABLE)), attribute(CHAIN_NAME, &text(&format!("port-{ifindex}")))].concat()
}

/// All of these or none.
fn request(orders: &[(u16, u16, Vec<u8>)]) -> nix::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    let mut batch = message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
    for (kind, flags, attributes) in orders {
        batch.extend(message(*kind, ACK | flags, NETDEV, 0, attributes));
    }
    batch.extend(message(BATCH_END, 0, 0, SUBSYSTEM, &[]));
    sendto(socket.as_raw_fd(), &batch, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 14];
    // All has been done, and answered, before `sendto` returned.
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => refusal(buffer.get(..len).unwrap_or_default())?,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The first error among some answers.
fn refusal(mut answers: &[u8]) -> nix::Result<()> {
    while let (Some(len), Some(kind)) = (answers.first_chunk().map(|len| u32::from_ne_bytes(*len) as usize), answers.get(4..6)) {
        let error = answers.get(16..20).and_then(|body| body.first_chunk()).map_or(0, |error| i32::from_ne_bytes(*error));
        if kind == ERROR.to_ne_bytes() && error != 0 {
            return Err(Errno::from_raw(-error));
        }
        answers = answers.get(len.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = (20 + attributes.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// `struct nlattr` and what it holds, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = [(len as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

/// With its zero.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
