//! Listening on the socket; requests into calls, answers into responses.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::body::Failed;
use super::{Answer, Call, Calls, Refusal, Request, Show};

/// No request is larger.
const LARGEST_BODY: usize = 1 << 20;
/// For a request to arrive, head and body each.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
const PAUSE: Duration = Duration::from_millis(100);

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
    let routes = TowerToHyperService::new(routes(calls));
    let (goes_on, ended) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut ending = pin!(ending);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, routes.clone(), ended.clone()))),
                Err(error) => {
                    // Out of file descriptors, most likely: others need time to give some back.
                    tracing::warn!(%error, "cannot accept a connection to the control API");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut ending => break,
        }
    }
    drop((listener, goes_on));
    while connections.join_next().await.is_some() {}
}

/// Whoever connects and says nothing, or says it forever, is not waited for.
async fn connection(stream: UnixStream, routes: TowerToHyperService<Router>, mut ended: watch::Receiver<()>) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), routes));
    let served = tokio::select! {
        served = &mut connection => served,
        _ = ended.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a client of the control API has left");
    }
}

fn routes(calls: Calls) -> Router {
    let shown = Show::ALL.iter().fold(Router::new(), |router, (show, path)| router.route(path, shows(*show)));
    shown
        .route("/connect", posts(Request::Connect))
        .route("/forget", posts(Request::Forget))
        .route("/passwords", posts(Request::Passwords))
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
        .with_state(calls)
}

fn shows(show: Show) -> MethodRouter<Calls> {
    get(async move |State(calls): State<Calls>| respond(ask(&calls, Request::Show(show)).await))
}

fn orders(request: Request) -> MethodRouter<Calls> {
    post(async move |State(calls): State<Calls>| respond(ask(&calls, request).await))
}

fn posts<B: DeserializeOwned + Send + 'static>(request: fn(B) -> Request) -> MethodRouter<Calls> {
    post(async move |State(calls): State<Calls>, body: Body| {
        respond(match read(body).await {
            Ok(body) => ask(&calls, request(body)).await,
            Err(refusal) => Err(refusal),
        })
    })
}

async fn read<B: DeserializeOwned>(body: Body) -> Result<B, Refusal> {
    let refusal = |status, message: String| Refusal { status, message };
    let read = timeout(PATIENCE, Limited::new(body, LARGEST_BODY).collect()).await;
    let late = |_| refusal(StatusCode::REQUEST_TIMEOUT, format!("the request did not arrive within {} s", PATIENCE.as_secs()));
    let bytes = read.map_err(late)?.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("the request has more than {LARGEST_BODY} bytes"));
        }
        Refusal::bad_request(format!("cannot read the request: {error}"))
    })?;
    let json = serde_json::from_slice(&bytes.to_bytes());
    json.map_err(|error| Refusal::bad_request(format!("cannot read the request's JSON: {error}")))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

    /// What the agent answers to these bytes, until it closes the connection.
    async fn exchanged(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        // It may close while more is on the way.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_as_everything_is() {
        let (dir, _client) = served().await;
        let size = LARGEST_BODY + 1;
        let request = format!("POST /attach HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n");
        let answer = exchanged(&dir.path().join("agent.sock"), &[request.as_bytes(), &vec![b' '; size]].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"error\": \"the request has more than"), "{answer}");
    }

    #[tokio::test]
    async fn whoever_does_not_finish_a_request_is_not_waited_for() {
        let (dir, _client) = served().await;
        let path = dir.path().join("agent.sock");
        assert_eq!(exchanged(&path, b"GET /status HTTP/1.1\r\n").await, "");
        let answer = exchanged(&path, b"POST /attach HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not arrive within 1 s"), "{answer}");
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
