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

/// HTTP/2 by hand, in plaintext: a library's client would not show what happens to a stream after its answer.
struct Frames {
    stream: TcpStream,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

impl Frames {
    async fn connect(addr: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self { stream };
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The head of a POST whose body follows.
    async fn post(&mut self, stream: u32, path: &str) {
        let mut head = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        head.extend(path.as_bytes());
        head.extend([0x01, 9]);
        head.extend(b"localhost");
        self.send(HEADERS, 4, stream, &head).await;
    }

    /// Kind, flags and length of the next frame.
    async fn next(&mut self) -> (u8, u8, usize) {
        let mut head = [0; 9];
        tokio::time::timeout(DEADLINE, self.stream.read_exact(&mut head))
            .await
            .expect("a frame")
            .unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.unwrap();
        (head[3], head[4], length)
    }

    /// What happens to the one stream until a ping that is sent after its answer comes back.
    async fn until_settled(&mut self) -> Vec<u8> {
        let mut seen = Vec::new();
        loop {
            let (kind, flags, _) = self.next().await;
            if matches!(kind, DATA | HEADERS | RST_STREAM) {
                seen.push(kind);
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                self.send(PING, 0, 0, &[7; 8]).await;
            }
            if kind == PING && flags & ACK != 0 {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn an_answer_waits_for_the_body_that_nobody_reads() {
    let server = Server::start(app(), Limits::default(), false).await;
    let mut client = Frames::connect(server.addr).await;
    client.post(1, "/none").await;
    for i in 0..3 {
        client.send(DATA, u8::from(i == 2), 1, &[b'x'; 16_000]).await;
    }
    assert_eq!(client.until_settled().await, [HEADERS], "no reset after the answer");
    // The connection is good for more.
    client.post(3, "/none").await;
    client.send(DATA, END_STREAM, 3, b"x").await;
    assert_eq!(client.until_settled().await, [HEADERS]);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_answered_and_then_reset() {
    let limits = Limits {
        max_discarded_body: 20_000,
        ..Limits::default()
    };
    let server = Server::start(app(), limits, false).await;
    let mut client = Frames::connect(server.addr).await;
    client.post(1, "/none").await;
    for _ in 0..3 {
        client.send(DATA, 0, 1, &[b'x'; 16_000]).await;
    }
    assert_eq!(client.until_settled().await, [HEADERS, RST_STREAM], "the answer, then the reset");
}

#[tokio::test]
async fn a_client_that_waits_for_leave_is_answered_at_once() {
    let server = Server::start(app(), Limits::default(), false).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /none HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 404");
}

#[tokio::test]
async fn a_body_that_is_still_read_is_left_alone() {
    // Answers at once and echoes the body as it comes, as a stream of gRPC does.
    let app = Router::new().route("/echo", axum::routing::post(|body: Body| async move { body }));
    let server = Server::start(app, Limits::default(), false).await;
    let mut client = Frames::connect(server.addr).await;
    client.post(1, "/echo").await;
    let wanted = async |client: &mut Frames, kind: u8| {
        while client.next().await.0 != kind {}
    };
    wanted(&mut client, HEADERS).await;
    for _ in 0..3 {
        client.send(DATA, 0, 1, b"ping").await;
        wanted(&mut client, DATA).await;
    }
}

/// curl up to 7.88 shows a reset that follows an answer instead of the answer. Its own check, for the tests above prove the cause
/// alone; nothing is lost where there is no curl.
#[tokio::test]
async fn curl_sees_the_answer_to_an_upload_that_nobody_reads() {
    let server = Server::start(app(), Limits::default(), true).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca, body) = (dir.path().join("ca.crt"), dir.path().join("body"));
    std::fs::write(&ca, server.tls.ca_pem()).unwrap();
    for (bytes, version) in [
        (10, "--http2"),
        (200_000, "--http2"),
        (3_000_000, "--http2"),
        (40_000_000, "--http2"),
        (200_000, "--http1.1"),
    ] {
        std::fs::write(&body, vec![b'x'; bytes]).unwrap();
        let url = format!("https://localhost:{}/none", server.addr.port());
        let curl = tokio::process::Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-X",
                "PUT",
                version,
            ])
            .args(["--resolve", &format!("localhost:{}:127.0.0.1", server.addr.port()), "--cacert"])
            .arg(&ca)
            .arg("--data-binary")
            .arg(format!("@{}", body.display()))
            .arg(url)
            .output();
        let Ok(output) = curl.await else {
            return println!("skipped: there is no curl on PATH");
        };
        let (code, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((code.as_ref(), error.trim()), ("404", ""), "{bytes} bytes, {version}");
    }
}
