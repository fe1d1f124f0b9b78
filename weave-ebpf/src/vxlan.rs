//! The outer headers, both ways: Ethernet, IPv4 (RFC 791), UDP (RFC 768), VXLAN (RFC 7348).

use crate::flow::{Ipv4, Mac, PeerSlot, slot};
use crate::packet::{ETHERNET, Packet, ethertype};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of all outer headers: 14 Ethernet, 20 IPv4, 8 UDP, 8 VXLAN.
pub const OUTER: usize = ETHERNET + 20 + 8 + 8;

/// What a tunnel takes from the underlay's MTU: inner Ethernet, VXLAN, UDP, IPv4.
pub const OVERHEAD: usize = 14 + 8 + 8 + 20;

/// Where the outer IPv4 source stands.
pub const OUTER_SOURCE: usize = IP + 12;

/// Outer time to live of a frame that starts here.
pub const TTL: u8 = 64;

/// What one relay takes from it, so that a frame is relayed at most seven times.
pub const RELAY_TTL: u8 = 8;

const IP: usize = ETHERNET;
const UDP: usize = IP + 20;
const VXLAN: usize = UDP + 8;
const PROTOCOL_UDP: u8 = 17;
const FLAG_VNI: u8 = 0x08;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_BITS: u16 = 0x3fff;

/// The outer headers of a received VXLAN packet, as far as the fast path wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// IPv4 source.
    pub src: Ipv4,
    /// IPv4 destination.
    pub dst: Ipv4,
    /// IPv4 time to live.
    pub ttl: u8,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// The outer headers, if this is a VXLAN packet of the plain kind: IPv4 without options or fragments, no UDP checksum.
/// Anything else is the stack's business.
///
/// # Errors
/// Which of the others it is.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P, port: u16) -> Result<Outer, Other> {
    match parse_any(packet, port)? {
        (outer, false) => Ok(outer),
        (_, true) => Err(Other::Elsewhere),
    }
}

/// As [`parse`], but whether there is a UDP checksum (which nobody has looked at) is told, not minded.
///
/// # Errors
/// Which of the others it is.
#[inline(always)]
pub fn parse_any<P: Packet + ?Sized>(packet: &P, port: u16) -> Result<(Outer, bool), Other> {
    if ethertype(packet, 0) != Some(ethertype::IPV4) {
        return Err(Other::Elsewhere);
    }
    let Some(ip) = packet.read::<20>(IP) else {
        return Err(Other::Elsewhere);
    };
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & FRAGMENT_BITS;
    if ip[0] != 0x45 || ip[9] != PROTOCOL_UDP || fragment != 0 {
        return Err(Other::Elsewhere);
    }
    let Some(udp) = packet.read::<16>(UDP) else {
        return Err(too_short(packet, port));
    };
    if u16::from_be_bytes([udp[2], udp[3]]) != port {
        return Err(Other::Elsewhere);
    }
    if udp[8] != FLAG_VNI || udp[15] != 0 {
        return Err(Other::Malformed);
    }
    let outer = Outer {
        src: [ip[12], ip[13], ip[14], ip[15]],
        dst: [ip[16], ip[17], ip[18], ip[19]],
        ttl: ip[8],
        vni: u32::from_be_bytes([0, udp[12], udp[13], udp[14]]),
    };
    Ok((outer, udp[6] | udp[7] != 0))
}

/// A packet that [`parse`] does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Not for the tunnel's port, or of a kind that only the stack understands.
    Elsewhere,
    /// For the tunnel's port, and no VXLAN: the stack drops it without a word.
    Malformed,
}

/// No room for a VXLAN header, but perhaps for our port.
#[inline(always)]
fn too_short<P: Packet + ?Sized>(packet: &P, port: u16) -> Other {
    match packet.read::<4>(UDP) {
        Some(udp) if u16::from_be_bytes([udp[2], udp[3]]) == port => Other::Malformed,
        _ => Other::Elsewhere,
    }
}

/// Where frames for a peer go, as the kernel and the switch know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Outer source.
    pub local: Ipv4,
    /// Outer destination.
    pub remote: Ipv4,
    /// UDP destination port.
    pub port: u16,
    /// Largest inner packet, bytes.
    pub mtu: u32,
    /// Interface, its MAC and the next hop's; without it the vxlan device finds the way.
    pub next_hop: Option<(u32, Mac, Mac)>,
    /// The stack seals it with ESP: `next_hop` is of no use.
    pub esp: bool,
    /// See [`slot::BIG`].
    pub big: bool,
}

