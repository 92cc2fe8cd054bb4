//! The process around a control plane: data folder, TLS, store, first resources, diagnostics, the REST API, orderly end.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use tokio::net::TcpListener;
use tracing::{info, warn};
use ursa_rest::{Api, Info, Site, bootstrap};
use ursa_runtime::{
    Backoff, Readiness, ReadinessGuard, SharedRegistry, Stages,
    diagnostics::{self, new_registry},
    error::Chain,
    fs,
    serve::{self, Limits},
    tasks::{ExitStatus, OnExit, Tasks},
    tls::{self, ServerTls, Versions},
};
use ursa_state::Role;
use ursa_store::{Store, StoreConfig, disk::RealDisk};

use crate::{Plane, config::Tls};

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
    pub tls: Tls,
    /// Addresses that clients use, for the certificate.
    pub addresses: Vec<SocketAddr>,
}

/// A running control plane without its servers. Fields are handles.
pub struct Host {
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub registry: SharedRegistry,
    pub stages: Stages,
    pub tls: Arc<ServerTls>,
    pub plane: Plane,
    /// Names this process; another one with every start.
    pub instance_id: String,
    data_dir: PathBuf,
}

impl Host {
    /// Opens the data folder and the store. Diagnostics are served first, so that a slow start can be watched. The process is not
    /// ready before the guard is: the caller drops it when its servers are up.
    ///
    /// # Errors
    /// A port is taken, files cannot be made, the store does not open: each with the way out.
    pub async fn open(config: HostConfig, diagnostics_address: SocketAddr) -> Result<(Self, ReadinessGuard)> {
        let tasks = Tasks::new();
        let readiness = Readiness::until(tasks.cancel_token());
        let (registry, stages) = (new_registry(), Stages::new(STAGES));
        tasks.register_metrics(&mut registry.lock());
        let (starting, serving_guard) = (readiness.guard("store"), readiness.guard("servers"));
        let listener = bind(diagnostics_address, "diagnostics").await?;
        let router = diagnostics::router(readiness.clone(), registry.clone(), stages.clone());
        let serving = tasks.clone();
        tasks.spawn("diagnostics", OnExit::Shutdown, move |cancel| {
            serve::http(listener, router, Limits::default(), serving, cancel)
        });

        fs::create_dir(&config.data_dir, 0o700).with_context(|| format!("data folder {}", config.data_dir.display()))?;
        let tls = match (&config.tls.cert_file, &config.tls.key_file) {
            (Some(cert), Some(key)) => ServerTls::from_files(cert, key, config.tls.ca_file.as_deref())?,
            _ => ServerTls::load_or_create(&config.data_dir.join("tls"), &sans(&config))?,
        };
        tls.keep_fresh(&tasks);
        let store = Store::open(StoreConfig::new(&config.data_dir, config.node_id), Arc::new(RealDisk), &tasks)
            .await
            .with_context(|| format!("store in {}", config.data_dir.display()))?;
        starting.ready();
        info!(revision = store.view().revision(), resources = store.view().len(), "store is open");
        let host = Self {
            tasks,
            readiness,
            registry,
            stages,
            tls: Arc::new(tls),
            plane: Plane::new(config.role, store),
            instance_id: uuid::Uuid::new_v4().to_string(),
            data_dir: config.data_dir,
        };
        Ok((host, serving_guard))
    }

    /// Creates the resources that every control plane starts with, and writes the administrator's token beside the data.
    ///
    /// # Errors
    /// They cannot be made or stored, or the file cannot be written.
    pub async fn ensure_defaults(&self, site: &Site) -> Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let cancel = self.tasks.cancel_token();
        let made = loop {
            match bootstrap::ensure_defaults(&self.plane, site, &bootstrap::Options::default()).await {
                Ok(made) => break made,
                Err(error) if error.is_retryable() => warn!(error = %Chain(&error), "the default resources cannot be stored yet"),
                Err(error) => return Err(error).context("creating the default resources"),
            }
            anyhow::ensure!(backoff.wait(&cancel).await, "told to stop before the default resources were there");
        };
        if let Some(token) = made.admin_token {
            let path = self.data_dir.join("admin-user-token");
            fs::write_atomic(&path, token.as_bytes(), 0o600).with_context(|| format!("writing {}", path.display()))?;
            info!(file = %path.display(), "the administrator's token is in this file (mode 0600)");
        }
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
        self.serve_https("api", address, ursa_rest::router(api), &["h2", "http/1.1"], Versions::Tls12AndTls13)
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

    /// Runs until told to stop, ends the tasks, then closes the store.
    pub async fn run(self, grace: Duration) -> ExitStatus {
        let store = self.plane.store.clone();
        let status = self.tasks.run(grace).await;
        if let Err(error) = store.shutdown().await {
            warn!(error = %Chain(&error), "the store was not closed cleanly; its next start rebuilds what it must");
        }
        status
    }
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
