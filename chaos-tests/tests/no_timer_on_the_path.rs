//! No timer stands on the path of a change: PUT at the global's REST API -> its store -> KDS -> the zone's store -> reconciler ->
//! build -> the response that a proxy's delta ADS stream carries. Everything is real but stores and network, which are in memory:
//! both servers talk gRPC over pipes.
//! Method: tokio's clock is paused and jumps only when nothing is left to do. So if any part waited for a timer, time would have
//! moved when the answer is there, and the shortest time limit would have ended the wait.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use axum::body::Body;
use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request as HttpRequest, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use tower::ServiceExt;
use ursa_model::{Kind, Timestamp, ZoneName, kind::ALL};
use ursa_proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    },
    kds::kds_sync_service_client::KdsSyncServiceClient,
};
use ursa_rest::{Api, Backend, Freshness, Info, ProposeError, Site as RestSite, Unavailable, bootstrap};
use ursa_runtime::{OnExit, Stages, Tasks};
use ursa_state::{Applied, Catalog, Changeset, Command, HistoryId, Observed, RequestId, Role, State, View};
use ursa_sync::{
    Denied, KdsServer, Metrics, ServerConfig, ServerParts, Sink, SinkError, Source, ZoneAuth,
    peer::{Features, Identity},
    receiver::{self, Receiver},
};
use ursa_zone_cp::{
    build::Encoder,
    connections::Connections,
    dp::{
        ads::{AdsServer, Registrar},
        insight::Insights,
    },
    metrics::XdsMetrics,
    reconcile::{Propose, Reconciler},
    snapshot::XdsType,
    world::World,
};

/// Less than any timer of the programs: it ends a wait as soon as nothing but timers is left.
const NO_TIME: Duration = Duration::from_millis(1);
const ZONE: &str = "east";
const CALLER: &str = "spiffe://default.east.mesh.local/workload/frontend";

/// A control plane's store in memory.
#[derive(Clone)]
struct Memory {
    role: Role,
    state: Arc<Mutex<(State, u64)>>,
    views: watch::Sender<View>,
    observed: Observed,
}

impl Memory {
    fn new(role: Role, history: u128) -> Self {
        let mut state = State::default();
        state.apply(
            1,
            &Command::Init {
                history: HistoryId(history),
            },
        );
        let views = watch::Sender::new(state.view().clone());
        Self {
            role,
            state: Arc::new(Mutex::new((state, 1))),
            views,
            observed: Observed::default(),
        }
    }

    fn change(&self, set: Changeset) -> Applied {
        let mut guard = self.state.lock();
        let (state, index) = &mut *guard;
        *index += 1;
        let applied = state.apply(*index, &Command::Change(set));
        self.views.send_replace(state.view().clone());
        applied
    }

    fn picture(&self) -> Catalog {
        Catalog {
            role: self.role,
            durable: self.views.borrow().clone(),
            observed: self.observed.view(),
        }
    }
}

impl Backend for Memory {
    fn catalog(&self, _: Freshness) -> BoxFuture<'_, Result<Catalog, Unavailable>> {
        async { Ok(self.picture()) }.boxed()
    }

    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        async { Ok(self.change(set)) }.boxed()
    }
}

impl Sink for Memory {
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
        async { Ok(self.change(set)) }.boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        async { Ok(()) }.boxed()
    }
}

impl Propose for Memory {
    fn propose(&self, set: Changeset) -> BoxFuture<'static, Result<Applied, String>> {
        let applied = self.change(set);
        async { Ok(applied) }.boxed()
    }
}

/// Lets every zone in: tokens are not what this test is about.
struct Everybody;

impl ZoneAuth for Everybody {
    fn check(&self, _: &ZoneName, _: Option<&str>) -> Result<(), Denied> {
        Ok(())
    }
}

/// Serves `routes` over a pipe; gives the other end.
fn serve(tasks: &Tasks, routes: Routes) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(1024 * 1024);
    tasks.spawn("pipe", OnExit::Ignore, move |_| async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(ours));
        Server::builder().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
    });
    theirs
}

