//! The process around a control plane: data folder, TLS, store, the other nodes, first resources, diagnostics, the REST API.
//! In: configuration. Out: a running process whose parts the programs build on. Invariant: whatever it starts is a task of one of the
//! lives of [`crate::end`], and ends in their order.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use tokio::{net::TcpListener, task::spawn_blocking};
use tracing::{info, warn};
use ursa_rest::{Api, Info, Site, bootstrap};
use ursa_runtime::{
    Backoff, CancellationToken, Readiness, ReadinessGuard, SharedRegistry, Stages,
    diagnostics::{self, new_registry},
    error::Chain,
    fs,
    serve::{self, Limits},
    tasks::{ExitStatus, OnExit, StopReason, Tasks},
    tls::{self, ServerTls, Versions},
};
use ursa_state::{HistoryId, Observed, Role};
use ursa_store::{Store, StoreConfig, disk::RealDisk};
use ursa_sync::Claims;

use crate::{
    Plane, backup,
    cluster::{self, StoreQuorum, node_of},
    config::{self, Cluster, Encryption, History, Timing, Tls},
    encryption,
    end::Lives,
    group::{About, ByClaims, Checkpoint, Group, NodeStatus},
    held::Held,
    members,
    metrics::ClusterMetrics,
    retention,
    status::{self, Shown},
};

/// Stages kept for `/stages`: some thousand changes with all their proxies.
const STAGES: usize = 65_536;
/// What kumactl and stock zones should take us for.
const BASED_ON_KUMA: &str = "3.0.0";

/// What a host is started with.
#[derive(Clone, Debug)]
pub struct HostConfig {
    pub role: Role,
    pub data_dir: PathBuf,
    pub node_id: u64,
    pub store: config::Store,
    pub tls: Tls,
    pub encryption: Encryption,
    /// Addresses that clients use, for the certificate.
    pub addresses: Vec<SocketAddr>,
}

/// A running control plane without its servers. Fields are handles.
pub struct Host {
    /// For servers and whatever serves clients, zones and proxies: the first to end.
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub registry: SharedRegistry,
    pub stages: Stages,
    pub tls: Arc<ServerTls>,
    pub plane: Plane,
    /// Names this process; another one with every start.
    pub instance_id: String,
    data_dir: PathBuf,
    lives: Lives,
    group: Option<Group>,
    shown: Shown,
    held: Held,
}

/// A start that fails lets go of what it had, the guards of readiness too, while the port is still served: it is not ready for that.
struct Failing(Option<Readiness>);

impl Drop for Failing {
    fn drop(&mut self) {
        if let Some(readiness) = self.0.take() {
            readiness.not_ready();
        }
    }
}

impl Host {
    /// A control plane of one node. See [`Host::open_in`].
    ///
    /// # Errors
    /// As there.
    pub async fn open(config: HostConfig, diagnostics_address: SocketAddr) -> Result<(Self, ReadinessGuard)> {
        Self::open_in(config, None, diagnostics_address).await
    }

