//! What must be known about a frame to send it again as it was: where its headers are, and whether its checksum is finished.
//!
//! Frames come from containers: nothing here panics, whatever the bytes.

use crate::datapath::Frame;
use crate::virtio::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Offload};

/// Bytes of an Ethernet header without tags.
pub(crate) const ETHERNET: usize = 14;
/// The EtherTypes of IP.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// 802.1Q and 802.1ad tags; two may be stacked.
pub(crate) const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Bytes of headers without options.
pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
/// IP protocols.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// IPv6 extension headers that may precede the transport header and are counted in units of 8 bytes: hop by hop, routing, destination.
const IPV6_EXTENSIONS: [u8; 3] = [0, 43, 60];
/// The transport header's flag for "congestion window reduced": such a segment must be marked for segmentation.
const TCP_CWR: u8 = 0x80;

/// No honest packet has its transport header behind this many bytes of others.
const FARTHEST: usize = 2048;

/// A frame's transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transport<'a> {
    /// TCP, UDP, …
    protocol: u8,
    /// Over IPv6.
    v6: bool,
    /// Where the IP header starts in the frame.
    ip: usize,
    /// Where it starts in the frame.
    start: usize,
    /// Source and destination of the IP header.
    addresses: &'a [u8],
    /// From the transport header to the end of the IP packet.
    bytes: &'a [u8],
}

/// What the kernel must be told to treat a frame as it was: finish its checksum, cut it into segments of `gso_size` bytes.
/// A checksum that is wrong, but not merely unfinished, is left alone; so are fragments and whatever is not understood.
pub fn unfinished(bytes: &[u8], gso_size: u16) -> Offload {
    let Some(transport) = transport(bytes) else { return Offload::default() };
    let segments = transport.segmentation(gso_size);
    let Some(offset) = transport.unfinished_checksum(segments.is_some()) else { return Offload::default() };
    let (gso_type, gso_size, header_len) = segments.unwrap_or_default();
    // None of these is cut: `transport` finds no header beyond `FARTHEST`.
    Offload { gso_type, gso_size, header_len: header_len as u16, checksum: Some((transport.start as u16, offset)) }
}

/// A large UDP frame as the datagrams that it stands for, their checksums unfinished: for kernels below 6.2, which do not take it whole.
/// `None` if it is none.
pub fn udp_segments(frame: &Frame) -> Option<Vec<Frame>> {
    let transport = transport(&frame.bytes)?;
    let (kind, size, header_len) = transport.segmentation(frame.gso_size)?;
    let headers = frame.bytes.get(..header_len)?;
    let payload = transport.bytes.get(UDP_HEADER..)?;
    let pieces = payload.chunks(usize::from(size)).zip(0..);
    let segments = pieces.map(|(piece, i)| Frame { bytes: transport.udp_segment(headers, piece, i).into(), gso_size: 0 });
    (kind == GSO_UDP_L4).then(|| segments.collect())
}

/// The payload per segment that lets a TCP frame through an MTU; 0 if it is none, or fits as it is.
pub fn tcp_segments_for(bytes: &[u8], mtu: u32) -> u16 {
    let fits = |transport: &Transport<'_>| (bytes.len() - transport.ip) as u64 <= mtu.into();
    let Some(transport) = transport(bytes).filter(|transport| transport.protocol == TCP && !fits(transport)) else {
        return 0;
    };
    let headers = transport.start - transport.ip + transport.bytes.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4);
    u16::try_from(mtu as usize).unwrap_or(u16::MAX).saturating_sub(headers as u16)
}

