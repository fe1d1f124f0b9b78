//! Queries over TCP: each with its length before it, many on one connection, answered in any order (RFC 7766).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Shared;
use super::counters::count;
use super::exchange::framed;
use super::udp::Current;
use crate::dns::{Answer, Transport, answer, servfail};

/// Answers of one connection that may wait to be sent, or for upstream servers.
const PIPELINE: usize = 64;
/// What a listener that cannot accept is left alone for: it is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections there may be: so many, and so many of each client. Copies are the same.
#[derive(Clone, Debug)]
pub(super) struct Places {
    clients: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    all: usize,
    each: usize,
}

/// One connection's; dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

impl Places {
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { clients: Arc::default(), all, each }
    }

    fn take(&self, client: IpAddr) -> Option<Place> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // At most `all` entries.
        let (total, has) = (clients.values().sum::<usize>(), clients.get(&client).copied().unwrap_or_default());
        (total < self.all && has < self.each).then(|| clients.insert(client, has + 1))?;
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.places.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(has) = clients.get_mut(&self.client) {
            *has = has.saturating_sub(1);
        }
        clients.retain(|_, has| *has > 0);
    }
}

/// Accepts until it is aborted; the connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => match shared.places.take(client.ip()) {
                Some(place) => {
                    let shared = shared.clone();
                    connections.spawn(async move {
                        // However it ended: the client knows best.
                        let _ = connection(stream, shared).await;
                        drop(place);
                    });
                }
                None => count(&shared.counters.refused),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot accept DNS connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(PIPELINE);
    let idle = shared.idle;
    // The writer goes on until the last answer is out.
    let (read, written) = tokio::join!(read(BufReader::new(reader), shared, replies), write(writer, queue, idle));
    read.and(written)
}

async fn read(mut reader: BufReader<OwnedReadHalf>, shared: Arc<Shared>, replies: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let mut zone = Current::new(shared.zone.clone());
    let mut rng = super::generator();
    let mut waiting = JoinSet::new();
    let mut patience = shared.first;
    while let Some(query) = next(&mut reader, patience).await {
        patience = shared.idle;
        count(&shared.counters.tcp);
        let reply = match answer(&query, zone.get(), Transport::Tcp, &mut rng) {
            Answer::Reply(reply) => {
                count(&shared.counters.answered);
                Some(reply)
            }
            Answer::Forward => forward(query, &shared, &replies, &mut waiting),
            Answer::Drop => {
                // A stream that holds anything else has lost its place.
                count(&shared.counters.garbage);
                break;
            }
        };
        if let Some(reply) = reply
            && replies.send(reply).await.is_err()
        {
            break;
        }
        while waiting.try_join_next().is_some() {}
    }
    drop(replies);
    while waiting.join_next().await.is_some() {}
    Ok(())
}

/// The next query; `None` at the end, or after too long a silence.
async fn next(reader: &mut BufReader<OwnedReadHalf>, idle: Duration) -> Option<Vec<u8>> {
    let message = async {
        let length = usize::from(reader.read_u16().await?);
        let mut query = vec![0; length];
        reader.read_exact(&mut query).await.map(|_| query)
    };
    timeout(idle, message).await.ok()?.ok()
}

/// Answered by a task, or at once with what is returned.
fn forward(query: Vec<u8>, shared: &Arc<Shared>, replies: &mpsc::Sender<Vec<u8>>, waiting: &mut JoinSet<()>) -> Option<Vec<u8>> {
    let permit = (waiting.len() < PIPELINE).then(|| shared.forwarder.permit()).flatten();
    let Some(permit) = permit else {
        return servfail(&query, Transport::Tcp);
    };
    let (shared, replies) = (shared.clone(), replies.clone());
    waiting.spawn(async move {
        if let Some(reply) = shared.forwarder.ask(&query, Transport::Tcp).await {
            // The connection may have ended meanwhile.
            let _ = replies.send(reply).await;
        }
        drop(permit);
    });
    None
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, patience: Duration) -> io::Result<()> {
    while let Some(reply) = queue.recv().await {
        timeout(patience, writer.write_all(&framed(&reply))).await.map_err(io::Error::other)??;
    }
    writer.shutdown().await
}
