//! Both programs' ends over real gRPC and TLS on loopback, with stores in memory.
//! In: changes on either side, bad tokens, garbage. Out: what arrives, typed statuses. Invariant checked throughout: no panic, and
//! nothing stored changes by what was refused.
#[path = "../src/testing.rs"]
mod testing;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

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
use ursa_state::{Applied, Changeset, Role};
use ursa_sync::{
    ClientConfig, ClientParts, ClientStatus, KdsClient, KdsServer, MAX_MESSAGE_BYTES, Metrics, PROGRESS_TYPE_URL, ServerConfig,
    ServerParts, Sink, SinkError, Source, TokenAuth, client::Token, peer::Identity,
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

/// A global with its KDS port.
struct Global {
    memory: Memory,
    server: KdsServer,
    stages: Stages,
    tasks: Tasks,
    address: SocketAddr,
    tls: tls::ServerTls,
    signing: SigningKey,
    _dir: tempfile::TempDir,
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
        let dir = tempfile::tempdir().unwrap();
        let tls = tls::ServerTls::load_or_create(dir.path(), &tls::local_names()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve(memory, signing, dir, tls, listener, address)
    }

    fn serve(
        memory: Memory,
        signing: SigningKey,
        dir: tempfile::TempDir,
        tls: tls::ServerTls,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Self {
        let (tasks, stages) = (Tasks::new(), Stages::default());
        let parts = ServerParts {
            source: source(&memory),
            sink: Arc::new(MemorySink(memory.clone())),
            auth: Arc::new(TokenAuth::required(memory.views())),
            stages: stages.clone(),
            metrics: Metrics::default(),
            tasks: tasks.clone(),
        };
        let config = ServerConfig {
            instance_id: "global-1".into(),
            version: "0.1.0".into(),
            health_check_interval: Duration::from_secs(10),
        };
        let server = KdsServer::new(config, parts);
        tasks.spawn("kds", OnExit::Shutdown, |cancel| server.clone().run(cancel));
        let router = server.router();
        let (tls_config, listener_tasks) = (tls.server_config_for(&["h2"], tls::Versions::Tls12AndTls13), tasks.clone());
        tasks.spawn("kds-port", OnExit::Shutdown, |cancel| {
            serve::https(listener, tls_config, router, serve::Limits::default(), listener_tasks, cancel)
        });
        Self {
            memory,
            server,
            stages,
            tasks,
            address,
            tls,
            signing,
            _dir: dir,
        }
    }

    /// Another process over the same store, on the same port.
    async fn restart(self) -> Self {
        let Self {
            memory,
            tasks,
            address,
            tls,
            signing,
            _dir,
            ..
        } = self;
        tasks.cancel_token().cancel();
        within("the old server ends", tasks.idle()).await;
        assert_eq!(tasks.panics(), 0);
        let listener = TcpListener::bind(address).await.unwrap();
        Self::serve(memory, signing, _dir, tls, listener, address)
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
            .max_encoding_message_size(64 * 1024 * 1024)
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
    stages: Stages,
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
        let (tasks, stages) = (Tasks::new(), Stages::default());
        let config = ClientConfig {
            zone: name.parse().unwrap(),
            instance_id: format!("{name}-1"),
            version: "0.1.0".into(),
            addresses: vec![format!("grpcs://{}", global.address)],
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
            metrics: Metrics::default(),
        };
        let (client, status) = KdsClient::new(config, parts).unwrap();
        tasks.spawn("kds", OnExit::Shutdown, |cancel| client.run(cancel));
        Self {
            memory,
            name,
            status,
            stages,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_travels_in_both_directions() {
    let global = Global::start().await;
    let (east, west) = (Zone::start(&global, "east", 0xe), Zone::start(&global, "west", 0xf));
    for zone in [&east, &west] {
        zone.connected().await;
        zone.caught_up(&global).await;
        assert!(zone.status.borrow().progress);
        assert!(zone.memory.get(Kind::Mesh, "", "default").is_some());
    }
    // Down, with its revision.
    global
        .memory
        .put(Site::Global, Kind::MeshTrafficPermission, "default", "allow-frontend", permission());
    west.caught_up(&global).await;
    let hashed = "allow-frontend-9586fw9x6wd94z46";
    let stored = west.memory.get(Kind::MeshTrafficPermission, "default", hashed).unwrap();
    assert_eq!(
        (stored.label(ORIGIN), stored.label(DISPLAY_NAME)),
        (Some("global"), Some("allow-frontend"))
    );
    let revision = global.memory.view().revision();
    let (_, entries) = west.stages.since(0);
    assert!(
        entries
            .iter()
            .any(|e| e.stage == "stored" && e.revision == revision && e.subject.as_ref() == "west")
    );
    let (_, entries) = global.stages.since(0);
    assert!(
        entries
            .iter()
            .any(|e| e.stage == "sent" && e.revision == revision && e.subject.as_ref() == "west")
    );
    // Up, both tiers, and on to the other zone.
    west.put(Kind::MeshZoneAddress, "zone-ingress", address(10001));
    west.put(
        Kind::Dataplane,
        "backend-1",
        json!({"networking": {"address": "127.0.2.10", "inbound": [{"port": 8080, "name": "http"}]}}),
    );
    wait("the address is in east", || {
        east.memory
            .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
            .is_some()
    })
    .await;
    let copy = east
        .memory
        .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
        .unwrap();
    assert_eq!((copy.label(ORIGIN), copy.label(ZONE)), (Some("global"), Some("west")));
    wait("the Dataplane is observed", || {
        global
            .memory
            .get(Kind::Dataplane, "default", "backend-1-bv8bz2f55764xz77")
            .is_some()
    })
    .await;
    assert!(
        global.memory.view().list(Kind::Dataplane).next().is_none(),
        "and costs the global no log entry"
    );
    let at_global = global
        .memory
        .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
        .unwrap();
    assert_eq!(at_global.owner, Some(key(Kind::Zone, "", "west")));
    // A MeshTrust reaches the other zone by itself.
    let pem = "-----BEGIN CERTIFICATE-----\nwest\n-----END CERTIFICATE-----";
    west.put(
        Kind::MeshTrust,
        "identity",
        json!({"trustDomain": "default.west.mesh.local", "caBundles": [{"type": "Pem", "pem": {"value": pem}}]}),
    );
    wait("the trust is in east", || {
        east.memory.view().list(Kind::MeshTrust).any(|t| t.zone() == Some("west"))
    })
    .await;
    // Removals.
    global.memory.delete(Kind::MeshTrafficPermission, "default", "allow-frontend");
    wait("removed in west", || {
        west.memory.get(Kind::MeshTrafficPermission, "default", hashed).is_none()
    })
    .await;
    west.memory.delete(Kind::MeshZoneAddress, "default", "zone-ingress");
    wait("removed in east", || {
        east.memory
            .get(Kind::MeshZoneAddress, "default", "zone-ingress-xw2dzb9ccb74x47f")
            .is_none()
    })
    .await;
    // Bookkeeping.
    wait("both are online and nothing was refused", || {
        ["east", "west"].iter().all(|zone| {
            let insight = global.insight(zone);
            let total = insight.subscriptions.last().map(|s| s.status.total.clone()).unwrap_or_default();
            insight.is_online()
                && insight.health_check.is_some()
                && total.responses_sent == total.responses_acknowledged
                && total.responses_rejected.is_empty()
        })
    })
    .await;
    wait("the zones' progress is known", || {
        let newest = Some(global.memory.view().at_global());
        global
            .server
            .progress()
            .values()
            .filter(|p| p.sent == newest && p.stored == newest)
            .count()
            == 2
    })
    .await;
    west.stop().await;
    wait("west is offline", || !global.insight("west").is_online()).await;
    assert!(
        global
            .memory
            .get(Kind::Dataplane, "default", "backend-1-bv8bz2f55764xz77")
            .is_some(),
        "its end deletes nothing"
    );
    assert_eq!(global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_outlives_its_global_and_catches_up() {
    let global = Global::start().await;
    let zone = Zone::start(&global, "east", 0xe);
    global
        .memory
        .put(Site::Global, Kind::MeshTrafficPermission, "default", "p", permission());
    zone.connected().await;
    zone.caught_up(&global).await;
    zone.put(Kind::MeshZoneAddress, "a", address(1));
    zone.put(Kind::MeshZoneAddress, "b", address(1));
    wait("the addresses are at the global", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 2
    })
    .await;
    let before = zone.memory.view();
    global.tasks.cancel_token().cancel();
    within("the server ends", global.tasks.idle()).await;
    wait("the zone noticed", || zone.status.borrow().connected.is_none()).await;
    let same = |kind| zone.memory.view().list(kind).count() == before.list(kind).count();
    assert!(same(Kind::Mesh) && same(Kind::MeshTrafficPermission));
    // Both sides change while apart: a Mesh goes, and the zone loses an address.
    global.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    global.memory.delete(Kind::Mesh, "", "default");
    global.memory.delete(Kind::MeshTrafficPermission, "default", "p");
    zone.memory.delete(Kind::MeshZoneAddress, "default", "a");
    let global = global.restart().await;
    zone.caught_up(&global).await;
    let meshes: Vec<String> = zone.memory.view().list(Kind::Mesh).map(|m| m.name().to_owned()).collect();
    assert_eq!(
        meshes,
        ["second"],
        "a global that proves to be the same is believed, roots included"
    );
    assert_eq!(zone.memory.view().list(Kind::MeshTrafficPermission).count(), 0);
    wait("the global took the zone's removal too", || {
        global.memory.view().list(Kind::MeshZoneAddress).count() == 1
    })
    .await;
    // A zone that starts anew from its disk changes nothing.
    let revision = zone.memory.view().revision();
    let memory = zone.stop().await;
    let again = Zone::with(memory, &global, "east", Token::Text(global.token("east").into()));
    again.connected().await;
    wait("the reconnect is through", || {
        global
            .server
            .progress()
            .values()
            .any(|p| p.stored == Some(global.memory.view().at_global()))
    })
    .await;
    again.caught_up(&global).await;
    assert_eq!(again.memory.view().revision(), revision, "what is stored already costs nothing");
    assert_eq!(again.tasks.panics() + global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_the_zone_is_told_so() {
    let global = Global::start().await;
    let before = global.everything();
    let (own, other) = (global.token("east"), global.token("west"));
    let mut client = global.raw().await;
    let mut call = async |pairs: Vec<(&'static str, &str)>| -> Status {
        let down = client.global_to_zone_sync(request(tokio_stream::pending(), &pairs)).await.err();
        let up = client.zone_to_global_sync(request(tokio_stream::pending(), &pairs)).await.err();
        let (down, up) = (down.expect("refused"), up.expect("refused"));
        assert_eq!(down.code(), up.code());
        down
    };
    assert_eq!(call(vec![]).await.code(), Code::InvalidArgument);
    assert_eq!(call(vec![("client-id", "No Zone")]).await.code(), Code::InvalidArgument);
    assert_eq!(call(vec![("client-id", "east")]).await.code(), Code::Unauthenticated);
    let garbage = call(vec![("client-id", "east"), ("authorization", "Bearer gar.ba.ge")]).await;
    assert_eq!(garbage.code(), Code::Unauthenticated);
    assert!(
        !garbage.message().contains("gar.ba"),
        "no part of a token comes back: {}",
        garbage.message()
    );
    let mut unsigned: Vec<&str> = own.split('.').collect();
    unsigned[2] = "";
    let unsigned = unsigned.join(".");
    assert_eq!(
        call(vec![("client-id", "east"), ("authorization", unsigned.as_str())]).await.code(),
        Code::Unauthenticated
    );
    let denied = call(vec![("client-id", "east"), ("authorization", other.as_str())]).await;
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied.message().contains("\"east\"") && denied.message().contains("\"west\""),
        "{}",
        denied.message()
    );
    let mut admin = GlobalKdsServiceClient::new(global.channel().await);
    let health = admin
        .health_check(request(
            ZoneHealthCheckRequest {},
            &[("client-id", "east"), ("authorization", &other)],
        ))
        .await;
    assert_eq!(health.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        admin
            .stream_stats(request(tokio_stream::pending(), &[("client-id", "east")]))
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );
    assert_eq!(global.everything(), before, "no Zone was made, nothing changed");
    // The right token is good, raw or Bearer.
    let good = request(ZoneHealthCheckRequest {}, &[("client-id", "east"), ("authorization", &own)]);
    let interval = admin.health_check(good).await.unwrap().into_inner().interval.unwrap();
    assert_eq!(interval.seconds, 10);
    // A client of ours with a wrong token says why, and goes on trying.
    let zone = Zone::with(Memory::new(Role::Zone, 1), &global, "east", Token::Text(other.clone().into()));
    wait("the client says why", || {
        zone.status
            .borrow()
            .last_error
            .as_ref()
            .is_some_and(|e| e.contains("PermissionDenied") && e.contains("\"west\""))
    })
    .await;
    assert_eq!(global.tasks.panics(), 0);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_a_typed_status_and_changes_nothing() {
    let global = Global::start().await;
    let (tx, mut good) = open_up(&global, "east", &[]).await;
    let first = within("the global asks first", good.message()).await.unwrap().unwrap();
    assert!(first.node.is_some_and(|n| n.id == "east"));
    tx.send(response("MeshZoneAddress", "1", vec![zone_address("a", &address(1))]))
        .await
        .unwrap();
    wait("a is stored", || global.memory.get(Kind::MeshZoneAddress, "default", "a").is_some()).await;
    drop((tx, good));
    let before = global.everything();
    let any = |type_url: &str, value: Vec<u8>| Resource {
        resource: Some(prost_types::Any {
            type_url: type_url.into(),
            value,
        }),
        ..Resource::default()
    };
    let cases = [
        (response("Nonsense", "1", vec![]), vec![Code::InvalidArgument]),
        (response("Mesh", "1", vec![]), vec![Code::InvalidArgument]),
        (response(PROGRESS_TYPE_URL, "1", vec![]), vec![Code::InvalidArgument]),
        (response("MeshZoneAddress", "", vec![]), vec![Code::InvalidArgument]),
        (
            response("MeshZoneAddress", "1", vec![any("x/y", vec![])]),
            vec![Code::InvalidArgument],
        ),
        (
            response(
                "MeshZoneAddress",
                "1",
                vec![zone_address("b", &address(1)), any(wire::RESOURCE_TYPE_URL, vec![0xff; 9])],
            ),
            vec![Code::InvalidArgument],
        ),
        (
            response("MeshZoneAddress", "1", vec![any("x/y", vec![0; MAX_MESSAGE_BYTES + 1])]),
            vec![Code::OutOfRange, Code::ResourceExhausted],
        ),
    ];
    for (message, codes) in cases {
        let label = format!("{} with {} resources", message.type_url, message.resources.len());
        let (tx, mut stream) = open_up(&global, "east", &[]).await;
        tx.send(message).await.unwrap();
        let status = end_of(&mut stream).await;
        assert!(codes.contains(&status.code()), "{label}: {status:?}");
    }
    // A small message that inflates beyond the limit.
    let token = global.token("east");
    let (tx, rx) = mpsc::channel(1);
    let pairs = [("client-id", "east"), ("authorization", token.as_str())];
    let mut gzip = global.raw().await.send_compressed(CompressionEncoding::Gzip);
    let mut stream = gzip
        .zone_to_global_sync(request(ReceiverStream::new(rx), &pairs))
        .await
        .unwrap()
        .into_inner();
    tx.send(response("MeshZoneAddress", "1", vec![any("x/y", vec![0; 4 * MAX_MESSAGE_BYTES])]))
        .await
        .unwrap();
    let status = end_of(&mut stream).await;
    assert!(matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange), "{status:?}");
    // Requests on the other direction: unknown types meet silence, then the stream still works.
    let (tx, rx) = mpsc::channel(8);
    let mut stream = global
        .raw()
        .await
        .global_to_zone_sync(request(ReceiverStream::new(rx), &pairs))
        .await
        .unwrap()
        .into_inner();
    let ask = |type_url: &str| DeltaDiscoveryRequest {
        node: Some(Identity::default().full_node()),
        type_url: type_url.into(),
        ..Default::default()
    };
    tx.send(ask("TrafficRoute")).await.unwrap();
    tx.send(ask(&"x".repeat(100_000))).await.unwrap();
    tx.send(ask("Mesh")).await.unwrap();
    let answer = within("the answer", stream.message()).await.unwrap().unwrap();
    assert_eq!((answer.type_url.as_str(), answer.resources.len()), ("Mesh", 1));
    // An invalid resource among good ones is a NACK, and the stream goes on.
    let after = global.everything();
    assert_eq!(after, before, "nothing stored changed");
    let (tx, mut stream) = open_up(&global, "east", &[]).await;
    let bad = zone_address("bad", &json!({"address": "", "port": 0}));
    tx.send(response(
        "MeshZoneAddress",
        "1",
        vec![zone_address("a", &address(1)), bad, zone_address("c", &address(3))],
    ))
    .await
    .unwrap();
    let nack = within("the NACK", async {
        loop {
            let message = stream.message().await.unwrap().unwrap();
            if !message.response_nonce.is_empty() {
                return message;
            }
        }
    })
    .await;
    assert!(nack.error_detail.is_some_and(|e| e.message.contains("bad.default")) && nack.node.is_some());
    assert!(global.memory.get(Kind::MeshZoneAddress, "default", "c").is_some());
    assert_eq!(global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_zone_is_served_as_kuma_would() {
    let global = Global::start().await;
    let token = global.token("stock");
    let pairs = [
        ("client-id", "stock"),
        ("authorization", token.as_str()),
        ("features", "hash-suffix"),
        ("features", "zone-ping-health"),
    ];
    let (tx, rx) = mpsc::channel(64);
    let mut client = global.raw().await.send_compressed(CompressionEncoding::Gzip);
    let node = {
        let mut node = Identity {
            zone: "stock".into(),
            version: "3.0.0".into(),
            ..Identity::default()
        }
        .full_node();
        let features = node.metadata.as_mut().unwrap().fields.get_mut("features").unwrap();
        if let Some(prost_types::value::Kind::ListValue(list)) = features.kind.as_mut() {
            list.values
                .retain(|v| !matches!(&v.kind, Some(prost_types::value::Kind::StringValue(s)) if s.starts_with("ursa")));
        }
        Some(node)
    };
    for kind in ["MeshTrafficPermission", "TrafficRoute", "Mesh"] {
        tx.send(DeltaDiscoveryRequest {
            node: node.clone(),
            type_url: kind.into(),
            resource_names_subscribe: vec!["*".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    }
    let response = client.global_to_zone_sync(request(ReceiverStream::new(rx), &pairs)).await.unwrap();
    assert_eq!(
        response.metadata().get("grpc-encoding").and_then(|v| v.to_str().ok()),
        Some("gzip"),
        "answered in the encoding of the request"
    );
    let mut stream = response.into_inner();
    let mut first = Vec::new();
    for _ in 0..2 {
        first.push(within("first sets", stream.message()).await.unwrap().unwrap());
    }
    first.sort_by(|a, b| b.type_url.cmp(&a.type_url));
    assert_eq!(
        first.iter().map(|r| (r.type_url.as_str(), r.resources.len())).collect::<Vec<_>>(),
        [("MeshTrafficPermission", 0), ("Mesh", 1)]
    );
    // Unanswered: nothing more of that type, but of the others.
    global.memory.put(Site::Global, Kind::Mesh, "", "second", json!({}));
    global.memory.put(Site::Global, Kind::Mesh, "", "third", json!({}));
    tx.send(DeltaDiscoveryRequest {
        node: node.clone(),
        type_url: "Mesh".into(),
        response_nonce: first[1].nonce.clone(),
        ..Default::default()
    })
    .await
    .unwrap();
    let next = within("the delta", stream.message()).await.unwrap().unwrap();
    assert_eq!(
        next.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["second.", "third."]
    );
    assert!(next.type_url != PROGRESS_TYPE_URL);
    wait("online at once", || global.insight("stock").is_online()).await;
    // The admin streams are held open.
    let mut admin = GlobalKdsServiceClient::new(global.channel().await);
    let mut held = admin
        .stream_xds_configs(request(tokio_stream::pending(), &pairs))
        .await
        .unwrap()
        .into_inner();
    assert!(tokio::time::timeout(Duration::from_millis(50), held.message()).await.is_err());
    // A newer connection takes over; the old one is told, and not with OK.
    let (tx2, rx2) = mpsc::channel(64);
    let mut newer = client
        .global_to_zone_sync(request(ReceiverStream::new(rx2), &pairs))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(end_of(&mut stream).await.code(), Code::Cancelled);
    tx2.send(DeltaDiscoveryRequest {
        node,
        type_url: "Mesh".into(),
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!(
        within("the newer one is served", newer.message())
            .await
            .unwrap()
            .unwrap()
            .resources
            .len(),
        3
    );
    // The end of the server ends all streams with a reason.
    let (_tx, mut up) = open_up(&global, "stock", &[]).await;
    global.tasks.cancel_token().cancel();
    for status in [end_of(&mut newer).await, end_of(&mut held).await, end_of(&mut up).await] {
        assert_ne!(status.code(), Code::Ok, "{status:?}");
    }
    within("the server ends", global.tasks.idle()).await;
    assert_eq!(global.tasks.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_a_slow_store_arrive_as_one_changeset() {
    let global = Global::start().await;
    let zone = Zone::start(&global, "east", 0xe);
    zone.connected().await;
    zone.caught_up(&global).await;
    let closed = zone.memory.gate.clone().write_owned().await;
    let (before, at_first) = (zone.memory.view().revision(), global.memory.view().revision());
    for n in 0..20 {
        global.memory.put(Site::Global, Kind::Mesh, "", &format!("m{n}"), json!({}));
    }
    wait("some of it was sent", || {
        global
            .server
            .progress()
            .values()
            .any(|p| p.sent.is_some_and(|s| s.revision > at_first))
    })
    .await;
    drop(closed);
    zone.caught_up(&global).await;
    let changesets = zone.memory.view().revision() - before;
    assert!((1..=10).contains(&changesets), "{changesets} changesets for 20 revisions");
    assert_eq!(zone.memory.view().list(Kind::Mesh).count(), 21);
}
