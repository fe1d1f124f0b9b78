//! Queries over UDP.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::counters::count;
use super::datagrams::{Asker, Datagrams};
use crate::dns::{Answer, Transport, Zone, answer, servfail};

/// Queries in a row before other tasks get their turn.
const BATCH: usize = 64;
/// Longer queries are cut, and then refused as malformed.
const LONGEST: usize = 4096;
/// What a socket that fails in an unknown way is left alone for.
const PAUSE: Duration = Duration::from_millis(10);

/// Answers until it is aborted.
pub(super) async fn serve(socket: Arc<Datagrams>, shared: Arc<Shared>) {
    let mut serving = Serving { rng: super::generator(), zone: Current::new(shared.zone.clone()), socket, shared, waiting: JoinSet::new() };
    let mut buffer = vec![0; LONGEST];
    loop {
        // An error here is also one of receiving, and treated there.
        let _ = serving.socket.readable().await;
        serving.some(&mut buffer).await;
        while serving.waiting.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

struct Serving {
    socket: Arc<Datagrams>,
    shared: Arc<Shared>,
    zone: Current,
    rng: StdRng,
    /// Queries that upstream servers answer.
    waiting: JoinSet<()>,
}

impl Serving {
    async fn some(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            match self.socket.try_recv(buffer) {
                Ok((length, from)) => self.query(&buffer[..length], from),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An answer to somebody who has gone comes back as an error: none of our business.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot receive DNS queries");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn query(&mut self, query: &[u8], from: Asker) {
        let counters = &self.shared.counters;
        count(&counters.udp);
        match answer(query, self.zone.get(), Transport::Udp, &mut self.rng) {
            Answer::Drop => count(&counters.garbage),
            Answer::Forward => self.forward(query, from),
            Answer::Reply(reply) => {
                count(&counters.answered);
                send(&self.socket, &self.shared, &reply, from);
            }
        }
    }

    fn forward(&mut self, query: &[u8], to: Asker) {
        let Some(permit) = self.shared.forwarder.permit() else {
            if let Some(reply) = servfail(query, Transport::Udp) {
                send(&self.socket, &self.shared, &reply, to);
            }
            return;
        };
        let (socket, shared, query) = (self.socket.clone(), self.shared.clone(), query.to_vec());
        self.waiting.spawn(async move {
            if let Some(reply) = shared.forwarder.ask(&query, Transport::Udp).await {
                send(&socket, &shared, &reply, to);
            }
            drop(permit);
        });
    }
}

/// A client that asks again is better than a queue.
fn send(socket: &Datagrams, shared: &Shared, reply: &[u8], to: Asker) {
    if socket.try_send(reply, to).is_err() {
        count(&shared.counters.unsent);
    }
}

/// The latest zone: a look at an atomic number tells that there is none later.
pub(super) struct Current {
    channel: watch::Receiver<Arc<Zone>>,
    zone: Arc<Zone>,
}

impl Current {
    pub(super) fn new(mut channel: watch::Receiver<Arc<Zone>>) -> Self {
        let zone = channel.borrow_and_update().clone();
        Self { channel, zone }
    }

    pub(super) fn get(&mut self) -> &Zone {
        // Once its owner has gone, the last one is answered from.
        if self.channel.has_changed().unwrap_or(false) {
            self.zone = self.channel.borrow_and_update().clone();
        }
        &self.zone
    }
}
