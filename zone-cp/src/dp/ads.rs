//! Delta ADS server: authenticates a proxy, registers its Dataplane, and runs one [`Machine`] per stream.
//! In: Envoy's requests, new worlds. Out: responses; reports to insights, metrics and the stage ring. No timers.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, info, info_span, warn};
use ursa_model::{
    Kind, Labels, Resource, ResourceKey, Timestamp, ZoneName,
    kind::{dataplane::Dataplane, dataplane_insight::DpVersion},
    kri::Kri,
    labels::{self, Site, computed},
};
use ursa_policy::Parsed;
use ursa_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use ursa_runtime::{
    error::Chain,
    lease,
    stages::Stages,
    tasks::{OnExit, Tasks},
};
use ursa_state::{Changeset, Expect, Op, OpError, Put, RequestId, View};

use super::{
    auth,
    insight::{Count, Insights},
    metadata,
};
use crate::{
    build::{Encoder, build},
    connections::{Connections, Registration},
    metrics::XdsMetrics,
    reconcile::{BY_PROXY, LIFECYCLE, Propose},
    snapshot::ProxySnapshot,
    world::{IssuedSvid, MeshWorld, ProxyId, World},
    xds::machine::{Action, Event, Machine, Report},
};

/// Responses under way to one client: one per type, plus what one step adds.
const OUTBOUND: usize = 16;

/// How long a client may take to say who it is: until then nothing is known of it.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// A Dataplane that a proxy brought, checked.
#[derive(Clone, Debug)]
pub struct Registered {
    pub proxy: ProxyId,
    /// Computed labels included.
    pub labels: Labels,
    pub spec: Dataplane,
    canonical: serde_json::Value,
    given_labels: Labels,
}

impl Registered {
    /// The resource as a proxy hands it back in its node's metadata.
    pub fn json(&self) -> String {
        let mut out = self.canonical.clone();
        if let serde_json::Value::Object(fields) = &mut out {
            fields.insert("type".into(), "Dataplane".into());
            fields.insert("mesh".into(), self.proxy.mesh.as_ref().into());
            fields.insert("name".into(), self.proxy.name.as_ref().into());
            fields.insert("labels".into(), serde_json::json!(self.given_labels));
        }
        out.to_string()
    }
}

/// Why a Dataplane cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum Unregistered {
    #[error("the Dataplane is no valid JSON or YAML: {0}")]
    Syntax(String),
    #[error("the resource has type {0:?}, not Dataplane")]
    Type(String),
    #[error(transparent)]
    Key(#[from] ursa_model::resource::InvalidKey),
    #[error("the Dataplane is not valid: {0}")]
    Invalid(ursa_model::Violations),
}

/// Checks and stores the Dataplanes that proxies bring.
#[derive(Clone)]
pub struct Registrar {
    pub zone: ZoneName,
    pub views: watch::Receiver<View>,
    pub store: Arc<dyn Propose>,
}

impl Registrar {
    fn view(&self) -> View {
        self.views.borrow().clone()
    }

    pub fn mesh_exists(&self, mesh: &str) -> bool {
        ResourceKey::mesh_itself(mesh).is_ok_and(|key| self.views.borrow().get(&key).is_some())
    }

    /// The Dataplane as stored.
    pub fn stored(&self, key: &ResourceKey) -> Option<Registered> {
        let resource = self.views.borrow().get(key).cloned()?;
        let spec = resource.spec().ok()?;
        Some(Registered {
            proxy: ProxyId::new(resource.mesh(), resource.name()),
            labels: resource.labels.clone(),
            given_labels: resource.labels.clone(),
            spec,
            canonical: resource.spec.clone(),
        })
    }

