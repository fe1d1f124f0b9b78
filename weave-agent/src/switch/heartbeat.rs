//! Vxlan heartbeats on the wire.
//!
//! A datagram is an 8-byte VXLAN header (RFC 7348) and an inner Ethernet frame that no container can send, because both
//! its addresses are zero:
//!
//! | offset in the frame | bytes | what |
//! |---|---|---|
//! | 0 | 12 | zero: destination, source |
//! | 12 | 2 | EtherType 0x88b5 (IEEE 802, local experimental 1) |
//! | 14 | 1 | version, 1 |
//! | 15 | 1 | kind: 1 request, 2 reply; the fast path turns one into the other in place |
//! | 16 | 8 | connection, of the link beside the tunnel |
//! | 24 | 4 | sequence |
//! | 28 | 8 | time of sending, nanoseconds of the sender's own clock; echoed |
//! | 36 | 2 | length of the frame |
//! | 38 | | zero padding |
//!
//! The openvswitch module cannot change a byte. While nobody else answers it turns a request round with a VLAN tag in it,
//! whose two bytes are the version and the kind of a reply, and without its end:
//!
//! | offset in the frame | bytes | what |
//! |---|---|---|
//! | 12 | 2 | EtherType 0x8100 |
//! | 14 | 2 | version, 1; kind, 2 |
//! | 16 | | what the request has from 12 on, as far as it goes |

use bytes::Bytes;
use weave_ebpf::fastpath::{HEARTBEAT_KIND, HEARTBEAT_REPLY, HEARTBEAT_REQUEST};
use weave_ebpf::flow::vni;

use crate::frame::ETHERNET;
use crate::peer::ShortId;

const VXLAN: usize = 8;
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const VERSION: u8 = 1;
const HEADER: usize = 38;
/// A tag that makes a reply of a request.
const TURNED: [u8; 4] = [0x81, 0, VERSION, HEARTBEAT_REPLY];
/// The smallest heartbeat is the smallest Ethernet frame (without its checksum).
const SMALLEST: u16 = 60 - ETHERNET as u16;

/// What the reply to a request repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) kind: u8,
    pub(super) connection: u64,
    pub(super) sequence: u32,
    pub(super) sent_ns: u64,
    /// Inner packet without the Ethernet header: the MTU that it proves.
    pub(super) size: u16,
}

/// Why bytes are no heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("{0} bytes are too few")]
    Short(usize),
    #[error("not the Ethernet header of a heartbeat")]
    Ethernet,
    #[error("version {0} is not known")]
    Version(u8),
    #[error("kind {0} is not known")]
    Kind(u8),
    #[error("says {said} bytes but has {has}")]
    Length { said: u16, has: usize },
}

impl Heartbeat {
    /// A request with an inner packet of `size` bytes, or the smallest there is.
    pub(super) fn request(connection: u64, sequence: u32, sent_ns: u64, size: u16) -> Self {
        Self { kind: HEARTBEAT_REQUEST, connection, sequence, sent_ns, size: size.max(SMALLEST) }
    }

    pub(super) const fn is_reply(&self) -> bool {
        self.kind == HEARTBEAT_REPLY
    }

    /// The UDP payload.
    pub(super) fn datagram(&self, to: ShortId, from: ShortId) -> Bytes {
        let length = ETHERNET as u16 + self.size;
        let mut bytes = Vec::with_capacity(VXLAN + usize::from(length));
        bytes.extend(vxlan_header(to, from));
        bytes.extend([0; 12]);
        bytes.extend(ETHERTYPE);
        bytes.extend([VERSION, self.kind]);
        bytes.extend(self.connection.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.sent_ns.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.resize(VXLAN + usize::from(length), 0);
        bytes.into()
    }

    /// What the sleeve sends and gets back in its place, whatever the size.
    pub(super) fn token(&self) -> Bytes {
        let numbers = [self.connection.to_be_bytes(), u64::from(self.sequence).to_be_bytes(), self.sent_ns.to_be_bytes()];
        numbers.concat().into()
    }

    /// The reply of this size that came with a token.
    pub(super) fn from_token(token: &[u8], size: u16) -> Option<Self> {
        let token: &[u8; 24] = token.try_into().ok()?;
        let number = |at: usize| Some(u64::from_be_bytes(*token.get(at..)?.first_chunk()?));
        let (connection, sequence, sent_ns) = (number(0)?, u32::try_from(number(8)?).ok()?, number(16)?);
        Some(Self { kind: HEARTBEAT_REPLY, connection, sequence, sent_ns, size })
    }

    /// Reads an inner frame.
    ///
    /// # Errors
    /// If it is anything but a whole heartbeat of this version.
    pub(super) fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        if frame.get(12..16) == Some(&TURNED) {
            return Self::decode_turned(frame);
        }
        let header = frame.first_chunk().ok_or(DecodeError::Short(frame.len()))?;
        let heartbeat = Self::decode_header(header)?;
        let said = ETHERNET as u16 + heartbeat.size;
        if usize::from(said) == frame.len() { Ok(heartbeat) } else { Err(DecodeError::Length { said, has: frame.len() }) }
    }

