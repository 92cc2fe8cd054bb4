//! Both programs' ends over real gRPC and TLS on loopback, with stores in memory.
//! In: changes on either side, bad tokens, garbage. Out: what arrives, typed statuses. Invariant checked throughout: no panic, and
//! nothing stored changes by what was refused.
#[path = "../../src/testing.rs"]
mod testing;

mod elsewhere;
mod misuse;
mod nodes;
mod pipe;
mod restart;
mod stock;
mod travel;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use testing::{Memory, key, labels_of};
use tokio::{net::TcpListener, sync::mpsc, sync::watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    codec::CompressionEncoding,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use ursa_model::{
    Kind,
    kind::{secret::Secret as SecretSpec, zone_insight::ZoneInsight},
    labels::{DISPLAY_NAME, ORIGIN, Site, ZONE},
    wire,
};
use ursa_pki::token::{SigningKey, ZoneClaims, issue};
use ursa_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    kds::{ZoneHealthCheckRequest, global_kds_service_client::GlobalKdsServiceClient, kds_sync_service_client::KdsSyncServiceClient},
};
use ursa_runtime::{OnExit, Stages, Tasks, serve, tls};
use ursa_state::{Applied, Changeset, GlobalRevision, Role};
use ursa_sync::{
    Claims, ClientConfig, ClientParts, ClientStatus, Group, KdsClient, KdsServer, MAX_DECODED_BYTES, Metrics, PROGRESS_TYPE_URL, Quorum,
    ServerConfig, ServerParts, Sink, SinkError, Source, TokenAuth,
    client::{Elsewhere, Token},
    peer::Identity,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `done` says so, looking every few milliseconds; after [`PATIENCE`] it fails with `what`.
async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

#[derive(Clone)]
struct MemorySink(Memory);

impl Sink for MemorySink {
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
        self.0.store(set).map(|r| r.map_err(SinkError::Unavailable)).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        futures::future::ready(Ok(())).boxed()
    }
}

/// The way of one node to the store: as long as the test holds it for writing, what is on it does not arrive.
#[derive(Clone, Default)]
struct Way {
    free: Arc<tokio::sync::RwLock<()>>,
    begun: Arc<AtomicU64>,
}

struct WaySink(Memory, Way);

impl Sink for WaySink {
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
        async move {
            self.1.begun.fetch_add(1, Ordering::SeqCst);
            let free = self.1.free.read().await;
            let stored = self.0.store(set).await.map_err(SinkError::Unavailable);
            drop(free);
            stored
        }
        .boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        futures::future::ready(Ok(())).boxed()
    }
}

/// A quorum that the test takes away and gives back: milliseconds since there was contact.
#[derive(Default)]
struct FakeQuorum(AtomicU64);