/// The longest frame, its Ethernet header included, whose length the outer IPv4 header can say.
pub const LONGEST_SAID: u32 = u16::MAX as u32 - 36;

/// The slot of a peer that is reached by `path`.
pub fn slot(path: &Path) -> PeerSlot {
    let mut template = [0; 56];
    let header = &mut template;
    let direct = path.next_hop.filter(|_| !path.esp);
    let (ifindex, source, next_hop) = direct.unwrap_or_default();
    header[..6].copy_from_slice(&next_hop);
    header[6..12].copy_from_slice(&source);
    put_u16(header, 12, ethertype::IPV4);
    header[IP] = 0x45;
    put_u16(header, IP + 6, DONT_FRAGMENT);
    header[IP + 9] = PROTOCOL_UDP;
    header[IP + 12..IP + 16].copy_from_slice(&path.local);
    header[IP + 16..IP + 20].copy_from_slice(&path.remote);
    put_u16(header, UDP + 2, path.port);
    header[VXLAN] = FLAG_VNI;
    PeerSlot {
        flags: slot::VALID
            | if direct.is_some() { slot::DIRECT } else { 0 }
            | if path.esp { slot::ESP } else { 0 }
            | if path.big { slot::BIG } else { 0 },
        ifindex,
        mtu: path.mtu,
        sum: header[IP..UDP].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum(),
        remote: path.remote,
        local: path.local,
        template: Template(zerocopy::transmute!(template)),
    }
}

/// The path a slot was made of; `None` if it is not valid.
pub fn path(slot: &PeerSlot) -> Option<Path> {
    let header = slot.template.as_bytes();
    let next_hop = (slot.flags & slot::DIRECT != 0).then_some((slot.ifindex, header.read(6)?, header.read(0)?));
    let port = u16::from_be_bytes(header.read(UDP + 2)?);
    let (esp, big) = (slot.flags & slot::ESP != 0, slot.flags & slot::BIG != 0);
    (slot.flags & slot::VALID != 0).then_some(Path { local: slot.local, remote: slot.remote, port, mtu: slot.mtu, next_hop, esp, big })
}

/// What differs from packet to packet in the outer headers.
#[derive(Clone, Copy)]
pub struct Fields {
    /// IPv4 total length. That of GSO packets wraps; it is written anew per segment.
    pub ip_len: u16,
    /// UDP source port.
    pub source_port: u16,
    /// IPv4 time to live.
    pub ttl: u8,
}

impl Fields {
    /// Of a frame that is not to go on.
    pub const NONE: Self = Self { ip_len: 0, source_port: 0, ttl: 0 };

    /// In one number.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.ip_len as u64 | (self.source_port as u64) << 16 | (self.ttl as u64) << 32
    }

    /// Out of it.
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { ip_len: packed as u16, source_port: (packed >> 16) as u16, ttl: (packed >> 32) as u8 }
    }

    /// For a frame of `inner_len` bytes (its Ethernet header included) that starts here. `hash` becomes the source
    /// port, so that the underlay spreads flows (RFC 7348 section 5).
    #[inline(always)]
    pub const fn new(inner_len: u32, hash: u32) -> Self {
        Self { ip_len: (inner_len + 36) as u16, source_port: source_port(hash), ttl: TTL }
    }

    /// For a received packet that goes on: `None` once it was relayed too often.
    #[inline(always)]
    pub fn relay<P: Packet + ?Sized>(packet: &P) -> Option<Self> {
        let ip_len = u16::from_be_bytes(packet.read::<2>(IP + 2)?);
        let [ttl] = packet.read::<1>(IP + 8)?;
        let source_port = u16::from_be_bytes(packet.read::<2>(UDP)?);
        Some(Self { ip_len, source_port, ttl: relay_ttl(ttl)? })
    }
}

/// What a slot holds of the outer headers: [`OUTER`] bytes in wire order and zeros, in words, so that they are copied so.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Template([u64; 7]);

/// All headers before the inner network header, as they are written onto a packet.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
pub struct Headers([u64; 8]);

