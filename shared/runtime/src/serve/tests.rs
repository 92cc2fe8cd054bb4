//! Real sockets on port 0: protocols, limits, panics, draining.
use super::*;
use crate::tls::{self, ServerTls};
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::{Extension, body};
use futures::StreamExt;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Longer than anything here takes, so that a defect is a failure and not a hang.
const DEADLINE: Duration = Duration::from_secs(20);

struct Server {
    addr: SocketAddr,
    tasks: Tasks,
    cancel: CancellationToken,
    metrics: Metrics,
    tls: ServerTls,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start(app: Router, limits: Limits, encrypted: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tls = ServerTls::load_or_create(dir.path(), &["localhost".to_owned()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (tasks, metrics) = (Tasks::new(), limits.metrics.clone());
        // The token of the process, as programs do: its cancellation must begin the draining, not cut connections.
        let cancel = tasks.cancel_token();
        let (owner, stop) = (tasks.clone(), cancel.clone());
        let config = tls.server_config(&["h2", "http/1.1"]);
        tasks.spawn("server", OnExit::Ignore, |_| async move {
            match encrypted {
                true => https(listener, config, app, limits, owner, stop).await,
                false => http(listener, app, limits, owner, stop).await,
            }
        });
        Self {
            addr,
            tasks,
            cancel,
            metrics,
            tls,
            _dir: dir,
        }
    }

    async fn connect(&self, alpn: &[&str]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let config = tls::client_config(self.tls.ca_pem().as_bytes(), alpn).unwrap();
        let stream = TcpStream::connect(self.addr).await.unwrap();
        tokio_rustls::TlsConnector::from(config)
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap()
    }

    async fn h1(&self) -> http1::SendRequest<Empty<Bytes>> {
        let (send, connection) = http1::handshake(TokioIo::new(self.connect(&["http/1.1"]).await)).await.unwrap();
        tokio::spawn(connection);
        send
    }

    async fn h2(&self) -> (http2::SendRequest<Empty<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>) {
        let stream = TokioIo::new(self.connect(&["h2"]).await);
        let (send, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        (send, tokio::spawn(connection))
    }
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("https://localhost{path}"))
        .header("host", "localhost")
        .body(Empty::new())
        .unwrap()
}

async fn text(answer: http::Response<hyper::body::Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Waits until `ready`; polls, for there is nothing to be notified by.
async fn wait(what: &str, ready: impl Fn() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn app() -> Router {
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("a defect")
                }
            }),
        )
        .route(
            "/who",
            get(
                |ConnectInfo(addr): ConnectInfo<SocketAddr>, Extension(peer): Extension<Peer>| async move {
                    assert_eq!(addr, peer.addr);
                    let tls = peer.tls.unwrap_or_default();
                    format!("{} {:?} {:?}", addr.ip(), tls.server_name, tls.alpn)
                },
            ),
        )
}

#[tokio::test]
async fn both_protocols_are_served_and_the_app_knows_the_peer() {
    let server = Server::start(app(), Limits::default(), true).await;
    let mut h1 = server.h1().await;
    let answer = h1.send_request(request("/who")).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_11);
    assert_eq!(text(answer).await, r#"127.0.0.1 Some("localhost") Some("http/1.1")"#);
    let (mut h2, _) = server.h2().await;
    let answer = h2.send_request(request("/who")).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    assert_eq!(text(answer).await, r#"127.0.0.1 Some("localhost") Some("h2")"#);
    assert_eq!((server.metrics.accepted.get(), server.metrics.open.get()), (2, 2));
}

#[tokio::test]
async fn without_alpn_and_in_plaintext_the_first_bytes_decide() {
    let server = Server::start(app(), Limits::default(), true).await;
    let stream = TokioIo::new(server.connect(&[]).await);
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(text(send.send_request(request("/")).await.unwrap()).await, "hello");
    let plain = Server::start(app(), Limits::default(), false).await;
    let stream = TokioIo::new(TcpStream::connect(plain.addr).await.unwrap());
    let (mut send, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(text(send.send_request(request("/who")).await.unwrap()).await, "127.0.0.1 None None");
}

/// A body that says each text as it comes.
fn streaming() -> (Router, mpsc::Sender<&'static str>) {
    let (sender, receiver) = mpsc::channel::<&'static str>(4);
    let stream = tokio_stream_of(receiver).map(Ok::<_, std::io::Error>);
    let body = std::sync::Arc::new(parking_lot::Mutex::new(Some(Body::from_stream(stream))));
    let handler = move || {
        let body = body.lock().take().unwrap_or_else(body::Body::empty);
        async move { axum::response::Response::new(body) }
    };
    (Router::new().route("/stream", get(handler)), sender)
}

fn tokio_stream_of(receiver: mpsc::Receiver<&'static str>) -> impl futures::Stream<Item = Bytes> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|text| (Bytes::from_static(text.as_bytes()), receiver))
    })
}