    /// Opens the data folder and the store, as one node of `cluster` if there is one. Diagnostics are served first, so that a slow start
    /// can be watched. The process is not ready before the guard is: the caller drops it when its servers are up.
    ///
    /// # Errors
    /// A port is taken, files cannot be made, the store does not open: each with the way out.
    pub async fn open_in(config: HostConfig, cluster: Option<Cluster>, diagnostics_address: SocketAddr) -> Result<(Self, ReadinessGuard)> {
        let lives = Lives::new();
        let tasks = lives.front.clone();
        let readiness = Readiness::until(lives.process.cancel_token());
        let (registry, stages) = (new_registry(), Stages::new(STAGES));
        tasks.register_metrics(&mut registry.lock());
        lives.back.register_metrics(registry.lock().sub_registry_with_prefix("back"));
        let (starting, serving_guard) = (readiness.guard("store"), readiness.guard("servers"));
        let mut failing = Failing(Some(readiness.clone()));
        let shown = Shown::default();
        let listener = bind(diagnostics_address, "diagnostics").await?;
        let router = diagnostics::router(readiness.clone(), registry.clone(), stages.clone()).merge(shown.router());
        let serving = tasks.clone();
        tasks.spawn("diagnostics", OnExit::Shutdown, move |cancel| {
            serve::http(listener, router, Limits::default(), serving, cancel)
        });

        fs::create_dir(&config.data_dir, 0o700).with_context(|| format!("data folder {}", config.data_dir.display()))?;
        let tls = match (&config.tls.cert_file, &config.tls.key_file, &cluster) {
            (Some(cert), Some(key), _) => ServerTls::from_files(cert, key, config.tls.ca_file.as_deref())?,
            (_, _, Some(cluster)) => ServerTls::from_files(&cluster.cert_file, &cluster.key_file, Some(&cluster.ca_file))?,
            _ => ServerTls::load_or_create(&config.data_dir.join("tls"), &sans(&config))?,
        };
        tls.keep_fresh(&tasks);
        let mut store_config = StoreConfig::new(&config.data_dir, config.node_id);
        store_config.max_bytes = config.store.max_bytes;
        store_config.encryption = config.encryption.open()?;
        // Before the store, which tells the others that this node is there.
        let peers = match &cluster {
            Some(cluster) => {
                if let Some(advice) = cluster.advice() {
                    warn!(advice, "an even number of nodes");
                }
                store_config.cluster = Some(cluster::store_config(cluster, &lives.back)?);
                store_config.first_start = cluster::first_start(cluster);
                config::apply(cluster, &mut store_config);
                Some(bind(cluster.listen, "the other nodes").await?)
            }
            None => None,
        };
        let timing = Timing::of(&store_config);
        let store = Store::open(store_config, Arc::new(RealDisk), &lives.back)
            .await
            .with_context(|| format!("store in {}", config.data_dir.display()))?;
        let instance_id = uuid::Uuid::new_v4().to_string();
        let (observed, group) = match config.role {
            Role::Zone => (Observed::default(), None),
            Role::Global => {
                let claims = Claims::new(format!("{}-{instance_id}", config.node_id));
                let observed = Observed::of_node(config.node_id, Arc::new(ByClaims::new(claims.clone())));
                let (asked, ready) = (store.clone(), readiness.clone());
                let about = About {
                    timing,
                    status: Arc::new(move || NodeStatus::of(&asked.status(), ready.is_ready())),
                };
                let group = Group::new(config.node_id, claims, observed.clone(), store.subscribe(), about);
                observe(&lives.back, &group, &observed, config.data_dir.join("observed")).await?;
                group.register_metrics(&mut registry.lock());
                (observed, Some(group))
            }
        };
        if let Some(listener) = peers {
            let others = group.as_ref().map(|group| group.routes(node_of, &lives.back)).unwrap_or_default();
            info!(address = %listener.local_addr().unwrap_or(diagnostics_address), "listening for the other nodes");
            store.serve_peers(listener, others, &lives.back);
            follow_others(&lives.back, &store, group.as_ref());
            let (watched, ready) = (store.clone(), readiness.clone());
            tasks.spawn("readiness", OnExit::Shutdown, |cancel| {
                cluster::watch_readiness(watched, cluster::contact(timing), ready, cancel)
            });
        }
        shown.set(status::Parts {
            store: store.clone(),
            group: group.clone(),
            readiness: readiness.clone(),
            timing,
        });
        registry.lock().register_collector(Box::new(ClusterMetrics(shown.clone())));
        failing.0 = None;
        starting.ready();
        info!(revision = store.view().revision(), resources = store.view().len(), "store is open");
        let plane = Plane::new(config.role, store, observed);
        let showing = plane.clone();
        tasks.spawn("observed-shown", OnExit::Shutdown, |cancel| showing.run_shown(cancel));
        let held = Held::new(plane.clone(), config.node_id, group.clone());
        if let Some(group) = &group {
            group.answer_held_by(held.clone());
        }
        let host = Self {
            tasks,
            readiness,
            registry,
            stages,
            tls: Arc::new(tls),
            plane,
            instance_id,
            data_dir: config.data_dir,
            lives,
            group,
            shown,
            held,
        };
        Ok((host, serving_guard))
    }

    /// This node among the others of a global, as the server of zone streams must know it; `None` in a zone.
    pub fn group(&self) -> Option<ursa_sync::Group> {
        let group = self.group.as_ref()?;
        Some(ursa_sync::Group {
            quorum: Arc::new(StoreQuorum(self.plane.store.quorum_contact())),
            claims: group.claims().clone(),
        })
    }

