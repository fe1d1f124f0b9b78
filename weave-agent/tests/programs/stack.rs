//! What the kernel itself does with a packet on behalf of the programs, and when it refuses.

use weave_ebpf::flow::PeerSlot;
use weave_ebpf::packet::{Packet, ethertype};
use weave_ebpf::vxlan::{self, Fields, OUTER, Path};

use crate::capture::Seen;
use crate::carry::Given;
use crate::host::writes_headers;
use crate::wires::{LOCAL, TUNNEL_PORT, Wires, neighbour_mac};

/// Whether `BPF_PROG_TEST_RUN` takes a packet. It wants an Ethernet header, as every driver hands one up, and since 2025 a
/// whole network header where the EtherType says IP. (Shorter ones inside tunnels are taken, and compared.)
pub(crate) fn takes(packet: &[u8]) -> bool {
    whole_for_old_devices(packet)
        && match ethertype(packet, 0) {
            None => false,
            Some(ethertype::IPV4) => packet.len() >= 14 + 20,
            Some(ethertype::IPV6) => packet.len() >= 14 + 40,
            Some(_) => true,
        }
}

/// A vxlan device of Linux 5.10 sends IP frames that are too short to be any; later ones drop them ([`whole_network_header`]).
/// There such packets are left out.
fn whole_for_old_devices(packet: &[u8]) -> bool {
    vm_tests::kernel::is_at_least(5, 15) || (whole_network_header(packet) && packet.get(OUTER..).is_none_or(whole_network_header))
}

/// Whether `bpf_skb_adjust_room` puts headers on. A test run's context can say a packet is GSO but not of which kind,
/// and of a kind it does not know the helper takes none. (That of a container is TCP or UDP; see `delivery.rs`.) Below Linux
/// 5.13 it does not know of Ethernet inside, and no loader asks it: but these tables do.
pub(crate) fn grows(given: Given<'_>) -> bool {
    writes_headers() && given.context.gso_size == 0
}

/// Whether it takes them off: what remains must be able to hold the network header.
pub(crate) fn shrinks(given: Given<'_>) -> bool {
    let header = if ethertype(&given, OUTER) == Some(ethertype::IPV6) { 40 } else { 20 };
    given.context.gso_size == 0 && given.bytes.len() >= OUTER + 14 + header
}

/// What is seen of a frame sent through the vxlan device: itself there, and as a packet on the underlay.
pub(crate) fn sends(given: Given<'_>, slot: &PeerSlot, vni: u32, ttl: u8, wires: &Wires) -> Vec<Seen> {
    let frame = given.bytes;
    let mut seen = vec![Seen { ifindex: wires.vxlan, bytes: frame.to_vec() }];
    if whole_network_header(frame) && given.context.gso_size == 0 {
        let underlay = usize::from(slot.remote[1]);
        let next_hop = (wires.underlay[underlay], wires.underlay_mac[underlay], neighbour_mac(slot.remote));
        let path = Path {
            local: LOCAL[underlay],
            remote: slot.remote,
            port: TUNNEL_PORT,
            mtu: 0,
            next_hop: Some(next_hop),
            esp: false,
            big: false,
        };
        let fields = Fields { ttl, ..Fields::new(frame.len() as u32, 0) };
        let outer = vxlan::headers(&vxlan::slot(&path), vni, fields);
        seen.push(Seen { ifindex: wires.underlay[underlay], bytes: [outer.as_slice(), frame].concat() });
    }
    seen
}

/// A vxlan device drops what says it is IP, perhaps behind VLAN tags, but is too short for it (`skb_vlan_inet_prepare`).
fn whole_network_header(frame: &[u8]) -> bool {
    let mut network = 14;
    loop {
        let kind = frame.read::<2>(network - 2).map(u16::from_be_bytes);
        network += match kind {
            // A tag and nothing behind it.
            None => return true,
            Some(0x8100 | 0x88a8) => 4,
            Some(ethertype::IPV4) => return frame.len() >= network + 20,
            Some(ethertype::IPV6) => return frame.len() >= network + 40,
            Some(_) => return true,
        };
    }
}

/// A packet with what is the kernel's free choice put aside: the source port it hashed, and on a packet that the stack
/// sent its identification and the congestion bits it took from the frame. With them goes the checksum, if it is right.
pub(crate) fn without_choices(mut packet: Vec<u8>) -> Vec<u8> {
    let tunnel = packet.read::<2>(36) == Some(TUNNEL_PORT.to_be_bytes()) && packet.read::<2>(12) == Some([8, 0]);
    if tunnel && packet[14] == 0x45 && packet[23] == 17 && packet.len() > OUTER {
        if checksum_is_right(&packet[14..34]) {
            packet[24..26].fill(0);
        }
        packet[15] &= !3;
        packet[18..20].fill(0);
        packet[34..36].fill(0);
    }
    packet
}

fn checksum_is_right(header: &[u8]) -> bool {
    let sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}
