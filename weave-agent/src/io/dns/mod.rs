//! The name server: sockets, and the queries that others answer.
//!
//! Whoever owns the [`crate::dns::Dns`] machine puts its zones into a `watch` channel; answering looks at nothing else, so that it goes on
//! whatever the agent's loop is doing. Queries that are not ours go to the servers of `resolv.conf` in tasks of their own, of which there
//! are so many and no more: local answers never wait for them.
//!
//! Containers reach it at [`net::nameserver`](super::net::nameserver), not in their own namespaces: a socket keeps its namespace, and with
//! it the container's interface, alive for ever.

mod counters;
mod datagrams;
mod exchange;
mod forward;
mod listen;
mod resolv;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use counters::Counts;
pub use listen::ListenError;

use self::counters::Counters;
use self::forward::Forwarder;
use super::net::Netns;
use crate::dns::Zone;

/// What a server may be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the servers are named that are asked about everything else; read again when it changes.
    pub resolv_conf: PathBuf,
    /// How long one of them is waited for before the next is asked.
    pub timeout: Duration,
    /// Queries that may wait for them at a time; more get SERVFAIL at once.
    pub in_flight: usize,
    /// TCP connections at a time; more are closed at once.
    pub connections: usize,
    /// The same of one client, so that others are left some.
    pub connections_of_one: usize,
    /// How long a TCP connection may be silent before its first query: who means to ask does so at once.
    pub first: Duration,
    /// How long it may be silent after that.
    pub idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            timeout: Duration::from_secs(2),
            in_flight: 1024,
            connections: 256,
            connections_of_one: 32,
            first: Duration::from_secs(2),
            idle: Duration::from_secs(10),
        }
    }
}

/// What `status dns` shows of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where it listens, and in which namespace.
    pub listening: Vec<Listening>,
    /// Who is asked about everything else.
    pub upstreams: Vec<SocketAddr>,
    /// What happened since the start.
    pub counts: Counts,
}

/// A place where it listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Listening {
    /// Address and port, UDP and TCP.
    pub address: SocketAddr,
    /// What the namespace is called.
    pub netns: String,
}

/// Answers over UDP and TCP until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    /// The tasks behind each place; dropping them closes its sockets and connections.
    listening: Mutex<BTreeMap<Listening, JoinSet<()>>>,
}

/// What every task needs.
#[derive(Debug)]
struct Shared {
    zone: watch::Receiver<Arc<Zone>>,
    forwarder: Forwarder,
    counters: Arc<Counters>,
    places: tcp::Places,
    first: Duration,
    idle: Duration,
}

impl Server {
    /// A server that listens nowhere yet. To be called inside a runtime.
    pub fn new(zone: watch::Receiver<Arc<Zone>>, config: Config) -> Self {
        let counters = Arc::<Counters>::default();
        let places = tcp::Places::new(config.connections, config.connections_of_one);
        let (first, idle) = (config.first, config.idle);
        let forwarder = Forwarder::new(config, counters.clone());
        let shared = Shared { zone, forwarder, counters, places, first, idle };
        Self { shared: Arc::new(shared), listening: Mutex::default() }
    }

    /// Answer at an address of the agent's own namespace (`--dns-listen-address`); where that is, with the port chosen if it was 0.
    pub async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let sockets = listen::open(address)?;
        self.serve("the host", sockets)
    }

    /// Answer at an address inside a namespace, which lives as long as this listens there: only for namespaces of our own.
    pub async fn listen_in(&self, netns: &Netns, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let sockets = netns.run(move || listen::open(address)).await.map_err(|error| ListenError::netns(address, error))??;
        self.serve(netns.name(), sockets)
    }

    /// Close the sockets and connections of all places with this address; whether there were any.
    pub fn close(&self, address: SocketAddr) -> bool {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let before = listening.len();
        listening.retain(|place, _| place.address != address);
        self.shared.forwarder.avoid(listening.keys().map(|place| place.address));
        before != listening.len()
    }

    /// For people.
    pub fn status(&self) -> Status {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            listening: listening.keys().cloned().collect(),
            upstreams: self.shared.forwarder.servers(),
            counts: self.shared.counters.read(),
        }
    }

    fn serve(&self, netns: &str, sockets: listen::Sockets) -> Result<SocketAddr, ListenError> {
        let address = sockets.address;
        let (udp, tcp) = sockets.register()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(udp::serve(Arc::new(udp), self.shared.clone()));
        tasks.spawn(tcp::serve(tcp, self.shared.clone()));
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        listening.insert(Listening { address, netns: netns.to_owned() }, tasks);
        self.shared.forwarder.avoid(listening.keys().map(|place| place.address));
        Ok(address)
    }
}

/// A generator for one task: shuffling, query ids. It is predictable to nobody.
fn generator() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).unwrap_or_else(|error| {
        // Only the order of addresses and the ids of queries suffer; ports are the kernel's.
        tracing::error!(%error, "the system has no randomness");
        StdRng::seed_from_u64(0)
    })
}