/// A frame's bytes with its checksum finished, if it was not.
pub fn finished(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes.to_vec();
    let Some(transport) = transport(&frame.bytes) else { return bytes };
    let Some(offset) = transport.unfinished_checksum(false) else { return bytes };
    // The pseudo-header's sum stands where the checksum will: all in all the sum of both.
    let sum = match !ones_complement_sum(&[transport.bytes]) {
        // RFC 768: no checksum would be what zero means.
        0 => 0xffff,
        sum => sum,
    };
    let at = transport.start + usize::from(offset);
    if let Some(checksum) = bytes.get_mut(at..at + 2) {
        checksum.copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// The EtherType after the addresses, which may be a VLAN tag's.
pub fn ethertype(bytes: &[u8]) -> Option<u16> {
    u16_at(bytes, 12)
}

impl Transport<'_> {
    /// GSO type, segment size, and length of all headers; `None` if it is no large segment, or of a kind that cannot be said.
    fn segmentation(&self, gso_size: u16) -> Option<(u8, u16, usize)> {
        let (kind, header_len) = match self.protocol {
            TCP => (self.tcp_kind()?, usize::from(self.bytes.get(12)? >> 4) * 4),
            // Without a checksum it is a tunnel that carries large segments, which these headers cannot describe.
            UDP if u16_at(self.bytes, 6)? != 0 => (GSO_UDP_L4, UDP_HEADER),
            _ => return None,
        };
        let large = gso_size != 0 && self.bytes.len() > header_len + usize::from(gso_size);
        large.then_some((kind, gso_size, self.start + header_len))
    }

    fn tcp_kind(&self) -> Option<u8> {
        let congested = self.bytes.get(13)? & TCP_CWR != 0;
        Some(if self.v6 { GSO_TCPV6 } else { GSO_TCPV4 } | if congested { GSO_ECN } else { 0 })
    }

    /// Where in the transport header the checksum is that has yet to be finished. Those of large segments always are.
    fn unfinished_checksum(&self, large: bool) -> Option<u16> {
        let offset = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
        let pseudo = self.pseudo_header_sum(self.bytes.len());
        let unfinished = u16_at(self.bytes, usize::from(offset))? == pseudo && !self.is_right(pseudo);
        (large || unfinished).then_some(offset)
    }

    /// The part of the sum that the sender has done.
    fn pseudo_header_sum(&self, length: usize) -> u16 {
        fold(u64::from(ones_complement_sum(&[self.addresses])) + u64::from(self.protocol) + length as u64)
    }

    /// One datagram of several. `headers` end with the UDP header, so every field written is there.
    fn udp_segment(&self, headers: &[u8], piece: &[u8], i: u16) -> Vec<u8> {
        let length = UDP_HEADER + piece.len();
        let mut bytes = [headers, piece].concat();
        let mut put = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        put(self.start + 4, length as u16);
        put(self.start + 6, self.pseudo_header_sum(length));
        if self.v6 {
            put(self.ip + 4, (self.start - self.ip - IPV6_HEADER + length) as u16);
            return bytes;
        }
        put(self.ip + 2, (self.start - self.ip + length) as u16);
        put(self.ip + 4, u16_at(headers, self.ip + 4).unwrap_or(0).wrapping_add(i));
        put(self.ip + 10, 0);
        let sum = !ones_complement_sum(&[&bytes[self.ip..self.start]]);
        bytes[self.ip + 10..self.ip + 12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn is_right(&self, pseudo: u16) -> bool {
        fold(u64::from(pseudo) + u64::from(ones_complement_sum(&[self.bytes]))) == 0xffff
    }
}

fn transport(bytes: &[u8]) -> Option<Transport<'_>> {
    let mut at = 12;
    while VLAN.contains(&u16_at(bytes, at)?) && at <= 16 {
        at += 4;
    }
    let found = match u16_at(bytes, at)? {
        IPV4 => transport_v4(bytes, at + 2),
        IPV6 => transport_v6(bytes, at + 2),
        _ => None,
    };
    found.filter(|transport| transport.start <= FARTHEST)
}

fn transport_v4(bytes: &[u8], ip: usize) -> Option<Transport<'_>> {
    let header_len = usize::from(bytes.get(ip)? & 0xf) * 4;
    let fragment = u16_at(bytes, ip + 6)? & 0x3fff != 0;
    if header_len < 20 || fragment {
        return None;
    }
    let end = end_of_packet(bytes, ip, usize::from(u16_at(bytes, ip + 2)?))?;
    Some(Transport {
        protocol: *bytes.get(ip + 9)?,
        v6: false,
        ip,
        start: ip + header_len,
        addresses: bytes.get(ip + 12..ip + 20)?,
        bytes: bytes.get(ip + header_len..end)?,
    })
}

fn transport_v6(bytes: &[u8], ip: usize) -> Option<Transport<'_>> {
    let payload = usize::from(u16_at(bytes, ip + 4)?);
    let end = end_of_packet(bytes, ip, if payload == 0 { 0 } else { payload + IPV6_HEADER })?;
    let (mut protocol, mut start) = (*bytes.get(ip + 6)?, ip + IPV6_HEADER);
    while IPV6_EXTENSIONS.contains(&protocol) {
        protocol = *bytes.get(start)?;
        start += 8 * (usize::from(*bytes.get(start + 1)?) + 1);
    }
    Some(Transport { protocol, v6: true, ip, start, addresses: bytes.get(ip + 8..ip + 40)?, bytes: bytes.get(start..end)? })
}

