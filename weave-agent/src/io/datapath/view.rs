//! Packets as the fast path sees them.

use weave_ebpf::flow::Ipv4;
use weave_ebpf::packet::Packet;
use weave_ebpf::vxlan::OUTER;

use super::cut::Cut;
use super::received::Said;
use crate::virtio::Offload;

/// A frame.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offload: Offload,
}

impl Packet for View<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.read(offset)
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn segments(&self) -> u32 {
        Cut::new(self.bytes, self.offload).map_or(1, |cut| cut.count() as u32)
    }

    fn gso_size(&self) -> u32 {
        if self.offload.is_large() { self.offload.gso_size.into() } else { 0 }
    }
}

/// Bytes of Ethernet, IPv4 and UDP headers, which a socket has taken off.
const TAKEN: usize = OUTER - 8;

/// A datagram of the tunnel's, with the headers before it that it came with as far as the socket says.
pub(super) struct Tunnelled<'a> {
    /// The last eight are the datagram's own first.
    outer: [u8; OUTER],
    known: usize,
    inner: &'a [u8],
    /// What is unfinished about the frame inside.
    pub(super) offload: Offload,
}

impl<'a> Tunnelled<'a> {
    pub(super) fn new(datagram: &'a [u8], said: &Said, port: u16) -> Self {
        let (header, inner) = datagram.split_at(datagram.len().min(8));
        let mut outer = [0; OUTER];
        let mut put = |at: usize, bytes: &[u8]| outer[at..at + bytes.len()].copy_from_slice(bytes);
        put(12, &[8, 0, 0x45]);
        put(22, &[said.ttl, 17]);
        put(26, &said.from);
        put(30, &said.to);
        put(34, &said.from_port.to_be_bytes());
        put(36, &port.to_be_bytes());
        put(TAKEN, header);
        Self { outer, known: TAKEN + header.len(), inner, offload: Offload::default() }
    }

    /// Its network identifier, if it is in order.
    pub(super) fn vni(&self) -> u32 {
        let [.., a, b, c, _] = self.outer;
        u32::from_be_bytes([0, a, b, c])
    }
}

impl Packet for Tunnelled<'_> {
    /// No header that the fast path reads lies across the seam.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        match offset.checked_sub(OUTER) {
            Some(inner) => self.inner.read(inner),
            None => self.outer.get(..self.known)?.read(offset),
        }
    }

    fn len(&self) -> u32 {
        (self.known + self.inner.len()) as u32
    }

    fn segments(&self) -> u32 {
        View { bytes: self.inner, offload: self.offload }.segments()
    }

    fn gso_size(&self) -> u32 {
        View { bytes: self.inner, offload: self.offload }.gso_size()
    }
}

/// Tells flows apart: addresses, and ports where every packet of the flow has them.
pub(super) fn hash(frame: &[u8]) -> u32 {
    let fields = match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, 0x45, ..] => {
            let whole = frame.read::<2>(20).is_some_and(|fragment| u16::from_be_bytes(fragment) & 0x3fff == 0);
            frame.get(26..if whole { 38 } else { 34 })
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] => frame.get(22..58),
        _ => frame.get(..12),
    };
    // FNV-1a.
    let hash = fields.unwrap_or_default().iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash ^ hash >> 16
}

/// The address of nobody: where a frame of a local port came from.
pub(super) const NO_UPSTREAM: Ipv4 = [0; 4];