async fn connect(pipe: DuplexStream) -> Channel {
    let mut pipe = Some(pipe);
    let connector = tower::service_fn(move |_| {
        let pipe = pipe.take();
        async move { pipe.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the pipe is used up")) }
    });
    Endpoint::from_static("http://pipe")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// The global: REST API and KDS server.
struct Global {
    api: axum::Router,
    token: String,
    kds: Channel,
}

impl Global {
    async fn start(tasks: &Tasks) -> Self {
        let memory = Memory::new(Role::Global, 0xa);
        let made = bootstrap::ensure_defaults(&memory, &RestSite::Global, &bootstrap::Options::default())
            .await
            .unwrap();
        let info = Info {
            hostname: "global".into(),
            version: Info::DEFAULT_VERSION.into(),
            instance_id: "1".into(),
            based_on_kuma: None,
        };
        let stages = Stages::new(1024);
        let api = ursa_rest::router(Api::new(
            RestSite::Global,
            Arc::new(memory.clone()),
            info,
            json!({}),
            stages.clone(),
        ));
        let server = KdsServer::new(
            ServerConfig {
                instance_id: "1".into(),
                version: "0".into(),
                health_check_interval: Duration::from_secs(10),
            },
            ServerParts {
                source: Source::new(Role::Global, memory.views.subscribe(), memory.observed.clone()),
                sink: Arc::new(memory),
                auth: Arc::new(Everybody),
                stages,
                metrics: Metrics::default(),
                tasks: tasks.clone(),
            },
        );
        let routes = Routes::from(server.router());
        tasks.spawn("kds", OnExit::Shutdown, |cancel| server.run(cancel));
        let kds = connect(serve(tasks, routes)).await;
        Self {
            api,
            token: made.admin_token.unwrap(),
            kds,
        }
    }

    async fn put(&self, collection: &str, name: &str, kind: Kind, spec: Value) {
        let body = json!({"type": kind.name(), "mesh": "default", "name": name, "spec": spec});
        let request = HttpRequest::builder()
            .method(Method::PUT)
            .uri(format!("/meshes/default/{collection}/{name}"))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = self.api.clone().oneshot(request).await.unwrap();
        assert!(matches!(response.status(), StatusCode::OK | StatusCode::CREATED), "{:?}", response);
    }
}

/// The zone's end of GlobalToZoneSync: the receiver's decisions carried out on the zone's store.
async fn sync_down(memory: Memory, channel: Channel) {
    let mut receiver = Receiver::new(receiver::Config {
        site: receiver::Site::Zone,
        identity: Identity {
            zone: ZONE.into(),
            instance: "z".into(),
            version: "0".into(),
            ..Identity::default()
        },
        kinds: ALL.iter().copied().filter(|k| k.descriptor().flags.requested_by_zone()).collect(),
        progress: true,
        known: None,
    });
    let (tx, rx) = mpsc::channel(128);
    let mut request = Request::new(ReceiverStream::new(rx));
    request.metadata_mut().insert("client-id", ZONE.parse().unwrap());
    let features: Vec<&str> = Features::OURS_IN_METADATA.names().collect();
    request.metadata_mut().insert("features", features.join(",").parse().unwrap());
    let mut actions: VecDeque<_> = receiver.handle(receiver::Event::Start, &memory.picture()).into();
    let mut request = Some(request);
    let mut responses: Option<Streaming<DeltaDiscoveryResponse>> = None;
    loop {
        while let Some(action) = actions.pop_front() {
            match action {
                receiver::Action::Send(message) => tx.send(message).await.unwrap(),
                receiver::Action::Apply(batch) => {
                    if !batch.ops.is_empty() || batch.global.is_some() {
                        let mut set = Changeset::each(RequestId(rand::random()), Timestamp::now(), batch.ops.clone());
                        set.global = batch.global;
                        memory.change(set);
                    }
                    memory.observed.apply(Timestamp::now(), batch.observations);
                    actions.extend(receiver.handle(receiver::Event::Stored { refused: Vec::new() }, &memory.picture()));
                }
                receiver::Action::Report(report) => assert!(!matches!(report, receiver::Report::Refused { .. }), "{report:?}"),
                receiver::Action::Close(why) => panic!("{why}"),
            }
        }
        if let Some(request) = request.take() {
            responses = Some(
                KdsSyncServiceClient::new(channel.clone())
                    .global_to_zone_sync(request)
                    .await
                    .unwrap()
                    .into_inner(),
            );
        }
        match responses.as_mut().unwrap().message().await {
            Ok(Some(response)) => actions.extend(receiver.handle(receiver::Event::Response(response), &memory.picture())),
            // The test is over.
            Ok(None) | Err(_) => return,
        }
    }
}

/// The zone: what the global sends, reconciler, ADS server.
struct Zone {
    memory: Memory,
    ads: Channel,
}

impl Zone {
    async fn start(tasks: &Tasks, global: &Global) -> Self {
        let zone: ZoneName = ZONE.parse().unwrap();
        let memory = Memory::new(Role::Zone, 0xb);
        let store: Arc<dyn Propose> = Arc::new(memory.clone());
        let (worlds, world_views) = watch::channel(Arc::new(World::empty(zone.clone())));
        let connections = Connections::default();
        let reconciler = Reconciler {
            zone: zone.clone(),
            views: memory.views.subscribe(),
            connections: connections.clone(),
            store: store.clone(),
            worlds,
        };
        tasks.spawn("reconcile", OnExit::Shutdown, |cancel| reconciler.run(cancel));
        let ads = AdsServer {
            registrar: Registrar {
                zone: zone.clone(),
                views: memory.views.subscribe(),
                store,
            },
            worlds: world_views,
            connections,
            insights: Insights::new(zone, "z", memory.observed.clone()),
            encoder: Arc::new(Encoder::default()),
            metrics: XdsMetrics::default(),
            stages: Stages::new(1024),
            tasks: tasks.clone(),
            require_token: false,
        };
        let ads = connect(serve(tasks, Routes::new(AggregatedDiscoveryServiceServer::new(ads)))).await;
        let (down, kds) = (memory.clone(), global.kds.clone());
        tasks.spawn("kds-down", OnExit::Ignore, |_| sync_down(down, kds));
        Self { memory, ads }
    }

    async fn wait(&self, what: &str, f: impl Fn(&View) -> bool) {
        let mut views = self.memory.views.subscribe();
        at_once(what, views.wait_for(|v| f(v))).await.unwrap();
    }
}

/// An Envoy that accepts everything.
struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    async fn connect(zone: &Zone) -> Self {
        let dataplane = json!({"type": "Dataplane", "mesh": "default", "name": "backend-1", "labels": {"kuma.io/workload": "backend"},
            "networking": {"address": "127.0.1.10", "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}]}});
        let text = prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(dataplane.to_string())),
        };
        let metadata = prost_types::Struct {
            fields: [("dataplane.resource".to_owned(), text)].into(),
        };
        let (requests, outbound) = mpsc::channel(64);
        for kind in [XdsType::Cluster, XdsType::Listener, XdsType::Route] {
            let subscribe = if kind == XdsType::Route {
                vec!["self_inbound_dp_http".to_owned()]
            } else {
                Vec::new()
            };
            let node = (kind == XdsType::Cluster).then(|| Node {
                id: "default.backend-1".into(),
                cluster: String::new(),
                metadata: Some(metadata.clone()),
            });
            let request = DeltaDiscoveryRequest {
                node,
                type_url: kind.type_url().into(),
                resource_names_subscribe: subscribe,
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(zone.ads.clone());
        let responses = client
            .delta_aggregated_resources(Request::new(ReceiverStream::new(outbound)))
            .await
            .unwrap()
            .into_inner();
        Self { requests, responses }
    }

    /// Takes responses until one of `kind` holds `text` in its bytes.
    async fn until(&mut self, kind: XdsType, text: &str) {
        loop {
            let response = self.responses.message().await.unwrap().unwrap();
            let found = response.type_url == kind.type_url()
                && response
                    .resources
                    .iter()
                    .filter_map(|r| r.resource.as_ref())
                    .any(|any| any.value.windows(text.len()).any(|w| w == text.as_bytes()));
            let ack = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(ack).await.unwrap();
            if found {
                return;
            }
        }
    }
}

/// Waits for something that needs no time.
async fn at_once<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(NO_TIME, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing was left to do but wait for a timer"),
    }
}

#[tokio::test(start_paused = true)]
async fn from_put_to_encoded_xds_no_time_passes() {
    let tasks = Tasks::new();
    let global = Global::start(&tasks).await;
    let zone = Zone::start(&tasks, &global).await;
    zone.wait("the mesh reaches the zone", |v| v.list(Kind::Mesh).any(|m| m.name() == "default"))
        .await;
    let identity = json!({"selector": {"dataplane": {"matchLabels": {}}},
        "provider": {"type": "Bundled", "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}});
    global.put("meshidentities", "identity", Kind::MeshIdentity, identity).await;
    zone.wait("the zone makes a CA and its MeshTrust", |v| v.list(Kind::MeshTrust).count() == 1)
        .await;
    let mut proxy = Proxy::connect(&zone).await;
    at_once("the first routes", proxy.until(XdsType::Route, "self_inbound_dp_http")).await;

    let start = Instant::now();
    let allow =
        json!({"targetRef": {"kind": "Mesh"}, "rules": [{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": CALLER}}]}}]});
    global
        .put("meshtrafficpermissions", "allow-frontend", Kind::MeshTrafficPermission, allow)
        .await;
    at_once("the permission in the proxy's routes", proxy.until(XdsType::Route, CALLER)).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "a timer is on the path of a change");

    // The check works: a wait for a timer does show.
    ursa_runtime::lease::Deadline::after(Duration::from_secs(1)).passed().await;
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(tasks.panics(), 0);
}