    /// Parses and validates a Dataplane given as JSON or YAML.
    pub fn check(&self, text: &str) -> Result<Registered, Unregistered> {
        let mut value: serde_json::Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(_) => serde_saphyr::from_str(text).map_err(|e| Unregistered::Syntax(e.to_string()))?,
        };
        let mut take = |field: &str| value.as_object_mut().and_then(|o| o.remove(field));
        let text_of = |v: Option<serde_json::Value>| v.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let kind = text_of(take("type"));
        if kind != Kind::Dataplane.name() {
            return Err(Unregistered::Type(kind));
        }
        let (mesh, name) = (text_of(take("mesh")), text_of(take("name")));
        let given: Labels = take("labels")
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| Unregistered::Syntax(e.to_string()))?
            .unwrap_or_default();
        let key = ResourceKey::new(Kind::Dataplane, &mesh, &name)?;
        let mut found = ursa_model::Violations::default();
        if let Err(err) = ursa_model::name::check_resource_name(&name) {
            found.add("name", err.to_string());
        }
        labels::validate(&given, &mut found);
        // Labels that say where a Dataplane belongs are not the proxy's to choose.
        for (label, want) in [(labels::ZONE, self.zone.as_str()), (labels::MESH, mesh.as_str())] {
            if given.get(label).is_some_and(|have| have != want) {
                found.add(format!("labels[\"{label}\"]"), format!("{label} label should have {want} value"));
            }
        }
        found.into_result().map_err(Unregistered::Invalid)?;
        let canonical = (Kind::Dataplane.descriptor().canonical)(value).map_err(Unregistered::Invalid)?;
        let spec: Dataplane = serde_json::from_value(canonical.clone()).map_err(|e| Unregistered::Syntax(e.to_string()))?;
        let mut labels = computed(
            Site::Zone(self.zone.as_str()),
            Kind::Dataplane,
            key.mesh(),
            key.name(),
            given.clone(),
            Some(spec.zone_listeners()),
        );
        labels.insert(LIFECYCLE.into(), BY_PROXY.into());
        Ok(Registered {
            proxy: ProxyId::new(&mesh, &name),
            labels,
            given_labels: given,
            spec,
            canonical,
        })
    }

    /// Stores the Dataplane in place of `stored`, unless it is stored like that already.
    async fn register(&self, key: ResourceKey, registered: &Registered, stored: Option<&Resource>) -> Result<(), Status> {
        if stored.is_some_and(|r| r.spec == registered.canonical && r.labels == registered.labels) {
            return Ok(());
        }
        // The token was checked against `stored`: what came between has to be checked as well.
        let expect = stored.map_or(Expect::Absent, |r| Expect::Version(r.version));
        let put = Put {
            owner: ResourceKey::mesh_itself(key.mesh()).ok(),
            key,
            labels: registered.labels.clone(),
            spec: registered.canonical.clone(),
            status: None,
            expect,
        };
        let set = Changeset::atomic(RequestId(rand::random()), Timestamp::now(), vec![Op::Put(put)]);
        let applied = self.store.propose(set).await.map_err(Status::unavailable)?;
        match applied.rejected {
            None => Ok(()),
            Some((_, why @ (OpError::Exists(_) | OpError::Missing(_) | OpError::Conflict { .. }))) => Err(Status::aborted(format!(
                "the Dataplane was changed at the same time, connect again: {why}"
            ))),
            Some((_, why)) => Err(Status::failed_precondition(format!("the Dataplane cannot be stored: {why}"))),
        }
    }
}

