//! A zone's connection to the global: all streams over one HTTP/2 connection, made again whenever one of them ends.
//! In: the zone's own content. Out: the global's changesets in the zone's store. Invariants: the end of a connection changes nothing
//! here; at most one session at a time, and the next begins only when the last has stored what it had begun.
//! Source: kds.md 1, 5.3, 11.2. Not here: the protocol ([`crate::sender`], [`crate::receiver`]).
//!
//! **Several nodes.** All streams of a session end at one node of the global. The session stays there as long as it is healthy; when any
//! part of it ends (the node died, refuses, has no quorum, drains, no longer answers health checks) the next address is tried at once
//! ([`rotation`]).

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tracing::{info, warn};
use ursa_model::{Timestamp, ZoneName};
use ursa_runtime::{
    Secret, Stages,
    error::Chain,
    lease::{Deadline, within},
};
use ursa_state::GlobalRevision;

use crate::{
    digest::Tally,
    distribution::Distributor,
    holds::Holds,
    mapping::Class,
    metrics::Metrics,
    peer::{Features, INSTANCE_HEADER, Identity, SESSION_HEADER},
    ports::{Sink, Source},
    receiver::Site,
};

mod admin;
mod elsewhere;
mod rotation;
mod session;

pub use elsewhere::{Elsewhere, Unknown};
use rotation::Rotation;

/// Shortest PING interval: a real global answers faster ones with too_many_pings.
const MIN_KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time to connect, TLS included: three round trips around the globe, and a lost packet.
const CONNECT: Duration = Duration::from_secs(3);
/// Content that flowed for so long makes a session healthy. One that ends earlier counts as a failure of its address.
const HEALTHY: Duration = Duration::from_secs(5);
/// Flow-control windows: a first set should not wait for window updates across an ocean.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The zone's token.
#[derive(Clone, Debug, Default)]
pub enum Token {
    /// None: only a stock Kuma global takes that.
    #[default]
    None,
    Text(Secret<String>),
    /// Read anew for each connection, so that it can be replaced on disk.
    File(PathBuf),
}

/// How the client behaves.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub zone: ZoneName,
    /// Names this process; another one with every start.
    pub instance_id: String,
    pub version: String,
    /// `grpcs://host:port` or `host:port` (TLS), `grpc://host:port` (plaintext) of each node of the global. Which one is tried first
    /// depends on the zone's name; then in turn.
    pub addresses: Vec<String>,
    /// PEM of the CAs that the global's certificate is checked with; required for `grpcs`.
    pub ca_pem: Option<String>,
    pub token: Token,
    /// The zone's display configuration as JSON, secrets masked: `{"store":{"type":".."}}` at least.
    pub display_config: String,
    /// PING interval, at least 20 s.
    pub keepalive: Duration,
    /// Compress what is sent, as Kuma's zones do. Costs latency, saves traffic between regions.
    pub compress: bool,
}

/// What the client works with.
#[derive(Clone)]
pub struct ClientParts {
    pub source: Source,
    pub sink: Arc<dyn Sink>,
    pub stages: Stages,
    pub metrics: Metrics,
}

/// The configuration cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no address of a global control plane is given")]
    NoAddress,
    #[error("{0:?} is no address of a global control plane: want host:port, grpcs://host:port or grpc://host:port")]
    Address(String),
    #[error("{0:?} needs the CA of the global's certificate")]
    NoCa(String),
    #[error("TLS towards {address}")]
    Tls { address: String, source: tonic::transport::Error },
    #[error("the CA for {address}")]
    Ca { address: String, source: ursa_runtime::tls::Error },
}

/// How the connection is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStatus {
    /// Address of the global, while content flows.
    pub connected: Option<String>,
    /// When that began or ended last.
    pub since: Timestamp,
    /// Why the last connection ended or could not be made.
    pub last_error: Option<String>,
    /// Newest global revision that is completely stored here.
    pub global: Option<GlobalRevision>,
    /// The global speaks our extensions.
    pub progress: bool,
}

/// See the module's text.
pub struct KdsClient {
    config: ClientConfig,
    parts: ClientParts,
    endpoints: Vec<(String, Endpoint)>,
    status: watch::Sender<ClientStatus>,
    /// The zone's own content, mapped; kept over connections.
    distributor: Mutex<Distributor>,
    /// Sums of what we hold of the global; kept over connections.
    tally: Mutex<Tally>,
    /// Since when content flows in this session, and how long it must to be healthy.
    flowing: Mutex<Option<Deadline>>,
    holds: Holds,
    live: elsewhere::Sessions,
    /// Counts sessions, so that a node tells a newer one from one that arrives late.
    sessions: AtomicU64,
}

