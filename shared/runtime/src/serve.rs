//! The accept loop of every server: HTTP/1.1 and HTTP/2 (so gRPC too) over TLS, or in plaintext for diagnostics.
//! In: a listener, an axum app, limits. Out: answers; one task per connection, each with its limits.
//! Invariant: a slow or hostile peer costs one bounded task and never holds up `accept`; a panic in a handler costs one request;
//! on cancellation nothing new is accepted, HTTP/2 peers get GOAWAY, and what runs is waited for up to the drain limit.
//! Source: `reference/crates.md` 3.2 (nodelay, one task per handshake). Not here: size of bodies, which each API limits itself.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::lease::within;
use crate::tasks::{OnExit, Tasks};

mod connection;
mod leftover;
#[cfg(test)]
mod tests;

use connection::{Connection, Server};

/// Bounds of one listener. The defaults suit a control plane's public ports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// From accept to the end of the TLS handshake. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// HTTP/1: to read the head of a request, and how long a kept-alive connection may idle. Also how long a connection without ALPN
    /// may take to its first request. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub header_read_timeout: Duration,
    /// HTTP/2 streams at once per connection. Default 256.
    pub max_concurrent_streams: u32,
    /// Connections at once; more are closed at accept. Default 16,384.
    pub max_connections: usize,
    /// Bytes of the header list of a request. Default 64 KiB.
    pub max_header_bytes: u32,
    /// Bytes of a request's body that are read and thrown away when it is answered without being read. Default 16 MiB.
    pub max_discarded_body: usize,
    /// HTTP/2: a ping after this long without a frame. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub keepalive_interval: Duration,
    /// HTTP/2: an unanswered ping ends the connection after this long. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub keepalive_timeout: Duration,
    /// After cancellation: how long running requests may take to end. Default 5 s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Counters of this listener; register them with [`Metrics::register`].
    #[serde(skip)]
    pub metrics: Metrics,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(30),
            max_concurrent_streams: 256,
            max_connections: 16_384,
            max_header_bytes: 64 * 1024,
            max_discarded_body: 16 * 1024 * 1024,
            keepalive_interval: Duration::from_secs(15),
            keepalive_timeout: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(5),
            metrics: Metrics::default(),
        }
    }
}

/// What a listener counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Connections open now.
    pub open: Gauge,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed at accept because of the cap.
    pub refused: Counter,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: Counter,
}

impl Metrics {
    /// Registers all of them with the label `listener`, e.g. `kds`.
    pub fn register(&self, registry: &mut Registry, listener: &'static str) {
        let registry = registry.sub_registry_with_label(("listener".into(), listener.into()));
        registry.register("connections_open", "Connections open now", self.open.clone());
        registry.register("connections_accepted", "Connections accepted", self.accepted.clone());
        registry.register("connections_refused", "Connections closed because of the cap", self.refused.clone());
        registry.register("handshakes_failed", "TLS handshakes failed or late", self.handshakes_failed.clone());
    }
}

/// Who is at the other end: a request extension, beside axum's `ConnectInfo<SocketAddr>`.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Remote address.
    pub addr: SocketAddr,
    /// Local address that was connected to.
    pub local: Option<SocketAddr>,
    /// Facts from the handshake; `None` in plaintext.
    pub tls: Option<Arc<PeerTls>>,
}

/// What the handshake told about the peer.
#[derive(Clone, Debug, Default)]
pub struct PeerTls {
    /// SNI.
    pub server_name: Option<String>,
    /// Negotiated protocol, e.g. `h2`.
    pub alpn: Option<String>,
    /// The client's chain, leaf first; empty unless the server asks for one.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Serves `app` over TLS until `cancel`; returns when all connections have ended, at the latest after the drain limit.
/// HTTP/2 or HTTP/1.1 as negotiated by ALPN, without ALPN as the first bytes tell. Bodies are neither buffered nor timed.
pub async fn https(listener: TcpListener, tls: Arc<ServerConfig>, app: Router, limits: Limits, tasks: Tasks, cancel: CancellationToken) {
    serve(listener, Some(TlsAcceptor::from(tls)), app, limits, tasks, cancel).await;
}

/// As [`https`], in plaintext: for the diagnostics port, on addresses that the operator chose for it.
pub async fn http(listener: TcpListener, app: Router, limits: Limits, tasks: Tasks, cancel: CancellationToken) {
    serve(listener, None, app, limits, tasks, cancel).await;
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, app: Router, limits: Limits, tasks: Tasks, cancel: CancellationToken) {
    // A group of their own, to wait for; but they do not end with its token: the process's cancellation begins their draining.
    let tasks = tasks.child();
    let slots = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let (draining, kill) = (CancellationToken::new(), CancellationToken::new());
    let _kill_if_dropped = kill.clone().drop_guard();
    let server = Arc::new(Server {
        tls,
        app,
        limits,
        tasks,
        draining,
        kill,
    });
    let (tasks, limits) = (&server.tasks, &server.limits);
    while let Some((stream, addr)) = accept(&listener, &cancel).await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            if limits.metrics.refused.inc() == 0 {
                warn!(%addr, cap = limits.max_connections, "too many connections: closing new ones at once");
            }
            continue;
        };
        let connection = Connection {
            stream,
            addr,
            server: server.clone(),
            _slot: slot,
        };
        tasks.spawn("connection", OnExit::Contain, |_| connection.run());
    }
    drop(listener);
    server.draining.cancel();
    if within(limits.drain_timeout, tasks.idle()).await.is_err() {
        debug!(tasks = tasks.running().len(), "closing connections that did not end in time");
    }
    server.kill.cancel();
    tasks.idle().await;
}

/// The next connection; `None` when cancelled. An error (too many open files, mostly) is retried with a growing delay.
async fn accept(listener: &TcpListener, cancel: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => return Some(connection),
            Err(error) if connection_is_gone(&error) => {
                debug!(%error, "a connection ended before it was accepted")
            }
            Err(error) => {
                warn!(%error, "cannot accept connections");
                if !backoff.wait(cancel).await {
                    return None;
                }
            }
        }
    }
}

/// The error concerns the one connection, not the listener.
fn connection_is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