    /// Shows what zone sync holds back, and lets administrators decide about it.
    pub fn show_held(&self, holds: ursa_sync::Holds) {
        self.held.set(holds);
    }

    /// Forgets history that is no longer wanted, from now on.
    pub fn keep_history(&self, history: &History) {
        let (store, keep) = (self.plane.store.clone(), history.retention());
        self.tasks
            .spawn("history", OnExit::Shutdown, move |cancel| retention::run(store, keep, cancel));
    }

    /// Runs `hook` when the end begins, before anything is cancelled. It must not block.
    pub fn on_stop(&self, hook: impl FnOnce() + Send + 'static) {
        self.lives.on_stop(Box::new(hook));
    }

    /// Creates the resources that every control plane starts with, and writes the administrator's token beside the data. A node of
    /// several that has started before does so when it has found the others, and returns at once.
    ///
    /// # Errors
    /// They cannot be made or stored, or the file cannot be written.
    pub async fn ensure_defaults(&self, site: &Site) -> Result<()> {
        let (plane, site, dir) = (self.plane.clone(), site.clone(), self.data_dir.clone());
        let stored = plane.store.view();
        if plane.store.peers().is_none() || stored.history_id() == HistoryId::default() || stored.is_empty() {
            let made = ensure_defaults(plane, site, dir, self.lives.process.cancel_token()).await;
            return match self.lives.process.stop_reason() {
                Some(reason) => made.with_context(|| format!("{reason}")),
                None => made,
            };
        }
        let tasks = self.tasks.clone();
        self.tasks.spawn("defaults", OnExit::Ignore, |cancel| async move {
            let stopping = cancel.clone();
            if let Err(error) = ensure_defaults(plane, site, dir, cancel).await
                && !stopping.is_cancelled()
            {
                let (task, error) = ("defaults".to_owned(), format!("{error:#}"));
                tasks.stop(StopReason::Failed { task, error });
            }
        });
        Ok(())
    }

    /// Serves the REST API.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve_api(&self, address: SocketAddr, site: Site, version: &str, config: serde_json::Value) -> Result<()> {
        let info = Info {
            hostname: hostname(),
            version: if version.is_empty() {
                Info::DEFAULT_VERSION.to_owned()
            } else {
                version.to_owned()
            },
            instance_id: self.instance_id.clone(),
            based_on_kuma: Some(BASED_ON_KUMA.to_owned()),
        };
        let api = Api::new(site, Arc::new(self.plane.clone()), info, config, self.stages.clone());
        let mut others = self.shown.router().merge(self.held.router());
        others = others.merge(members::router(self.plane.store.clone()));
        others = others.merge(encryption::router(self.plane.store.clone()));
        if self.plane.role == Role::Global {
            others = others.merge(backup::router(self.plane.store.clone()));
        }
        let router = ursa_rest::router_with(api, others);
        self.serve_https("api", address, router, &["h2", "http/1.1"], Versions::Tls12AndTls13)
            .await
    }

    /// Serves a router over TLS with the host's certificate.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn serve_https(
        &self,
        name: &'static str,
        address: SocketAddr,
        router: Router,
        alpn: &[&str],
        versions: Versions,
    ) -> Result<()> {
        let listener = bind(address, name).await?;
        let limits = Limits::default();
        limits.metrics.register(&mut self.registry.lock(), name);
        let (tls, serving) = (self.tls.server_config_for(alpn, versions), self.tasks.clone());
        info!(server = name, address = %listener.local_addr().unwrap_or(address), "listening");
        self.tasks.spawn(name, OnExit::Shutdown, move |cancel| {
            serve::https(listener, tls, router, limits, serving, cancel)
        });
        Ok(())
    }

    /// Runs until told to stop, or until a task that may not end did; then ends everything in order. `grace` is for running requests.
    pub async fn run(self, grace: Duration) -> ExitStatus {
        self.lives.run(self.plane.store.clone(), grace).await
    }

    /// As [`Host::run`], with the rest of the start, which may be told to stop too: it may take as long as it takes to find the other
    /// nodes, and ends in the same order.
    ///
    /// # Errors
    /// The start's, unless it was told to stop; what it had begun has ended in order by then.
    pub async fn run_from(&self, start: impl Future<Output = Result<()>>, grace: Duration) -> Result<ExitStatus> {
        let mut running = pin!(self.lives.run(self.plane.store.clone(), grace));
        let started = tokio::select! {
            biased;
            status = &mut running => return Ok(status),
            started = start => started,
        };
        let Err(error) = started else { return Ok(running.await) };
        // A start that notices that it was told to stop is no failure.
        let process = &self.lives.process;
        let failed = process.stop_reason().is_none();
        if failed {
            let (task, error) = ("start".to_owned(), format!("{error:#}"));
            process.stop(StopReason::Failed { task, error });
        }
        let status = running.await;
        if failed { Err(error) } else { Ok(status) }
    }
}

