//! The life of one Envoy, from bootstrap to end.
//! In: settings, who the proxy is, a cancellation. Out: a served proxy; `Ok` after an orderly end, otherwise why it failed.
//! Invariants: a second Envoy is never started; an Envoy that ends unasked is an error with its last words; after the cancellation
//! nothing is cut before the drain time is over or nobody is connected any more.
//! Source: the order of kuma-dp's shutdown. Not here: when to end the drain ([`crate::drain`]), how to signal ([`crate::envoy`]).
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use ursa_runtime::config::Secret;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::within;
use ursa_runtime::{CancellationToken, Readiness, ReadinessGuard, Tasks, heartbeat};

use crate::admin::{self, Admin, AdminAddress, State};
use crate::bootstrap::{self, Bootstrap, BootstrapRequest, DrainRequest, Withdrawn};
use crate::config::ProxyConfig;
use crate::drain::{DrainWatch, Verdict};
use crate::envoy::{self, Exit, KillSwitch, Launch, LogFile, Process};
use crate::metrics::Metrics;
use crate::readiness::Phase;

mod spec;

pub use spec::ProxySpec;

/// Until Envoy is live: short enough not to be felt. A timer, because Envoy tells nobody; nothing of a change waits for it.
const STARTING_PERIOD: Duration = Duration::from_millis(50);
/// Once it is live: only for the log, the metric and the size of Envoy's log file. Probes ask Envoy directly.
const LIVE_PERIOD: Duration = Duration::from_secs(5);
/// During a drain. A timer off the path of any change: Envoy does not tell when its last connection closes, so it is asked.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);
/// During a drain, how often the control plane is told again.
const WITHDRAW_PERIOD: Duration = Duration::from_secs(2);
/// By now an Envoy with a reachable control plane has its configuration.
const SLOW_START: Duration = Duration::from_secs(15);
/// How often a drain says how far it is.
const DRAIN_REPORT: Duration = Duration::from_secs(5);
/// Longest path of a unix socket (`sun_path` holds 108 bytes, one of them the end).
const MAX_SOCKET_PATH: usize = 107;

/// Why a proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable Envoy.
    #[error(transparent)]
    Version(#[from] envoy::VersionError),
    /// The control plane gave no bootstrap.
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::Error),
    /// The bootstrap cannot be written.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// Neither Envoy nor we could use the socket.
    #[error("the admin socket's path {} is longer than {MAX_SOCKET_PATH} bytes: use a shorter --work-dir", path.display())]
    SocketPath { path: PathBuf },
    /// Envoy cannot be started.
    #[error(transparent)]
    Start(#[from] envoy::StartError),
    /// Envoy ended although nobody asked it to.
    #[error("Envoy ended by itself ({}) {}; its last words: {log}", exit_text(*exit), if *was_live { "after it was live" } else { "before it was live" })]
    Died { exit: Option<Exit>, was_live: bool, log: String },
}

fn exit_text(exit: Option<Exit>) -> String {
    exit.map_or_else(|| "how is unknown".to_owned(), |exit| exit.to_string())
}

/// What the supervisor works with.
pub struct Supervisor {
    /// Settings.
    pub config: ProxyConfig,
    /// Who the proxy is.
    pub spec: ProxySpec,
    /// Fetches the bootstrap.
    pub client: bootstrap::Client,
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// Folder for everything that is written; exists.
    pub work_dir: PathBuf,
    /// PEM that goes along in the request: the CA that the operator gave.
    pub given_ca: Option<String>,
    /// The dataplane token.
    pub token: Option<Secret<String>>,
    /// Owns the thread of Envoy. Must outlive the cancellation, for Envoy does.
    pub tasks: Tasks,
    /// Armed with Envoy's pid.
    pub switch: KillSwitch,
    /// Start Envoy through `envoy-guard`.
    pub guarded: bool,
    /// Told how far we are.
    pub phase: watch::Sender<Phase>,
    /// Of the whole process.
    pub readiness: Readiness,
    /// Counters.
    pub metrics: Metrics,
}

