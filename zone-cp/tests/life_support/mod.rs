//! A zone control plane that can be stopped and started on its store, real proxies beside it, and traffic between them that is not
//! held up by anything (open loop, no retry).
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::Router;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use ursa_model::{Kind, ZoneName, kind::secret::Secret};
use ursa_pki::token::{self, DataplaneClaims, SigningKey};
use ursa_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ursa_proxy::{
    Admin, ProxyConfig, ProxySpec, Supervisor,
    admin::AdminAddress,
    bootstrap::{BootstrapRequest, Client, Retry},
    envoy::KillSwitch,
    metrics::Metrics,
    readiness::Phase,
    supervisor,
};
use ursa_runtime::{
    OnExit, Readiness, Secret as Hidden, Stages, Tasks, serve,
    tls::{self, ServerTls, Versions},
};
use ursa_state::Observed;
use ursa_zone_cp::{
    build::Encoder,
    connections::Connections,
    dp::{
        ads::{AdsServer, Registrar},
        bootstrap::{self, Bootstrap},
        drain::{self, Drain},
        hds::HdsServer,
        insight::Insights,
    },
    metrics::XdsMetrics,
    reconcile::{Propose, Reconciler},
    world::World,
    xds::hds::HealthDiscoveryServiceServer,
};

use crate::common::{MESH, MemoryStore, put};

pub mod http;

use http::{Answer, Connection};

/// No step may take longer.
pub const PATIENCE: Duration = Duration::from_secs(30);
const ZONE: &str = "west";

/// A zone: what outlives its control plane.
pub struct Life {
    pub dir: TempDir,
    pub store: MemoryStore,
    pub observed: Observed,
    key: SigningKey,
    tls: ServerTls,
    envoy: PathBuf,
    /// First three octets of every address here.
    net: String,
    pub address: SocketAddr,
    pub plane: Option<Plane>,
}

/// A running control plane.
pub struct Plane {
    pub tasks: Tasks,
    pub connections: Connections,
    pub metrics: XdsMetrics,
}

