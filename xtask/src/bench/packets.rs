//! Small datagrams at a steady rate. iperf3 calls `select` for each, on both ends: at 150,000 a second that is most of what
//! two CPUs can do, and its measure of what is between would be of how they are shared.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::json;

/// What a datagram carries.
const PAYLOAD: [u8; 64] = [0; 64];
/// Between two looks at the clock, while nothing is due.
const NAP: Duration = Duration::from_micros(50);
/// The usual buffer holds 277 small datagrams: less than comes while whoever else is on the CPU has its 3 ms.
const ROOM: usize = 4 << 20;
/// Nothing comes for so long: it is over.
const SILENCE: Duration = Duration::from_millis(300);

/// Receives datagrams until the connection beside them says how many were sent, and answers with how many came.
pub(super) fn sink(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    socket.set_read_timeout(Some(SILENCE))?;
    setsockopt(&socket, RcvBufForce, &ROOM).context("a larger receive buffer")?;
    let (mut stream, _) = TcpListener::bind(("::", port))?.accept()?;
    let counted = std::thread::spawn(move || {
        let (mut received, mut buffer) = (0_u64, [0; 2048]);
        while socket.recv(&mut buffer).is_ok() {
            received += 1;
        }
        received
    });
    let received = counted.join().ok().context("the counting thread panicked")?;
    stream.write_all(&received.to_be_bytes())?;
    Ok(())
}

/// Sends so many per second; prints what that gave as JSON.
pub(super) fn source(to: SocketAddr, rate: u32, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        if due <= sent {
            std::thread::sleep(NAP);
        }
        while sent < due {
            socket.send(&PAYLOAD)?;
            sent += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut received = [0; 8];
    stream.read_exact(&mut received)?;
    println!("{}", json!({ "sent": sent, "received": u64::from_be_bytes(received), "seconds": seconds }));
    Ok(())
}
