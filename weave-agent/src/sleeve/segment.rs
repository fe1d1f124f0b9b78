//! Large segments (GSO): cut into parts that fit a datagram, and joined again.
//!
//! A part has all headers and stands for itself, so that a lost datagram costs the stream just that. Consecutive parts are joined
//! by comparing headers, as the kernel's GRO does; what is joined may be more or less than what was cut. TCP is a stream of bytes
//! and is cut anywhere; a UDP part is a number of whole datagrams. Lengths and checksums are filled in when joined: once for many parts.

use super::codec::{Item, KIND, SEGMENT, Segment};
use super::prefix::Tag;
use crate::frame::{IPV4, IPV6, IPV6_HEADER, TCP, UDP, UDP_HEADER, VLAN, ones_complement_sum, u16_at};
use crate::virtio::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Offload};

/// Longer headers are not cut: such a frame travels in fragments.
pub const LONGEST_HEADERS: usize = 255;

const ETHERTYPE: usize = 12;
/// Offsets in the TCP header.
const SEQUENCE: usize = 4;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const UDP_CHECKSUM_16: u16 = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// An IP packet is no longer, with its header if it is version 4.
const LONGEST_PACKET: usize = 65_535;

/// Which part of a large frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub length: usize,
    /// Nothing follows.
    pub is_last: bool,
}

/// Where the headers of a large frame are, and how it is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    ip: usize,
    transport: usize,
    len: usize,
    v6: bool,
    udp: bool,
    gso_size: u16,
}

impl Headers {
    /// Of the frame that begins with `front`; `None` if it is not large, or of a kind that is not known here.
    pub fn of_large(front: &[u8], offload: &Offload) -> Option<Self> {
        let (transport, checksum) = offload.checksum?;
        let headers = Self::find(front, transport.into(), offload.gso_type & !GSO_ECN, offload.gso_size)?;
        (headers.checksum_at() == usize::from(checksum)).then_some(headers)
    }

    fn of_part(segment: &Segment<'_>) -> Option<Self> {
        let headers = Self::find(segment.headers, segment.transport.into(), segment.gso_type, segment.gso_size)?;
        (headers.len == segment.headers.len()).then_some(headers)
    }

    fn find(front: &[u8], transport: usize, gso_type: u8, gso_size: u16) -> Option<Self> {
        let mut at = ETHERTYPE;
        while VLAN.contains(&u16_at(front, at)?) && at < ETHERTYPE + 8 {
            at += 4;
        }
        let (ethertype, ip) = (u16_at(front, at)?, at + 2);
        let (v6, udp) = match (gso_type, ethertype) {
            (GSO_TCPV4, IPV4) => (false, false),
            (GSO_TCPV6, IPV6) => (true, false),
            (GSO_UDP_L4, IPV4) => (false, true),
            (GSO_UDP_L4, IPV6) => (true, true),
            _ => return None,
        };
        let ends_there = if v6 { transport >= ip + IPV6_HEADER } else { transport == ip + v4_header_len(front, ip, udp)? };
        let own = if udp { UDP_HEADER } else { tcp_header_len(front, transport)? };
        let len = transport + own;
        (ends_there && len <= front.len().min(LONGEST_HEADERS) && gso_size != 0).then_some(Self { ip, transport, len, v6, udp, gso_size })
    }

    /// Length of all headers.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// How much payload a part has, if its datagram takes `room` bytes of headers and payload; `None` if not even one segment fits.
    pub fn part_len(&self, room: usize) -> Option<usize> {
        let (room, size) = (room.checked_sub(self.len)?, usize::from(self.gso_size));
        let len = if self.udp { room / size * size } else { room };
        (len != 0).then_some(len)
    }

    /// What stands before a part's payload in a datagram.
    pub const fn part_head_len(&self) -> usize {
        KIND + SEGMENT + self.len
    }