/// See the module's text.
#[derive(Clone)]
pub struct AdsServer {
    pub registrar: Registrar,
    pub worlds: watch::Receiver<Arc<World>>,
    pub connections: Connections,
    pub insights: Insights,
    pub encoder: Arc<Encoder>,
    pub metrics: XdsMetrics,
    pub stages: Stages,
    pub tasks: Tasks,
    pub require_token: bool,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = match request.metadata().get("authorization").map(|v| v.to_str()) {
            None => None,
            Some(Ok(text)) => Some(text.to_owned()),
            Some(Err(_)) => return Err(Status::unauthenticated("metadata `authorization` is no text")),
        };
        let requests = request.into_inner();
        let (responses, outbound) = mpsc::channel(OUTBOUND);
        let server = self.clone();
        self.tasks.spawn("ads-stream", OnExit::Ignore, move |cancel| async move {
            if let Err(status) = server.serve(requests, &responses, token, cancel).await {
                // The client may be gone already: then nobody waits for the reason.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

impl AdsServer {
    async fn serve(
        &self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
        token: Option<String>,
        cancel: CancellationToken,
    ) -> Result<(), Status> {
        let first = tokio::select! {
            () = cancel.cancelled() => return Err(Status::unavailable("the zone control plane is stopping")),
            first = lease::within(FIRST_REQUEST, requests.message()) => {
                first.map_err(|_| Status::deadline_exceeded(format!("no request within {FIRST_REQUEST:?}")))??
            }
        };
        let Some(first) = first else { return Ok(()) };
        let admitted = tokio::select! {
            () = cancel.cancelled() => return Err(Status::unavailable("the zone control plane is stopping")),
            admitted = self.admit(&first, token.as_deref()) => admitted,
        };
        let (proxy, meta) = admitted.inspect_err(|status| {
            self.metrics.denied(status.code());
            warn!(code = ?status.code(), reason = status.message(), "proxy refused");
        })?;
        let span = info_span!("ads", %proxy);
        let subscription = format!("{:032x}", rand::random::<u128>());
        let version: Option<DpVersion> = meta.all.get("version").and_then(|v| serde_json::from_value(v.clone()).ok());
        self.insights.connected(&proxy, &subscription, version, meta.all.clone());
        let registration = self.connections.register(proxy.clone(), meta.advertised.clone());
        let stream = StreamTask {
            server: self,
            proxy: &proxy,
            responses,
            machine: Machine::new(),
            built: None,
            certificate: String::new(),
        };
        self.metrics.connected(1);
        let result = stream.run(first, &mut requests, &registration, &cancel).instrument(span).await;
        self.metrics.connected(-1);
        drop(registration);
        self.insights.disconnected(&proxy, &subscription);
        result
    }

    /// Authenticates the proxy and stores its Dataplane.
    async fn admit(&self, first: &DeltaDiscoveryRequest, token: Option<&str>) -> Result<(ProxyId, metadata::NodeMetadata), Status> {
        let node = first
            .node
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("the first request names no node"))?;
        let proxy =
            ProxyId::parse(&node.id).ok_or_else(|| Status::invalid_argument(format!("node id {:?} is not <mesh>.<name>", node.id)))?;
        let mut meta = metadata::parse(node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if meta.proxy_type.as_deref().is_some_and(|t| t != "dataplane") {
            return Err(Status::invalid_argument("only proxies of type dataplane are served"));
        }
        let key = ResourceKey::new(Kind::Dataplane, &proxy.mesh, &proxy.name).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let registered = match &meta.dataplane {
            Some(text) => self.registrar.check(text).map_err(|e| Status::invalid_argument(e.to_string()))?,
            None => self
                .registrar
                .stored(&key)
                .ok_or_else(|| Status::not_found(format!("{key} does not exist")))?,
        };
        if registered.proxy != proxy {
            return Err(Status::invalid_argument(format!(
                "the node is {proxy}, its Dataplane is {}",
                registered.proxy
            )));
        }
        if !self.registrar.mesh_exists(&proxy.mesh) {
            return Err(Status::not_found(format!("mesh {} does not exist in this zone", proxy.mesh)));
        }
        let view = self.registrar.view();
        let stored = view.get(&key).map(Arc::as_ref);
        if self.require_token {
            // Which identity selects the proxy is read from the world, which follows the view.
            let mut worlds = self.worlds.clone();
            let world = match worlds.wait_for(|w| w.zone_revision >= view.revision()).await {
                Ok(world) => world.clone(),
                Err(_) => return Err(Status::unavailable("the zone control plane is stopping")),
            };
            let resource = Resource {
                key: key.clone(),
                labels: registered.labels.clone(),
                spec: registered.canonical.clone(),
                status: None,
                owner: None,
                created: Timestamp(0),
                modified: Timestamp(0),
                version: 0,
                create_revision: 0,
                mod_revision: 0,
            };
            let dataplane = Parsed {
                resource: Arc::new(resource),
                spec: registered.spec.clone(),
            };
            let mesh = world.mesh(&proxy.mesh).map(Arc::as_ref);
            let (now, refuse) = (OffsetDateTime::now_utc(), |e: auth::Denied| {
                Status::unauthenticated(Chain(&e).to_string())
            });
            auth::authenticate(&view, mesh, &proxy, &dataplane, token, now).map_err(refuse)?;
            if meta.advertised.is_some() && !auth::may_advertise(&view, &proxy, token, now).map_err(refuse)? {
                warn!(%proxy, "its token does not let it publish an address of the zone: the token needs the tag kuma.io/listener-zoneingress: enabled");
                meta.advertised = None;
            }
            if let Some(stored) = stored.filter(|s| s.labels != registered.labels) {
                auth::may_replace(&view, &proxy, stored, token, now).map_err(refuse)?;
            }
        }
        if meta.dataplane.is_some() {
            self.registrar.register(key, &registered, stored).await?;
        }
        Ok((proxy, meta))
    }
}

/// One stream while it runs.
struct StreamTask<'a> {
    server: &'a AdsServer,
    proxy: &'a ProxyId,
    responses: &'a mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    machine: Machine,
    /// What was built last, and from what.
    built: Option<Built>,
    /// Serial of the certificate shown last.
    certificate: String,
}

/// A snapshot with everything that it was made from.
struct Built {
    mesh: Arc<MeshWorld>,
    svid: Option<Arc<IssuedSvid>>,
    snapshot: Arc<ProxySnapshot>,
}

impl Built {
    fn is_from(&self, mesh: &Arc<MeshWorld>, svid: Option<&Arc<IssuedSvid>>) -> bool {
        let same_svid = match (&self.svid, svid) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        same_svid && Arc::ptr_eq(&self.mesh, mesh)
    }
}

impl StreamTask<'_> {
    async fn run(
        mut self,
        first: DeltaDiscoveryRequest,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
        registration: &Registration,
        cancel: &CancellationToken,
    ) -> Result<(), Status> {
        info!("proxy connected");
        let mut worlds = self.server.worlds.clone();
        worlds.mark_changed();
        self.handle(Event::Request(first)).await?;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Status::unavailable("the zone control plane is stopping")),
                () = registration.replaced() => return Err(Status::already_exists("a newer stream of this proxy took over")),
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the zone control plane is stopping"));
                    }
                    let world = worlds.borrow_and_update().clone();
                    self.world(&world, registration.stream()).await?;
                }
                request = requests.message() => match request {
                    Ok(Some(request)) => self.handle(Event::Request(request)).await?,
                    Ok(None) => {
                        info!("proxy closed its stream");
                        return Ok(());
                    }
                    Err(status) => {
                        info!(code = ?status.code(), reason = status.message(), "proxy's stream broke");
                        return Ok(());
                    }
                },
            }
        }
    }

    async fn world(&mut self, world: &Arc<World>, stream: u64) -> Result<(), Status> {
        if !world.has_seen(self.proxy, stream) {
            return Ok(());
        }
        // Without its mesh a proxy keeps what it has.
        let Some(mesh) = world.mesh(&self.proxy.mesh) else { return Ok(()) };
        let svid = world.svids.get(self.proxy);
        let snapshot = match &self.built {
            Some(built) if built.is_from(mesh, svid) => {
                // Other proxies' connections and certificates are no reason to build; another revision only has to be told.
                if built.snapshot.global == world.global {
                    return Ok(());
                }
                ProxySnapshot {
                    zone_revision: world.zone_revision,
                    global: world.global,
                    ..built.snapshot.as_ref().clone()
                }
            }
            _ => match build(world, self.proxy, &self.server.encoder) {
                Some(snapshot) => snapshot,
                // Deleted under a connected proxy, whose next stream brings it again if it may.
                None => return Err(Status::unavailable("the Dataplane of this proxy is gone, connect again")),
            },
        };
        if let Some(svid) = svid
            && svid.serial != self.certificate
        {
            self.certificate.clone_from(&svid.serial);
            let trusts = mesh
                .trusts
                .iter()
                .filter_map(|t| Kri::of(&t.resource))
                .map(|k| k.to_string())
                .collect();
            self.server.insights.certificate(self.proxy, svid, trusts);
        }
        self.stage("built", snapshot.global);
        let snapshot = Arc::new(snapshot);
        self.built = Some(Built {
            mesh: mesh.clone(),
            svid: svid.cloned(),
            snapshot: snapshot.clone(),
        });
        self.handle(Event::Snapshot(snapshot)).await
    }

    fn stage(&self, stage: &'static str, global: Option<ursa_state::GlobalRevision>) {
        if let Some(global) = global {
            self.server
                .stages
                .record(stage, &global.history.to_string(), global.revision, &self.proxy.to_string());
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), Status> {
        let global = match &event {
            Event::Snapshot(snapshot) => snapshot.global,
            Event::Request(_) => None,
        };
        let (metrics, insights) = (&self.server.metrics, &self.server.insights);
        for action in self.machine.handle(event) {
            match action {
                Action::Send { kind, response, unchanged } => {
                    metrics.sent(kind, unchanged);
                    insights.count(self.proxy, kind, Count::Sent);
                    self.stage("pushed", global);
                    if self.responses.send(Ok(response)).await.is_err() {
                        // Envoy is gone; the request side notices as well.
                        return Ok(());
                    }
                }
                Action::Report(Report::Acked(kind)) => {
                    metrics.acked(kind);
                    insights.count(self.proxy, kind, Count::Acked);
                }
                Action::Report(Report::Nacked { kind, names, message }) => {
                    metrics.nacked(kind);
                    insights.count(self.proxy, kind, Count::Nacked);
                    warn!(type_url = kind.type_url(), ?names, %message, "proxy refused configuration; it keeps what it had, and this is not sent again until it changes");
                }
                Action::Report(Report::Settled { global, refused, .. }) => {
                    if !refused {
                        self.stage("acked", global);
                    }
                }
                Action::Close(status) => return Err(status),
            }
        }
        Ok(())
    }
}
