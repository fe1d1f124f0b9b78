//! Datagrams at a steady rate. iperf3 calls `select` for each, on both ends: at 150,000 a second that is most of what
//! two CPUs can do, and its measure of what is between would be of how they are shared.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::json;

use super::towards;

/// Between two looks at the clock, while nothing is due.
const NAP: Duration = Duration::from_micros(50);
/// Most that are sent between two looks at the clock.
const AT_ONCE: u64 = 64;
/// The usual buffer holds 277 small datagrams: less than comes while whoever else is on the CPU has its 3 ms.
pub(super) const ROOM: usize = 4 << 20;
/// When nothing comes for so long the sink looks whether it is over.
const SILENCE: Duration = Duration::from_millis(300);

/// Receives datagrams until the source has sent all and no more come, and says on the connection beside them how many came.
pub(super) fn sink(port: u16, room: usize) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    socket.set_read_timeout(Some(SILENCE))?;
    setsockopt(&socket, RcvBufForce, &room).context("a larger receive buffer")?;
    let (mut stream, _) = TcpListener::bind(("::", port))?.accept()?;
    stream.set_nonblocking(true)?;
    let (mut received, mut buffer) = (0_u64, [0; 2048]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => received += 1,
            // On a busy machine the source may be silent for so long, too: it says when it has sent all.
            Err(error) if error.kind() == ErrorKind::WouldBlock => match stream.read(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                over => {
                    over?;
                    break;
                }
            },
            Err(error) => return Err(error.into()),
        }
    }
    stream.write_all(&received.to_be_bytes())?;
    Ok(())
}

/// Sends so many per second; prints what that gave as JSON.
pub(super) fn source(to: SocketAddr, rate: f64, size: usize, time: Duration) -> Result<()> {
    let (socket, mut stream) = towards(to)?;
    let payload = vec![0; size];
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        let now = due.saturating_sub(sent).min(AT_ONCE);
        if now == 0 {
            std::thread::sleep(NAP);
        }
        (0..now).try_for_each(|_| socket.send(&payload).map(drop))?;
        sent += now;
    }
    let seconds = start.elapsed().as_secs_f64();
    stream.shutdown(Shutdown::Write)?;
    let mut received = [0; 8];
    stream.read_exact(&mut received)?;
    println!("{}", json!({ "sent": sent, "received": u64::from_be_bytes(received), "seconds": seconds }));
    Ok(())
}
