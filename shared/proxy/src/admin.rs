//! Client of Envoy's admin interface.
//! In: where the bootstrap puts it (a unix socket, mode 0600; a loopback port with some stock control planes). Out: typed answers.
//! Invariant: every call ends within [`DEADLINE`] and reads at most [`MAX_BODY`] bytes.
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/operations/admin>; behaviour checked against Envoy 1.40.
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::net::{TcpStream, UnixStream};

use ursa_runtime::lease::within;

use crate::http1;

/// Envoy's main thread answers in milliseconds; one that needs longer is stuck or starved.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// A config dump of some thousand clusters is a few MiB; beyond this something is wrong.
pub const MAX_BODY: usize = 64 * 1024 * 1024;

/// `^listener\..+\.downstream_cx_(active|total)$`, percent-encoded. Envoy answers only what matches, which keeps a poll cheap.
const CONNECTION_STATS: &str = "/stats?format=json&filter=%5Elistener%5C..%2B%5C.downstream_cx_%28active%7Ctotal%29%24";

/// Where Envoy's admin interface listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// Path of a unix socket.
    Unix(PathBuf),
    /// A loopback port.
    Tcp(SocketAddr),
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Why Envoy did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens: not started yet, or gone.
    #[error("cannot connect to Envoy's admin interface at {address}")]
    Connect { address: AdminAddress, source: std::io::Error },
    /// It listens but does not answer properly.
    #[error("Envoy's admin interface did not answer {path}")]
    Exchange { path: String, source: http1::Error },
    /// It listens but is too slow.
    #[error("Envoy's admin interface did not answer {path} within {DEADLINE:?}")]
    Timeout { path: String },
    /// It refuses, or the path is unknown to this Envoy.
    #[error("Envoy's admin interface answered {path} with {status}")]
    Status { path: String, status: StatusCode },
    /// The answer is not what this Envoy version should say.
    #[error("Envoy's answer to {path} is not understood")]
    Answer { path: String, source: serde_json::Error },
}

/// What Envoy says at `/ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// 200: it has its configuration and serves.
    pub live: bool,
    /// Its own word: `LIVE`, `DRAINING`, `PRE_INITIALIZING`, `INITIALIZING`.
    pub text: String,
}

/// Connections from clients, over all listeners that carry traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub active: u64,
    /// Opened since Envoy's start; shows connections too short to be seen open.
    pub total: u64,
}

/// Client of one Envoy's admin interface. Cheap to clone; every call makes its own connection, as Envoy closes idle ones at will.
#[derive(Clone, Debug)]
pub struct Admin {
    address: AdminAddress,
}

impl Admin {
    /// Nothing is connected before the first call.
    pub fn new(address: AdminAddress) -> Self {
        Self { address }
    }

    /// Where it connects to.
    pub fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Is Envoy serving?
    ///
    /// # Errors
    /// No answer. An Envoy that is not ready is an answer.
    pub async fn ready(&self) -> Result<State, Error> {
        let (status, body) = self.call(Method::GET, "/ready").await?;
        let text = String::from_utf8_lossy(&body).trim().chars().take(64).collect();
        Ok(State {
            live: status == StatusCode::OK,
            text,
        })
    }

    /// Makes `/ready` answer `503 DRAINING`, active health checks fail, and every HTTP answer close its connection
    /// (`connection: close`, or GOAWAY). New connections are still accepted; idle ones are not closed.
    ///
    /// # Errors
    /// No answer, or not 200.
    pub async fn fail_health_checks(&self) -> Result<(), Error> {
        self.post("/healthcheck/fail").await
    }

    /// Starts the graceful drain of the inbound listeners, and keeps them open: without `skip_exit` Envoy closes them after its
    /// drain time, and clients that still come would be refused instead of served.
    ///
    /// # Errors
    /// No answer, or not 200.
    pub async fn drain_listeners(&self) -> Result<(), Error> {
        self.post("/drain_listeners?inboundonly&graceful&skip_exit").await
    }

    /// Makes Envoy open its log anew, after the file was renamed.
    ///
    /// # Errors
    /// No answer, or not 200.
    pub async fn reopen_logs(&self) -> Result<(), Error> {
        self.post("/reopen_logs").await
    }

    /// Ends Envoy at once, cutting its connections.
    ///
    /// # Errors
    /// No answer, or not 200.
    pub async fn quit(&self) -> Result<(), Error> {
        self.post("/quitquitquit").await
    }

    /// The whole effective configuration, as JSON.
    ///
    /// # Errors
    /// No answer, or not 200, or larger than [`MAX_BODY`].
    pub async fn config_dump(&self) -> Result<Bytes, Error> {
        self.get("/config_dump?include_eds").await
    }