impl Life {
    /// A mesh without any policy, so without retries; every workload has an identity whose certificates live `expiry`, and may call
    /// every other.
    pub async fn start(envoy: PathBuf, expiry: &str) -> Self {
        static ZONES: AtomicU32 = AtomicU32::new(0);
        tls::install_provider();
        let pid = std::process::id();
        let net = format!(
            "127.{}.{}",
            64 + pid % 128,
            (pid / 128 + ZONES.fetch_add(1, Ordering::Relaxed)) % 250
        );
        let dir = tempfile::Builder::new().prefix("ursa-life-").tempdir().unwrap();
        let host = format!("{net}.1");
        let listener = TcpListener::bind((host.as_str(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let tls = ServerTls::load_or_create(&dir.path().join("tls"), &[host]).unwrap();
        let key = SigningKey::generate().unwrap();
        let secret = serde_json::to_value(Secret::of(key.private_pem().as_bytes())).unwrap();
        let identity = json!({
            "selector": {"dataplane": {"matchLabels": {}}},
            "spiffeID": {"trustDomain": "{{ .Mesh }}.{{ .Zone }}.mesh.local", "path": "/workload/{{ .Workload }}"},
            "provider": {"type": "Bundled", "bundled": {"meshTrustCreation": "Enabled", "insecureAllowSelfSigned": true,
                "autogenerate": {"enabled": true}, "certificateParameters": {"expiry": expiry}}}});
        let permission = json!({"rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": "spiffe://default.west.mesh.local/workload"}}]}}]});
        let store = MemoryStore::new();
        store.put(vec![
            put(Kind::Mesh, "", MESH, &[], json!({})),
            put(Kind::Secret, MESH, "dataplane-token-signing-key-default-1", &[], secret),
            put(Kind::MeshIdentity, MESH, "identity", &[], identity),
            put(Kind::MeshTrafficPermission, MESH, "allow", &[], permission),
        ]);
        let mut life = Self {
            dir,
            store,
            observed: Observed::default(),
            key,
            tls,
            envoy,
            net,
            address,
            plane: None,
        };
        life.start_plane().await;
        life
    }

    /// Starts the control plane, on what is in the store.
    pub async fn start_plane(&mut self) {
        let zone: ZoneName = ZONE.parse().unwrap();
        let tasks = Tasks::new();
        let propose: Arc<dyn Propose> = Arc::new(self.store.clone());
        let (worlds, world_views) = watch::channel(Arc::new(World::empty(zone.clone())));
        let connections = Connections::default();
        let reconciler = Reconciler {
            zone: zone.clone(),
            views: self.store.subscribe(),
            connections: connections.clone(),
            store: propose.clone(),
            worlds,
        };
        tasks.spawn("reconcile", OnExit::Shutdown, |cancel| reconciler.run(cancel));
        let registrar = Registrar {
            zone: zone.clone(),
            views: self.store.subscribe(),
            store: propose,
        };
        let metrics = XdsMetrics::default();
        let drain = Drain {
            registrar: registrar.clone(),
            connections: connections.clone(),
            elsewhere: None,
        };
        let hds = HdsServer {
            registrar: registrar.clone(),
            connections: connections.clone(),
            tasks: tasks.clone(),
        };
        let ads = AdsServer {
            registrar: registrar.clone(),
            worlds: world_views,
            connections: connections.clone(),
            insights: Insights::new(zone, "test", self.observed.clone()),
            encoder: Arc::new(Encoder::default()),
            metrics: metrics.clone(),
            stages: Stages::new(1024),
            tasks: tasks.clone(),
            require_token: true,
        };
        let app: Router = tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(ads))
            .add_service(HealthDiscoveryServiceServer::new(hds))
            .into_axum_router()
            .merge(drain::router(drain))
            .merge(bootstrap::router(Bootstrap {
                registrar,
                refusals: connections.refusals().clone(),
                ca_pem: self.tls.ca_pem().into(),
                sans: Arc::from([self.address.ip().to_string()]),
                port: self.address.port(),
            }));
        let listener = TcpListener::bind(self.address).await.unwrap();
        let config = self.tls.server_config_for(&["h2", "http/1.1"], Versions::Tls12AndTls13);
        let owner = tasks.clone();
        tasks.spawn("server", OnExit::Ignore, move |cancel| {
            serve::https(listener, config, app, serve::Limits::default(), owner, cancel)
        });
        self.plane = Some(Plane {
            tasks,
            connections,
            metrics,
        });
    }

    /// Ends the control plane; the store stays.
    pub async fn stop_plane(&mut self) {
        let plane = self.plane.take().unwrap();
        plane.tasks.shutdown(Duration::from_secs(10)).await;
        assert_eq!(plane.tasks.panics(), 0);
    }

    pub fn connections(&self) -> &Connections {
        &self.plane.as_ref().unwrap().connections
    }

    /// Waits for a condition on the store.
    pub async fn wait(&self, what: &str, f: impl Fn(&ursa_state::View) -> bool) {
        let mut views = self.store.subscribe();
        let found = timeout(PATIENCE, views.wait_for(|v| f(v))).await;
        assert!(found.is_ok(), "waited in vain for: {what}");
    }

    pub fn ip(&self, host: u8) -> String {
        format!("{}.{host}", self.net)
    }

    fn token(&self, name: &str, workload: &str) -> String {
        let claims = DataplaneClaims {
            name: name.into(),
            mesh: MESH.into(),
            workload: workload.into(),
            ..DataplaneClaims::default()
        };
        token::issue(&self.key, "1", &claims, Duration::from_secs(3600), OffsetDateTime::now_utc())
            .unwrap()
            .token
    }

    /// An application at `host`, and a sidecar in front of it, as [`Self::proxy`].
    pub async fn workload(&self, name: &str, workload: &str, host: u8, outbound: Option<(u16, &str)>) -> Sidecar {
        application(name, SocketAddr::new(self.ip(host).parse().unwrap(), APPLICATION)).await;
        self.proxy(name, workload, host, outbound).await
    }

    /// An Envoy as a stock kuma-dp runs it: it says nothing to the control plane that its Envoy does not say.
    pub async fn stock(&self, name: &str, workload: &str, host: u8) -> Stock {
        application(name, SocketAddr::new(self.ip(host).parse().unwrap(), APPLICATION)).await;
        let dir = tempfile::Builder::new().prefix("ursa-dp-").tempdir().unwrap();
        let request = BootstrapRequest {
            mesh: MESH.into(),
            name: name.into(),
            dataplane_token: Some(self.token(name, workload)),
            dataplane_resource: Some(self.dataplane(name, workload, host, None).to_string()),
            ca_cert: self.tls.ca_pem().to_owned(),
            workdir: dir.path().display().to_string(),
            ..BootstrapRequest::default()
        };
        let bootstrap = self.client().fetch(&request, &CancellationToken::new()).await;
        let config = dir.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap.unwrap_or_else(|e| panic!("{e}")).yaml).unwrap();
        let log = std::fs::File::create(dir.path().join("envoy.log")).unwrap();
        let child = std::process::Command::new(&self.envoy)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--drain-strategy",
                "immediate",
                "--config-path",
            ])
            .arg(&config)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Stock {
            child,
            admin: Admin::new(AdminAddress::Unix(dir.path().join("kuma-envoy-admin.sock"))),
            _dir: dir,
        }
    }

    /// Whether its Envoy has reported over HDS that it is live: it looks once a second, and reports as often.
    pub async fn stock_is_live(&self, stock: &Stock) -> bool {
        let stats = stock.admin.stats("system_envoy_admin.health_check.success").await.unwrap();
        let text = String::from_utf8_lossy(&stats).into_owned();
        let successes = text
            .lines()
            .filter_map(|l| l.rsplit_once(": "))
            .filter_map(|(_, n)| n.trim().parse::<u64>().ok());
        successes.sum::<u64>() >= 3
    }

    fn client(&self) -> Client {
        let retry = Retry {
            backoff: Duration::from_millis(200),
            max_duration: PATIENCE,
        };
        let url = format!("https://{}", self.address);
        let ca = self.tls.ca_pem().as_bytes();
        Client::new(vec![url.parse().unwrap()], ca, retry, Metrics::default().bootstrap_retries).unwrap()
    }

    fn dataplane(&self, name: &str, workload: &str, host: u8, outbound: Option<(u16, &str)>) -> Value {
        let ip = self.ip(host);
        let mut networking = json!({"address": ip, "inbound": [
            {"port": INBOUND, "servicePort": APPLICATION, "serviceAddress": ip, "name": "http", "protocol": "http"}]});
        if let Some((port, to)) = outbound {
            networking["outbound"] = json!([{"address": ip, "port": port,
                "backendRef": {"kind": "MeshService", "labels": {"kuma.io/display-name": to}, "port": INBOUND}}]);
        }
        json!({"type": "Dataplane", "mesh": MESH, "name": name, "labels": {"kuma.io/workload": workload}, "networking": networking})
    }

    /// A sidecar with a real Envoy, ready. `outbound`: a port, and the workload that it leads to.
    pub async fn proxy(&self, name: &str, workload: &str, host: u8, outbound: Option<(u16, &str)>) -> Sidecar {
        let mut spec = ProxySpec::new(MESH, name);
        spec.dataplane = Some(self.dataplane(name, workload, host, outbound).to_string());
        self.sidecar(spec, self.token(name, workload)).await
    }

    async fn sidecar(&self, spec: ProxySpec, token: String) -> Sidecar {
        let tasks = Tasks::new();
        let work_dir = tempfile::Builder::new().prefix("ursa-dp-").tempdir().unwrap();
        let (phase, _) = watch::channel(Phase::Starting);
        let (readiness, switch, metrics) = (Readiness::new(), KillSwitch::default(), Metrics::default());
        let mut config = ProxyConfig::default();
        config.drain.time = Duration::from_secs(20);
        config.drain.quiet = Duration::from_millis(300);
        config.envoy.concurrency = Some(1);
        let client = self.client();
        let cancel = CancellationToken::new();
        let name = spec.name.clone();
        let supervisor = Supervisor {
            config,
            spec,
            client,
            envoy: self.envoy.clone(),
            work_dir: work_dir.path().to_owned(),
            given_ca: Some(self.tls.ca_pem().to_owned()),
            token: Some(Hidden::new(token)),
            tasks: tasks.clone(),
            switch: switch.clone(),
            guarded: false,
            phase,
            readiness: readiness.clone(),
            metrics,
        };
        let running = tokio::spawn(supervisor.run(cancel.clone()));
        let sidecar = Sidecar {
            name,
            admin: Admin::new(AdminAddress::Unix(work_dir.path().join("kuma-envoy-admin.sock"))),
            cancel,
            running: Some(running),
            switch,
            tasks,
            dir: Some(work_dir),
        };
        // Nothing is not ready before it has begun: then its Envoy does not answer either.
        until(&format!("{} is ready", sidecar.name), async || {
            readiness.is_ready() && sidecar.admin.ready().await.is_ok_and(|state| state.live)
        })
        .await;
        sidecar
    }
}

