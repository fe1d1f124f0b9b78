//! What stands before a frame between the programs and the sleeve's TAP device ([`weave_ebpf::sleeve`]): for whom it is, or from whom.

use std::net::Ipv4Addr;

use weave_ebpf::sleeve::Prefix;

pub use weave_ebpf::sleeve::PREFIX;

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
    let Prefix { ttl, neighbour, vni } = Prefix::parse(&prefix[..])?;
    Some((neighbour.into(), Tag { vni, hop_limit: ttl }))
}

/// Make one for a frame that begins with `frame`.
pub fn write(neighbour: Ipv4Addr, tag: Tag, frame: &[u8]) -> [u8; PREFIX] {
    let kind = frame.get(ETHERTYPE..).and_then(|rest| rest.first_chunk()).map_or(0, |kind| u16::from_be_bytes(*kind));
    Prefix { ttl: tag.hop_limit, neighbour: neighbour.octets(), vni: tag.vni }.bytes(kind)
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
        frame[12..].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(write(neighbour, tag, &frame)[12..], [0x86, 0xdd]);
    }

    #[test]
    fn what_the_kernel_sends_by_itself_is_no_prefix() {
        assert_eq!(read(&[0xff; PREFIX]), None);
        assert_eq!(read(&[0x33, 0x33, 0, 0, 0, 2, 0x36, 1, 2, 3, 4, 5, 0x86, 0xdd]), None);
    }
}
