//! The control API: HTTP and JSON on a Unix socket that only the agent's user may open.
//!
//! Every request becomes a [`Call`] to whoever runs the agent. Bodies and answers are JSON; an error is `{"error": "…"}`.
//!
//! | | |
//! |---|---|
//! | `GET /status`, `/status/connections`, `/peers`, `/targets`, `/flows`, `/fdb`, `/status/ipam`, `/status/dns`, `/ps`, `/report` | [`crate::status`] |
//! | `POST /connect`, `/forget`, `/passwords`, `/attach`, `/detach`, `/expose`, `/hide`, `/rmpeer`, `/dns/add`, `/dns/remove`, `/dns/lookup` | [`body`] |
//! | `POST /prime` | answered when addresses can be given out |
//! | `POST /stop`, `/reset` | the agent ends; `/reset` before its traces are removed |

pub mod body;
pub mod client;
pub mod server;
mod wanted;

pub use wanted::{Unclear, Wanted};

use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

/// What the API is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Something to be shown.
    Show(Show),
    /// New targets.
    Connect(body::Connect),
    /// Targets no more.
    Forget(body::Forget),
    /// Other passwords.
    Passwords(body::Passwords),
    /// A container joins.
    Attach(body::Attach),
    /// A container leaves.
    Detach(body::Detach),
    /// The host joins.
    Expose(body::Expose),
    /// The host leaves.
    Hide(body::Hide),
    /// The addresses of a dead peer are taken over.
    Rmpeer(body::Rmpeer),
    /// A name by hand.
    DnsAdd(body::DnsChange),
    /// A name that was given here no more.
    DnsRemove(body::DnsChange),
    /// What a name or an address has.
    DnsLookup(body::DnsLookup),
    /// Wait until addresses can be given out.
    Prime,
    /// The agent ends; the data plane goes on.
    Stop,
    /// The agent ends, and what it leaves is about to be removed.
    Reset,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// [`crate::status::Summary`]
    Status,
    /// [`crate::status::Connection`]s
    Connections,
    /// [`crate::status::Peer`]s
    Peers,
    /// [`crate::status::Target`]s
    Targets,
    /// [`crate::status::Flow`]s
    Flows,
    /// [`crate::status::FdbEntry`]s
    Fdb,
    /// [`crate::status::Ipam`]
    Ipam,
    /// [`crate::status::Dns`], or nothing
    Dns,
    /// [`crate::status::Attachment`]s
    Ps,
    /// [`crate::status::Report`]
    Report,
}

impl Show {
    /// All of them, with their paths.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Status, "/status"),
        (Self::Connections, "/status/connections"),
        (Self::Peers, "/peers"),
        (Self::Targets, "/targets"),
        (Self::Flows, "/flows"),
        (Self::Fdb, "/fdb"),
        (Self::Ipam, "/status/ipam"),
        (Self::Dns, "/status/dns"),
        (Self::Ps, "/ps"),
        (Self::Report, "/report"),
    ];

    /// Where it is.
    pub fn path(self) -> &'static str {
        Self::ALL.iter().find(|(show, _)| *show == self).map_or("/", |(_, path)| path)
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// What a call is answered.
pub type Answer = Result<Value, Refusal>;

/// Where calls go.
pub type Calls = mpsc::Sender<Call>;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault it is, as HTTP says it.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// The caller asked for something that cannot be.
    pub fn bad_request(message: impl ToString) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.to_string() }
    }

    /// What the caller named is not there.
    pub fn not_found(message: impl ToString) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.to_string() }
    }

    /// It contradicts what is there.
    pub fn conflict(message: impl ToString) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.to_string() }
    }

    /// It should have worked.
    pub fn internal(message: impl ToString) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.to_string() }
    }

    /// The agent is on its way out.
    pub fn ending() -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: "the agent is just ending".to_owned() }
    }
}

/// A value as an answer.
pub fn answer<T: serde::Serialize>(value: &T) -> Answer {
    serde_json::to_value(value).map_err(Refusal::internal)
}
