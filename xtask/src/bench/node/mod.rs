//! The ends of a measurement: run inside a lab's namespaces by `cargo xtask bench`.

mod connect;
mod datagrams;
mod ping;
mod strangers;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

use super::scenarios::{dns, vm};

/// One end.
#[derive(Subcommand)]
pub(crate) enum End {
    /// Answer one connection, byte for byte
    Pong {
        /// TCP port
        #[arg(long)]
        port: u16,
        /// Answer datagrams, as long as the connection beside them lasts
        #[arg(long)]
        udp: bool,
    },
    /// Accept connections, say a byte on each and close it, as long as the first one lasts
    Serve {
        /// TCP port
        #[arg(long)]
        port: u16,
    },
    /// Make one connection after the other; print what that gave as JSON
    Connect {
        /// The other end
        to: SocketAddr,
        /// How long
        #[arg(long)]
        seconds: f64,
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
        seconds: f64,
    },
    /// Count datagrams that come to a port
    Sink {
        /// UDP port, and TCP port for the count
        #[arg(long)]
        port: u16,
        /// Bytes that may wait to be counted
        #[arg(long, default_value_t = datagrams::ROOM)]
        room: usize,
    },
    /// Send datagrams at a fixed rate; print what that gave as JSON
    Source {
        /// The other end
        to: SocketAddr,
        /// Datagrams per second
        #[arg(long)]
        rate: f64,
        /// Bytes in each
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long
        #[arg(long)]
        seconds: f64,
    },
    /// Send VXLAN of a stranger at a fixed rate; print what that gave as JSON
    Strangers {
        /// The host that is to have it
        to: SocketAddrV4,
        /// The address it comes from
        #[arg(long)]
        from: Ipv4Addr,
        /// Packets per second
        #[arg(long)]
        rate: f64,
        /// How long
        #[arg(long)]
        seconds: f64,
    },
    /// All of the scenario of this name that happens in its machine; print what that gave as JSON
    Vm {
        /// How often each contender runs
        #[arg(long)]
        rounds: usize,
        /// How long one run takes
        #[arg(long)]
        seconds: f64,
    },
    /// Send a byte, wait for it, and so on; print what that gave as JSON
    Ping {
        /// The other end
        to: SocketAddr,
        /// By datagrams
        #[arg(long)]
        udp: bool,
        /// How long
        #[arg(long)]
        seconds: f64,
    },
}

/// Plays this end.
pub(crate) fn run(end: &End) -> Result<()> {
    let time = |seconds: &f64| Duration::try_from_secs_f64(*seconds);
    match end {
        End::Pong { port, udp: false } => ping::pong(*port),
        End::Pong { port, udp: true } => ping::pong_datagrams(*port),
        End::Serve { port } => connect::serve(*port),
        End::Connect { to, seconds } => connect::connect(*to, time(seconds)?),
        End::Dns { to, rate, seconds } => dns::client(*to, *rate, time(seconds)?),
        End::Sink { port, room } => datagrams::sink(*port, *room),
        End::Source { to, rate, size, seconds } => datagrams::source(*to, *rate, *size, time(seconds)?),
        End::Strangers { to, from, rate, seconds } => strangers::flood(*to, *from, *rate, time(seconds)?),
        End::Vm { rounds, seconds } => vm::inside(*rounds, time(seconds)?),
        End::Ping { to, udp: false, seconds } => ping::ping(*to, time(seconds)?),
        End::Ping { to, udp: true, seconds } => ping::ping_datagrams(*to, time(seconds)?),
    }
}

/// Works in a thread until the first connection to this end, which says nothing, is closed; then the process ends.
fn while_connected(listener: &TcpListener, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let (mut first, _) = listener.accept()?;
    let worker = thread::spawn(work);
    first.read_to_end(&mut Vec::new())?;
    // It would go on for ever; if it has ended, it failed.
    if worker.is_finished() { worker.join().unwrap_or_else(|_| anyhow::bail!("this end panicked")) } else { Ok(()) }
}

/// A datagram socket towards another end, and a connection that says for how long.
fn towards(to: SocketAddr) -> Result<(UdpSocket, TcpStream)> {
    let connection = TcpStream::connect(to)?;
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    Ok((socket, connection))
}
