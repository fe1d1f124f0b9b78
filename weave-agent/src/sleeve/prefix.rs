//! What stands before a frame between the programs and the sleeve's TAP device: for whom it is, or from whom.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | 0x02 |
//! | 1 | 1 | hop limit |
//! | 2 | 4 | the neighbour, by the address that the switch knows it by |
//! | 6 | 3 | 0x02, zero, zero |
//! | 9 | 3 | VNI |
//! | 12 | 2 | EtherType: 0x86dd if the frame's is that, else 0x0800 |
//!
//! To the kernel it looks like an Ethernet header, so that it can cut what is large and finish checksums.

use std::net::Ipv4Addr;

/// Its length.
pub const PREFIX: usize = 14;

const IPV6: [u8; 2] = [0x86, 0xdd];
const OTHER: [u8; 2] = [0x08, 0x00];
/// Where an Ethernet frame has its EtherType.
const ETHERTYPE: usize = 12;

/// Where a frame is in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// As in a VXLAN header.
    pub vni: u32,
    /// What is left of the way: each relay takes 8.
    pub hop_limit: u8,
}

/// Read one; `None` if it is none: the kernel itself may have sent the frame.
pub fn read(prefix: &[u8; PREFIX]) -> Option<(Ipv4Addr, Tag)> {
    let [2, hop_limit, a, b, c, d, 2, 0, 0, high, middle, low, _, _] = *prefix else { return None };
    Some((Ipv4Addr::new(a, b, c, d), Tag { vni: u32::from_be_bytes([0, high, middle, low]), hop_limit }))
}

/// Make one for a frame that begins with `frame`.
pub fn write(neighbour: Ipv4Addr, tag: Tag, frame: &[u8]) -> [u8; PREFIX] {
    let [a, b, c, d] = neighbour.octets();
    let [_, high, middle, low] = tag.vni.to_be_bytes();
    let [x, y] = if frame.get(ETHERTYPE..ETHERTYPE + 2) == Some(&IPV6) { IPV6 } else { OTHER };
    [2, tag.hop_limit, a, b, c, d, 2, 0, 0, high, middle, low, x, y]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (neighbour, tag) = (Ipv4Addr::new(10, 0, 0, 7), Tag { vni: 0xabcdef, hop_limit: 56 });
        let mut frame = [0; 14];
        let prefix = write(neighbour, tag, &frame);
        assert_eq!(prefix, [2, 56, 10, 0, 0, 7, 2, 0, 0, 0xab, 0xcd, 0xef, 8, 0]);
        assert_eq!(read(&prefix), Some((neighbour, tag)));
        frame[12..].copy_from_slice(&IPV6);
        assert_eq!(write(neighbour, tag, &frame)[12..], IPV6);
    }

    #[test]
    fn what_the_kernel_sends_by_itself_is_no_prefix() {
        assert_eq!(read(&[0xff; PREFIX]), None);
        assert_eq!(read(&[0x33, 0x33, 0, 0, 0, 2, 0x36, 1, 2, 3, 4, 5, 0x86, 0xdd]), None);
    }
}
