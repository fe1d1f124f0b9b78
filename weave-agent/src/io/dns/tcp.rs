//! Queries over TCP: each with its length before it, many on one connection, answered in any order (RFC 7766).

use std::io;
use std::sync::Arc;
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

/// Accepts until it is aborted; the connections end with it.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match shared.connections.clone().try_acquire_owned() {
                Ok(permit) => {
                    let shared = shared.clone();
                    connections.spawn(async move {
                        // However it ended: the client knows best.
                        let _ = connection(stream, shared).await;
                        drop(permit);
                    });
                }
                Err(_) => count(&shared.counters.refused),
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
    while let Some(query) = next(&mut reader, shared.idle).await {
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
