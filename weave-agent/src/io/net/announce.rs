//! Telling everybody where an address is now: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! So a moved address is found at once, not when its neighbours' caches expire.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use super::netns::Netns;
use super::socket::{Error, Result};
use super::sys;
use crate::addr::Mac;
use crate::frame::ones_complement_sum;

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// ff02::1, all nodes of the link, and the group address that it maps to.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ICMPV6: u8 = 58;

/// Announce addresses from inside a namespace. A port's program must be in place by then, or nobody hears it.
pub async fn announce(netns: &Netns, ifname: &str, mac: Mac, addrs: &[IpNet]) -> Result<()> {
    let frames: Vec<_> = addrs.iter().map(|net| announcement(mac, net.addr())).collect();
    let (what, ifname) = (format!("announcing the addresses of {}", netns.name()), ifname.to_owned());
    let sent = netns.run(move || send(&ifname, &frames)).await?;
    sent.map_err(|e| Error::new(what, e))
}

fn send(ifname: &str, frames: &[(u16, Vec<u8>)]) -> io::Result<()> {
    let ifindex = nix::net::if_::if_nametoindex(ifname)?;
    // Protocol 0: this socket only sends.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    for (ethertype, frame) in frames {
        socket.send_to(frame, &sys::link_address(ifindex, *ethertype)?)?;
    }
    Ok(())
}

fn announcement(mac: Mac, addr: IpAddr) -> (u16, Vec<u8>) {
    match addr {
        IpAddr::V4(addr) => (ARP, gratuitous_arp(mac, addr)),
        IpAddr::V6(addr) => (IPV6, unsolicited_advertisement(mac, addr)),
    }
}

/// A request for one's own address (RFC 5227 3): updates whoever has the address in its cache.
fn gratuitous_arp(mac: Mac, addr: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, mac, ARP);
    // Ethernet, IPv4, their lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(addr.octets());
    frame.extend([0; 6]);
    frame.extend(addr.octets());
    frame
}

/// A neighbour advertisement with the override flag to all nodes (RFC 4861 7.2.6).
fn unsolicited_advertisement(mac: Mac, addr: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(addr.octets());
    // Option 2: target link-layer address, one unit of 8 bytes.
    message.extend([2, 1]);
    message.extend(mac.0);
    let checksum = !icmpv6_sum(addr, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(addr.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn icmpv6_sum(source: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = [&source.octets()[..], &ALL_NODES.octets(), &[0, 0, 0, message.len() as u8, 0, 0, 0, ICMPV6]].concat();
    ones_complement_sum(&[&pseudo, message])
}

fn ethernet(destination: Mac, source: Mac, ethertype: u16) -> Vec<u8> {
    [&destination.0[..], &source.0, &ethertype.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn an_arp_announcement_asks_everybody_for_its_own_address() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn an_advertisement_has_a_right_checksum() {
        let addr: Ipv6Addr = "fd00::1".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, addr);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(icmpv6_sum(addr, &frame[54..]), 0xffff);
    }
}
