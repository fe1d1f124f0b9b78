//! What a stranger sends to a host's VXLAN port.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::json;

/// A VXLAN header with a VNI that the network has (RFC 7348, section 5), before an Ethernet broadcast of the least length.
const DATAGRAM: usize = 8 + 60;
/// Datagrams in one system call: the kernel cuts them apart where they leave it, which makes five times as many as one call for each.
const AT_ONCE: usize = 64;

/// Sends so many per second; prints how many it sent as JSON.
pub(super) fn flood(to: SocketAddrV4, from: Ipv4Addr, rate: f64, time: Duration) -> Result<()> {
    let socket = UdpSocket::bind((from, 0)).with_context(|| format!("{from} is no address of this host"))?;
    socket.connect(to)?;
    setsockopt(&socket, UdpGsoSegment, &(DATAGRAM as i32)).context("datagrams that the kernel cuts apart")?;
    let datagrams = datagram().repeat(AT_ONCE);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        if sent as f64 > start.elapsed().as_secs_f64() * rate {
            std::hint::spin_loop();
            continue;
        }
        match socket.send(&datagrams) {
            Ok(_) => sent += AT_ONCE,
            // What the host has no room for was sent all the same; a port that nobody hears is told of.
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused].contains(&error.kind()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    println!("{}", json!({ "sent": sent, "seconds": start.elapsed().as_secs_f64() }));
    Ok(())
}

fn datagram() -> [u8; DATAGRAM] {
    let mut bytes = [0; DATAGRAM];
    bytes[0] = 8;
    bytes[8..14].fill(0xff);
    bytes[14] = 2;
    // IEEE local experimental: nobody answers it.
    bytes[20..22].copy_from_slice(&[0x88, 0xb6]);
    bytes
}
