//! Puts the global control plane together and runs it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tracing::info;
use ursa_plane::{Host, HostConfig};
use ursa_rest::{Info, Site};
use ursa_runtime::{
    ReadinessGuard,
    config::log_effective,
    tasks::{ExitStatus, OnExit},
    tls::Versions,
};
use ursa_state::Role;
use ursa_sync::{KdsServer, Metrics, ServerConfig, ServerParts, TokenAuth};

use crate::config::Config;

/// How often zones should report in. Their streams are watched by HTTP/2 keepalive; this refreshes the time shown.
const HEALTH_CHECK: Duration = Duration::from_secs(10);

/// Runs until told to stop.
///
/// # Errors
/// What keeps the program from starting, with the way out.
pub async fn run(config: Config) -> Result<ExitStatus> {
    log_effective(&config);
    let host_config = HostConfig {
        role: Role::Global,
        data_dir: config.data_dir.clone(),
        node_id: config.node.id,
        store: config.store.clone(),
        tls: config.tls.clone(),
        encryption: config.encryption.clone(),
        addresses: vec![config.api.address, config.kds.address],
    };
    let (host, serving) = Host::open_in(host_config, config.cluster.clone(), config.diagnostics.address).await?;
    let starting = Box::pin(serve(&host, &config, serving));
    host.run_from(starting, config.shutdown_grace).await
}

/// Everything from the first resources to the servers.
async fn serve(host: &Host, config: &Config, serving: ReadinessGuard) -> Result<()> {
    host.keep_history(&config.history);
    host.ensure_defaults(&Site::Global).await?;

    let views = host.plane.store.subscribe();
    let auth = if config.kds.require_zone_token {
        TokenAuth::required(views)
    } else {
        TokenAuth::optional(views)
    };
    let metrics = Metrics::default();
    metrics.register(&mut host.registry.lock());
    let group = host.group().context("a global has a group")?;
    let kds = KdsServer::in_group(
        ServerConfig {
            instance_id: host.instance_id.clone(),
            version: Info::DEFAULT_VERSION.to_owned(),
            health_check_interval: HEALTH_CHECK,
        },
        ServerParts {
            source: host.plane.source(),
            sink: Arc::new(host.plane.clone()),
            auth: Arc::new(auth),
            stages: host.stages.clone(),
            metrics,
            tasks: host.tasks.clone(),
        },
        group,
    );
    host.show_held(kds.holds());
    let draining = kds.clone();
    host.on_stop(move || draining.drain());
    host.serve_https("kds", config.kds.address, kds.router(), &["h2"], Versions::Tls12AndTls13)
        .await?;
    host.tasks.spawn("kds-content", OnExit::Shutdown, move |cancel| kds.run(cancel));

    let shown = serde_json::to_value(config)?;
    host.serve_api(config.api.address, Site::Global, &config.reported_version, shown)
        .await?;
    serving.ready();
    info!(api = %config.api.address, kds = %config.kds.address, "the global control plane is ready");
    Ok(())
}
