//! The one question we have for Docker: which process is a container?

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::time::Duration;
use tokio::net::UnixStream;

/// Where Docker listens unless `DOCKER_HOST` says otherwise.
const DEFAULT: &str = "/var/run/docker.sock";
/// Docker answers within milliseconds, or is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any container's description.
const LARGEST_ANSWER: usize = 4 << 20;

/// The Docker daemon of this machine.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: Result<PathBuf, String>,
}

/// What Docker said instead of a process id; for people.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// `DOCKER_HOST` is no Unix socket.
    #[error("DOCKER_HOST is {0:?}: only unix:///path can be asked")]
    Host(String),
    /// Nobody answers there.
    #[error("Docker at {path} does not answer ({why})")]
    Unreachable {
        /// The socket.
        path: String,
        /// What happened.
        why: String,
    },
    /// Docker does not know it.
    #[error("Docker has no container {0:?}")]
    Unknown(String),
    /// It has no process now.
    #[error("Docker's container {0:?} is not running")]
    NotRunning(String),
}

#[derive(Deserialize)]
struct Container {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "State")]
    state: State,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Pid")]
    pid: u32,
}

impl Docker {
    /// As `DOCKER_HOST` says, or the usual socket.
    pub fn from_env() -> Self {
        Self::from_host(std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()).as_deref())
    }

    /// As a `DOCKER_HOST` of this value says.
    pub fn from_host(host: Option<&str>) -> Self {
        let socket = match host {
            None => Ok(DEFAULT.into()),
            Some(host) => host.strip_prefix("unix://").map(PathBuf::from).ok_or_else(|| host.to_owned()),
        };
        Self { socket }
    }

    /// The first process of a running container, by name or id.
    pub async fn pid_of(&self, container: &str) -> Result<u32, DockerError> {
        let parsed = self.inspect(container).await?;
        if parsed.state.pid == 0 {
            return Err(DockerError::NotRunning(container.to_owned()));
        }
        Ok(parsed.state.pid)
    }

    /// What it is called, however it was asked for.
    pub async fn name_of(&self, container: &str) -> Result<String, DockerError> {
        Ok(self.inspect(container).await?.name.trim_start_matches('/').to_owned())
    }

    async fn inspect(&self, container: &str) -> Result<Container, DockerError> {
        let path = self.socket.as_deref().map_err(|host| DockerError::Host(host.clone()))?;
        let unreachable = |why: String| DockerError::Unreachable { path: path.display().to_string(), why };
        let answer = tokio::time::timeout(PATIENCE, ask(path, &format!("/containers/{}/json", escaped(container)))).await;
        let (status, body) = answer.map_err(|_| unreachable("timed out".into()))?.map_err(|e| unreachable(e.to_string()))?;
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(DockerError::Unknown(container.to_owned())),
            other => return Err(unreachable(format!("it said {other}"))),
        }
        serde_json::from_slice(&body).map_err(|e| unreachable(e.to_string()))
    }
}

async fn ask(socket: &Path, uri: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(uri).header("Host", "docker").body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await.map_err(|e| anyhow::anyhow!(e))?;
    connection.abort();
    Ok((status, body.to_bytes()))
}

/// For a path of a URL: everything but the plainest characters escaped.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_url() {
        assert_eq!(escaped("web_1.a-b"), "web_1.a-b");
        assert_eq!(escaped("../images?x=1 "), "..%2Fimages%3Fx%3D1%20");
    }

    #[tokio::test]
    async fn a_docker_host_that_cannot_be_asked_is_named() {
        let error = Docker::from_host(Some("tcp://1.2.3.4:2375")).pid_of("x").await.unwrap_err();
        assert!(error.to_string().contains("tcp://1.2.3.4:2375"));
    }
}