impl Quorum for FakeQuorum {
    fn since_contact(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A global, or one node of it, with its KDS port.
struct Global {
    name: &'static str,
    memory: Memory,
    server: KdsServer,
    stages: Stages,
    tasks: Tasks,
    address: SocketAddr,
    tls: tls::ServerTls,
    signing: SigningKey,
    quorum: Arc<FakeQuorum>,
    claims: Claims,
    way: Way,
    dir: Arc<tempfile::TempDir>,
}

fn source(memory: &Memory) -> Source {
    Source::new(memory.role, memory.views(), memory.observed.clone())
}

impl Global {
    async fn start() -> Self {
        tls::install_provider();
        let memory = Memory::new(Role::Global, 0xa);
        let signing = SigningKey::generate().unwrap();
        let pem = serde_json::to_value(SecretSpec::of(signing.private_pem().as_bytes())).unwrap();
        memory.put(Site::Global, Kind::GlobalSecret, "", "zone-token-signing-key-1", pem);
        memory.put(Site::Global, Kind::Mesh, "", "default", json!({}));
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let tls = tls::ServerTls::load_or_create(dir.path(), &tls::local_names()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve("global-1", memory, signing, dir, tls, listener, address)
    }

    /// Another node of the same global: same store, other process.
    async fn another(&self, name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (memory, signing) = (self.memory.clone(), self.signing.clone());
        Self::serve(name, memory, signing, self.dir.clone(), self.tls.clone(), listener, address)
    }

    fn serve(
        name: &'static str,
        memory: Memory,
        signing: SigningKey,
        dir: Arc<tempfile::TempDir>,
        tls: tls::ServerTls,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Self {
        let (tasks, stages, way) = (Tasks::new(), Stages::default(), Way::default());
        let parts = ServerParts {
            source: source(&memory),
            sink: Arc::new(WaySink(memory.clone(), way.clone())),
            auth: Arc::new(TokenAuth::required(memory.views())),
            stages: stages.clone(),
            metrics: Metrics::default(),
            tasks: tasks.clone(),
        };
        let config = ServerConfig {
            instance_id: name.into(),
            version: "0.1.0".into(),
            health_check_interval: Duration::from_secs(10),
        };
        let (quorum, claims) = (Arc::new(FakeQuorum::default()), Claims::new(name));
        let group = Group {
            quorum: quorum.clone(),
            claims: claims.clone(),
        };
        let server = KdsServer::in_group(config, parts, group);
        tasks.spawn("kds", OnExit::Shutdown, |cancel| server.clone().run(cancel));
        let router = server.router();
        let (tls_config, listener_tasks) = (tls.server_config_for(&["h2"], tls::Versions::Tls12AndTls13), tasks.clone());
        tasks.spawn("kds-port", OnExit::Shutdown, |cancel| {
            serve::https(listener, tls_config, router, serve::Limits::default(), listener_tasks, cancel)
        });
        Self {
            name,
            memory,
            server,
            stages,
            tasks,
            address,
            tls,
            signing,
            quorum,
            claims,
            way,
            dir,
        }
    }

    async fn stop(&self) {
        self.tasks.cancel_token().cancel();
        within("the server ends", self.tasks.idle()).await;
        assert_eq!(self.tasks.panics(), 0);
    }

    /// Another process over the same store, on the same port.
    async fn restart(self) -> Self {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        let Self {
            name,
            memory,
            address,
            tls,
            signing,
            dir,
            ..
        } = self;
        Self::serve(name, memory, signing, dir, tls, listener, address)
    }

    fn token(&self, zone: &str) -> String {
        let claims = ZoneClaims {
            zone: zone.into(),
            scope: vec![],
        };
        issue(
            &self.signing,
            "1",
            &claims,
            Duration::from_secs(3600),
            time::OffsetDateTime::now_utc(),
        )
        .unwrap()
        .token
    }

    fn insight(&self, zone: &str) -> ZoneInsight {
        self.memory
            .get(Kind::ZoneInsight, "", zone)
            .and_then(|r| r.spec().ok())
            .unwrap_or_default()
    }

    async fn channel(&self) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.tls.ca_pem()));
        Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// A client without our code between: what a zone could send.
    async fn raw(&self) -> KdsSyncServiceClient<Channel> {
        KdsSyncServiceClient::new(self.channel().await)
            .max_encoding_message_size(128 * 1024 * 1024)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Everything stored, to compare.
    fn everything(&self) -> Vec<String> {
        self.memory
            .view()
            .iter()
            .map(|r| format!("{:?}@{}", r.key, r.mod_revision))
            .collect()
    }
}

/// A zone with our client.
struct Zone {
    memory: Memory,
    name: &'static str,
    status: watch::Receiver<ClientStatus>,
    elsewhere: Elsewhere,
    stages: Stages,
    metrics: Metrics,
    tasks: Tasks,
}

impl Zone {
    fn start(global: &Global, name: &'static str, history: u128) -> Self {
        Self::with(
            Memory::new(Role::Zone, history),
            global,
            name,
            Token::Text(global.token(name).into()),
        )
    }

    fn with(memory: Memory, global: &Global, name: &'static str, token: Token) -> Self {
        Self::at(memory, global, vec![format!("grpcs://{}", global.address)], name, token)
    }

    /// A zone that knows several nodes.
    fn across(memory: Memory, nodes: &[&Global], name: &'static str) -> Self {
        let addresses = nodes.iter().map(|n| n.address.to_string()).collect();
        let token = Token::Text(nodes[0].token(name).into());
        Self::at(memory, nodes[0], addresses, name, token)
    }

    fn at(memory: Memory, global: &Global, addresses: Vec<String>, name: &'static str, token: Token) -> Self {
        let (tasks, stages, metrics) = (Tasks::new(), Stages::default(), Metrics::default());
        let config = ClientConfig {
            zone: name.parse().unwrap(),
            instance_id: uuid::Uuid::new_v4().to_string(),
            version: "0.1.0".into(),
            addresses,
            ca_pem: Some(global.tls.ca_pem().to_owned()),
            token,
            display_config: json!({"store": {"type": "embedded"}}).to_string(),
            keepalive: Duration::from_secs(20),
            compress: false,
        };
        let parts = ClientParts {
            source: source(&memory),
            sink: Arc::new(MemorySink(memory.clone())),
            stages: stages.clone(),
            metrics: metrics.clone(),
        };
        let (client, status) = KdsClient::new(config, parts).unwrap();
        let elsewhere = client.elsewhere();
        tasks.spawn("kds", OnExit::Shutdown, |cancel| client.run(cancel));
        Self {
            memory,
            name,
            status,
            elsewhere,
            stages,
            metrics,
            tasks,
        }
    }

    fn put(&self, kind: Kind, name: &str, spec: Value) {
        self.memory.put(Site::Zone(self.name), kind, "default", name, spec);
    }

    async fn connected(&self) {
        wait("connected", || self.status.borrow().connected.is_some()).await;
    }

    async fn caught_up(&self, global: &Global) {
        wait("the zone runs the newest revision", || {
            self.memory.view().global() == Some(global.memory.view().at_global())
        })
        .await;
    }

    async fn stop(self) -> Memory {
        self.tasks.cancel_token().cancel();
        within("the zone ends", self.tasks.idle()).await;
        assert_eq!(self.tasks.panics(), 0);
        self.memory
    }
}

/// Changesets since a revision that changed a resource. (Others only note how far the global is.)
fn changesets_since(memory: &Memory, revision: u64) -> usize {
    let view = memory.view();
    let changes = view.changes_since(revision).unwrap();
    changes.filter(|c| !c.changes.is_empty()).count()
}

fn permission() -> Value {
    let id = "spiffe://default.east.mesh.local/workload/frontend";
    json!({"targetRef": {"kind": "Mesh"}, "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": id}}]}}]})
}

