//! A zone in memory: a store without disk, the reconciler and the data-plane server on a loopback port, for tests that talk to it
//! as a proxy would.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; tests may panic")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Streaming, transport::Channel};
use ursa_model::{Kind, Labels, ResourceKey, Timestamp, ZoneName, kind::secret::Secret};
use ursa_pki::token::{self, DataplaneClaims, SigningKey};
use ursa_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
};
use ursa_runtime::{
    stages::Stages,
    tasks::{OnExit, Tasks},
};
use ursa_state::{Applied, Changeset, Command, Expect, HistoryId, Observed, Op, Put, RequestId, State, View};
use ursa_zone_cp::{
    build::Encoder,
    connections::Connections,
    dp::{
        ads::{AdsServer, Registrar},
        bootstrap::{self, Bootstrap},
        drain::{self, Drain},
        elsewhere::OtherZones,
        insight::Insights,
    },
    metrics::XdsMetrics,
    reconcile::{Propose, Reconciler},
    world::World,
};

/// State and index of its newest entry; views of it.
type Shared = (Mutex<(State, u64)>, watch::Sender<View>);

/// A store of one process, without disk.
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

impl MemoryStore {
    pub fn new() -> Self {
        let mut state = State::default();
        state.apply(1, &Command::Init { history: HistoryId(1) });
        let views = watch::Sender::new(state.view().clone());
        Self(Arc::new((Mutex::new((state, 1)), views)))
    }

    pub fn apply(&self, set: Changeset) -> Applied {
        let mut guard = self.0.0.lock();
        guard.1 += 1;
        let index = guard.1;
        let applied = guard.0.apply(index, &Command::Change(set));
        self.0.1.send_replace(guard.0.view().clone());
        applied
    }

    pub fn put(&self, ops: Vec<Op>) -> Applied {
        let applied = self.apply(Changeset::atomic(RequestId(rand::random()), Timestamp::now(), ops));
        assert_eq!(applied.rejected, None);
        applied
    }

    pub fn view(&self) -> View {
        self.0.1.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.0.1.subscribe()
    }
}

impl Propose for MemoryStore {
    fn propose(&self, set: Changeset) -> BoxFuture<'static, Result<Applied, String>> {
        let applied = self.apply(set);
        Box::pin(async move { Ok(applied) })
    }
}

pub fn put(kind: Kind, mesh: &str, name: &str, labels: &[(&str, &str)], spec: Value) -> Op {
    let spec = (kind.descriptor().canonical)(spec).unwrap();
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Op::Put(Put {
        key: ResourceKey::new(kind, mesh, name).unwrap(),
        labels,
        spec,
        status: None,
        owner: None,
        expect: Expect::Any,
    })
}

/// See the module's text.
pub struct TestZone {
    pub store: MemoryStore,
    pub observed: Observed,
    pub key: SigningKey,
    pub address: SocketAddr,
    pub tasks: Tasks,
    pub metrics: XdsMetrics,
    pub worlds: watch::Receiver<Arc<World>>,
    pub connections: Connections,
}