async fn ensure_defaults(plane: Plane, site: Site, dir: PathBuf, cancel: CancellationToken) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let made = loop {
        let options = bootstrap::Options::default();
        let attempt = tokio::select! {
            biased;
            () = cancel.cancelled() => anyhow::bail!("told to stop before the default resources were there"),
            attempt = bootstrap::ensure_defaults(&plane, &site, &options) => attempt,
        };
        match attempt {
            Ok(made) => break made,
            Err(error) if error.is_retryable() => info!(error = %Chain(&error), "the default resources cannot be stored yet"),
            Err(error) => return Err(error).context("creating the default resources"),
        }
        anyhow::ensure!(backoff.wait(&cancel).await, "told to stop before the default resources were there");
    };
    if let Some(token) = made.admin_token {
        let path = dir.join("admin-user-token");
        fs::write_atomic(&path, token.as_bytes(), 0o600).with_context(|| format!("writing {}", path.display()))?;
        info!(file = %path.display(), "the administrator's token is in this file (mode 0600)");
    }
    Ok(())
}

/// Loads what was observed before, and keeps it from now on.
async fn observe(tasks: &Tasks, group: &Group, observed: &Observed, dir: PathBuf) -> Result<()> {
    let into = observed.clone();
    let checkpoint = spawn_blocking(move || Checkpoint::load(dir, &into))
        .await
        .context("reading what was observed")?;
    let (observed, sweeping) = (observed.clone(), group.clone());
    tasks.spawn("observed-checkpoint", OnExit::Shutdown, |cancel| checkpoint.run(observed, cancel));
    tasks.spawn("observed-sweep", OnExit::Shutdown, |cancel| sweeping.sweep(cancel));
    Ok(())
}

/// Follows every other member, also those that join later. One that leaves ends by itself, and is not found again.
fn follow_others(tasks: &Tasks, store: &Store, group: Option<&Group>) {
    let (Some(peers), Some(group)) = (store.peers().cloned(), group.cloned()) else {
        return;
    };
    let owner = tasks.clone();
    tasks.spawn("observed-peers", OnExit::Shutdown, move |cancel| async move {
        let mut others = peers.watch_others();
        let mut followed = BTreeSet::new();
        loop {
            let now = others.borrow_and_update().clone();
            for node in now.difference(&followed).copied() {
                let ways = now.iter().copied().filter(|via| *via != node);
                let ways: Vec<_> = ways.map(|via| (via, peers.channel(via))).collect();
                let through = group.clone();
                owner.spawn("observed-through-peer", OnExit::Shutdown, move |cancel| {
                    through.follow_through(node, ways, cancel)
                });
                let (channel, group) = (peers.channel(node), group.clone());
                owner.spawn("observed-from-peer", OnExit::Shutdown, move |cancel| {
                    group.follow(node, channel, cancel)
                });
            }
            followed.extend(now);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = others.changed() => if changed.is_err() { return cancel.cancelled().await },
            }
        }
    });
}

async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {what}; is another process there?"))
}

fn sans(config: &HostConfig) -> Vec<String> {
    let mut sans = tls::local_names();
    sans.extend(
        config
            .addresses
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| ip.to_string()),
    );
    sans.extend(config.tls.extra_sans.iter().cloned());
    sans.sort();
    sans.dedup();
    sans
}

fn hostname() -> String {
    tls::local_names()
        .into_iter()
        .find(|n| n != "localhost" && n.parse::<std::net::IpAddr>().is_err())
        .unwrap_or_else(|| "localhost".into())
}