    /// Statistics whose names match `filter` (an RE2 expression of letters, digits, `.`, `_`, `*`, `-`; anything else
    /// percent-encoded by the caller), as text.
    ///
    /// # Errors
    /// As [`Self::config_dump`].
    pub async fn stats(&self, filter: &str) -> Result<Bytes, Error> {
        self.get(&format!("/stats?filter={filter}")).await
    }

    /// Connections of clients. Not counted: the admin interface itself, and listeners that only we and the control plane use.
    ///
    /// # Errors
    /// No answer, or not understood.
    pub async fn connections(&self) -> Result<Connections, Error> {
        let body = self.get(CONNECTION_STATS).await?;
        count(&body).map_err(|source| Error::Answer {
            path: "/stats".to_owned(),
            source,
        })
    }

    async fn get(&self, path: &str) -> Result<Bytes, Error> {
        let (status, body) = self.call(Method::GET, path).await?;
        ok(path, status).map(|()| body)
    }

    async fn post(&self, path: &str) -> Result<(), Error> {
        let (status, _) = self.call(Method::POST, path).await?;
        ok(path, status)
    }

    async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "envoy-admin")
            .header(header::CONNECTION, "close")
            .body(Full::default())
            .expect("our own paths are valid URIs");
        let connect = |source| Error::Connect {
            address: self.address.clone(),
            source,
        };
        let exchange = |source| Error::Exchange {
            path: path.to_owned(),
            source,
        };
        let call = async {
            match &self.address {
                AdminAddress::Unix(socket) => {
                    let stream = UnixStream::connect(socket).await.map_err(connect)?;
                    http1::exchange(stream, request, MAX_BODY).await.map_err(exchange)
                }
                AdminAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await.map_err(connect)?;
                    http1::exchange(stream, request, MAX_BODY).await.map_err(exchange)
                }
            }
        };
        within(DEADLINE, call)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout { path: path.to_owned() }))
    }
}

fn ok(path: &str, status: StatusCode) -> Result<(), Error> {
    if status == StatusCode::OK {
        Ok(())
    } else {
        Err(Error::Status {
            path: path.to_owned(),
            status,
        })
    }
}

#[derive(Deserialize)]
struct Stats {
    stats: Vec<Stat>,
}

/// Histograms have no name and value of this form.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stat {
    Number { name: String, value: u64 },
    Other(serde::de::IgnoredAny),
}

fn count(body: &[u8]) -> Result<Connections, serde_json::Error> {
    let mut sum = Connections::default();
    for stat in serde_json::from_slice::<Stats>(body)?.stats {
        let Stat::Number { name, value } = stat else { continue };
        let Some((listener, what)) = name.strip_prefix("listener.").and_then(|rest| rest.rsplit_once('.')) else {
            continue;
        };
        if !carries_traffic(listener) {
            continue;
        }
        match what {
            "downstream_cx_active" => sum.active = sum.active.saturating_add(value),
            "downstream_cx_total" => sum.total = sum.total.saturating_add(value),
            _ => {}
        }
    }
    Ok(sum)
}

/// `listener` is the stat prefix of the listener, or its address with `_` for `:`; then, for the finer counts, `.worker_3`.
fn carries_traffic(listener: &str) -> bool {
    let per_thread = listener
        .rsplit_once('.')
        .is_some_and(|(_, last)| last == "main_thread" || last.strip_prefix("worker_").is_some_and(is_number));
    // Listeners on unix sockets serve our own helpers; `system_` is Kuma's prefix for what the control plane adds for itself.
    let internal = listener == "admin" || listener.starts_with(['/', '@']) || listener.starts_with("system_");
    !per_thread && !internal
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_with_traffic_count() {
        let body = br#"{"stats":[
            {"name":"listener.127.0.9.1_8080.downstream_cx_active","value":2},
            {"name":"listener.127.0.9.1_8080.downstream_cx_total","value":70},
            {"name":"listener.127.0.9.1_8080.worker_1.downstream_cx_active","value":2},
            {"name":"listener.[__1]_80.downstream_cx_active","value":1},
            {"name":"listener.kri_msvc_default_west__backend_http.downstream_cx_active","value":4},
            {"name":"listener.admin.downstream_cx_active","value":8},
            {"name":"listener.admin.main_thread.downstream_cx_active","value":8},
            {"name":"listener./run/w/kuma-mesh-metric-config.sock.downstream_cx_active","value":16},
            {"name":"listener.system_dynamicconfig.downstream_cx_active","value":32},
            {"histograms":{"supported_quantiles":[]}}]}"#;
        assert_eq!(count(body).unwrap(), Connections { active: 7, total: 70 });
        assert_eq!(count(b"{\"stats\":[]}").unwrap(), Connections::default());
        assert!(count(b"not json").is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_a_clear_error() {
        let admin = Admin::new(AdminAddress::Unix("/nonexistent/a.sock".into()));
        let error = admin.ready().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/a.sock"), "{error}");
    }
}
