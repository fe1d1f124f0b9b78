//! The ends of a measurement: run inside a lab's namespaces by `cargo xtask bench`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

/// One end.
#[derive(Subcommand)]
pub(crate) enum End {
    /// Answer one connection, byte for byte
    Pong {
        /// TCP port
        #[arg(long)]
        port: u16,
    },
    /// Ask a name server at a fixed rate; print what that gave as JSON
    Dns {
        /// The server
        to: SocketAddr,
        /// Queries per second
        #[arg(long)]
        rate: u32,
        /// How long
        #[arg(long)]
        seconds: u64,
    },
    /// Count datagrams that come to a port
    Sink {
        /// UDP port, and TCP port for the count
        #[arg(long)]
        port: u16,
    },
    /// Send 64-byte datagrams at a fixed rate; print what that gave as JSON
    Source {
        /// The other end
        to: SocketAddr,
        /// Datagrams per second
        #[arg(long)]
        rate: u32,
        /// How long
        #[arg(long)]
        seconds: u64,
    },
    /// Send a byte, wait for it, and so on; print what that gave as JSON
    Ping {
        /// The other end
        to: SocketAddr,
        /// How long
        #[arg(long)]
        seconds: u64,
    },
}

/// Plays this end.
pub(crate) fn run(end: &End) -> Result<()> {
    match end {
        End::Pong { port } => pong(*port),
        End::Dns { to, rate, seconds } => super::dns::client(*to, *rate, Duration::from_secs(*seconds)),
        End::Sink { port } => super::packets::sink(*port),
        End::Source { to, rate, seconds } => super::packets::source(*to, *rate, Duration::from_secs(*seconds)),
        End::Ping { to, seconds } => ping(*to, Duration::from_secs(*seconds)),
    }
}

fn pong(port: u16) -> Result<()> {
    let (mut stream, _) = TcpListener::bind(("::", port))?.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ping(to: SocketAddr, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    let mut trips = Vec::with_capacity(1 << 20);
    let mut byte = [0];
    while start.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        trips.push(sent.elapsed());
    }
    let per_second = trips.len() as f64 / start.elapsed().as_secs_f64();
    trips.sort_unstable();
    let micros = |share: f64| trips[((trips.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{}", json!({ "per_second": per_second, "p50_us": micros(0.5), "p99_us": micros(0.99) }));
    Ok(())
}
