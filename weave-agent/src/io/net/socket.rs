//! A typed rtnetlink socket in one network namespace.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::Mutex;

/// A dump takes milliseconds: how often, and how far apart, to try for another.
const BUSY_ATTEMPTS: u32 = 500;
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// A request that the kernel refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Error {
    what: String,
    source: io::Error,
}

/// What a verb of this module answers.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(what, io::Error::new(io::ErrorKind::InvalidData, why.into()))
    }

    /// The system's error number, if it was the system that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The kernel knows no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO))
    }

    /// The kernel has one already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// An rtnetlink socket in one namespace; cheap to clone. It keeps its namespace alive: never store one of a container.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// A socket dumps one thing at a time: the kernel refuses a second request meanwhile.
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// A socket in the calling thread's namespace.
    pub fn here() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| Error::new("opening a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self { handle, dumping: Arc::default() })
    }

    pub(crate) fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// All that a dump yields, or its first error.
    pub(crate) async fn dump<T, S>(&self, what: &str, start: impl Fn(&rtnetlink::Handle) -> S) -> Result<Vec<T>>
    where
        S: Stream<Item = std::result::Result<T, rtnetlink::Error>>,
    {
        let _turn = self.dumping.lock().await;
        for _ in 0..BUSY_ATTEMPTS {
            match collect(what, start(&self.handle)).await {
                // Somebody stopped waiting for a dump that the kernel is still busy with.
                Err(error) if error.errno() == Some(libc::EBUSY) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                other => return other,
            }
        }
        Err(Error::new(what, io::Error::from_raw_os_error(libc::EBUSY)))
    }
}

async fn collect<T>(what: &str, stream: impl Stream<Item = std::result::Result<T, rtnetlink::Error>>) -> Result<Vec<T>> {
    let mut stream = std::pin::pin!(stream);
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item.map_err(explain(|| what.to_owned()))?);
    }
    Ok(all)
}

/// What the kernel answered, with what was asked.
pub(crate) fn explain(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |error| Error::new(what(), to_io(error))
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