impl Supervisor {
    /// Runs until `cancel`, then drains and stops Envoy.
    ///
    /// # Errors
    /// The proxy could not be started, or Envoy ended by itself.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        let not_ready = self.readiness.guard("envoy");
        let (log, bootstrap) = match self.prepare(&cancel).await {
            Err(Error::Bootstrap(bootstrap::Error::Cancelled)) => return Ok(()),
            prepared => prepared?,
        };
        let admin = Admin::new(bootstrap.admin);
        let began = Instant::now();
        let launch = self.launch(log.clone());
        let mut process = Process::start(&self.tasks, launch, self.switch.clone()).await?;
        info!(pid = process.pid(), log = %log.path().display(), admin = %admin.address(), "Envoy started");
        self.phase.send_replace(Phase::Running(admin.clone()));

        let mut watch = Watch {
            supervisor: &self,
            admin: &admin,
            log: &log,
            began,
            live: None,
            not_ready: Some(not_ready),
            warned: began,
        };
        let was_live = watch.until(&mut process, &cancel).await?;
        drop(watch);

        self.phase.send_replace(Phase::Terminating);
        // It may have become live, and taken a request, since it was last asked.
        if was_live || admin.ready().await.is_ok_and(|state| state.live) {
            Box::pin(self.drain(&mut process, &admin)).await;
        }
        self.metrics.envoy_live.set(0);
        self.stop(&mut process).await;
        Ok(())
    }

    /// Everything before Envoy starts.
    async fn prepare(&self, cancel: &CancellationToken) -> Result<(LogFile, Bootstrap), Error> {
        let version = envoy::version(&self.envoy).await?;
        if !version.kuma_dp_compatible {
            let (found, wanted) = (&version.version, crate::ENVOY_LINE);
            warn!(
                found,
                wanted, "this Envoy is of another line than the one our configuration is made for"
            );
        }
        info!(envoy = %self.envoy.display(), build = version.build, "using this Envoy");
        let request = self.request(version);
        let (mesh, proxy) = (&self.spec.mesh, &self.spec.name);
        info!(mesh, proxy, control_planes = ?self.config.control_plane.addresses, "asking for the bootstrap");
        let bootstrap = self.client.fetch(&request, cancel).await?;
        if let AdminAddress::Unix(path) = &bootstrap.admin
            && path.as_os_str().len() > MAX_SOCKET_PATH
        {
            return Err(Error::SocketPath { path: path.clone() });
        }
        let path = self.bootstrap_path();
        let write = |source| Error::Write {
            path: path.clone(),
            source,
        };
        // It holds the token: 0600.
        ursa_runtime::fs::write_atomic(&path, bootstrap.yaml.as_bytes(), ursa_runtime::fs::PRIVATE).map_err(write)?;
        let log = LogFile::new(self.work_dir.join("envoy.log"));
        log.rotate().map_err(|source| Error::Write {
            path: log.path().to_owned(),
            source,
        })?;
        Ok((log, bootstrap))
    }

    fn request(&self, envoy: bootstrap::EnvoyVersion) -> BootstrapRequest {
        let mut request = self.spec.request(envoy);
        request.dataplane_token = self.token.as_ref().map(|token| token.expose().clone());
        request.dataplane_token_path = self.config.token_file.as_deref().map(text);
        request.ca_cert = self.given_ca.clone().unwrap_or_default();
        request.readiness_port = self.config.readiness.port.into();
        request.workdir = text(&self.work_dir);
        request
    }

    fn bootstrap_path(&self) -> PathBuf {
        self.work_dir.join("bootstrap.yaml")
    }

    fn launch(&self, log: LogFile) -> Launch {
        Launch {
            envoy: self.envoy.clone(),
            bootstrap: self.bootstrap_path(),
            log,
            drain_time: self.config.drain.time,
            log_level: self.config.envoy.log_level.clone(),
            component_log_level: self.config.envoy.component_log_level.clone(),
            concurrency: self.config.envoy.concurrency.and_then(NonZeroU32::new),
            guarded: self.guarded,
        }
    }

    fn died(&self, exit: Option<Exit>, was_live: bool, log: &LogFile) -> Error {
        let token = self.token.as_ref().map(|token| token.expose().as_str());
        Error::Died {
            exit,
            was_live,
            log: log.tail(token.as_slice()),
        }
    }

    /// Lets go of the clients: nobody is cut until the drain time is over or nobody is connected.
    async fn drain(&self, process: &mut Process, admin: &Admin) {
        let (limit, quiet) = (self.config.drain.time, self.config.drain.quiet);
        let began = Instant::now();
        let mut withdrawn = std::pin::pin!(self.stay_withdrawn());
        tokio::select! {
            biased;
            exit = process.ended() => return warn!(exit = exit_text(exit), "Envoy ended while draining"),
            () = self.withdraw(limit) => {}
        }
        info!(?limit, ?quiet, "draining: waiting for connections to end");
        // An Envoy that cannot be told still serves: its requests get the drain time all the same.
        if let Err(error) = admin.fail_health_checks().await {
            warn!(error = %Chain(&error), "Envoy was not told to drain");
        }
        if let Err(error) = admin.drain_listeners().await {
            warn!(error = %Chain(&error), "Envoy's listeners were not told to drain");
        }
        let mut drain = DrainWatch::new(limit, quiet);
        let mut ticker = heartbeat::every(DRAIN_PERIOD, &CancellationToken::new());
        let (mut open, mut reported) = (None, began);
        loop {
            let sample = tokio::select! {
                biased;
                exit = process.ended() => return warn!(exit = exit_text(exit), "Envoy ended while draining"),
                () = &mut withdrawn => continue,
                sample = admin.connections() => sample.inspect_err(|error| warn!(error = %Chain(error), "cannot count connections")).ok(),
            };
            open = sample.map(|connections| connections.active).or(open);
            match drain.observe(began.elapsed(), sample) {
                Verdict::Wait => {}
                Verdict::Quiet => return info!(after = ?began.elapsed(), "drained: nobody is connected"),
                Verdict::TimeUp => {
                    self.metrics.drain_connections_cut.inc_by(open.unwrap_or(0));
                    return info!(after = ?began.elapsed(), open, "drain time is over; what is still open is cut");
                }
            }
            if reported.elapsed() >= DRAIN_REPORT {
                reported = Instant::now();
                info!(after = ?began.elapsed(), open, "draining");
            }
            tokio::select! {
                biased;
                exit = process.ended() => return warn!(exit = exit_text(exit), "Envoy ended while draining"),
                () = &mut withdrawn => {}
                _ = ticker.tick() => {}
            }
        }
    }

    /// Lets the control plane send nobody here any more, before Envoy begins to turn clients away: they have left by then.
    async fn withdraw(&self, limit: Duration) {
        // The other half is for those who are connected.
        let limit = self.config.drain.withdraw.min(limit / 2);
        let began = Instant::now();
        match self.client.withdraw(&self.drain_request(), limit).await {
            outcome @ (Withdrawn::Applied { .. } | Withdrawn::Unknown) => info!(after = ?began.elapsed(), %outcome, "withdrawn"),
            outcome => warn!(after = ?began.elapsed(), %outcome, "not known to be withdrawn, draining all the same"),
        }
    }

    /// Says it again and again, so that a control plane that was away, or whose connection to Envoy broke, knows it too. Never ends.
    async fn stay_withdrawn(&self) {
        let mut ticker = heartbeat::every(WITHDRAW_PERIOD, &CancellationToken::new());
        loop {
            ticker.tick().await;
            self.client.withdraw(&self.drain_request(), WITHDRAW_PERIOD).await;
        }
    }

    fn drain_request(&self) -> DrainRequest {
        DrainRequest {
            mesh: self.spec.mesh.clone(),
            name: self.spec.name.clone(),
            dataplane_token: self.token.as_ref().map(|token| token.expose().clone()),
            instance: self.spec.instance.clone(),
        }
    }

    /// Ends Envoy: asked first, then by force.
    async fn stop(&self, process: &mut Process) {
        let grace = self.config.drain.stop_grace;
        process.terminate();
        match within(grace, process.ended()).await {
            Ok(exit) => info!(exit = exit_text(exit), "Envoy stopped"),
            Err(_) => {
                warn!(?grace, "Envoy did not stop in time: killing it");
                process.kill();
                if within(grace, process.ended()).await.is_err() {
                    warn!("Envoy is still there after SIGKILL");
                }
            }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Watches a running Envoy.
struct Watch<'a> {
    supervisor: &'a Supervisor,
    admin: &'a Admin,
    log: &'a LogFile,
    began: Instant,
    /// As last seen; `None`: never yet live.
    live: Option<bool>,
    not_ready: Option<ReadinessGuard>,
    /// When it was last said that Envoy is not live.
    warned: Instant,
}

impl Watch<'_> {
    /// Until the cancellation: was it ever live? Until Envoy's end: the error.
    async fn until(&mut self, process: &mut Process, cancel: &CancellationToken) -> Result<bool, Error> {
        let mut ticker = heartbeat::every(STARTING_PERIOD, cancel);
        loop {
            let state = tokio::select! {
                biased;
                // First: once Envoy is gone there is nothing to drain.
                exit = process.ended() => return Err(self.supervisor.died(exit, self.live.is_some(), self.log)),
                () = cancel.cancelled() => return Ok(self.live.is_some()),
                state = async { ticker.tick().await; self.admin.ready().await } => state,
            };
            let first = self.live.is_none();
            self.saw(state);
            if self.live == Some(true) {
                if first {
                    ticker = heartbeat::every(LIVE_PERIOD, cancel);
                }
                self.bound_log().await;
            }
        }
    }

    fn saw(&mut self, state: Result<State, admin::Error>) {
        let live = state.as_ref().is_ok_and(|state| state.live);
        let state = match state {
            Ok(state) => state.text,
            Err(error) => Chain(&error).to_string(),
        };
        self.supervisor.metrics.envoy_live.set(live.into());
        match (self.live, live) {
            (Some(true), true) | (Some(false), false) => {}
            (None, true) => {
                info!(after = ?self.began.elapsed(), "Envoy is ready");
                self.not_ready = None;
                self.live = Some(true);
            }
            (Some(false), true) => {
                info!("Envoy is ready again");
                self.not_ready = None;
                self.live = Some(true);
            }
            (Some(true), false) => {
                warn!(state, "Envoy is not ready any more");
                self.not_ready = Some(self.supervisor.readiness.guard("envoy"));
                self.live = Some(false);
            }
            (None, false) if self.warned.elapsed() >= SLOW_START => {
                self.warned = Instant::now();
                let (after, log) = (self.began.elapsed(), self.log.path().display());
                warn!(?after, state, %log, "Envoy is not ready yet: it waits for its configuration from the control plane");
            }
            (None, false) => {}
        }
    }

    /// Keeps Envoy's log from filling the disk.
    async fn bound_log(&self) {
        if self.log.size() < self.supervisor.config.envoy.log_max_bytes {
            return;
        }
        if let Err(error) = self.log.rotate().and_then(|()| self.log.open().map(drop)) {
            return warn!(%error, "cannot rotate Envoy's log");
        }
        match self.admin.reopen_logs().await {
            Ok(()) => info!(log = %self.log.path().display(), "rotated Envoy's log"),
            Err(error) => warn!(error = %Chain(&error), "Envoy did not take up its new log file"),
        }
    }
}
