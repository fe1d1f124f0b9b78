//! TCP connections on their way to be links: listening and dialling.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::event::{Event, Events, Stream};

/// Connections accepted at once, and how often one more may be. Weave Net's 50 ms would keep a few hundred peers that come
/// back together waiting for many seconds.
const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(5);
/// A dial that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The mesh's TCP port.
pub async fn listen(host: Option<Ipv4Addr>, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddrV4::new(host.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    TcpListener::bind(address).await.map_err(|error| not_listening(&error, address))
}

fn not_listening(error: &io::Error, address: SocketAddrV4) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        return anyhow::anyhow!("--host {} is no address of this host: `ip -4 address` shows those it has", address.ip());
    }
    anyhow::anyhow!(
        "cannot listen on TCP {address}: if another agent or Weave Net has the port, stop it or choose one with --port ({error})"
    )
}

/// Accept for as long as the agent runs.
pub async fn accept(listener: TcpListener, events: Events) {
    let mut bucket = Bucket::new(now());
    loop {
        sleep_until(bucket.take(now())).await;
        match listener.accept().await.and_then(|(stream, _)| ends(stream)) {
            Ok(stream) => {
                if events.send(Event::Accepted(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: others need time to give some back.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Dial, from `host` if there is one, and tell how it went.
pub async fn dial(host: Option<Ipv4Addr>, remote: SocketAddrV4, events: Events) {
    let dialled = timeout(PATIENCE, connection(host, remote)).await;
    let event = match dialled.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))) {
        Ok(stream) => Event::Dialled(Stream { remote, ..stream }),
        Err(error) => Event::DialFailed { remote, error: error.to_string() },
    };
    // Nobody left to tell: the agent ends.
    let _ = events.send(event).await;
}

async fn connection(host: Option<Ipv4Addr>, remote: SocketAddrV4) -> io::Result<Stream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(host) = host {
        socket.bind(SocketAddrV4::new(host, 0).into())?;
    }
    ends(socket.connect(remote.into()).await?)
}

fn ends(stream: TcpStream) -> io::Result<Stream> {
    match (stream.local_addr()?, stream.peer_addr()?) {
        (SocketAddr::V4(local), SocketAddr::V4(remote)) => Ok(Stream { stream, local, remote }),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the underlay is IPv4")),
    }
}

fn now() -> Instant {
    Instant::now()
}

/// A token bucket that says when.
#[derive(Debug)]
struct Bucket {
    /// When all tokens are there again.
    full: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Take a token: it is there at the time returned.
    fn take(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + INTERVAL;
        let burst = INTERVAL * BURST;
        self.full.checked_sub(burst).map_or(now, |when| when.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_at_once_then_one_every_fifty_milliseconds() {
        let start = now();
        let mut bucket = Bucket::new(start);
        let waits: Vec<_> = (0..22).map(|_| bucket.take(start) - start).collect();
        assert_eq!(waits[..20], [Duration::ZERO; 20]);
        assert_eq!(waits[20..], [INTERVAL, INTERVAL * 2]);
        let later = start + Duration::from_secs(60);
        assert_eq!(bucket.take(later), later);
    }
}
