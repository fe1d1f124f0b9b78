//! Sleeve: frames to a neighbour as sealed UDP datagrams from user space, where the kernel's tunnel cannot be used.
//!
//! A session is one direction. Its receiver makes number and key (as with an IPsec SPI), accepts datagrams with it and
//! tells the sender over the link. So no key is ever used by two senders, nor by two incarnations of one.

pub mod batch;
pub mod codec;
pub mod fragment;
pub mod prefix;
pub mod seal;
pub mod segment;
mod sessions;
pub mod window;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::sessions::{Input, LIFETIME, OVERLAP, Output, Sessions};

/// The largest datagram (UDP payload) that every path takes until one is measured: an IPv6 path's least 1,280 bytes
/// without headers and a tunnel or two.
pub const SAFE_DATAGRAM: u16 = 1172;

/// Of IPv4 (RFC 791, without options) and UDP (RFC 768).
const UDP_IPV4: u16 = 28;
/// What VXLAN adds to an inner packet: outer headers and the inner Ethernet header.
const VXLAN: u16 = 50;
/// What stands around one frame's packet in a datagram: session and counter, tag, kind, frame's own header, Ethernet.
pub const OVERHEAD: u16 = (seal::HEAD + seal::TAG + codec::KIND + codec::ITEM + 14) as u16;

/// The largest datagram on a route where VXLAN takes inner packets of this size.
pub const fn datagram_of(vxlan_mtu: u16) -> u16 {
    vxlan_mtu.saturating_add(VXLAN - UDP_IPV4)
}

/// The largest inner packet that goes in one datagram of this size.
pub const fn inner_mtu(datagram: u16) -> u16 {
    datagram.saturating_sub(OVERHEAD)
}

/// The largest inner packet that goes in one datagram where VXLAN takes packets of this size.
pub fn sealed_mtu(vxlan_mtu: u32) -> u32 {
    u16::try_from(vxlan_mtu).map_or(u16::MAX, |mtu| inner_mtu(datagram_of(mtu))).into()
}

/// What seals a session's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cipher {
    /// Nothing: there is no password, or both ends trust the network between them.
    Clear,
    /// RFC 8439.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// NIST SP 800-38D; where both ends have AES instructions.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// A session's number at its receiver; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub NonZeroU32);

/// A session's secret, 32 bytes whatever the cipher. It is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A session that we accept datagrams of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Its number: ours.
    pub session: SessionId,
    /// Who sends: the outer address that the switch knows this neighbour by ([`crate::mesh::Neighbour::remote`]).
    pub neighbour: Ipv4Addr,
    /// What it is sealed with.
    pub cipher: Cipher,
    /// And the key.
    pub key: Key,
}

/// A session that we send on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Its number: the neighbour's.
    pub session: SessionId,
    /// What to seal with.
    pub cipher: Cipher,
    /// And the key.
    pub key: Key,
    /// Where to send as long as nothing was heard from elsewhere.
    pub remote: SocketAddrV4,
}

/// An order to `io::sleeve`. All are idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Accept a session's datagrams.
    Accept(Inbound),
    /// No longer.
    Refuse(SessionId),
    /// Send to a neighbour with this session from now on, counting from zero, or no more.
    Send {
        /// Which neighbour.
        neighbour: Ipv4Addr,
        /// How; `None`: its frames are dropped and counted.
        session: Option<Outbound>,
    },
    /// The largest datagram (UDP payload, bytes) that the path to a neighbour takes; 1,172 until told.
    Path {
        /// Which neighbour.
        neighbour: Ipv4Addr,
        /// Bytes.
        datagram: u16,
    },
    /// Send a heartbeat request as a datagram of exactly `datagram` bytes (UDP payload) with DF set.
    Probe {
        /// Which neighbour.
        neighbour: Ipv4Addr,
        /// The heartbeat, which comes back as it is in [`Heard::Reply`].
        heartbeat: Bytes,
        /// Bytes; less than what the heartbeat needs means just that.
        datagram: u16,
    },
}

/// What `io::sleeve` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A neighbour answered a probe.
    Reply {
        /// Which neighbour.
        neighbour: Ipv4Addr,
        /// As it was in [`Op::Probe`].
        heartbeat: Bytes,
        /// The reply's size (UDP payload, bytes).
        datagram: u16,
    },
    /// A session has sealed datagrams from another address than before: its sender moved, or a NAT rebound its port.
    Moved {
        /// Which neighbour.
        neighbour: Ipv4Addr,
        /// Its address now.
        remote: SocketAddrV4,
    },
    /// A session has carried so much that another should follow it soon.
    Worn(SessionId),
}