/// Port of every application.
pub const APPLICATION: u16 = 18080;
/// Port of every inbound.
pub const INBOUND: u16 = 8080;

/// A running sidecar; its Envoy is killed when this is dropped.
pub struct Sidecar {
    pub name: String,
    pub admin: Admin,
    cancel: CancellationToken,
    running: Option<JoinHandle<Result<(), supervisor::Error>>>,
    switch: KillSwitch,
    tasks: Tasks,
    dir: Option<TempDir>,
}

impl Sidecar {
    /// As SIGTERM to the program does: waits for the orderly end.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        let ended = timeout(PATIENCE, self.running.take().unwrap()).await;
        ended.expect("it ends").expect("no panic").expect("an orderly end");
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }

    /// Sum of the statistics whose names this RE2 expression (of letters, digits, `.`, `_`, `*`) matches.
    pub async fn stat(&self, filter: &str) -> u64 {
        let page = self.admin.stats(filter).await.unwrap();
        String::from_utf8_lossy(&page)
            .lines()
            .filter_map(|l| l.split_once(": "))
            .filter_map(|(_, v)| v.trim().parse::<u64>().ok())
            .sum()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.switch.kill();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("{}: log and bootstrap are kept in {}", self.name, dir.keep().display());
        }
    }
}

/// An Envoy that nobody of ours watches; killed when dropped.
pub struct Stock {
    child: std::process::Child,
    pub admin: Admin,
    _dir: TempDir,
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An application that answers with its name, for as long as the test runs.
pub async fn application(name: &str, at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    let name: Arc<str> = name.into();
    let answer = move || {
        let name = name.clone();
        async move { name.to_string() }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
}

/// Asks until `done`.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut done: F) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await; // a test that polls real processes
    }
}