pub const MESH: &str = "default";
/// No step may take longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl TestZone {
    /// A zone `west` with mesh `default` and a signing key for its tokens.
    pub async fn start() -> Self {
        Self::beside(None).await
    }

    /// The same, beside other zones.
    pub async fn beside(elsewhere: Option<Arc<dyn OtherZones>>) -> Self {
        let zone: ZoneName = "west".parse().unwrap();
        let (tasks, store, observed) = (Tasks::new(), MemoryStore::new(), Observed::default());
        let key = SigningKey::generate().unwrap();
        let secret = serde_json::to_value(Secret::of(key.private_pem().as_bytes())).unwrap();
        store.put(vec![
            put(Kind::Mesh, "", MESH, &[], json!({})),
            put(Kind::Secret, MESH, "dataplane-token-signing-key-default-1", &[], secret),
        ]);
        let propose: Arc<dyn Propose> = Arc::new(store.clone());
        let (worlds, world_views) = watch::channel(Arc::new(World::empty(zone.clone())));
        let connections = Connections::default();
        let reconciler = Reconciler {
            zone: zone.clone(),
            views: store.subscribe(),
            connections: connections.clone(),
            store: propose.clone(),
            worlds,
        };
        tasks.spawn("reconcile", OnExit::Shutdown, |cancel| reconciler.run(cancel));
        let registrar = Registrar {
            zone: zone.clone(),
            views: store.subscribe(),
            store: propose,
        };
        let metrics = XdsMetrics::default();
        let drain = Drain {
            registrar: registrar.clone(),
            connections: connections.clone(),
            elsewhere,
        };
        let ads = AdsServer {
            registrar: registrar.clone(),
            worlds: world_views.clone(),
            connections: connections.clone(),
            insights: Insights::new(zone, "test", observed.clone()),
            encoder: Arc::new(Encoder::default()),
            metrics: metrics.clone(),
            stages: Stages::new(1024),
            tasks: tasks.clone(),
            require_token: true,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(ads))
            .into_axum_router()
            .merge(drain::router(drain))
            .merge(bootstrap::router(Bootstrap {
                registrar,
                refusals: connections.refusals().clone(),
                ca_pem: "CA".into(),
                sans: Arc::from(["127.0.0.1".to_owned()]),
                port: address.port(),
            }));
        let serving = tasks.clone();
        tasks.spawn("server", OnExit::Ignore, move |cancel| {
            ursa_runtime::serve::http(listener, app, ursa_runtime::serve::Limits::default(), serving, cancel)
        });
        Self {
            store,
            observed,
            key,
            address,
            tasks,
            metrics,
            worlds: world_views,
            connections,
        }
    }

    pub fn token(&self, claims: &DataplaneClaims) -> String {
        token::issue(&self.key, "1", claims, Duration::from_secs(3600), OffsetDateTime::now_utc())
            .unwrap()
            .token
    }

    pub fn token_for(&self, name: &str, workload: &str) -> String {
        self.token(&DataplaneClaims {
            name: name.into(),
            mesh: MESH.into(),
            workload: workload.into(),
            ..DataplaneClaims::default()
        })
    }

    /// Opens a stream with these first requests.
    pub async fn stream(
        &self,
        token: Option<&str>,
        first: DeltaDiscoveryRequest,
    ) -> (mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>) {
        let channel = Channel::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let (requests, outbound) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(outbound));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(request)
            .await
            .unwrap()
            .into_inner();
        (requests, responses)
    }

    /// `POST /drain`.
    pub async fn drain(&self, body: Value) -> (u16, String) {
        self.post("/drain", body.to_string()).await
    }

    /// One POST over HTTP/1.1; status and body.
    pub async fn post(&self, path: &str, body: String) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Waits for a condition on the durable tier.
    pub async fn wait(&self, what: &str, f: impl Fn(&View) -> bool) {
        let mut views = self.store.subscribe();
        let found = tokio::time::timeout(PATIENCE, views.wait_for(|v| f(v))).await;
        assert!(found.is_ok(), "waited {PATIENCE:?} for: {what}");
    }
}

fn text(s: &str) -> prost_types::Value {
    prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(s.into())),
    }
}

/// The first request of a proxy: its node, and the subscription to clusters.
pub fn first_request(node_id: &str, dataplane: Option<&str>) -> DeltaDiscoveryRequest {
    let fields = dataplane.map(|d| ("dataplane.resource".to_owned(), text(d))).into_iter().collect();
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: node_id.into(),
            cluster: String::new(),
            metadata: Some(prost_types::Struct { fields }),
        }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A Dataplane of workload `backend`, as a proxy brings it.
pub fn backend(name: &str) -> String {
    json!({"type": "Dataplane", "mesh": MESH, "name": name, "labels": {"kuma.io/workload": "backend"},
        "networking": {"address": "127.0.2.10", "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}]}})
    .to_string()
}