#[tokio::test]
async fn a_stream_is_not_buffered_and_ends_after_the_drain_limit() {
    let (app, sender) = streaming();
    let limits = Limits {
        drain_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::start(app, limits, true).await;
    let (mut h2, _) = server.h2().await;
    let mut body = h2.send_request(request("/stream")).await.unwrap().into_body();
    for part in ["one", "two"] {
        sender.send(part).await.unwrap();
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    server.cancel.cancel();
    let end = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap();
    assert!(end.is_none_or(|frame| frame.is_err()), "the stream ends with its connection");
    server.tasks.idle().await;
}

#[tokio::test]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let (app, sender) = streaming();
    let server = Server::start(app, Limits::default(), true).await;
    let (mut h2, connection) = server.h2().await;
    let (_, idle_connection) = server.h2().await;
    let body = h2.send_request(request("/stream")).await.unwrap();
    server.cancel.cancel();
    tokio::time::timeout(DEADLINE, idle_connection).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "the listener is closed");
    sender.send("late").await.unwrap();
    drop(sender);
    assert_eq!(text(body).await, "late");
    tokio::time::timeout(DEADLINE, connection).await.unwrap().unwrap().unwrap();
    tokio::time::timeout(DEADLINE, server.tasks.idle()).await.unwrap();
    assert_eq!(server.metrics.open.get(), 0);
}

#[tokio::test]
async fn a_panic_costs_its_request_only() {
    let server = Server::start(app(), Limits::default(), true).await;
    let (mut h2, _) = server.h2().await;
    let answer = h2.send_request(request("/panic")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!text(answer).await.contains("a defect"), "internal text stays inside");
    let mut grpc = request("/panic");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = h2.send_request(grpc).await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers()["grpc-status"].as_bytes()),
        (StatusCode::OK, b"13".as_slice())
    );
    assert_eq!(text(h2.send_request(request("/")).await.unwrap()).await, "hello");
    assert_eq!((server.tasks.panics(), server.tasks.stop_reason()), (2, None));
}

#[tokio::test]
async fn silent_and_garbled_peers_hold_nobody_up() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(100),
        header_read_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start(app(), limits.clone(), true).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let mut garbled = TcpStream::connect(server.addr).await.unwrap();
    garbled.write_all(&[0x16, 3, 1, 255, 255, 0, 0, 0]).await.unwrap();
    garbled.write_all(&[0xff; 64]).await.unwrap();
    let mut half_a_request = server.connect(&["http/1.1"]).await;
    half_a_request.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    let mut h1 = server.h1().await;
    assert_eq!(text(h1.send_request(request("/")).await.unwrap()).await, "hello");
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    let mut ended = Vec::new();
    let _ = garbled.read_to_end(&mut ended).await;
    let _ = half_a_request.read_to_end(&mut ended).await;
    wait("all connections ended", || server.metrics.open.get() == 0).await;
    assert_eq!(server.metrics.handshakes_failed.get(), 2);

    let plain = Server::start(app(), limits, false).await;
    let mut silent = TcpStream::connect(plain.addr).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "a connection needs a first request");
    assert_eq!(plain.tasks.panics(), 0);
}

#[tokio::test]
async fn the_cap_on_connections_holds_and_frees() {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let server = Server::start(app(), limits, false).await;
    let first = TcpStream::connect(server.addr).await.unwrap();
    wait("the first is served", || server.metrics.open.get() == 1).await;
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    assert!(matches!(second.read(&mut [0; 1]).await, Ok(0) | Err(_)), "closed at once");
    assert_eq!(server.metrics.refused.get(), 1);
    drop(first);
    wait("the slot is free", || server.metrics.open.get() == 0).await;
    let stream = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (mut send, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(text(send.send_request(request("/")).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let limits = Limits {
        max_header_bytes: 16 * 1024,
        ..Limits::default()
    };
    let server = Server::start(app(), limits, true).await;
    let large = "x".repeat(32 * 1024);
    let mut h1_request = request("/");
    h1_request.headers_mut().insert("x-large", large.parse().unwrap());
    let mut h1 = server.h1().await;
    let answer = h1.send_request(h1_request.clone()).await;
    assert!(answer.is_err() || answer.is_ok_and(|a| a.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    let (mut h2, _) = server.h2().await;
    let answer = h2.send_request(h1_request).await;
    assert!(answer.is_err() || answer.is_ok_and(|a| a.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    let (mut fresh, _) = server.h2().await;
    assert_eq!(text(fresh.send_request(request("/")).await.unwrap()).await, "hello");
}

#[test]
fn limits_come_from_a_config() {
    let limits: Limits = serde_json::from_str(r#"{"handshake_timeout": "3s", "max_connections": 7}"#).unwrap();
    assert_eq!((limits.handshake_timeout, limits.max_connections), (Duration::from_secs(3), 7));
    assert!(serde_json::from_str::<Limits>(r#"{"max_conns": 7}"#).is_err());
    let mut registry = Registry::default();
    limits.metrics.register(&mut registry, "kds");
}
