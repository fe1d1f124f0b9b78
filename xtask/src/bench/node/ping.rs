//! One byte there and back, again and again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::{towards, while_connected};
use crate::bench::table::quantile;

/// A datagram that is not answered by then is lost, and so is the measurement.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers one connection, byte for byte.
pub(super) fn pong(port: u16) -> Result<()> {
    let (mut stream, _) = TcpListener::bind(("::", port))?.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Answers datagrams.
pub(super) fn pong_datagrams(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    while_connected(&TcpListener::bind(("::", port))?, move || {
        let mut byte = [0];
        loop {
            let (length, from) = socket.recv_from(&mut byte)?;
            socket.send_to(&byte[..length], from)?;
        }
    })
}

/// Over TCP; prints what that gave as JSON.
pub(super) fn ping(to: SocketAddr, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    trips(time, || {
        let mut byte = [0];
        stream.write_all(&byte)?;
        Ok(stream.read_exact(&mut byte)?)
    })
}

/// Over UDP; prints what that gave as JSON.
pub(super) fn ping_datagrams(to: SocketAddr, time: Duration) -> Result<()> {
    let (socket, _connection) = towards(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    trips(time, || {
        socket.send(&[0])?;
        socket.recv(&mut [0]).map(drop).context("a datagram was lost")
    })
}

fn trips(time: Duration, mut trip: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let mut micros = Vec::with_capacity(1 << 20);
    while start.elapsed() < time {
        let sent = Instant::now();
        trip()?;
        micros.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    let per_second = micros.len() as f64 / start.elapsed().as_secs_f64();
    micros.sort_unstable_by(f64::total_cmp);
    println!("{}", json!({ "per_second": per_second, "p50_us": quantile(&micros, 0.5), "p99_us": quantile(&micros, 0.99) }));
    Ok(())
}
