//! What a packet socket says of a frame beside its bytes: what is unfinished about it.

use crate::frame::VIRTIO_HEADER_LEN;

/// `linux/virtio_net.h`.
const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;
pub(in crate::io::datapath) const GSO_TCPV4: u8 = 1;
pub(in crate::io::datapath) const GSO_TCPV6: u8 = 4;
pub(in crate::io::datapath) const GSO_UDP_L4: u8 = 5;

/// A `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::io::datapath) struct Virtio {
    flags: u8,
    gso_type: u8,
    /// Payload per segment of a large frame.
    pub(in crate::io::datapath) gso_size: u16,
    /// Where the unfinished checksum begins to count: at the transport header.
    pub(in crate::io::datapath) start: u16,
    /// Where it stands, from there.
    pub(in crate::io::datapath) offset: u16,
}

impl Virtio {
    pub(in crate::io::datapath) fn parse(bytes: [u8; VIRTIO_HEADER_LEN]) -> Self {
        let [flags, gso_type, _, _, a, b, c, d, e, f] = bytes;
        let [gso_size, start, offset] = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        Self { flags: flags & NEEDS_CSUM, gso_type, gso_size, start, offset }
    }

    pub(in crate::io::datapath) fn bytes(self) -> [u8; VIRTIO_HEADER_LEN] {
        let ([a, b], [c, d], [e, f]) = (self.gso_size.to_ne_bytes(), self.start.to_ne_bytes(), self.offset.to_ne_bytes());
        // How long the headers are is a hint; what is longer than the frame would be refused.
        [self.flags, self.gso_type, 0, 0, a, b, c, d, e, f]
    }

    /// The same for a frame that has `more` bytes before what it had.
    pub(in crate::io::datapath) fn behind(self, more: u16) -> Self {
        let start = if self.needs_checksum() { self.start.saturating_add(more) } else { self.start };
        Self { start, ..self }
    }

    /// The same for a frame that has lost its first bytes.
    pub(in crate::io::datapath) fn without(self, fewer: u16) -> Self {
        Self { start: self.start.saturating_sub(fewer), ..self }
    }

    pub(in crate::io::datapath) fn needs_checksum(self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// The kind of a large frame; zero if it is none.
    pub(in crate::io::datapath) fn gso(self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}