/// Packets over 64 kB (BIG TCP) say length 0: they end where the frame does. Others may be padded.
fn end_of_packet(bytes: &[u8], ip: usize, length: usize) -> Option<usize> {
    let end = if length == 0 { bytes.len() } else { ip + length };
    (end <= bytes.len()).then_some(end)
}

/// `None` beyond the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The Internet checksum's sum (RFC 1071) over the concatenation of `parts`; every part but the last must be of even length.
pub fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    fold(pairs.map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum())
}

/// The sum of 16-bit words as one of them, with its carries (RFC 1071).
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// Ethernet, tags, IP header without checksum, transport header and payload; the transport checksum is as `checksum` says.
    #[derive(Clone, Copy)]
    struct Build {
        v6: bool,
        tags: usize,
        protocol: u8,
        payload: usize,
        checksum: Checksum,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Checksum {
        Right,
        Unfinished,
        Wrong,
        Absent,
    }

    const PLAIN: Build = Build { v6: false, tags: 0, protocol: TCP, payload: 100, checksum: Checksum::Unfinished };

    impl Build {
        fn frame(&self, gso_size: u16) -> Frame {
            let mut l4 = if self.protocol == TCP { vec![0; 20] } else { vec![0; 8] };
            if self.protocol == TCP {
                l4[12] = 5 << 4;
            }
            l4.extend((0..self.payload).map(|i| i as u8));
            let mut bytes = vec![2; 12];
            for _ in 0..self.tags {
                bytes.extend([0x81, 0, 0, 5]);
            }
            let addresses = self.ip(&mut bytes, l4.len());
            let at = if self.protocol == TCP { 16 } else { 6 };
            let pseudo = ones_complement_sum(&[&addresses, &[0, self.protocol], &(l4.len() as u16).to_be_bytes()]);
            let right = !fold(u64::from(pseudo) + u64::from(ones_complement_sum(&[&l4])));
            let value = match self.checksum {
                Checksum::Right => right,
                Checksum::Unfinished => pseudo,
                Checksum::Wrong => {
                    if right.wrapping_add(1) == pseudo {
                        right.wrapping_add(2)
                    } else {
                        right.wrapping_add(1)
                    }
                }
                Checksum::Absent => 0,
            };
            l4[at..at + 2].copy_from_slice(&value.to_be_bytes());
            bytes.extend(l4);
            Frame { bytes: bytes.into(), gso_size }
        }

        fn ip(&self, bytes: &mut Vec<u8>, l4_len: usize) -> Vec<u8> {
            if self.v6 {
                let addresses: Vec<u8> = (0..32).collect();
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend((l4_len as u16).to_be_bytes());
                bytes.extend([self.protocol, 64]);
                bytes.extend(&addresses);
                return addresses;
            }
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend((l4_len as u16 + 20).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            vec![10, 0, 0, 1, 10, 0, 0, 2]
        }
    }

    fn of(frame: &Frame) -> Offload {
        unfinished(&frame.bytes, frame.gso_size)
    }

    fn large(gso_type: u8, gso_size: u16, header_len: u16, checksum: (u16, u16)) -> Offload {
        Offload { gso_type, gso_size, header_len, checksum: Some(checksum) }
    }

    #[test]
    fn an_unfinished_checksum_is_finished_wherever_its_header_is() {
        for (tags, v6, protocol, start, offset) in
            [(0, false, TCP, 34, 16), (1, false, UDP, 38, 6), (2, true, TCP, 62, 16), (0, true, UDP, 54, 6)]
        {
            let found = of(&Build { tags, v6, protocol, ..PLAIN }.frame(0));
            assert_eq!(found, Offload { checksum: Some((start, offset)), ..Offload::default() });
        }
    }

    #[test]
    fn right_wrong_and_absent_checksums_are_left_alone() {
        for checksum in [Checksum::Right, Checksum::Wrong, Checksum::Absent] {
            for protocol in [TCP, UDP] {
                assert_eq!(of(&Build { checksum, protocol, ..PLAIN }.frame(0)), Offload::default());
            }
        }
    }

    #[test]
    fn large_segments_are_described() {
        let build = Build { payload: 5000, ..PLAIN };
        assert_eq!(of(&build.frame(1448)), large(GSO_TCPV4, 1448, 54, (34, 16)));
        let build = Build { v6: true, tags: 1, protocol: UDP, payload: 5000, ..PLAIN };
        assert_eq!(of(&build.frame(1400)), large(GSO_UDP_L4, 1400, 66, (58, 6)));
        let tunnel = Build { protocol: UDP, payload: 5000, checksum: Checksum::Absent, ..PLAIN };
        assert_eq!(of(&tunnel.frame(1400)), Offload::default());
    }

    #[test]
    fn a_large_datagram_can_be_cut_by_hand() {
        for (v6, tags) in [(false, 0), (true, 1)] {
            let build = Build { v6, tags, protocol: UDP, payload: 2500, ..PLAIN };
            let large = build.frame(1000);
            let pieces = udp_segments(&large).unwrap();
            let header_len = large.bytes.len() - 2500;
            let payload: Vec<_> = pieces.iter().flat_map(|piece| piece.bytes[header_len..].to_vec()).collect();
            assert_eq!(payload, large.bytes[header_len..]);
            for (piece, length) in pieces.iter().zip([1000, 1000, 500]) {
                // As the sender would have made it, but for what an IPv4 header has that the builder leaves empty.
                let alone = Build { payload: length, ..build }.frame(0);
                assert_eq!(piece.bytes.len(), alone.bytes.len());
                assert_eq!(of(piece), of(&alone));
                assert!(v6 || ones_complement_sum(&[&piece.bytes[14..34]]) == 0xffff);
            }
        }
        assert_eq!(udp_segments(&Build { payload: 2500, ..PLAIN }.frame(1000)), None);
        assert_eq!(udp_segments(&Build { protocol: UDP, ..PLAIN }.frame(1000)), None);
    }

    #[test]
    fn fragments_are_not_touched() {
        let frame = PLAIN.frame(0);
        for flags in [[0x20, 0], [0, 1]] {
            let mut bytes = frame.bytes.to_vec();
            bytes[20..22].copy_from_slice(&flags);
            assert_eq!(unfinished(&bytes, 0), Offload::default());
        }
    }

    #[test]
    fn a_congestion_mark_survives_segmentation() {
        let frame = Build { payload: 5000, ..PLAIN }.frame(1448);
        let mut bytes = frame.bytes.to_vec();
        bytes[34 + 13] |= TCP_CWR;
        assert_eq!(unfinished(&bytes, 1448).gso_type, GSO_TCPV4 | GSO_ECN);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), gso_size: u16) {
            let frame = Frame { bytes: Bytes::from(bytes), gso_size };
            of(&frame);
            udp_segments(&frame);
        }

        #[test]
        fn nor_do_bytes_that_look_like_packets(
            v6: bool, udp: bool, tags in 0_usize..3, cut in 0_usize..120, at in 12_usize..70, value: u8, gso_size in 0_u16..200,
        ) {
            let protocol = if udp { UDP } else { TCP };
            let mut bytes = Build { v6, tags, protocol, ..PLAIN }.frame(0).bytes.to_vec();
            bytes[at] = value;
            bytes.truncate(cut);
            let frame = Frame { bytes: bytes.clone().into(), gso_size };
            udp_segments(&frame);
            // What the kernel is told to read is there.
            prop_assert!(of(&frame).checksum.is_none_or(|(start, offset)| usize::from(start) + usize::from(offset) + 2 <= bytes.len()));
        }

        #[test]
        fn finishing_what_is_unfinished_makes_it_right(v6: bool, payload in 1_usize..300) {
            let unfinished = Build { v6, payload, ..PLAIN }.frame(0);
            let (start, offset) = of(&unfinished).checksum.map(|(start, offset)| (usize::from(start), usize::from(offset))).unwrap();
            let mut bytes = unfinished.bytes.to_vec();
            let sum = !ones_complement_sum(&[&bytes[start..]]);
            bytes[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(Bytes::from(bytes), Build { v6, payload, checksum: Checksum::Right, ..PLAIN }.frame(0).bytes);
        }
    }
}
