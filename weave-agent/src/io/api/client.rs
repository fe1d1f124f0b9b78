//! The other end of the socket, for the command line.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Show;
use super::body::Failed;

/// An attach asks Docker and moves interfaces; everything else takes milliseconds. Longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Talks to the agent behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent is running here (no answer on {0}): start one with `weave-agent launch`")]
    NoAgent(PathBuf),
    /// It belongs to another user.
    #[error("may not talk to the agent on {0}: run this as the user that started it (most often root)")]
    NotAllowed(PathBuf),
    /// It does not answer.
    #[error("the agent on {socket} does not answer: {why}; its log is beside the socket, and `weave-agent reset` ends it by force")]
    Broken {
        /// Where we asked.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// As HTTP says it.
        status: u16,
        /// What is wrong and what to do.
        message: String,
    },
}

impl Client {
    /// For the agent that listens on `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What `show` looks like now, as the agent wrote it.
    pub async fn show(&self, show: Show) -> Result<Bytes, ClientError> {
        self.request(Method::GET, show.path(), Vec::new()).await
    }

    /// Post something and read the answer.
    pub async fn post<B: Serialize, A: DeserializeOwned>(&self, path: &str, body: &B) -> Result<A, ClientError> {
        let json = serde_json::to_vec(body).map_err(|e| self.broken(e))?;
        self.parse(&self.request(Method::POST, path, json).await?)
    }

    /// Post nothing and read the answer.
    pub async fn order<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.parse(&self.request(Method::POST, path, Vec::new()).await?)
    }

    /// What the agent wrote, as a value.
    pub fn parse<A: DeserializeOwned>(&self, json: &[u8]) -> Result<A, ClientError> {
        serde_json::from_slice(json).map_err(|e| self.broken(format!("cannot read its answer ({e}); is it of another version?")))
    }

    async fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(&e))?;
        let exchange = tokio::time::timeout(PATIENCE, exchange(stream, method, path, body));
        let (status, bytes) = exchange.await.map_err(|_| self.broken("it takes too long"))?.map_err(|e| self.broken(e))?;
        if status.is_success() {
            return Ok(bytes);
        }
        let message = serde_json::from_slice::<Failed>(&bytes).map_or_else(|_| format!("the agent said {status}"), |failed| failed.error);
        Err(ClientError::Refused { status: status.as_u16(), message })
    }

    fn unreachable(&self, error: &std::io::Error) -> ClientError {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoAgent(self.socket.clone()),
            ErrorKind::PermissionDenied => ClientError::NotAllowed(self.socket.clone()),
            _ => self.broken(error),
        }
    }

    fn broken(&self, why: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), why: why.to_string() }
    }
}

async fn exchange(stream: UnixStream, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let builder = Request::builder().method(method).uri(path).header(HOST, "weave-agent").header(CONTENT_TYPE, "application/json");
    let response = sender.send_request(builder.body(Full::new(Bytes::from(body)))?).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, bytes))
}
