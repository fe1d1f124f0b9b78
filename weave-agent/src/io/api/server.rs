//! Listening on the socket; requests into calls, answers into responses.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::body::Failed;
use super::{Answer, Call, Calls, Refusal, Request, Show};

/// No request is larger.
const LARGEST_BODY: usize = 1 << 20;

/// A socket at `path` for its owner only; one that a dead agent left is replaced. Call it with the pid file locked.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", path.display()));
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

/// Serve until `ending` resolves, then until the last response has gone out.
pub async fn serve(listener: UnixListener, calls: Calls, ending: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = axum::serve(listener, routes(calls)).with_graceful_shutdown(ending).await {
        tracing::error!(%error, "the control API has ended");
    }
}

fn routes(calls: Calls) -> Router {
    let shown = Show::ALL.iter().fold(Router::new(), |router, (show, path)| router.route(path, shows(*show)));
    shown
        .route("/connect", posts(Request::Connect))
        .route("/forget", posts(Request::Forget))
        .route("/attach", posts(Request::Attach))
        .route("/detach", posts(Request::Detach))
        .route("/expose", posts(Request::Expose))
        .route("/hide", posts(Request::Hide))
        .route("/rmpeer", posts(Request::Rmpeer))
        .route("/dns/add", posts(Request::DnsAdd))
        .route("/dns/remove", posts(Request::DnsRemove))
        .route("/dns/lookup", posts(Request::DnsLookup))
        .route("/prime", orders(Request::Prime))
        .route("/stop", orders(Request::Stop))
        .route("/reset", orders(Request::Reset))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(calls)
}

fn shows(show: Show) -> MethodRouter<Calls> {
    get(async move |State(calls): State<Calls>| respond(ask(&calls, Request::Show(show)).await))
}

fn orders(request: Request) -> MethodRouter<Calls> {
    post(async move |State(calls): State<Calls>| respond(ask(&calls, request).await))
}

fn posts<B: DeserializeOwned + Send + 'static>(request: fn(B) -> Request) -> MethodRouter<Calls> {
    post(async move |State(calls): State<Calls>, bytes: Bytes| {
        respond(match serde_json::from_slice(&bytes) {
            Ok(body) => ask(&calls, request(body)).await,
            Err(error) => Err(Refusal::bad_request(format!("cannot read the request's JSON: {error}"))),
        })
    })
}

async fn ask(calls: &Calls, request: Request) -> Answer {
    let (answer, answered) = oneshot::channel();
    calls.send(Call { request, answer }).await.map_err(|_| Refusal::ending())?;
    answered.await.map_err(|_| Refusal::ending())?
}

async fn no_such_path(method: Method, uri: Uri) -> Response {
    respond(Err(Refusal::not_found(format!("there is no {method} {}", uri.path()))))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    respond(Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, message }))
}

fn respond(answer: Answer) -> Response {
    let (status, json) = match answer {
        Ok(value) => (StatusCode::OK, serde_json::to_vec_pretty(&value)),
        Err(refusal) => (refusal.status, serde_json::to_vec_pretty(&Failed { error: refusal.message })),
    };
    let mut bytes = json.unwrap_or_default();
    bytes.push(b'\n');
    (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::super::client::{Client, ClientError};
    use super::super::{Wanted, body};
    use super::*;

    /// An agent that echoes what it understood.
    async fn fake(mut calls: mpsc::Receiver<Call>) {
        while let Some(Call { request, answer }) = calls.recv().await {
            let _ = answer.send(match request {
                Request::Show(Show::Peers) => Err(Refusal::internal("no peers today")),
                Request::Forget(_) => continue,
                other => Ok(json!({ "understood": format!("{other:?}") })),
            });
        }
    }

    async fn served() -> (tempfile::TempDir, Client) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "left by a dead agent").unwrap();
        let (calls, received) = mpsc::channel(1);
        let listener = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        tokio::spawn(fake(received));
        tokio::spawn(serve(listener, calls, std::future::pending()));
        (dir, Client::new(path))
    }

    #[tokio::test]
    async fn requests_and_answers_go_both_ways() {
        let (_dir, client) = served().await;
        let shown = client.show(Show::Flows).await.unwrap();
        assert_eq!(String::from_utf8(shown.to_vec()).unwrap(), "{\n  \"understood\": \"Show(Flows)\"\n}\n");
        let cidr: IpNet = "10.32.1.1/16".parse().unwrap();
        let attach = body::Attach { target: "web".into(), addresses: vec![Wanted::This(cidr)], name: None };
        let answer: serde_json::Value = client.post("/attach", &attach).await.unwrap();
        assert_eq!(answer["understood"], format!("{:?}", Request::Attach(attach)));
        assert_eq!(client.order::<serde_json::Value>("/stop").await.unwrap()["understood"], "Stop");
    }

    #[tokio::test]
    async fn refusals_arrive_as_they_were_said() {
        let (_dir, client) = served().await;
        let refused = |error: ClientError| match error {
            ClientError::Refused { status, message } => (status, message),
            other => panic!("{other}"),
        };
        assert_eq!(refused(client.show(Show::Peers).await.unwrap_err()), (500, "no peers today".into()));
        let (status, message) = refused(client.post::<_, ()>("/attach", &json!({"target": 7})).await.unwrap_err());
        assert_eq!((status, message.starts_with("cannot read the request's JSON")), (400, true));
        let forget = body::Forget { peers: vec![] };
        assert_eq!(refused(client.post::<_, ()>("/forget", &forget).await.unwrap_err()).0, 503);
        assert_eq!(refused(client.order::<()>("/nonsense").await.unwrap_err()), (404, "there is no POST /nonsense".into()));
        assert_eq!(refused(client.order::<()>("/status").await.unwrap_err()), (405, "/status does not take POST".into()));
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let error = Client::new(path.clone()).show(Show::Status).await.unwrap_err();
        let told = format!("no agent is running here (no answer on {}): start one with `weave-agent launch`", path.display());
        assert_eq!(error.to_string(), told);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::new(path.clone()).show(Show::Status).await.unwrap_err();
        assert_eq!(error.to_string(), told);
    }
}
