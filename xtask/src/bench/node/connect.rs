//! New TCP connections, one after the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use serde_json::json;

use super::while_connected;

/// Says a byte on each connection: who connects would otherwise be done before this end had its turn on their CPU, and the
/// backlog would fill.
pub(super) fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    let others = listener.try_clone()?;
    while_connected(&listener, move || {
        loop {
            let (mut stream, _) = others.accept()?;
            stream.write_all(&[0])?;
        }
    })
}

/// Connects, waits for the byte, and resets, so that no end has to remember the connection and ports do not run out. Prints
/// what that gave as JSON.
pub(super) fn connect(to: SocketAddr, time: Duration) -> Result<()> {
    let _first = TcpStream::connect(to)?;
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let mut stream = TcpStream::connect(to)?;
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    println!("{}", json!({ "per_second": count as f64 / start.elapsed().as_secs_f64() }));
    Ok(())
}