impl fmt::Debug for KdsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KdsClient").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KdsClient {
    /// Checks the configuration; connects nothing yet.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn new(config: ClientConfig, parts: ClientParts) -> Result<(Self, watch::Receiver<ClientStatus>), ConfigError> {
        if config.addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let endpoints = config
            .addresses
            .iter()
            .map(|a| Ok((a.clone(), endpoint(&config, a)?)))
            .collect::<Result<_, ConfigError>>()?;
        let status = ClientStatus {
            global: parts.source.peek().durable.global(),
            since: Timestamp::now(),
            ..ClientStatus::default()
        };
        let (status, watch) = watch::channel(status);
        let distributor = Mutex::new(Distributor::new(Class::ToGlobal { zone: config.zone.clone() }));
        Ok((
            Self {
                config,
                parts,
                endpoints,
                status,
                distributor,
                tally: Mutex::new(Tally::new(Site::Zone)),
                flowing: Mutex::new(None),
                holds: Holds::default(),
                live: elsewhere::Sessions::default(),
                sessions: AtomicU64::new(0),
            },
            watch,
        ))
    }

    /// Removals that the global's first sets implied and that are held (metric `kds_held_removals`), under the name
    /// [`crate::holds::GLOBAL`].
    pub fn holds(&self) -> Holds {
        self.holds.clone()
    }

    /// To ask what other zones have stored of what this one changed, as long as this client runs.
    pub fn elsewhere(&self) -> Elsewhere {
        self.live.elsewhere()
    }

    /// Keeps the zone connected until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut rotation = Rotation::new(self.endpoints.len(), self.config.zone.as_str());
        while let Some((address, endpoint)) = self.endpoints.get(rotation.current()) {
            *self.flowing.lock() = None;
            let why = self.session(address, endpoint, &cancel).await;
            if cancel.is_cancelled() {
                return;
            }
            self.parts.metrics.reconnects.inc();
            let healthy = self.flowing.lock().is_some_and(|since| since.has_passed());
            let mut wait = rotation.ended(healthy);
            // The first failure is news; the ones after it are the same story.
            if rotation.failures() == 1 {
                warn!(zone = %self.config.zone, address, error = why, "the connection to the global ended, reconnecting");
            } else {
                tracing::debug!(zone = %self.config.zone, address, error = why, "still no connection to the global");
            }
            self.status.send_modify(|status| {
                if status.connected.take().is_some() {
                    status.since = Timestamp::now();
                }
                status.last_error = Some(why);
            });
            if !wait.wait(&cancel).await {
                return;
            }
        }
    }

    /// One connection, until any of its streams ends. Says why.
    async fn session(&self, address: &str, endpoint: &Endpoint, cancel: &CancellationToken) -> String {
        let connected = tokio::select! {
            biased;
            () = cancel.cancelled() => return String::new(),
            connected = within(CONNECT, self.connect(endpoint)) => connected,
        };
        match connected {
            Ok(Ok((channel, token))) => session::run(self, address, channel, token, cancel).await,
            Ok(Err(why)) => why,
            Err(late) => format!("connecting: {late}"),
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<(Channel, Option<String>), String> {
        let token = match &self.config.token {
            Token::None => None,
            Token::Text(text) => Some(text.expose().trim().to_owned()),
            Token::File(path) => {
                let text = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|err| format!("zone token {}: {err}", path.display()))?;
                Some(text.trim().to_owned())
            }
        };
        let channel = endpoint.connect().await.map_err(|err| Chain(&err).to_string())?;
        Ok((channel, token))
    }

    fn identity(&self) -> Identity {
        Identity {
            zone: self.config.zone.to_string(),
            instance: self.config.instance_id.clone(),
            version: self.config.version.clone(),
            config: self.config.display_config.clone(),
        }
    }

    /// Content flows: the session is good.
    fn flows(&self, address: &str, progress: bool) {
        let mut flowing = self.flowing.lock();
        if flowing.is_none() {
            *flowing = Some(Deadline::after(HEALTHY));
            drop(flowing);
            info!(zone = %self.config.zone, address, progress, "connected to the global");
            self.status.send_modify(|status| {
                status.connected = Some(address.to_owned());
                status.since = Timestamp::now();
                status.last_error = None;
                status.progress = progress;
            });
        }
    }
}

fn endpoint(config: &ClientConfig, address: &str) -> Result<Endpoint, ConfigError> {
    let wrong = || ConfigError::Address(address.to_owned());
    let (tls, rest) = match address.split_once("://") {
        Some(("grpcs", rest)) => (true, rest),
        Some(("grpc", rest)) => (false, rest),
        None => (true, address),
        _ => return Err(wrong()),
    };
    let uri: http::Uri = format!("{}://{}", if tls { "https" } else { "http" }, rest.trim_end_matches('/'))
        .parse()
        .map_err(|_| wrong())?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() || uri.path() != "/" || uri.query().is_some() {
        return Err(wrong());
    }
    let mut endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.keepalive.max(MIN_KEEPALIVE))
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let agent = format!("kds/{} (linux; ursa)", config.version);
    endpoint = endpoint.user_agent(agent).map_err(|source| ConfigError::Tls {
        address: address.to_owned(),
        source,
    })?;
    if tls {
        let ca = config.ca_pem.as_ref().ok_or_else(|| ConfigError::NoCa(address.to_owned()))?;
        let verifier = ursa_runtime::tls::server_verifier(ca.as_bytes()).map_err(|source| ConfigError::Ca {
            address: address.to_owned(),
            source,
        })?;
        endpoint = endpoint
            .tls_config_with_verifier(ClientTlsConfig::new(), verifier)
            .map_err(|source| ConfigError::Tls {
                address: address.to_owned(),
                source,
            })?;
    }
    Ok(endpoint)
}

/// gRPC metadata of every call (kds.md 1.2), ours included.
fn metadata(config: &ClientConfig, session: u64, token: Option<&str>, out: &mut tonic::metadata::MetadataMap) {
    let mut add = |key: &'static str, value: &str| {
        if let Ok(mut value) = tonic::metadata::MetadataValue::try_from(value) {
            value.set_sensitive(key == "authorization");
            out.append(key, value);
        }
    };
    add("client-id", config.zone.as_str());
    for feature in Features::OURS_IN_METADATA.names() {
        add("features", feature);
    }
    add("version", &config.version);
    add("kds-version", "v3");
    add("zone-version", "v3");
    add(INSTANCE_HEADER, &config.instance_id);
    add(SESSION_HEADER, &session.to_string());
    if let Some(token) = token {
        add("authorization", &format!("Bearer {token}"));
    }
}