    /// Write it for a part of the payload. `front` is the large frame's beginning.
    pub fn write_part_head(&self, tag: Tag, front: &[u8], part: Part, out: &mut [u8]) {
        let Part { offset, length, is_last } = part;
        let (Some(headers), Some(out)) = (front.get(..self.len), out.get_mut(..self.part_head_len())) else { return };
        // `find` refuses a transport header that does not end by 255.
        let transport = self.transport as u8;
        let segment = Segment { tag, transport, gso_type: self.gso_type(), gso_size: self.gso_size, headers, payload: &[] };
        out[..KIND + SEGMENT].copy_from_slice(&segment.head_of(length));
        let part = &mut out[KIND + SEGMENT..];
        part.copy_from_slice(headers);
        if !self.v6 {
            let id = u16_at(headers, self.ip + 4).unwrap_or(0).wrapping_add((offset / usize::from(self.gso_size)) as u16);
            put(part, self.ip + 4, id);
        }
        if !self.udp {
            let sequence = u32_at(headers, self.transport + SEQUENCE).wrapping_add(offset as u32);
            part[self.transport + SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
            part[self.transport + FLAGS] &= !(if is_last { 0 } else { FIN | PSH } | if offset == 0 { 0 } else { CWR });
        }
    }

    const fn gso_type(&self) -> u8 {
        match (self.udp, self.v6) {
            (true, _) => GSO_UDP_L4,
            (false, true) => GSO_TCPV6,
            (false, false) => GSO_TCPV4,
        }
    }

    const fn checksum_at(&self) -> usize {
        if self.udp { UDP_CHECKSUM } else { TCP_CHECKSUM }
    }

    /// IP length, IP checksum, UDP length, transport checksum.
    fn put_lengths_and_checksum(&self, headers: &mut [u8], [length, checksum, udp_length, transport]: [u16; 4]) {
        if self.v6 {
            put(headers, self.ip + 4, length);
        } else {
            put(headers, self.ip + 2, length);
            put(headers, self.ip + 10, checksum);
        }
        if self.udp {
            put(headers, self.transport + 4, udp_length);
        }
        put(headers, self.transport + self.checksum_at(), transport);
    }

    /// Fill in what depends on how much there is.
    fn finish(&self, headers: &mut [u8], payload: usize) {
        let own = self.len - self.transport + payload;
        let length = if self.v6 { self.transport - self.ip - IPV6_HEADER } else { self.transport - self.ip } + own;
        let addresses = if self.v6 { self.ip + 8..self.ip + 40 } else { self.ip + 12..self.ip + 20 };
        let protocol = if self.udp { UDP } else { TCP };
        // None is cut: `LONGEST_PACKET` was looked at before.
        let (length, own) = (length as u16, own as u16);
        let pseudo = ones_complement_sum(&[&headers[addresses], &[0, protocol], &own.to_be_bytes()]);
        self.put_lengths_and_checksum(headers, [length, 0, own, pseudo]);
        if !self.v6 {
            let sum = !ones_complement_sum(&[&headers[self.ip..self.transport]]);
            put(headers, self.ip + 10, sum);
        }
    }

    /// May fragments of the packet not be made, so that its identification means nothing?
    fn dont_fragment(&self, headers: &[u8]) -> bool {
        headers[self.ip + 6] & 0x40 != 0
    }
}

impl<'a> Segment<'a> {
    /// A whole UDP datagram as a part of a large one, so that it can be joined with others of its flow. `None` if it is something else,
    /// or something about it would get lost: an identification, a checksum that is not right.
    pub fn of_datagram(item: &Item<'a>) -> Option<Self> {
        let (transport, UDP_CHECKSUM_16) = item.checksum? else { return None };
        let (headers, payload) = item.frame.split_at_checked(usize::from(transport) + UDP_HEADER)?;
        let gso_size = u16::try_from(payload.len()).ok()?;
        let segment = Self { tag: item.tag, transport: transport as u8, gso_type: GSO_UDP_L4, gso_size, headers, payload };
        let found = Headers::of_part(&segment)?;
        let own = usize::from(u16_at(headers, found.transport + 4)?);
        let is_whole = own == UDP_HEADER + payload.len() && (found.v6 || headers[found.ip + 6..][..2] == [0x40, 0]);
        let length = usize::from(u16_at(headers, if found.v6 { found.ip + 4 } else { found.ip + 2 })?);
        let before = found.transport - found.ip - if found.v6 { IPV6_HEADER } else { 0 };
        (is_whole && length == before + own).then_some(segment)
    }
}

/// Parts that were joined. The payload stays where it is, with the caller.
#[derive(Clone, Debug)]
pub struct Joined {
    tag: Tag,
    headers: Headers,
    front: [u8; LONGEST_HEADERS],
    payload: usize,
}

impl Joined {
    /// Begin with a part; `None` if its headers are not what it says.
    pub fn start(segment: &Segment<'_>) -> Option<Self> {
        let headers = Headers::of_part(segment)?;
        let mut front = [0; LONGEST_HEADERS];
        front[..headers.len].copy_from_slice(segment.headers);
        let fits = headers.len - headers.ip + segment.payload.len() <= LONGEST_PACKET && !segment.payload.is_empty();
        fits.then_some(Self { tag: segment.tag, headers, front, payload: segment.payload.len() })
    }