impl Headers {
    /// The slot's template, filled in.
    #[inline(always)]
    pub fn new(slot: &PeerSlot, vni: u32, fields: Fields) -> Self {
        let [len_high, len_low] = fields.ip_len.to_be_bytes();
        let [sum_high, sum_low] = checksum(slot.sum + fields.ip_len as u32 + ((fields.ttl as u32) << 8)).to_be_bytes();
        let [port_high, port_low] = fields.source_port.to_be_bytes();
        let [udp_high, udp_low] = fields.ip_len.wrapping_sub(20).to_be_bytes();
        let [_, a, b, c] = vni.to_be_bytes();
        // In words, and by or: the template is zero there.
        let [w0, w1, w2, w3, w4, w5, w6] = slot.template.0;
        Self([
            w0,
            w1,
            w2 | u64::from_ne_bytes([len_high, len_low, 0, 0, 0, 0, fields.ttl, 0]),
            w3 | u64::from_ne_bytes([sum_high, sum_low, 0, 0, 0, 0, 0, 0]),
            w4 | u64::from_ne_bytes([0, 0, port_high, port_low, 0, 0, udp_high, udp_low]),
            w5 | u64::from_ne_bytes([0, 0, 0, 0, 0, 0, a, b]),
            w6 | u64::from_ne_bytes([c, 0, 0, 0, 0, 0, 0, 0]),
            0,
        ])
    }

    /// With the inner Ethernet header.
    #[inline(always)]
    pub const fn before(mut self, inner: [u8; ETHERNET]) -> Self {
        let [a, b, c, d, e, f, last @ ..] = inner;
        self.0[6] |= u64::from_ne_bytes([0, 0, a, b, c, d, e, f]);
        self.0[7] = u64::from_ne_bytes(last);
        self
    }

    /// All of them.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8; OUTER + ETHERNET] {
        zerocopy::transmute_ref!(&self.0)
    }

    /// The outer ones alone.
    #[inline(always)]
    pub fn outer(&self) -> &[u8; OUTER] {
        match self.bytes().first_chunk() {
            Some(outer) => outer,
            None => &[0; OUTER],
        }
    }
}

/// The outer headers of one packet: the slot's template, filled in.
pub fn headers(slot: &PeerSlot, vni: u32, fields: Fields) -> [u8; OUTER] {
    *Headers::new(slot, vni, fields).outer()
}

/// The TTL after one more relay; `None` once it was relayed too often.
#[inline(always)]
pub const fn relay_ttl(ttl: u8) -> Option<u8> {
    // More than we start with came from elsewhere (a kernel's default is 64, a router's may be 255).
    let ttl = if ttl > TTL { TTL } else { ttl };
    if ttl > RELAY_TTL { Some(ttl - RELAY_TTL) } else { None }
}

/// A received heartbeat request made into its reply: addresses, VNI halves and ports' direction swapped.
#[inline(always)]
pub fn turn_round(received: &[u8; OUTER], vni: u32, port: u16) -> [u8; OUTER] {
    let mut bytes = *received;
    let mut i = 0;
    while i < 6 {
        bytes[i] = received[6 + i];
        bytes[6 + i] = received[i];
        i += 1;
    }
    i = 0;
    while i < 4 {
        bytes[IP + 12 + i] = received[IP + 16 + i];
        bytes[IP + 16 + i] = received[IP + 12 + i];
        i += 1;
    }
    bytes[IP + 8] = TTL;
    put_checksum(&mut bytes);
    put_u16(&mut bytes, UDP + 2, port);
    put_vxlan(&mut bytes, vni);
    bytes
}

