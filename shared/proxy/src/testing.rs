//! What tests of proxies need: a control plane that answers as told, over real TLS; a bootstrap without a control plane.
//! Not for production: behind feature `testing`.
use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use ursa_runtime::tls::ServerTls;
use ursa_runtime::{OnExit, Tasks, serve, tls};

mod app;
mod program;
mod script;

pub use app::{App, BODY};
pub use program::{PATIENCE, Program, free_address, get, until};
pub use script::script;

/// One answer of the fake control plane.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

impl Reply {
    /// A status with a text.
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }

    /// A bootstrap, encoded as a control plane does.
    pub fn bootstrap(yaml: &str) -> Self {
        let sidecar = json!({"networking": {"address": "127.0.0.1"}, "metrics": {"aggregate": []}});
        Self::new(
            200,
            json!({"bootstrap": STANDARD.encode(yaml), "kumaSidecarConfiguration": sidecar}).to_string(),
        )
    }
}

#[derive(Default)]
struct Script {
    replies: VecDeque<Reply>,
    requests: Vec<(HeaderMap, Value)>,
    /// `POST /drain` gets no answer.
    is_silent: bool,
}

/// A control plane that knows `POST /bootstrap`. Ends with the [`Tasks`] it was started in.
#[derive(Clone)]
pub struct FakeControlPlane {
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    /// PEM of its CA.
    pub ca_pem: String,
    /// File with it.
    pub ca_file: PathBuf,
    script: Arc<Mutex<Script>>,
}

impl FakeControlPlane {
    /// Gives `replies` in turn, then the last one for ever. Its TLS files go into `dir`.
    ///
    /// # Panics
    /// Whatever fails.
    pub async fn start(tasks: &Tasks, dir: &Path, replies: impl IntoIterator<Item = Reply>) -> Self {
        tls::install_provider();
        let server = ServerTls::load_or_create(dir, &tls::local_names()).expect("a TLS folder");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let script = Arc::new(Mutex::new(Script {
            replies: replies.into_iter().collect(),
            ..Script::default()
        }));
        let app = Router::new()
            .route("/bootstrap", post(bootstrap))
            .route("/drain", post(drain))
            .with_state(script.clone());
        let (config, owner) = (server.server_config(&["http/1.1"]), tasks.clone());
        tasks.spawn("fake-control-plane", OnExit::Ignore, |cancel| {
            serve::https(listener, config, app, serve::Limits::default(), owner, cancel)
        });
        let ca_pem = server.ca_pem().to_owned();
        Self {
            url: format!("https://{address}"),
            ca_pem,
            ca_file: dir.join("ca.crt"),
            script,
        }
    }

    /// Headers and bodies of the requests so far.
    pub fn requests(&self) -> Vec<(HeaderMap, Value)> {
        self.script.lock().requests.clone()
    }

    /// From now on `POST /drain` is taken and not answered. Otherwise it is not known, as at a stock control plane.
    pub fn leave_drains_unanswered(&self) {
        self.script.lock().is_silent = true;
    }
}

async fn drain(State(script): State<Arc<Mutex<Script>>>) -> StatusCode {
    let is_silent = script.lock().is_silent;
    if is_silent {
        std::future::pending::<()>().await;
    }
    StatusCode::NOT_FOUND
}

async fn bootstrap(State(script): State<Arc<Mutex<Script>>>, headers: HeaderMap, body: String) -> (StatusCode, String) {
    let mut script = script.lock();
    script.requests.push((headers, serde_json::from_str(&body).unwrap_or_default()));
    let reply = match script.replies.len() {
        0 => Reply::new(500, "nothing to say"),
        1 => script.replies[0].clone(),
        _ => script.replies.pop_front().unwrap_or(Reply::new(500, "")),
    };
    (StatusCode::from_u16(reply.status).unwrap_or_default(), reply.body)
}

/// A bootstrap that needs no control plane: admin on `socket`, one HTTP listener at `listen` that passes everything to `upstream`.
pub fn static_bootstrap(socket: &Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let address = |address: SocketAddr| json!({"socket_address": {"address": address.ip(), "port_value": address.port()}});
    let http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    // JSON is YAML.
    json!({
        "node": {"id": "default.test", "cluster": "test"},
        "admin": {"address": {"pipe": {"path": socket, "mode": 0o600}}},
        "static_resources": {
            "listeners": [{
                "name": "self_inbound_dp_http",
                "address": address(listen),
                "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                    "@type": http,
                    "stat_prefix": "self_inbound_dp_http",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "60s"}}
                    ]}]},
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
                }}]}],
            }],
            "clusters": [{
                "name": "app",
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]},
            }],
        },
    })
    .to_string()
}

/// The real Envoy for a test, from `$ENVOY_BIN`. `None` (and a line that says so): skip the test.
///
/// # Panics
/// Under `$CI`, where a skipped test would hide a defect.
pub fn envoy_or_skip(test: &str) -> Option<PathBuf> {
    let envoy = std::env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    if envoy.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{test} needs ENVOY_BIN; deploy/envoy/install.sh installs an Envoy"
        );
        // Past the test harness, which shows nothing of a test that passes.
        let line = format!("SKIPPED {test}: set ENVOY_BIN to a real Envoy (deploy/envoy/install.sh prints its path)\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    envoy
}
