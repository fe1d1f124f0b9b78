//! Large frames into segments, and checksums finished: what the kernel would do before a wire.

use crate::frame::{ETHERNET, IPV4, IPV4_HEADER, IPV6_HEADER, TCP, UDP, UDP_HEADER, VLAN, fold, u16_at};
use crate::virtio::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Offload};

/// TCP flags that only the last segment has (FIN, PSH), and the one that only the first has (CWR).
const LAST: u8 = 0x09;
const FIRST: u8 = 0x80;

/// A large frame, seen as what it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    frame: &'a [u8],
    ip: usize,
    transport: usize,
    headers: usize,
    size: usize,
    v4: bool,
    tcp: bool,
}

impl<'a> Cut<'a> {
    /// `None` if it is no large frame, or of a kind that is not understood.
    pub(super) fn new(frame: &'a [u8], offload: Offload) -> Option<Self> {
        let (size, transport) = (usize::from(offload.gso_size), usize::from(offload.checksum?.0));
        let mut ip = ETHERNET;
        while VLAN.contains(&u16_at(frame, ip - 2)?) {
            ip += 4;
        }
        let v4 = u16_at(frame, ip - 2)? == IPV4;
        let tcp = match offload.kind() {
            GSO_TCPV4 if v4 => true,
            GSO_TCPV6 if !v4 => true,
            GSO_UDP_L4 => false,
            _ => return None,
        };
        let header = if tcp { usize::from(frame.get(transport + 12)? >> 4) * 4 } else { UDP_HEADER };
        let headers = transport + header;
        let whole = size > 0
            && transport >= ip + if v4 { IPV4_HEADER } else { IPV6_HEADER }
            && header >= if tcp { 20 } else { UDP_HEADER }
            && frame.len() > headers;
        whole.then_some(Self { frame, ip, transport, headers, size, v4, tcp })
    }

    /// How many segments.
    pub(super) fn count(&self) -> usize {
        (self.frame.len() - self.headers).div_ceil(self.size)
    }

    /// Bytes of every segment but the last, which may have fewer.
    pub(super) fn segment_len(&self) -> usize {
        self.headers + self.size.min(self.frame.len() - self.headers)
    }

    /// Appends one segment, whole.
    pub(super) fn write(&self, index: usize, out: &mut Vec<u8>) {
        let from = self.headers + index * self.size;
        let Some(payload) = self.frame.get(from..self.frame.len().min(from + self.size)) else { return };
        let start = out.len();
        out.extend_from_slice(&self.frame[..self.headers]);
        out.extend_from_slice(payload);
        let segment = &mut out[start..];
        self.fix_ip(segment, index);
        if self.tcp { self.fix_tcp(segment, index) } else { self.fix_udp(segment) }
    }

    fn fix_ip(&self, segment: &mut [u8], index: usize) {
        let (ip, len) = (self.ip, segment.len() - self.ip);
        if !self.v4 {
            return put(segment, ip + 4, (len - IPV6_HEADER) as u16);
        }
        put(segment, ip + 2, len as u16);
        let id = u16::from_be_bytes([segment[ip + 4], segment[ip + 5]]);
        put(segment, ip + 4, id.wrapping_add(index as u16));
        put(segment, ip + 10, 0);
        let checksum = !fold(sum(&segment[ip..self.transport]));
        put(segment, ip + 10, checksum);
    }