/// The eight bytes of a VXLAN header.
#[inline(always)]
pub const fn vxlan_header(vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

#[inline(always)]
fn put_vxlan(bytes: &mut [u8; OUTER], vni: u32) {
    let header = vxlan_header(vni);
    let mut i = 0;
    while i < 8 {
        bytes[VXLAN + i] = header[i];
        i += 1;
    }
}

#[inline(always)]
fn put_u16<const N: usize>(bytes: &mut [u8; N], at: usize, value: u16) {
    let [high, low] = value.to_be_bytes();
    bytes[at] = high;
    bytes[at + 1] = low;
}

/// RFC 1071 over the 20 bytes of the IPv4 header.
#[inline(always)]
fn put_checksum(bytes: &mut [u8; OUTER]) {
    bytes[IP + 10] = 0;
    bytes[IP + 11] = 0;
    let mut sum = 0u32;
    let mut i = 0;
    while i < 20 {
        sum += u16::from_be_bytes([bytes[IP + i], bytes[IP + i + 1]]) as u32;
        i += 2;
    }
    put_u16(bytes, IP + 10, checksum(sum));
}

/// Folds a sum of at most 2^16 words and complements it (RFC 1071).
#[inline(always)]
const fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// A source port of the dynamic range (RFC 6335): 49152 and up.
#[inline(always)]
const fn source_port(hash: u32) -> u16 {
    0xc000 | ((hash ^ (hash >> 16)) as u16 & 0x3fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: Path = Path {
        local: [10, 0, 0, 1],
        remote: [10, 0, 0, 2],
        port: 6784,
        mtu: 1500,
        next_hop: Some((3, [4; 6], [2; 6])),
        esp: false,
        big: false,
    };

    fn first(vni: u32) -> [u8; OUTER] {
        headers(&slot(&PATH), vni, Fields::new(14, 7))
    }

    fn packet(bytes: [u8; OUTER]) -> Vec<u8> {
        let mut packet = bytes.to_vec();
        packet.extend([0; 14]);
        packet
    }

    fn checksum_is_right(bytes: &[u8; OUTER]) -> bool {
        let sum: u32 = bytes[14..34].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    #[test]
    fn what_is_written_is_parsed() {
        let bytes = first(0x00_2001);
        assert!(checksum_is_right(&bytes));
        let outer = parse(packet(bytes).as_slice(), 6784).unwrap();
        assert_eq!(outer, Outer { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], ttl: TTL, vni: 0x00_2001 });
        assert_eq!(parse(packet(bytes).as_slice(), 4789), Err(Other::Elsewhere));
    }

    #[test]
    fn a_frame_is_relayed_seven_times_at_most() {
        let mut bytes = first(1);
        let mut relays = 0;
        while let Some(fields) = Fields::relay(bytes.as_slice()) {
            bytes = headers(&slot(&PATH), 1, fields);
            assert!(checksum_is_right(&bytes));
            relays += 1;
        }
        assert_eq!(relays, 7);
    }

    #[test]
    fn a_reply_goes_back_where_the_request_came_from() {
        let reply = turn_round(&first(0x00_2001), 0x00_1002, 6784);
        assert!(checksum_is_right(&reply));
        let outer = parse(packet(reply).as_slice(), 6784).unwrap();
        assert_eq!((outer.src, outer.dst, outer.vni), ([10, 0, 0, 2], [10, 0, 0, 1], 0x00_1002));
        assert_eq!(reply[..6], [4; 6]);
    }

    #[test]
    fn a_slot_tells_the_path_it_was_made_of() {
        for path in [PATH, Path { next_hop: None, ..PATH }, Path { next_hop: None, esp: true, ..PATH }, Path { big: true, ..PATH }] {
            assert_eq!(super::path(&slot(&path)), Some(path));
        }
        assert_eq!(super::path(&PeerSlot::default()), None);
    }

    #[test]
    fn fragments_options_and_checksums_are_the_stacks_business_and_what_is_no_vxlan_is_malformed() {
        let good = packet(first(1));
        for (at, value) in [(12, 0x86), (14, 0x46), (20, 0x20), (23, 6), (41, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(parse(bad.as_slice(), 6784), Err(Other::Elsewhere), "byte {at}");
        }
        for (at, value) in [(42, 0x0c), (42, 0), (49, 1)] {
            let mut bad = good.clone();
            (bad[at], bad[41]) = (value, 7);
            assert_eq!(parse(bad.as_slice(), 6784), Err(Other::Malformed), "byte {at}");
            assert_eq!(parse(bad.as_slice(), 4789), Err(Other::Elsewhere));
        }
        for (len, other) in [(49, Other::Malformed), (38, Other::Malformed), (37, Other::Elsewhere), (20, Other::Elsewhere)] {
            assert_eq!(parse(&good[..len], 6784), Err(other), "{len} bytes");
        }
    }
}