fn address(port: u16) -> Value {
    json!({"address": "127.0.2.2", "port": port})
}

fn request<T>(message: T, pairs: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in pairs {
        request.metadata_mut().append(*key, value.parse().unwrap());
    }
    request
}

/// Opens ZoneToGlobalSync as `zone`; gives what to send on and what comes.
async fn open_up(
    global: &Global,
    zone: &str,
    extra: &[(&'static str, &str)],
) -> (mpsc::Sender<DeltaDiscoveryResponse>, tonic::Streaming<DeltaDiscoveryRequest>) {
    let token = global.token(zone);
    let mut pairs = vec![("client-id", zone), ("authorization", token.as_str()), ("features", "hash-suffix")];
    pairs.extend(extra);
    let (tx, rx) = mpsc::channel(64);
    let stream = within(
        "headers come at once",
        global.raw().await.zone_to_global_sync(request(ReceiverStream::new(rx), &pairs)),
    )
    .await
    .unwrap();
    (tx, stream.into_inner())
}

async fn end_of<T>(stream: &mut tonic::Streaming<T>) -> Status {
    within("the stream ends", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream never ends with OK"),
                Err(status) => return status,
            }
        }
    })
    .await
}

fn zone_address(name: &str, spec: &Value) -> Resource {
    let bytes = wire::encode(Kind::MeshZoneAddress, "default", name, &labels_of(&[(ORIGIN, "zone")]), spec, None).unwrap();
    Resource {
        name: wire::kds_name("default", name),
        resource: Some(prost_types::Any {
            type_url: wire::RESOURCE_TYPE_URL.into(),
            value: bytes.to_vec(),
        }),
        ..Resource::default()
    }
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        ..Default::default()
    }
}
