//! Test frames: each carries a number, so that every copy of it can be told wherever it turns up.

use bytes::Bytes;
use weave_agent::addr::Mac;
use weave_ebpf::packet::{ETHERNET, ethertype};
use weave_ebpf::vxlan::OUTER;

/// One frame that a container (or a stranger) sent; its copies share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FrameId(pub(crate) u64);

/// What is inside: the fast path writes outer headers onto IP only, the rest goes through the vxlan device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Ipv4,
    Ipv6,
    /// ARP, for one.
    Other,
}

/// IEEE 802 local experimental ethertype 1.
const EXPERIMENTAL: u16 = 0x88b5;
const MAGIC: [u8; 4] = *b"wSIM";
/// After room for an IPv4 and a UDP header.
const MAGIC_AT: usize = ETHERNET + 28;
/// Bytes of the shortest test frame.
pub(crate) const SHORTEST: usize = MAGIC_AT + 12;

/// A frame of `len` bytes in all (at least [`SHORTEST`]).
pub(crate) fn build(dst: Mac, src: Mac, payload: Payload, id: FrameId, len: usize) -> Bytes {
    let mut bytes = vec![0; len.max(SHORTEST)];
    bytes[..6].copy_from_slice(&dst.0);
    bytes[6..12].copy_from_slice(&src.0);
    let kind = match payload {
        Payload::Ipv4 => ethertype::IPV4,
        Payload::Ipv6 => ethertype::IPV6,
        Payload::Other => EXPERIMENTAL,
    };
    bytes[12..14].copy_from_slice(&kind.to_be_bytes());
    bytes[14] = if payload == Payload::Ipv6 { 0x60 } else { 0x45 };
    bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&MAGIC);
    bytes[MAGIC_AT + 4..MAGIC_AT + 12].copy_from_slice(&id.0.to_be_bytes());
    bytes.into()
}

/// The number in a test frame.
pub(crate) fn id_of(frame: &[u8]) -> Option<FrameId> {
    let tail = frame.get(MAGIC_AT..)?.first_chunk::<12>()?;
    let (magic, number) = tail.split_first_chunk::<4>()?;
    (*magic == MAGIC).then(|| FrameId(u64::from_be_bytes(number.try_into().unwrap_or_default())))
}

/// The number in the test frame inside a VXLAN packet.
pub(crate) fn id_inside(packet: &[u8]) -> Option<FrameId> {
    id_of(packet.get(OUTER..)?)
}
