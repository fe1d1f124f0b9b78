//! TCP connections of the mesh: one task each, with queues that cannot grow.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::event::{Event, Events};
use crate::mesh::LinkId;

/// Messages and bytes that may wait for a slow link. A link with more is closed: the other end is better off with a new one.
const MESSAGES: usize = 1024;
const BYTES: usize = 16 << 20;
/// Read at a time.
const CHUNK: usize = 64 << 10;
/// After the router closed a link, its last messages have this long to get out.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A peer that acknowledges nothing for so long is gone, whatever TCP thinks.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// All links that are open.
#[derive(Debug)]
pub struct Links {
    open: BTreeMap<LinkId, Link>,
    last: u64,
    events: Events,
}

#[derive(Debug)]
struct Link {
    queue: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    give_up: oneshot::Sender<()>,
}

impl Links {
    /// None yet; what happens to them goes to `events`.
    pub fn new(events: Events) -> Self {
        Self { open: BTreeMap::new(), last: 0, events }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Is none open?
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Make a connection a link.
    pub fn add(&mut self, stream: TcpStream) -> LinkId {
        self.last += 1;
        let id = LinkId(self.last);
        if let Err(error) = settle(&stream) {
            tracing::debug!(?id, %error, "cannot set TCP options");
        }
        let (queue, queued) = mpsc::channel(MESSAGES);
        let (give_up, given_up) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let task = Task { id, events: self.events.clone(), waiting: Arc::clone(&waiting) };
        tokio::spawn(task.run(stream, queued, given_up));
        self.open.insert(id, Link { queue, waiting, give_up });
        id
    }

    /// Queue bytes, or give the link up if it takes them too slowly.
    pub fn send(&mut self, id: LinkId, bytes: Bytes) {
        let Some(link) = self.open.get(&id) else { return };
        let size = bytes.len();
        let waiting = link.waiting.fetch_add(size, Ordering::Relaxed);
        if waiting + size > BYTES || link.queue.try_send(bytes).is_err() {
            self.give_up(id);
        }
    }

    /// Send what is queued and close. The router is told when it has happened.
    pub fn close(&mut self, id: LinkId) {
        // Without its queue the task ends when it has written everything.
        self.open.remove(&id);
    }

    /// The task has ended.
    pub fn ended(&mut self, id: LinkId) {
        self.open.remove(&id);
    }

    fn give_up(&mut self, id: LinkId) {
        if let Some(link) = self.open.remove(&id) {
            // If the task has ended already, it has said so itself.
            let _ = link.give_up.send(());
        }
    }
}

struct Task {
    id: LinkId,
    events: Events,
    waiting: Arc<AtomicUsize>,
}

impl Task {
    async fn run(self, stream: TcpStream, queued: mpsc::Receiver<Bytes>, given_up: oneshot::Receiver<()>) {
        let (reader, writer) = stream.into_split();
        let reason = tokio::select! {
            reason = self.read(reader) => reason,
            reason = self.write(writer, queued) => reason,
            Ok(()) = given_up => "it takes our messages too slowly".to_owned(),
        };
        // Nobody left to tell: the agent ends.
        let _ = self.events.send(Event::Closed { link: self.id, error: reason }).await;
    }

    async fn read(&self, mut reader: OwnedReadHalf) -> String {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return "closed by the other end".to_owned(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
            let event = Event::Received { link: self.id, bytes: buffer.split().freeze() };
            if let Err(ending) = self.events.send(event).await {
                return ending.to_string();
            }
        }
    }

    async fn write(&self, mut writer: OwnedWriteHalf, mut queued: mpsc::Receiver<Bytes>) -> String {
        while let Some(bytes) = queued.recv().await {
            let written = if queued.is_closed() {
                timeout(LAST_WORDS, writer.write_all(&bytes)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            } else {
                writer.write_all(&bytes).await
            };
            if let Err(error) = written {
                return error.to_string();
            }
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        // An orderly end: what was written arrives before the other end sees it.
        let _ = writer.shutdown().await;
        "closed by us".to_owned()
    }
}

fn settle(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::event;
    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (dialled, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_close_lets_them_out_first() {
        let (events, mut received) = event::channel();
        let mut links = Links::new(events);
        let (ours, mut theirs) = pair().await;
        let id = links.add(ours);
        theirs.write_all(b"hello").await.unwrap();
        let Some(Event::Received { link, bytes }) = received.recv().await else { panic!() };
        assert_eq!((link, &bytes[..]), (id, &b"hello"[..]));
        let large = Bytes::from(vec![7; 4 << 20]);
        links.send(id, large.clone());
        links.close(id);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, large);
        let Some(Event::Closed { link, error }) = received.recv().await else { panic!() };
        assert_eq!((link, error.as_str()), (id, "closed by us"));
    }

    #[tokio::test]
    async fn a_link_that_does_not_read_is_closed_before_it_costs_memory() {
        let (events, mut received) = event::channel();
        let mut links = Links::new(events);
        let (ours, _theirs) = pair().await;
        let id = links.add(ours);
        let megabyte = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..BYTES / megabyte.len() + 1 {
            links.send(id, megabyte.clone());
        }
        assert!(links.is_empty());
        let Some(Event::Closed { error, .. }) = received.recv().await else { panic!() };
        assert_eq!(error, "it takes our messages too slowly");
    }
}
