//! Frames larger than the path to their peer takes: the sender is told (RFC 1191, RFC 8201), or the packet is cut.

use std::net::Ipv4Addr;

use bytes::Bytes;
use weave_ebpf::flow::FlowKey;

use super::Switch;
use crate::datapath::{Action, Egress, Frame, Op, PeerRoute, PortId};
use crate::frame::{self, ETHERNET, IPV4_HEADER, IPV6_HEADER, finished, ones_complement_sum, udp_segments};

const IPV4: [u8; 2] = frame::IPV4.to_be_bytes();
const IPV6: [u8; 2] = frame::IPV6.to_be_bytes();
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TTL: u8 = 64;
/// RFC 1812, 4.3.2.3: an ICMP error is no longer than 576 bytes.
const LONGEST_ICMP: usize = 576;
/// RFC 4443, 2.4 (c): nor is one of IPv6 longer than any path takes, which is also the least that it may tell (RFC 8201, 4).
const LEAST_IPV6: u16 = 1280;
/// Most frames that wait for a size to be measured.
const REMEMBERED: usize = 64;
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS: u16 = 0x2000;

impl Switch {
    /// A frame from a port was larger than the slot of its peer takes.
    pub(super) fn too_big(&mut self, key: &FlowKey, frame: &Frame) {
        let Action::Peer(to) = self.decide(key).action else { return };
        let Some(route) = self.told.slots.get(&to).copied() else { return };
        // What is being measured is not what holds, and a wrong size would be believed for minutes: its sender is told then.
        if self.is_measuring(&route) {
            if self.oversize.len() < REMEMBERED {
                self.oversize.push((*key, frame.clone()));
            }
            return;
        }
        if let Some(answer) = answer(&frame.bytes, route.mtu) {
            self.counters.too_big += 1;
            self.order(Op::Execute(frame_of(answer), vec![Egress::Port(PortId(key.ingress))]));
            return;
        }
        for fragment in fragments(frame, route.mtu) {
            self.counters.fragmented += 1;
            self.order(Op::Execute(frame_of(fragment), vec![Egress::Peer { to, origin: self.short }]));
        }
    }

    /// A size may be known now.
    pub(super) fn answer_oversize(&mut self) {
        for (key, frame) in std::mem::take(&mut self.oversize) {
            self.too_big(&key, &frame);
        }
    }

    fn is_measuring(&self, route: &PeerRoute) -> bool {
        self.tunnels.values().any(|tunnel| tunnel.remote() == route.remote && tunnel.is_measuring())
    }
}

fn frame_of(bytes: Vec<u8>) -> Frame {
    Frame { bytes: Bytes::from(bytes), gso_size: 0 }
}

/// The ICMP error that tells a packet's sender the path's MTU, as if from its destination; `None` for what may be cut, and
/// for what no error may be sent of (RFC 1122, 3.2.2; RFC 4443, 2.4).
fn answer(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET>()?;
    match [ethernet[12], ethernet[13]] {
        IPV4 => answer_ipv4(ethernet, packet, mtu),
        IPV6 => answer_ipv6(ethernet, packet, mtu),
        _ => None,
    }
}

/// The Ethernet header of the way back.
fn back(ethernet: &[u8; ETHERNET]) -> Vec<u8> {
    [&ethernet[6..12], &ethernet[..6], &ethernet[12..]].concat()
}

fn answer_ipv4(ethernet: &[u8; ETHERNET], packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
    let length = 4 * usize::from(header[0] & 0xf);
    let (source, destination) = (address(header, 12), address(header, 16));
    let may_be_told = !source.is_unspecified() && !source.is_multicast() && !source.is_broadcast() && !destination.is_multicast();
    if header[0] >> 4 != 4 || header[6] & DONT_FRAGMENT == 0 || !may_be_told || header[9] == ICMP && is_error(packet.get(length..)?) {
        return None;
    }
    let quoted = &packet[..packet.len().min(LONGEST_ICMP - IPV4_HEADER - 8)];
    let [high, low] = mtu.to_be_bytes();
    let mut icmp = [&[3, 4, 0, 0, 0, 0, high, low], quoted].concat();
    let sum = !ones_complement_sum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut ip = [0; IPV4_HEADER];
    ip[0] = 0x45;
    ip[1] = header[1];
    ip[2..4].copy_from_slice(&((IPV4_HEADER + icmp.len()) as u16).to_be_bytes());
    (ip[8], ip[9]) = (TTL, ICMP);
    ip[12..16].copy_from_slice(&header[16..20]);
    ip[16..20].copy_from_slice(&header[12..16]);
    let sum = !ones_complement_sum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    Some([&back(ethernet)[..], &ip, &icmp].concat())
}

