//! Frames of containers, and packets of neighbours.

use std::net::Ipv4Addr;

use weave_agent::frame::ones_complement_sum;
use weave_ebpf::vxlan::{self, Fields, OUTER};

use crate::wires::{LOCAL, TUNNEL_PORT, neighbour_mac};

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A container's MAC.
pub(crate) fn container(number: u8) -> [u8; 6] {
    [2, 0xcc, 0, 0, 0, number]
}

/// UDP, so that nobody answers; without a checksum.
pub(crate) fn udp(src: u8, dst: [u8; 6]) -> Vec<u8> {
    udp_of(src, dst, 62)
}

/// The same with so many bytes in all.
pub(crate) fn udp_of(src: u8, dst: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((len as u16 - 14).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 32, 0, src, 10, 32, 0, 99, 0, 80, 0, 90]);
    frame.extend((len as u16 - 34).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(len, src);
    frame
}

pub(crate) fn ipv6(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 59, 64]);
    frame.resize(14 + 60, src);
    frame
}

pub(crate) fn arp(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.resize(42, src);
    frame
}

/// Of no kind that any stack knows.
pub(crate) fn other(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([0x88, 0xb6]);
    frame.resize(100, src);
    frame
}

pub(crate) fn with_tag(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

/// One of each kind that a datapath may treat by itself.
pub(crate) fn kinds(src: u8, dst: [u8; 6]) -> Vec<Vec<u8>> {
    let plain = udp(src, dst);
    vec![with_tag(&plain), ipv6(src, dst), arp(src, dst), other(src, dst), plain]
}

/// A TCP segment of so many bytes whose sender has begun its checksum.
pub(crate) fn tcp(src: u8, dst: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((len as u16 - 14).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, src, 10, 32, 0, 99]);
    let pseudo = ones_complement_sum(&[&frame[26..34], &[0, 6], &(len as u16 - 34).to_be_bytes()]);
    frame.extend([0, 80, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0]);
    frame.extend(pseudo.to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(len, src);
    frame
}

/// The TCP checksum is right.
pub(crate) fn is_finished(frame: &[u8]) -> bool {
    let len = (frame.len() - 34) as u16;
    ones_complement_sum(&[&frame[26..34], &[0, 6], &len.to_be_bytes(), &frame[34..]]) == 0xffff
}

/// Peer n is at 10.0.0.n, but 3 at 10.1.0.3.
pub(crate) fn address(peer: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, u8::from(peer == 3), 0, peer as u8)
}

/// A packet from a neighbour as it arrives.
pub(crate) fn tunnelled(underlay_mac: [[u8; 6]; 2], from: u16, vni: u32, ttl: u8, frame: &[u8]) -> Vec<u8> {
    let remote = address(from).octets();
    let underlay = usize::from(remote[1]);
    let next_hop = Some((0, neighbour_mac(remote), underlay_mac[underlay]));
    let path = vxlan::Path { local: remote, remote: LOCAL[underlay], port: TUNNEL_PORT, mtu: 0, next_hop, esp: false, big: false };
    let fields = Fields { ttl, ..Fields::new(frame.len() as u32, 0) };
    [vxlan::headers(&vxlan::slot(&path), vni, fields).as_slice(), frame].concat()
}

/// A packet for a neighbour as it leaves, without what is the sender's choice.
pub(crate) fn outgoing(underlay_mac: [[u8; 6]; 2], to: u16, vni: u32, ttl: u8, frame: &[u8]) -> Vec<u8> {
    let remote = address(to).octets();
    let underlay = usize::from(remote[1]);
    let next_hop = Some((0, underlay_mac[underlay], neighbour_mac(remote)));
    let path = vxlan::Path { local: LOCAL[underlay], remote, port: TUNNEL_PORT, mtu: 0, next_hop, esp: false, big: false };
    let fields = Fields { ttl, ..Fields::new(frame.len() as u32, 0) };
    without_choices([vxlan::headers(&vxlan::slot(&path), vni, fields).as_slice(), frame].concat())
}

/// Source port, identification and congestion bits are the sender's choice; with them goes the checksum, if it is right.
pub(crate) fn without_choices(mut packet: Vec<u8>) -> Vec<u8> {
    if packet.len() > OUTER && packet[12..15] == [8, 0, 0x45] && packet[23] == 17 && packet[36..38] == TUNNEL_PORT.to_be_bytes() {
        if ones_complement_sum(&[&packet[14..34]]) == 0xffff {
            packet[24..26].fill(0);
        }
        packet[15] &= !3;
        packet[18..20].fill(0);
        packet[34..36].fill(0);
    }
    packet
}
