//! One accepted connection: handshake, protocol, requests, end.
//! In: a TCP stream. Out: requests to the app, each with its [`Peer`].
//! Invariant: every phase before the first request has a deadline.
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use futures::FutureExt;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;
use tracing::debug;

use super::leftover::{self, About};
use super::{Limits, Peer, PeerTls};
use crate::error::Chain;
use crate::lease::{Deadline, within};
use crate::tasks::{OnExit, Tasks, panic_message};

/// A client that sends HTTP/1 heads larger than hyper's minimum buffer needs at least this.
const MIN_BUFFER: usize = 8 * 1024;

/// What all connections of a listener share.
pub(super) struct Server {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) app: Router,
    pub(super) limits: Limits,
    pub(super) tasks: Tasks,
    /// Cancelled when the server should end: finish what runs, take nothing new.
    pub(super) draining: CancellationToken,
    /// Cancelled when what still runs has had its time.
    pub(super) kill: CancellationToken,
}

pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) addr: SocketAddr,
    pub(super) server: Arc<Server>,
    pub(super) _slot: OwnedSemaphorePermit,
}

/// Keeps the gauge of open connections right, however the connection ends.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Connection {
    /// Serves until the peer goes, the server drains, or `kill` ends it at once.
    pub(super) async fn run(self) {
        let server = self.server.clone();
        let metrics = &server.limits.metrics;
        metrics.accepted.inc();
        metrics.open.inc();
        let _open = Open(metrics.open.clone());
        tokio::select! {
            biased;
            () = server.kill.cancelled() => {}
            () = self.serve() => {}
        }
    }

    async fn serve(self) {
        let Self {
            stream,
            addr,
            server,
            _slot,
        } = self;
        // Without it each small frame waits for the peer's delayed ACK: 40 ms per step of an xDS exchange.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%addr, %error, "cannot set TCP_NODELAY");
        }
        let local = stream.local_addr().ok();
        let Some(acceptor) = &server.tls else {
            let peer = Peer { addr, local, tls: None };
            return Box::pin(serve_http(&server, stream, peer)).await;
        };
        let stream = tokio::select! {
            biased;
            () = server.draining.cancelled() => return,
            stream = within(server.limits.handshake_timeout, acceptor.accept(stream)) => stream,
        };
        let stream = match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                server.limits.metrics.handshakes_failed.inc();
                return debug!(%addr, error = %Chain(&error), "TLS handshake failed");
            }
            Err(late) => {
                server.limits.metrics.handshakes_failed.inc();
                return debug!(%addr, error = %late, "TLS handshake");
            }
        };
        let tls = Some(Arc::new(peer_facts(stream.get_ref().1)));
        Box::pin(serve_http(&server, stream, Peer { addr, local, tls })).await;
    }
}

fn peer_facts(session: &ServerConnection) -> PeerTls {
    let certificates = session.peer_certificates().unwrap_or_default();
    PeerTls {
        server_name: session.server_name().map(str::to_owned),
        alpn: session.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()),
        certificates: certificates.iter().map(|certificate| certificate.clone().into_owned()).collect(),
    }
}

/// A connection whose bytes are HTTP now.
async fn serve_http<S>(server: &Server, stream: S, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let addr = peer.addr;
    let alpn = peer.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    let (builder, negotiated) = builder(alpn, server);
    let seen = Arc::new(AtomicBool::new(negotiated));
    let service = App {
        app: server.app.clone(),
        peer,
        tasks: server.tasks.clone(),
        seen: seen.clone(),
        max_discarded: server.limits.max_discarded_body,
    };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let first_request = Deadline::after(server.limits.header_read_timeout);
    let (mut draining, mut waiting_for_first) = (false, !negotiated);
    loop {
        let ended = tokio::select! {
            biased;
            () = server.draining.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            () = first_request.passed(), if waiting_for_first => {
                waiting_for_first = false;
                if seen.load(Ordering::Relaxed) { continue }
                return debug!(%addr, "no request in time");
            }
            ended = connection.as_mut() => ended,
        };
        if let Err(error) = ended {
            debug!(%addr, error = %Chain(&*error), "connection ended");
        }
        return;
    }
}

/// hyper's settings, and whether the protocol is known (else the first bytes decide, under a deadline).
fn builder(alpn: Option<&str>, server: &Server) -> (auto::Builder<StreamTasks>, bool) {
    let limits = &server.limits;
    let builder = auto::Builder::new(StreamTasks {
        tasks: server.tasks.clone(),
        kill: server.kill.clone(),
    });
    let (mut builder, negotiated) = match alpn {
        Some("h2") => (builder.http2_only(), true),
        Some(_) => (builder.http1_only(), true),
        None => (builder, false),
    };
    let max_header = usize::try_from(limits.max_header_bytes).unwrap_or(usize::MAX);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(max_header.max(MIN_BUFFER));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_bytes)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024);
    (builder, negotiated)
}

/// hyper runs each HTTP/2 stream as a task; these are tasks like all others.
#[derive(Clone)]
struct StreamTasks {
    tasks: Tasks,
    kill: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for StreamTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let kill = self.kill.clone();
        self.tasks.spawn("http2-stream", OnExit::Contain, |_| async move {
            tokio::select! {
                biased;
                () = kill.cancelled() => {}
                _ = future => {}
            }
        });
    }
}

/// The app as hyper sees it: adds who is asking, and contains a panic to its request.
#[derive(Clone)]
struct App {
    app: Router,
    peer: Peer,
    tasks: Tasks,
    seen: Arc<AtomicBool>,
    max_discarded: usize,
}

impl Service<Request<Incoming>> for App {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.seen.store(true, Ordering::Relaxed);
        let Self {
            mut app,
            peer,
            tasks,
            max_discarded,
            ..
        } = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(ConnectInfo(peer.addr));
            parts.extensions.insert(peer);
            let grpc = is_grpc(&parts.headers);
            let about = About::of(parts.version, &parts.headers, grpc);
            let (body, left) = leftover::watch(body);
            let request = Request::from_parts(parts, body);
            let answer = match AssertUnwindSafe(async move { app.call(request).await }).catch_unwind().await {
                Ok(answer) => answer,
                Err(payload) => {
                    tasks.count_panic("request handler", &panic_message(payload.as_ref()));
                    Ok(internal_error(grpc))
                }
            };
            left.discard(about, max_discarded, &tasks).await;
            answer
        })
    }
}

fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What the client sees of a panic: that it was our fault, and nothing else.
fn internal_error(grpc: bool) -> Response {
    /// gRPC code INTERNAL.
    const INTERNAL: HeaderValue = HeaderValue::from_static("13");
    let mut answer = Response::new(Body::empty());
    if grpc {
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        answer.headers_mut().insert("grpc-status", INTERNAL);
        return answer;
    }
    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    *answer.body_mut() = Body::from(r#"{"type":"/std-errors","status":500,"title":"Internal Server Error"}"#);
    answer
}