fn address(header: &[u8; IPV4_HEADER], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

/// Of errors no errors are sent: destination unreachable, source quench, redirect, time exceeded, parameter problem.
fn is_error(icmp: &[u8]) -> bool {
    matches!(icmp.first(), Some(3 | 4 | 5 | 11 | 12))
}

fn answer_ipv6(ethernet: &[u8; ETHERNET], packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
    let errors = header[6] == ICMPV6 && packet.get(IPV6_HEADER).is_some_and(|kind| *kind < 128);
    // An unspecified or multicast source; a multicast destination may be told of this error alone (RFC 4443, 2.4 e.3).
    if header[0] >> 4 != 6 || header[8..24] == [0; 16] || header[8] == 0xff || errors {
        return None;
    }
    let quoted = &packet[..packet.len().min(usize::from(LEAST_IPV6) - IPV6_HEADER - 8)];
    let [high, low] = mtu.max(LEAST_IPV6).to_be_bytes();
    let mut icmp = [&[2, 0, 0, 0, 0, 0, high, low], quoted].concat();
    let mut ip = [0; IPV6_HEADER];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    (ip[6], ip[7]) = (ICMPV6, TTL);
    ip[8..24].copy_from_slice(&header[24..40]);
    ip[24..40].copy_from_slice(&header[8..24]);
    let pseudo = [&ip[8..40], &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
    let sum = !ones_complement_sum(&[&pseudo, &icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some([&back(ethernet)[..], &ip, &icmp].concat())
}

/// An IPv4 packet that may be cut, cut (RFC 791, 3.2); a large UDP frame is first taken apart. Nothing for all else.
fn fragments(frame: &Frame, mtu: u16) -> Vec<Vec<u8>> {
    let datagrams = if frame.gso_size == 0 { Some(vec![frame.clone()]) } else { udp_segments(frame) };
    datagrams.into_iter().flatten().filter_map(|datagram| cut(finished(&datagram), mtu)).flatten().collect()
}

fn cut(frame: Vec<u8>, mtu: u16) -> Option<Vec<Vec<u8>>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET>()?;
    let length = 4 * usize::from(packet.first()? & 0xf);
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let (header, payload) = packet.get(..total)?.split_at_checked(length)?;
    let room = usize::from(mtu).checked_sub(length)? & !7;
    if ethernet[12..] != IPV4 || length < IPV4_HEADER || header[6] & DONT_FRAGMENT != 0 || room == 0 {
        return None;
    }
    // Itself a fragment, perhaps.
    let before = u16::from_be_bytes([header[6], header[7]]);
    let last = payload.len().div_ceil(room) - 1;
    let piece = |(number, piece): (usize, &[u8])| {
        let offset = (before & 0x1fff) + (number * room / 8) as u16;
        let more = if number < last { MORE_FRAGMENTS } else { before & MORE_FRAGMENTS };
        let mut header = header.to_vec();
        header[2..4].copy_from_slice(&((length + piece.len()) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        header[10..12].fill(0);
        let sum = !ones_complement_sum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&ethernet[..], &header, piece].concat()
    };
    Some(payload.chunks(room).enumerate().map(piece).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

    fn ipv4(flags: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let total = ((IPV4_HEADER + payload.len()) as u16).to_be_bytes();
        let mut header = [0x45, 0, total[0], total[1], 0, 7, flags, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = !ones_complement_sum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&MACS[..], &IPV4, &header, payload].concat()
    }

    fn ipv6(payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        let mut header = [0; IPV6_HEADER];
        (header[0], header[6], header[7]) = (0x60, 17, 64);
        header[4..6].copy_from_slice(&length);
        (header[8], header[23], header[24], header[39]) = (0xfd, 1, 0xfd, 2);
        [&MACS[..], &IPV6, &header, payload].concat()
    }

    #[test]
    fn a_packet_that_must_not_be_cut_is_answered_from_its_destination_with_the_mtu() {
        let answer = answer(&ipv4(0x40, 17, &[9; 1400]), 1230).unwrap();
        assert_eq!(answer[..12], [&MACS[6..], &MACS[..6]].concat());
        assert_eq!(answer[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(answer[34..42], [3, 4, answer[36], answer[37], 0, 0, 0x04, 0xce]);
        assert_eq!(answer.len(), ETHERNET + LONGEST_ICMP);
        assert_eq!((ones_complement_sum(&[&answer[14..34]]), ones_complement_sum(&[&answer[34..]])), (0xffff, 0xffff));
    }

    #[test]
    fn of_ipv6_at_least_1280_bytes_are_told() {
        let answer = answer(&ipv6(&[9; 1400]), 1000).unwrap();
        assert_eq!(answer[54..62], [2, 0, answer[56], answer[57], 0, 0, 0x05, 0x00]);
        let pseudo = [&answer[22..54], &((answer.len() - 54) as u32).to_be_bytes()[..], &[0, 0, 0, 58]].concat();
        assert_eq!(ones_complement_sum(&[&pseudo, &answer[54..]]), 0xffff);
        assert!(answer.len() <= ETHERNET + 1280);
    }

    #[test]
    fn of_errors_and_to_groups_no_error_is_sent() {
        let mut group = ipv4(0x40, 17, &[9; 1400]);
        group[30] = 224;
        let mut nobody = ipv4(0x40, 17, &[9; 1400]);
        nobody[26..30].fill(0);
        for frame in [ipv4(0x40, ICMP, &[3; 1400]), group, nobody, ipv4(0, 17, &[9; 1400]), vec![0; 13]] {
            assert_eq!(answer(&frame, 1230), None);
        }
    }

    #[test]
    fn what_may_be_cut_is_cut_into_fragments_that_make_the_whole_again() {
        let payload: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        for mtu in [68, 576, 1230, 1399] {
            let pieces = cut(ipv4(0, 47, &payload), mtu).unwrap();
            let mut whole: Vec<u8> = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                assert!(piece.len() <= ETHERNET + usize::from(mtu));
                assert_eq!(ones_complement_sum(&[&piece[14..34]]), 0xffff);
                let field = u16::from_be_bytes([piece[20], piece[21]]);
                assert_eq!(usize::from(field & 0x1fff) * 8, whole.len());
                assert_eq!(field & MORE_FRAGMENTS != 0, number + 1 < pieces.len());
                whole.extend(&piece[34..]);
            }
            assert_eq!(whole, payload);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_cut_or_neither(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3_usize, mtu in 0..2000_u16) {
            if let Some(ethertype) = bytes.get_mut(12..14) {
                ethertype.copy_from_slice(&[IPV4, IPV6, [8, 6]][kind]);
            }
            let _ = answer(&bytes, mtu);
            let _ = fragments(&frame_of(bytes), mtu);
        }
    }
}