    /// Where it is in the network.
    pub const fn tag(&self) -> Tag {
        self.tag
    }

    /// How much payload was joined.
    pub const fn payload_len(&self) -> usize {
        self.payload
    }

    /// Add the part that follows. `false`: it does not, and nothing has changed.
    #[must_use]
    pub fn push(&mut self, segment: &Segment<'_>) -> bool {
        let Headers { ip, transport, len, .. } = self.headers;
        let length = len - ip + self.payload + segment.payload.len();
        let alike = segment.tag == self.tag
            && segment.headers.len() == len
            && usize::from(segment.transport) == transport
            && segment.gso_type == self.headers.gso_type()
            && self.size_follows(segment);
        if !alike || length > LONGEST_PACKET || !self.follows(segment.headers) {
            return false;
        }
        if !self.headers.udp {
            // What ends the stream or pushes it is said by the last part.
            self.front[transport + FLAGS] |= segment.headers[transport + FLAGS] & (FIN | PSH);
        }
        self.payload += segment.payload.len();
        true
    }

    /// A whole datagram that is shorter than those before it is the last.
    fn size_follows(&self, segment: &Segment<'_>) -> bool {
        let (said, says) = (self.headers.gso_size, segment.gso_size);
        said == says || self.headers.udp && says < said && segment.payload.len() == usize::from(says)
    }

    /// Its headers have the right length. Lengths and checksums in them mean nothing.
    fn follows(&self, next: &[u8]) -> bool {
        let Headers { ip, transport, len, v6, udp, gso_size } = self.headers;
        let first = &self.front[..len];
        let same = |from: usize, to: usize| first[from..to] == next[from..to];
        let ip_same = if v6 {
            same(0, ip + 4) && same(ip + 6, transport)
        } else {
            same(0, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, transport) && self.id_follows(next)
        };
        if udp {
            return ip_same && same(transport, transport + 4) && self.payload.is_multiple_of(gso_size.into());
        }
        let (said, says) = (first[transport + FLAGS], next[transport + FLAGS]);
        let flags_follow = said & (FIN | PSH) == 0 && says & CWR == 0 && (said ^ says) & !(FIN | PSH | CWR) == 0;
        let expected = u32_at(first, transport + SEQUENCE).wrapping_add(self.payload as u32);
        let sequence_follows = u32_at(next, transport + SEQUENCE) == expected;
        let ports_same = same(transport, transport + SEQUENCE) && same(transport + 8, transport + FLAGS);
        let rest_same = same(transport + FLAGS + 1, transport + TCP_CHECKSUM) && same(transport + TCP_CHECKSUM + 2, len);
        ip_same && sequence_follows && flags_follow && ports_same && rest_same
    }

    fn id_follows(&self, next: &[u8]) -> bool {
        let at = self.headers.ip + 4;
        let steps = u16_at(next, at).unwrap_or(0).wrapping_sub(u16_at(&self.front, at).unwrap_or(0));
        let expected = (self.payload / usize::from(self.headers.gso_size)) as u16;
        // Where a part begins in its segment is not known here.
        self.headers.dont_fragment(next) || steps.wrapping_sub(expected) <= 1
    }

    /// The headers for all that was joined, and what the kernel is to be told about it.
    pub fn finish(&mut self) -> (&[u8], Offload) {
        let Headers { transport, len, gso_size, .. } = self.headers;
        self.headers.finish(&mut self.front[..len], self.payload);
        let checksum = Some((transport as u16, self.headers.checksum_at() as u16));
        let mut offload = Offload { checksum, ..Offload::default() };
        if self.payload > usize::from(gso_size) {
            let congested = !self.headers.udp && self.front[transport + FLAGS] & CWR != 0;
            let gso_type = self.headers.gso_type() | if congested { GSO_ECN } else { 0 };
            offload = Offload { gso_type, gso_size, header_len: len as u16, checksum };
        }
        (&self.front[..len], offload)
    }
}

fn v4_header_len(front: &[u8], ip: usize, udp: bool) -> Option<usize> {
    let len = usize::from(front.get(ip)? & 0xf) * 4;
    let protocol = *front.get(ip + 9)?;
    (len >= 20 && protocol == if udp { UDP } else { TCP }).then_some(len)
}

fn tcp_header_len(front: &[u8], transport: usize) -> Option<usize> {
    let len = usize::from(front.get(transport + DATA_OFFSET)? >> 4) * 4;
    (len >= 20).then_some(len)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