    fn fix_tcp(&self, segment: &mut [u8], index: usize) {
        let at = self.transport;
        let sequence = u32::from_be_bytes([segment[at + 4], segment[at + 5], segment[at + 6], segment[at + 7]]);
        let sequence = sequence.wrapping_add((index * self.size) as u32);
        segment[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count() {
            segment[at + 13] &= !LAST;
        }
        if index > 0 {
            segment[at + 13] &= !FIRST;
        }
        self.finish(segment, at + 16, TCP);
    }

    fn fix_udp(&self, segment: &mut [u8]) {
        let at = self.transport;
        put(segment, at + 4, (segment.len() - at) as u16);
        self.finish(segment, at + 6, UDP);
    }

    /// The transport checksum from nothing.
    fn finish(&self, segment: &mut [u8], at: usize, protocol: u8) {
        let addresses = if self.v4 { self.ip + 12..self.ip + 20 } else { self.ip + 8..self.ip + 40 };
        put(segment, at, 0);
        let pseudo = sum(&segment[addresses]) + u64::from(protocol) + (segment.len() - self.transport) as u64;
        let checksum = !fold(pseudo + sum(&segment[self.transport..]));
        put(segment, at, if checksum == 0 && protocol == UDP { 0xffff } else { checksum });
    }
}

/// Finishes the checksum of a frame of ordinary size, whose sender began it. False if it says nonsense.
pub(super) fn finish(frame: &mut [u8], offload: Offload) -> bool {
    let Some((start, offset)) = offload.checksum else { return false };
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if at + 2 > frame.len() {
        return false;
    }
    let checksum = !fold(sum(&frame[start..]));
    // Zero would say that there is none, in UDP; elsewhere it is as good.
    put(frame, at, if checksum == 0 { 0xffff } else { checksum });
    true
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sum of the 16-bit words (RFC 1071), not folded: in words of the machine's own order, of which any will do.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let native = words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    u64::from(u16::from_be_bytes(fold(native).to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{ones_complement_sum, unfinished};

    /// A TCP or UDP frame whose sender began its checksum.
    fn frame(v4: bool, tcp: bool, tagged: bool, payload: usize) -> Vec<u8> {
        let mut l4 = if tcp { vec![0; 32] } else { vec![0; 8] };
        if tcp {
            (l4[7], l4[12], l4[13]) = (250, 8 << 4, 0x99);
        }
        l4.extend((0..payload).map(|byte| (byte * 7) as u8));
        let len = l4.len() as u16;
        let mut bytes = vec![2; 12];
        if tagged {
            bytes.extend([0x81, 0, 0, 7]);
        }
        let (protocol, addresses) = (if tcp { TCP } else { UDP }, vec![10; if v4 { 8 } else { 32 }]);
        if v4 {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend((len + 20).to_be_bytes());
            bytes.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0]);
        } else {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(len.to_be_bytes());
            bytes.extend([protocol, 64]);
        }
        bytes.extend(&addresses);
        let pseudo = ones_complement_sum(&[&addresses, &[0, protocol], &len.to_be_bytes()]);
        let at = if tcp { 16 } else { 6 };
        l4[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        if !tcp {
            l4[4..6].copy_from_slice(&len.to_be_bytes());
        }
        bytes.extend(l4);
        bytes
    }

    /// The checksum over pseudo header and all that follows comes out even.
    fn is_right(segment: &[u8], ip: usize, v4: bool) -> bool {
        let (addresses, l4) = if v4 { (&segment[ip + 12..ip + 20], ip + 20) } else { (&segment[ip + 8..ip + 40], ip + 40) };
        let protocol = segment[if v4 { ip + 9 } else { ip + 6 }];
        let len = (segment.len() - l4) as u16;
        let header = !v4 || ones_complement_sum(&[&segment[ip..l4]]) == 0xffff;
        header && ones_complement_sum(&[addresses, &[0, protocol], &len.to_be_bytes(), &segment[l4..]]) == 0xffff
    }

    proptest! {
        #[test]
        fn segments_are_in_order_whole_and_their_checksums_right(
            v4: bool, tcp: bool, tagged: bool, payload in 1_500_usize..60_000, size in 500_u16..1_400,
        ) {
            let large = frame(v4, tcp, tagged, payload);
            let cut = Cut::new(&large, unfinished(&large, size)).unwrap();
            let ip = if tagged { 18 } else { 14 };
            let transport = ip + if v4 { 20 } else { 40 };
            let headers = transport + if tcp { 32 } else { 8 };
            let (mut data, mut out) = (Vec::new(), Vec::new());
            for index in 0..cut.count() {
                out.clear();
                cut.write(index, &mut out);
                prop_assert!(is_right(&out, ip, v4));
                prop_assert!(out.len() <= cut.segment_len());
                if tcp {
                    let sequence = u32::from_be_bytes(out[transport + 4..transport + 8].try_into().unwrap());
                    prop_assert_eq!(sequence as usize, 250 + data.len());
                    let (first, last) = (index == 0, index + 1 == cut.count());
                    prop_assert_eq!(out[transport + 13], 0x10 | if first { 0x80 } else { 0 } | if last { 9 } else { 0 });
                }
                data.extend_from_slice(&out[headers..]);
            }
            prop_assert_eq!(&data[..], &large[headers..]);
        }

        #[test]
        fn a_checksum_that_its_sender_began_is_finished(v4: bool, tcp: bool, tagged: bool, payload in 0_usize..1_500) {
            let mut bytes = frame(v4, tcp, tagged, payload);
            let offload = unfinished(&bytes, 0);
            prop_assert!(offload.checksum.is_some() && finish(&mut bytes, offload));
            let ip = if tagged { 18 } else { 14 };
            // That of the IP header is none of its business.
            let (l4, addresses) = if v4 { (ip + 20, ip + 12..ip + 20) } else { (ip + 40, ip + 8..ip + 40) };
            let len = (bytes.len() - l4) as u16;
            let protocol = if tcp { TCP } else { UDP };
            prop_assert_eq!(ones_complement_sum(&[&bytes[addresses], &[0, protocol], &len.to_be_bytes(), &bytes[l4..]]), 0xffff);
        }

        #[test]
        fn nonsense_is_cut_into_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200), header: [u8; 10]) {
            let offload = Offload::from_virtio(&header, 0);
            if let Some(cut) = Cut::new(&bytes, offload) {
                let mut out = Vec::new();
                (0..cut.count()).for_each(|index| cut.write(index, &mut out));
            }
            finish(&mut bytes.clone(), offload);
        }
    }
}
