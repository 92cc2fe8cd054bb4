//! The workload behind the sidecars: a small HTTP/1.1 server that answers who it is and what the caller proved to be.
//!
//! In: any request. Out: 200 with [`Said`] as JSON. Invariant: `caller` comes from `x-forwarded-client-cert` only, which the sidecar
//! in front sets from the client certificate and strips from what clients send; without a sidecar it proves nothing.
//! Source: Envoy documentation, "x-forwarded-client-cert".
mod xfcc;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// More connections at once than any sidecar opens; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// How many request headers are echoed at most.
const MAX_HEADERS: usize = 32;
/// Time for the requests in progress when the workload stops.
const GRACE: Duration = Duration::from_secs(5);

/// Who the workload is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Name of this instance.
    pub instance: String,
    /// The zone that it says it is in.
    pub zone: String,
}

impl Config {
    /// On loopback at a free port.
    #[must_use]
    pub fn local(instance: &str, zone: &str) -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            instance: instance.into(),
            zone: zone.into(),
        }
    }
}

/// The answer's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Which instance answered.
    pub instance: String,
    /// In which zone.
    pub zone: String,
    /// The identity that the caller proved to the sidecar (a SPIFFE ID); none if nothing was proved.
    pub caller: Option<String>,
    /// Path and query of the request.
    pub path: String,
    /// `host`, `user-agent` and `x-*` headers of the request, at most 32.
    pub headers: BTreeMap<String, String>,
}

/// A running workload. Dropping it closes the listener and all connections at once.
#[derive(Debug)]
pub struct Workload {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Binds and serves.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn start(config: Config) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::new(config), connections.clone(), stop.clone()));
        Ok(Self {
            address,
            connections,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting, lets requests in progress finish (at most 5 s), then closes.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // Whoever is not done by then is cut off when `self` is dropped.
        let _in_time = tokio::time::timeout(GRACE, self.tasks.join_next()).await;
    }
}

async fn accept(listener: TcpListener, config: Arc<Config>, connections: Arc<AtomicUsize>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_closed) = open.join_next() => {}
            accepted = listener.accept() => {
                // An accept error concerns the one connection that vanished before it was taken.
                let Ok((stream, _peer)) = accepted else { continue };
                connections.fetch_add(1, Ordering::Relaxed);
                let (config, stop) = (config.clone(), stop.clone());
                open.spawn(async move {
                    serve(stream, config, stop).await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, config: Arc<Config>, stop: CancellationToken) {
    // Without it small answers wait for the peer's delayed ACK.
    let _unsupported = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&config, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    // No limit on reading headers: it would also close idle connections, which the sidecar's pool may be about to use.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // Its error is the caller's: the caller sees the broken connection.
        _done = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _done = connection.await;
}

fn answer(config: &Config, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let said = Said {
        instance: config.instance.clone(),
        zone: config.zone.clone(),
        caller: request
            .headers()
            .get("x-forwarded-client-cert")
            .and_then(|v| v.to_str().ok())
            .and_then(xfcc::caller),
        path: request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        headers: some_headers(request.headers()),
    };
    let body = serde_json::to_vec(&said).expect("strings and a map of strings always serialise");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn some_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-") || *name == header::HOST || *name == header::USER_AGENT)
        .take(MAX_HEADERS)
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Api, Target};

    #[tokio::test]
    async fn it_says_who_it_is_and_who_called() {
        let workload = Workload::start(Config::local("backend-1", "west")).await.unwrap();
        let said: Said = Api::new(Target::Tcp(workload.address()))
            .get("/cart?id=7")
            .await
            .unwrap()
            .json()
            .unwrap();
        assert_eq!(
            (said.instance.as_str(), said.zone.as_str(), said.path.as_str()),
            ("backend-1", "west", "/cart?id=7")
        );
        assert_eq!(said.caller, None);
        assert!(said.headers.contains_key("host"));
    }

    #[tokio::test]
    async fn a_stop_is_graceful() {
        let workload = Workload::start(Config::local("a", "east")).await.unwrap();
        let address = workload.address();
        let api = Api::new(Target::Tcp(address));
        api.get("/").await.unwrap();
        workload.stop().await; // an idle kept connection does not hold it up
        assert!(TcpStream::connect(address).await.is_err());
    }
}
