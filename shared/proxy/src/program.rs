//! The shell of a program that runs one proxy: sockets, folder, tasks, signals.
//! In: settings and who the proxy is. Out: the exit status of the process.
//! Invariant: readiness and diagnostics are served until Envoy has ended, so their tasks are not under the cancellation that
//! begins the drain; when this function returns, no Envoy of ours runs.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;
use ursa_runtime::lock::DataLock;
use ursa_runtime::{ExitStatus, OnExit, Readiness, Stages, StopReason, Tasks, config, diagnostics, lock, serve, telemetry, tls};

use crate::bootstrap::{self, Client, Retry};
use crate::config::{Loaded, ProxyConfig};
use crate::envoy::{self, KillSwitch};
use crate::metrics::Metrics;
use crate::readiness::{self, Phase};
use crate::supervisor::{ProxySpec, Supervisor};

/// A proxy's own process records no stages; the route exists as in every program.
const STAGES: usize = 1;
/// Key in the dynamic metadata. Source: Kuma.
const HOST_IP: &str = "HOST_IP";
/// The listeners of probes and diagnostics end at once: nobody waits for long on them.
const LATE_GRACE: Duration = Duration::from_secs(1);

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files that the config names are missing or empty.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The CA cannot be used.
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::Error),
    /// The folder is in use or cannot be made.
    #[error(transparent)]
    WorkDir(#[from] lock::Error),
    /// No temporary folder.
    #[error("cannot make a temporary working folder; give one with --work-dir")]
    TempDir(#[source] std::io::Error),
    /// The system gives us no threads.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    /// A port is taken, or not ours.
    #[error("cannot listen on {address} for {purpose}; choose another with {flag}")]
    Listen {
        address: SocketAddr,
        purpose: &'static str,
        flag: &'static str,
        source: std::io::Error,
    },
}

/// What the program knows besides its config.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// `$ENVOY_BIN`.
    pub envoy: Option<PathBuf>,
    /// `$HOST_IP`, for the node's metadata.
    pub host_ip: Option<String>,
}

/// `main` of a program with the `envoy-guard` command: logging, a runtime, and [`run`].
///
/// # Errors
/// The process cannot start.
pub fn start<C: Serialize>(config: &C, proxy: ProxyConfig, spec: ProxySpec, host: Host) -> Result<ExitStatus, Error> {
    telemetry::init(&proxy.telemetry);
    info!(version = crate::VERSION, mesh = spec.mesh, proxy = spec.name, "starting");
    config::log_effective(config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let status = runtime.block_on(run(proxy, spec, host));
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();
    status
}

/// Runs the proxy until SIGTERM or SIGINT, or until it fails. The config must have been checked.
///
/// # Errors
/// The process cannot start. A proxy that fails later is an [`ExitStatus`] with a code other than 0.
pub async fn run(config: ProxyConfig, mut spec: ProxySpec, host: Host) -> Result<ExitStatus, Error> {
    tls::install_provider();
    spec.dynamic_metadata.extend(host.host_ip.map(|ip| (HOST_IP.to_owned(), ip)));
    let Loaded {
        control_planes,
        given_ca,
        trusted_ca,
        token,
    } = config.load_files()?;
    let metrics = Metrics::default();
    let retry = Retry {
        backoff: config.control_plane.retry_backoff,
        max_duration: config.control_plane.retry_max_duration,
    };
    let client = Client::new(control_planes, &trusted_ca, retry, metrics.bootstrap_retries.clone())?;
    let folder = Folder::open(config.work_dir.as_deref())?;

    let tasks = Tasks::new();
    let late = Tasks::new();
    let readiness = Readiness::until(tasks.cancel_token());
    let (phase, phases) = watch::channel(Phase::Starting);
    let registry = diagnostics::new_registry();
    metrics.register(&mut registry.lock());
    tasks.register_metrics(&mut registry.lock());

    let address = SocketAddr::new(config.readiness.address, config.readiness.port);
    let listener = listen(address, "readiness probes", "--readiness-address and --readiness-port").await?;
    let ready_at = listener.local_addr().unwrap_or(address);
    serve_late(&late, "readiness", listener, readiness::router(phases));
    info!(url = %format_args!("http://{ready_at}/ready"), "readiness is told here");
    if let Some(address) = config.diagnostics_address {
        let listener = listen(address, "diagnostics", "--diagnostics-address").await?;
        let address = listener.local_addr().unwrap_or(address);
        let router = diagnostics::router(readiness.clone(), registry, Stages::new(STAGES));
        serve_late(&late, "diagnostics", listener, router);
        info!(url = %format_args!("http://{address}/metrics"), "diagnostics are served here");
    }

    let switch = KillSwitch::default();
    let grace = config.shutdown_grace();
    let envoy = envoy::find(config.envoy.path.as_deref(), host.envoy.as_deref());
    let supervisor = Supervisor {
        config,
        spec,
        client,
        envoy,
        work_dir: folder.path.clone(),
        given_ca,
        token,
        tasks: late.clone(),
        switch: switch.clone(),
        guarded: true,
        phase,
        readiness,
        metrics,
    };
    tasks.spawn_fallible("proxy", OnExit::Shutdown, |cancel| supervisor.run(cancel));
    // A panic in one of the late tasks stops the process like any other.
    let (failed, stopped, owner) = (late.cancel_token(), late.clone(), tasks.clone());
    tasks.spawn("late-tasks", OnExit::Ignore, |cancel| async move {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = failed.cancelled() => owner.stop(stopped.stop_reason().unwrap_or(StopReason::Requested)),
        }
    });

    let status = tasks.run(grace).await;
    switch.kill(); // a second signal, or a task that did not end in time: Envoy must not stay behind
    late.shutdown(LATE_GRACE).await;
    drop(folder);
    Ok(status)
}

async fn listen(address: SocketAddr, purpose: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen {
        address,
        purpose,
        flag,
        source,
    })
}

fn serve_late(late: &Tasks, name: &'static str, listener: TcpListener, router: Router) {
    let limits = serve::Limits {
        max_connections: 256,
        drain_timeout: LATE_GRACE / 2,
        ..serve::Limits::default()
    };
    let owner = late.clone();
    late.spawn(name, OnExit::Shutdown, |cancel| {
        serve::http(listener, router, limits, owner, cancel)
    });
}

/// Where the proxy works. Dropping it gives the folder free; a temporary one is removed.
struct Folder {
    path: PathBuf,
    _lock: Option<DataLock>,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    fn open(configured: Option<&Path>) -> Result<Self, Error> {
        match configured {
            Some(path) => {
                // The control plane puts sockets into it, for processes with other working folders.
                let path = std::path::absolute(path).map_err(Error::TempDir)?;
                let lock = DataLock::acquire(&path)?;
                Ok(Self {
                    path,
                    _lock: Some(lock),
                    _temporary: None,
                })
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("ursa-proxy-").tempdir().map_err(Error::TempDir)?;
                Ok(Self {
                    path: temporary.path().to_owned(),
                    _lock: None,
                    _temporary: Some(temporary),
                })
            }
        }
    }
}
