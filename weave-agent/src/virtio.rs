//! What is unfinished about a frame: a checksum, its segmentation. The kernel says and is told so by `struct virtio_net_hdr`
//! (linux/virtio_net.h) before each frame of a TAP device or a packet socket.
//!
//! Over the sleeve checksums travel unfinished: a frame of a local sender never had one, and what a datagram carries is protected as
//! a whole, by the tag if there is one and by the outer UDP checksum if not. Finishing them here would read every byte once more on each side.

/// Length of the header: without `num_buffers`.
pub const VIRTIO_HEADER_LEN: usize = 10;
/// Length on the wire.
pub const OFFLOAD: usize = 10;

const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_*`.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP, from Linux 6.2 on.
pub const GSO_UDP_L4: u8 = 5;
/// With one of the others: the first segment says that the sender's window is reduced.
pub const GSO_ECN: u8 = 0x80;

/// What is unfinished about a frame. Offsets count from the frame's first byte, without prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `GSO_*`; zero: it is one segment.
    pub gso_type: u8,
    /// Bytes of payload per segment.
    pub gso_size: u16,
    /// Length of all headers, or a guess.
    pub header_len: u16,
    /// Where what the checksum covers begins, and where in there it stands; `None`: the checksum is finished.
    pub checksum: Option<(u16, u16)>,
}

impl Offload {
    /// Is it many segments in one?
    pub const fn is_large(&self) -> bool {
        self.kind() != 0
    }

    /// The kind of a large frame; zero if it is none.
    pub const fn kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// The same for a frame that has `more` bytes before what it had.
    pub fn behind(self, more: u16) -> Self {
        let checksum = self.checksum.map(|(start, offset)| (start.saturating_add(more), offset));
        Self { header_len: self.header_len.saturating_add(more), checksum, ..self }
    }

    /// The same for a frame that has lost its first bytes.
    pub fn without(self, fewer: u16) -> Self {
        let checksum = self.checksum.map(|(start, offset)| (start.saturating_sub(fewer), offset));
        Self { header_len: self.header_len.saturating_sub(fewer), checksum, ..self }
    }

    /// Read the kernel's header before a frame that has `prefix` bytes in front.
    pub fn from_virtio(header: &[u8; VIRTIO_HEADER_LEN], prefix: u16) -> Self {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let checksum = (header[0] & NEEDS_CSUM != 0).then(|| (word(6), word(8)));
        Self { gso_type: header[1], header_len: word(2), gso_size: word(4), checksum }.without(prefix)
    }

    /// The kernel's header before a frame with `prefix` bytes in front.
    pub fn to_virtio(self, prefix: u16) -> [u8; VIRTIO_HEADER_LEN] {
        let mut header = [0; VIRTIO_HEADER_LEN];
        let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        let behind = self.behind(prefix);
        if self.is_large() {
            put(2, behind.header_len);
            put(4, self.gso_size);
        }
        if let Some((start, offset)) = behind.checksum {
            put(6, start);
            put(8, offset);
            header[0] = NEEDS_CSUM;
        }
        header[1] = self.gso_type;
        header
    }

    /// As it travels with a frame in fragments.
    pub fn encode(self) -> [u8; OFFLOAD] {
        let mut bytes = [0; OFFLOAD];
        let (start, offset) = self.checksum.unwrap_or_default();
        bytes[0] = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[1] = self.gso_type;
        for (at, word) in [(2, self.header_len), (4, self.gso_size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// As [`Offload::encode`] made it.
    pub fn decode(bytes: &[u8; OFFLOAD]) -> Self {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (word(6), word(8)));
        Self { gso_type: bytes[1], header_len: word(2), gso_size: word(4), checksum }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_with_nothing_to_do_has_an_empty_header() {
        assert_eq!(Offload::default().to_virtio(14), [0; VIRTIO_HEADER_LEN]);
    }

    proptest! {
        #[test]
        fn what_the_kernel_says_it_is_told_again(gso in 1_u8..6, size in 1_u16.., len in 14_u16.., start in 14_u16.., offset: u16) {
            let said = [
                vec![NEEDS_CSUM, gso], len.to_ne_bytes().to_vec(), size.to_ne_bytes().to_vec(),
                start.to_ne_bytes().to_vec(), offset.to_ne_bytes().to_vec(),
            ].concat();
            let offload = Offload::from_virtio(said.first_chunk().unwrap(), 14);
            prop_assert_eq!(&offload.to_virtio(14)[..], &said[..]);
            prop_assert_eq!(Offload::decode(&offload.encode()), offload);
        }
    }
}