/// One request over a connection of its own; the name of who answered.
pub async fn ask(address: SocketAddr) -> Result<String, String> {
    named(Connection::open(address).await?.get().await)
}

fn named(answer: Result<Answer, String>) -> Result<String, String> {
    let answer = answer?;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(format!("{status} {:?}", answer.body)),
    }
}

/// Asks until this one answers.
pub async fn until_answered_by(address: SocketAddr, name: &str) {
    until(&format!("an answer of {name}"), async || {
        ask(address).await.is_ok_and(|n| n == name)
    })
    .await;
}

/// What came of traffic.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub by: BTreeMap<String, u64>,
    /// From the start of the traffic, and why.
    pub failed: Vec<(Duration, String)>,
}

impl Outcome {
    pub fn right(&self) -> u64 {
        self.by.values().sum()
    }
}

/// Constant traffic: `rate` requests per second whatever comes back. Every other request has a connection of its own, the others share
/// kept ones.
pub struct Traffic {
    stop: CancellationToken,
    task: JoinHandle<()>,
    outcome: Arc<Mutex<Outcome>>,
}

type Kept = Arc<Mutex<Vec<Connection>>>;

impl Traffic {
    pub fn start(address: SocketAddr, rate: u32) -> Self {
        let (stop, outcome) = (CancellationToken::new(), Arc::new(Mutex::new(Outcome::default())));
        let (cancel, out) = (stop.clone(), outcome.clone());
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let kept = Kept::default();
            let mut under_way = JoinSet::new();
            let mut count = 0_u64;
            loop {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => break,
                    Some(_) = under_way.join_next() => {}
                    _ = ticks.tick() => {
                        count += 1;
                        let (out, kept, keeps) = (out.clone(), kept.clone(), count.is_multiple_of(2));
                        under_way.spawn(async move {
                            let at = began.elapsed();
                            let answer = if keeps { ask_kept(address, &kept).await } else { ask(address).await };
                            let mut out = out.lock();
                            match answer {
                                Ok(name) => *out.by.entry(name).or_default() += 1,
                                Err(why) => out.failed.push((at, why)),
                            }
                        });
                    }
                }
            }
            while under_way.join_next().await.is_some() {}
        });
        Self { stop, task, outcome }
    }

    pub fn so_far(&self) -> Outcome {
        self.outcome.lock().clone()
    }

    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        self.task.await.unwrap();
        self.outcome.lock().clone()
    }
}

async fn ask_kept(address: SocketAddr, kept: &Kept) -> Result<String, String> {
    let idle = {
        let mut kept = kept.lock();
        kept.retain(Connection::is_open);
        kept.pop()
    };
    let mut connection = match idle {
        Some(connection) => connection,
        None => Connection::open(address).await?,
    };
    let answer = connection.get().await;
    if answer.as_ref().is_ok_and(|a| !a.closes) {
        kept.lock().push(connection);
    }
    named(answer)
}

/// A resource's spec as stored.
pub fn stored(store: &MemoryStore, kind: Kind, name: &str) -> Option<Value> {
    store
        .view()
        .list(kind)
        .find(|r| r.name() == name)
        .map(|r| serde_json::to_value(r.as_ref()).unwrap())
}