    /// What lacks its end, and is a reply whatever it was.
    fn decode_turned(frame: &[u8]) -> Result<Self, DecodeError> {
        let mut header = [0; HEADER];
        let (addresses, rest) = (frame.get(..12), frame.get(16..HEADER + 4));
        let (Some(addresses), Some(rest)) = (addresses, rest) else { return Err(DecodeError::Short(frame.len())) };
        header[..12].copy_from_slice(addresses);
        header[12..].copy_from_slice(rest);
        Self::decode_header(&header).map(Self::reply)
    }

    fn decode_header(header: &[u8; HEADER]) -> Result<Self, DecodeError> {
        if header[..12] != [0; 12] || header[12..14] != ETHERTYPE {
            return Err(DecodeError::Ethernet);
        }
        if header[14] != VERSION {
            return Err(DecodeError::Version(header[14]));
        }
        let kind = header[HEARTBEAT_KIND];
        if !matches!(kind, HEARTBEAT_REQUEST | HEARTBEAT_REPLY) {
            return Err(DecodeError::Kind(kind));
        }
        let said = u16::from_be_bytes(field(header, 36));
        let size = said.checked_sub(ETHERNET as u16).ok_or(DecodeError::Short(said.into()))?;
        Ok(Self {
            kind,
            connection: u64::from_be_bytes(field(header, 16)),
            sequence: u32::from_be_bytes(field(header, 24)),
            sent_ns: u64::from_be_bytes(field(header, 28)),
            size,
        })
    }

    /// The answer to a request.
    pub(super) const fn reply(self) -> Self {
        Self { kind: HEARTBEAT_REPLY, ..self }
    }
}

fn field<const N: usize>(header: &[u8; HEADER], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| header[offset + i])
}

fn vxlan_header(to: ShortId, from: ShortId) -> [u8; VXLAN] {
    let [_, a, b, c] = vni(to.get().into(), from.get().into()).to_be_bytes();
    [0x08, 0, 0, 0, a, b, c, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn short(n: u16) -> ShortId {
        ShortId::new(n).unwrap()
    }

    #[test]
    fn the_bytes_on_the_wire_are_these_for_ever() {
        let heartbeat = Heartbeat::request(0x0102_0304_0506_0708, 0x1112_1314, 0x2122_2324_2526_2728, 0);
        let mut golden = vec![0x08, 0, 0, 0, 0xab, 0xc1, 0x23, 0];
        golden.extend([0; 12]);
        golden.extend([0x88, 0xb5, 1, 1]);
        golden.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        golden.extend([0x11, 0x12, 0x13, 0x14]);
        golden.extend([0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
        golden.extend([0, 60]);
        golden.extend([0; 22]);
        assert_eq!(heartbeat.datagram(short(0xabc), short(0x123)), golden);
    }

    #[test]
    fn what_the_fast_path_turns_round_is_our_reply() {
        let request = Heartbeat::request(1, 2, 3, 1450);
        let mut frame = request.datagram(short(1), short(2))[VXLAN..].to_vec();
        frame[HEARTBEAT_KIND] = HEARTBEAT_REPLY;
        assert_eq!(Heartbeat::decode(&frame), Ok(request.reply()));
        assert_eq!(frame, request.reply().datagram(short(2), short(1))[VXLAN..]);
    }

    #[test]
    fn what_the_module_turns_round_with_a_tag_is_our_reply_without_its_end() {
        let request = Heartbeat::request(1, 2, 3, 1450);
        let frame = request.datagram(short(1), short(2))[VXLAN..].to_vec();
        let turned = [&frame[..12], &TURNED, &frame[12..60]].concat();
        assert_eq!(Heartbeat::decode(&turned), Ok(request.reply()));
        assert_eq!(Heartbeat::decode(&turned[..HEADER + 3]), Err(DecodeError::Short(HEADER + 3)));
    }

    #[test]
    fn a_heartbeat_cut_short_is_refused() {
        let datagram = Heartbeat::request(1, 2, 3, 100).datagram(short(1), short(2));
        let error = DecodeError::Length { said: 114, has: 113 };
        assert_eq!(Heartbeat::decode(&datagram[VXLAN..datagram.len() - 1]), Err(error));
        assert_eq!(Heartbeat::decode(&[]), Err(DecodeError::Short(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_heartbeat_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Heartbeat::decode(&bytes);
        }

        #[test]
        fn what_decodes_encodes_to_the_same_header(
            size in 46u16..2000, connection: u64, sequence: u32, sent_ns: u64, at in 0usize..60, flip in 1u8..,
        ) {
            let heartbeat = Heartbeat::request(connection, sequence, sent_ns, size);
            let mut frame = heartbeat.datagram(short(1), short(2))[VXLAN..].to_vec();
            prop_assert_eq!(Heartbeat::decode(&frame), Ok(heartbeat));
            frame[at] ^= flip;
            if let Ok(mutated) = Heartbeat::decode(&frame) {
                prop_assert_eq!(&mutated.datagram(short(1), short(2))[VXLAN..][..HEADER], &frame[..HEADER]);
            }
        }
    }
}
