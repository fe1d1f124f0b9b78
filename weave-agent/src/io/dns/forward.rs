//! Queries that others answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::Rcode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Config;
use super::counters::{Counters, count};
use super::exchange::exchange;
use super::resolv::Resolv;
use crate::dns::{Transport, servfail, truncated, udp_room};

/// How often the list of servers is gone through.
const ROUNDS: usize = 2;

/// Asks the servers of `resolv.conf`, in their order.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolv: Resolv,
    /// Where we listen ourselves: asking there would never end.
    own: Mutex<Vec<SocketAddr>>,
    permits: Arc<Semaphore>,
    timeout: Duration,
    counters: Arc<Counters>,
}

impl Forwarder {
    pub(super) fn new(config: Config, counters: Arc<Counters>) -> Self {
        let permits = Arc::new(Semaphore::new(config.in_flight));
        Self { resolv: Resolv::watch(config.resolv_conf), own: Mutex::default(), permits, timeout: config.timeout, counters }
    }

    /// Never ask at these addresses.
    pub(super) fn avoid(&self, own: impl Iterator<Item = SocketAddr>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own.collect();
    }

    /// Who is asked.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        self.resolv.servers().into_iter().filter(|server| !own.iter().any(|own| is_ours(*own, *server))).collect()
    }

    /// Leave to ask, to be held until the answer is there; `None`: too many do already.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.permits.clone().try_acquire_owned().ok();
        count(if permit.is_some() { &self.counters.forwarded } else { &self.counters.overloaded });
        permit
    }

    /// The answer to pass back: of the first server that has one, or SERVFAIL.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let answer = self.ask_all(query, transport).await;
        if answer.is_none() {
            count(&self.counters.failed);
        }
        answer.or_else(|| servfail(query, transport))
    }

    async fn ask_all(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.servers();
        let mut refusal = None;
        for _ in 0..ROUNDS {
            for server in &servers {
                match self.ask_one(*server, query, transport).await {
                    Some(answer) if is_refusal(&answer) => refusal = Some(answer),
                    Some(answer) => return Some(answer),
                    None => {}
                }
            }
            // It would say the same again.
            if refusal.is_some() {
                break;
            }
        }
        refusal
    }

    async fn ask_one(&self, server: SocketAddr, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let ask = |transport| exchange(server, query, transport, self.timeout);
        let noted = |error: &std::io::Error| tracing::debug!(%server, %error, "a name server does not answer");
        let answer = ask(transport).await.inspect_err(noted).ok()?;
        if transport == Transport::Tcp {
            return Some(answer);
        }
        let room = udp_room(query);
        if is_cut(&answer) {
            let whole = ask(Transport::Tcp).await.inspect_err(noted).ok();
            if let Some(whole) = whole.filter(|whole| whole.len() <= room) {
                return Some(whole);
            }
        }
        // One that is cut holds what fits, and tells the client to ask over TCP itself.
        if answer.len() <= room { Some(answer) } else { truncated(query) }
    }
}

/// Would asking `server` be asking ourselves, who listen at `own`?
fn is_ours(own: SocketAddr, server: SocketAddr) -> bool {
    let covered = own.ip() == server.ip() || own.ip().is_unspecified() && own.is_ipv4() == server.is_ipv4() && is_local(server);
    own.port() == server.port() && covered
}

/// Only addresses of this host can be bound.
fn is_local(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind((address.ip(), 0)).is_ok()
}

/// Another server may know better.
fn is_refusal(answer: &[u8]) -> bool {
    Message::from_slice(answer).is_ok_and(|answer| matches!(answer.header().rcode(), Rcode::SERVFAIL | Rcode::REFUSED | Rcode::NOTIMP))
}

fn is_cut(answer: &[u8]) -> bool {
    Message::from_slice(answer).is_ok_and(|answer| answer.header().tc())
}
