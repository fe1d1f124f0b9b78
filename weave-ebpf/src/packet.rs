//! Bounds-checked access to a packet, from its Ethernet header on.

/// A packet as the fast path sees it. The kernel binding reads packet memory, everything else a slice.
pub trait Packet {
    /// `N` bytes at `offset`, or `None` if the packet ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Bytes in all.
    fn len(&self) -> u32;

    /// No bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments this packet stands for: 1, or more for GSO.
    fn segments(&self) -> u32 {
        1
    }

    /// Payload per segment of a GSO packet, else 0.
    fn gso_size(&self) -> u32 {
        0
    }

    /// Whether a VLAN tag stands beside the packet instead of in it.
    fn is_tagged(&self) -> bool {
        false
    }
}

impl Packet for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn len(&self) -> u32 {
        self.len() as u32
    }
}

/// EtherType values (IEEE 802 numbers, host order).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Whether `bpf_skb_adjust_room` takes a frame with this EtherType: it refuses all but IPv4 and IPv6.
#[inline(always)]
pub const fn is_ip(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::IPV4 | ethertype::IPV6)
}

/// EtherType at `offset` of the packet.
#[inline(always)]
pub fn ethertype<P: Packet + ?Sized>(packet: &P, offset: usize) -> Option<u16> {
    packet.read::<2>(offset + 12).map(u16::from_be_bytes)
}
