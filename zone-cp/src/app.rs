//! Puts the zone control plane together and runs it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::watch;
use tracing::info;
use ursa_model::ZoneName;
use ursa_plane::{Host, HostConfig, Plane};
use ursa_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ursa_rest::{Info, Site};
use ursa_runtime::{
    config::log_effective,
    tasks::{ExitStatus, OnExit},
    tls::Versions,
};
use ursa_state::{Applied, Changeset, Role};
use ursa_sync::{ClientConfig, ClientParts, KdsClient, Metrics, client::Token};

use crate::{
    build::Encoder,
    config::Config,
    connections::Connections,
    dp::{
        ads::{AdsServer, Registrar},
        bootstrap::{self, Bootstrap},
        drain::{self, Drain},
        elsewhere::OtherZones,
        hds::HdsServer,
        insight::Insights,
    },
    metrics::XdsMetrics,
    reconcile::{Propose, Reconciler},
    world::World,
    xds::hds::HealthDiscoveryServiceServer,
};

/// Keepalive of the connection to the global. A stock global answers faster PINGs by closing it.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Largest message that a proxy may send, in bytes: its node's metadata and the names that it subscribes to.
const MAX_XDS_MESSAGE: usize = 4 * 1024 * 1024;

/// Largest report of health, in bytes: its first message has the node's metadata.
const MAX_HDS_MESSAGE: usize = 4 * 1024 * 1024;

struct ProposeToStore(Plane);

impl Propose for ProposeToStore {
    fn propose(&self, set: Changeset) -> BoxFuture<'static, Result<Applied, String>> {
        let plane = self.0.clone();
        Box::pin(async move { plane.propose(set).await.map_err(|e| e.to_string()) })
    }
}

/// Runs until told to stop.
///
/// # Errors
/// What keeps the program from starting, with the way out.
pub async fn run(config: Config) -> Result<ExitStatus> {
    log_effective(&config);
    let zone: ZoneName = config.zone.parse().context("zone")?;
    let site = Site::Zone {
        name: zone.clone(),
        federated: config.is_federated(),
    };
    let host_config = HostConfig {
        role: Role::Zone,
        data_dir: config.data_dir.clone(),
        node_id: config.node.id,
        store: config.store.clone(),
        tls: config.tls.clone(),
        encryption: config.encryption.clone(),
        addresses: vec![config.api.address, config.dp_server.address],
    };
    let (host, serving) = Host::open(host_config, config.diagnostics.address).await?;
    host.keep_history(&config.history);
    host.ensure_defaults(&site).await?;

    let store: Arc<dyn Propose> = Arc::new(ProposeToStore(host.plane.clone()));
    let (worlds, world_views) = watch::channel(Arc::new(World::empty(zone.clone())));
    let connections = Connections::default();
    let reconciler = Reconciler {
        zone: zone.clone(),
        views: host.plane.store.subscribe(),
        connections: connections.clone(),
        store: store.clone(),
        worlds,
    };
    host.tasks.spawn("reconcile", OnExit::Shutdown, |cancel| reconciler.run(cancel));

    let global = if config.is_federated() {
        Some(client(&host, &zone, &config)?)
    } else {
        None
    };
    let elsewhere = global.as_ref().map(|client| Arc::new(client.elsewhere()) as Arc<dyn OtherZones>);
    let proxies = Proxies {
        store,
        connections,
        worlds: world_views,
        elsewhere,
    };
    serve_proxies(&host, &zone, config.dp_server.address, proxies).await?;
    host.serve_api(config.api.address, site, &config.reported_version, serde_json::to_value(&config)?)
        .await?;
    if let Some(client) = global {
        host.show_held(client.holds());
        host.tasks.spawn("kds-client", OnExit::Shutdown, move |cancel| client.run(cancel));
    }
    serving.ready();
    info!(%zone, api = %config.api.address, proxies = %config.dp_server.address, "the zone control plane is ready");
    Ok(host.run(config.shutdown_grace).await)
}

/// What proxies are served from.
struct Proxies {
    store: Arc<dyn Propose>,
    connections: Connections,
    worlds: watch::Receiver<Arc<World>>,
    elsewhere: Option<Arc<dyn OtherZones>>,
}

/// The data-plane server.
async fn serve_proxies(host: &Host, zone: &ZoneName, address: SocketAddr, proxies: Proxies) -> Result<()> {
    let Proxies {
        store,
        connections,
        worlds,
        elsewhere,
    } = proxies;
    let registrar = Registrar {
        zone: zone.clone(),
        views: host.plane.store.subscribe(),
        store,
    };
    let insights = Insights::new(zone.clone(), &host.instance_id, host.plane.observed.clone());
    let metrics = XdsMetrics::default();
    metrics.register(&mut host.registry.lock());
    let hds = HdsServer {
        registrar: registrar.clone(),
        connections: connections.clone(),
        tasks: host.tasks.clone(),
    };
    let drain = Drain {
        registrar: registrar.clone(),
        connections: connections.clone(),
        elsewhere,
    };
    let refusals = connections.refusals().clone();
    let ads = AdsServer {
        registrar: registrar.clone(),
        worlds,
        connections,
        insights: insights.clone(),
        encoder: Arc::new(Encoder::default()),
        metrics,
        stages: host.stages.clone(),
        tasks: host.tasks.clone(),
        require_token: true,
    };
    let views = host.plane.store.subscribe();
    host.tasks.spawn("insights", OnExit::Shutdown, |cancel| insights.run(views, cancel));
    let (names, addresses) = host.tls.dns_and_ip_sans();
    let sans: Vec<String> = names.into_iter().chain(addresses.iter().map(ToString::to_string)).collect();
    let ads = AggregatedDiscoveryServiceServer::new(ads)
        .max_decoding_message_size(MAX_XDS_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let hds = HealthDiscoveryServiceServer::new(hds).max_decoding_message_size(MAX_HDS_MESSAGE);
    let router = tonic::service::Routes::new(ads)
        .add_service(hds)
        .into_axum_router()
        .merge(drain::router(drain))
        .merge(bootstrap::router(Bootstrap {
            registrar,
            refusals,
            ca_pem: host.tls.ca_pem().into(),
            sans: sans.into(),
            port: address.port(),
        }));
    // Envoys started from a stock bootstrap offer TLS 1.2.
    host.serve_https("dp-server", address, router, &["h2", "http/1.1"], Versions::Tls12AndTls13)
        .await
}

/// The connection to the global control plane, to be run.
fn client(host: &Host, zone: &ZoneName, config: &Config) -> Result<KdsClient> {
    let ca_pem = match &config.global.ca_file {
        Some(file) => Some(std::fs::read_to_string(file).with_context(|| format!("global.ca_file {}", file.display()))?),
        None => None,
    };
    let metrics = Metrics::default();
    metrics.register(&mut host.registry.lock());
    let (client, _status) = KdsClient::new(
        ClientConfig {
            zone: zone.clone(),
            instance_id: host.instance_id.clone(),
            version: Info::DEFAULT_VERSION.to_owned(),
            addresses: config.global.addresses.clone(),
            ca_pem,
            token: config.global.token_file.clone().map_or(Token::None, Token::File),
            // A stock global looks for the kind of store here, to know how names look in this zone; kumactl shows it.
            display_config: json!({"store": {"type": "raft"}, "environment": "universal", "mode": "zone"}).to_string(),
            keepalive: KEEPALIVE,
            compress: false,
        },
        ClientParts {
            source: host.plane.source(),
            sink: Arc::new(host.plane.clone()),
            stages: host.stages.clone(),
            metrics,
        },
    )?;
    Ok(client)
}
