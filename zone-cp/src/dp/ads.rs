//! Delta ADS server: authenticates a proxy, registers its Dataplane, and runs one [`Machine`] per stream.
//! In: Envoy's requests, new worlds. Out: responses; reports to insights, metrics and the stage ring. No timers.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{Instrument, info, info_span, warn};
use ursa_model::{Kind, Resource, ResourceKey, Timestamp, kri::Kri, labels};
use ursa_policy::Parsed;
use ursa_proto::discovery::{
    ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use ursa_runtime::{
    error::Chain,
    lease, serve,
    stages::Stages,
    tasks::{OnExit, Tasks},
};

pub use super::registrar::{Registered, Registrar, Unregistered};
use super::{
    auth,
    insight::{Count, Insights},
    metadata,
    phase::{self, Phase},
    progress::Progress,
};
use crate::{
    build::{Encoder, Reads, build_tracked, names},
    connections::{Connections, NewStream, Peer, Registration},
    metrics::XdsMetrics,
    snapshot::{ProxySnapshot, XdsType},
    world::{IssuedSvid, MeshWorld, ProxyId, World},
    xds::machine::{Action, Event, Machine, Report},
};

/// Responses under way to one client: one per type, plus what one step adds.
const OUTBOUND: usize = 16;

/// As much of a node id as is worth a log line, in characters.
const MAX_NODE_SHOWN: usize = 200;

/// How long a client may take to say who it is: until then nothing is known of it.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

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
        let address = request.extensions().get::<serve::Peer>().map(|peer| peer.addr);
        let requests = request.into_inner();
        let (responses, outbound) = mpsc::channel(OUTBOUND);
        let server = self.clone();
        self.tasks.spawn("ads-stream", OnExit::Ignore, move |cancel| async move {
            if let Err(status) = server.serve(requests, &responses, token, address, cancel).await {
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
        address: Option<SocketAddr>,
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
            admitted = self.admit(&first, token.as_deref(), address) => admitted,
        };
        let admitted = admitted.and_then(|Admitted { proxy, meta, new }| {
            let registration = self.connections.register(proxy.clone(), new);
            Ok((proxy, meta, registration.map_err(|e| Status::already_exists(e.to_string()))?))
        });
        let (proxy, meta, registration) = admitted.inspect_err(|status| {
            self.metrics.denied(status.code());
            let node = first.node.as_ref().map_or("", |n| n.id.as_str());
            let node: String = node.chars().take(MAX_NODE_SHOWN).collect();
            self.refused(&node, address, status);
        })?;
        let span = info_span!("ads", %proxy);
        let subscription = format!("{:032x}", rand::random::<u128>());
        self.insights.connected(&proxy, &subscription, meta.version, meta.all);
        let stream = StreamTask {
            server: self,
            proxy: &proxy,
            responses,
            registration: &registration,
            machine: Machine::new(),
            built: None,
            certificate: String::new(),
            trusts: Vec::new(),
            progress: Progress::default(),
        };
        self.metrics.connected(1);
        let result = stream.run(first, &mut requests, &cancel).instrument(span).await;
        self.metrics.connected(-1);
        drop(registration);
        self.insights.disconnected(&proxy, &subscription);
        result
    }

    /// Logs a refusal, the same one once a minute: an Envoy tries again every other second, for ever.
    fn refused(&self, node: &str, address: Option<SocketAddr>, status: &Status) {
        let reason = status.message();
        // The fight of two proxies is logged where it is seen.
        if status.code() == Code::AlreadyExists {
            return;
        }
        if let Some(before) = self.connections.refusals().pass(&format!("{node}\n{reason}")) {
            warn!(node, address = address.map(tracing::field::display), code = ?status.code(), reason, repeated = before, "proxy refused");
        }
    }

    /// Authenticates the proxy and stores its Dataplane.
    async fn admit(&self, first: &DeltaDiscoveryRequest, token: Option<&str>, address: Option<SocketAddr>) -> Result<Admitted, Status> {
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
        let mut new = NewStream {
            peer: Peer {
                address,
                instance: meta.instance.clone(),
            },
            advertised: None,
            workload: registered.labels.get(labels::WORKLOAD).map(|w| w.as_str().into()),
            warm: !first.initial_resource_versions.is_empty(),
            given: meta.dataplane.as_ref().map(|_| registered.canonical.clone()),
        };
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
                spec: registered.canonical.as_ref().clone(),
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
            let claims = auth::authenticate(&view, mesh, &proxy, &dataplane, token, now).map_err(refuse)?;
            new.workload = Some(claims.workload.as_str()).filter(|w| !w.is_empty()).map(Into::into);
            if meta.advertised.is_some() && !auth::may_advertise(&claims) {
                warn!(%proxy, "its token does not let it publish an address of the zone: the token needs the tag kuma.io/listener-zoneingress: enabled");
                meta.advertised = None;
            }
            if let Some(stored) = stored.filter(|s| phase::without(&s.labels) != registered.labels) {
                auth::may_replace(&view, &proxy, stored, token, now).map_err(refuse)?;
            }
        }
        self.connections
            .check(&proxy, &new.peer)
            .map_err(|e| Status::already_exists(e.to_string()))?;
        let before = stored.map(Phase::of);
        if new.given.is_some() {
            let phase = match before {
                // An Envoy that runs is as far as it was, whatever happened to its stream.
                Some(before) if new.warm => before,
                None if new.warm => Phase::Serving,
                _ => Phase::Starting,
            };
            self.registrar.register(key, &registered, stored, phase).await?;
        } else if let (false, Some(Phase::Draining), Some(stored)) = (new.warm, before, stored) {
            self.registrar.serve(stored, None).await?;
        }
        new.advertised.clone_from(&meta.advertised);
        Ok(Admitted { proxy, meta, new })
    }
}

/// A proxy that may have a stream.
struct Admitted {
    proxy: ProxyId,
    meta: metadata::NodeMetadata,
    new: NewStream,
}

/// One stream while it runs.
struct StreamTask<'a> {
    server: &'a AdsServer,
    proxy: &'a ProxyId,
    responses: &'a mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    registration: &'a Registration,
    machine: Machine,
    /// What was built last, and from what.
    built: Option<Built>,
    /// Serial of the certificate shown last.
    certificate: String,
    /// KRIs of the MeshTrusts shown last.
    trusts: Vec<String>,
    progress: Progress,
}

/// A snapshot with everything that it was made from.
struct Built {
    mesh: Arc<MeshWorld>,
    svid: Option<Arc<IssuedSvid>>,
    /// What of the mesh.
    reads: Reads,
    snapshot: Arc<ProxySnapshot>,
}

impl Built {
    /// A build for `proxy` from these would give the same.
    fn is_from(&self, proxy: &ProxyId, mesh: &Arc<MeshWorld>, svid: Option<&Arc<IssuedSvid>>) -> bool {
        let same_svid = match (&self.svid, svid) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        same_svid && (Arc::ptr_eq(&self.mesh, mesh) || self.reads.still_hold(&self.mesh, mesh, &proxy.name))
    }
}

impl StreamTask<'_> {
    async fn run(
        mut self,
        first: DeltaDiscoveryRequest,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
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
                () = self.registration.replaced() => return Err(Status::already_exists("a newer stream of this proxy took over")),
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the zone control plane is stopping"));
                    }
                    let world = worlds.borrow_and_update().clone();
                    self.world(&world).await?;
                }
                () = self.progress.retry_is_due() => {
                    self.progress.retried();
                    self.handle(Event::Retry).await?;
                }
                request = requests.message() => match request {
                    Ok(Some(request)) => self.handle(Event::Request(request)).await?,
                    Ok(None) => {
                        info!("proxy left");
                        return Ok(());
                    }
                    // An Envoy that ends closes the connection, not the stream. Whether it meant to, its drain tells.
                    Err(_) if self.drained() => {
                        info!("proxy left");
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

    async fn world(&mut self, world: &Arc<World>) -> Result<(), Status> {
        if !world.has_seen(self.proxy, self.registration.stream()) {
            return Ok(());
        }
        // Without its mesh a proxy keeps what it has.
        let Some(mesh) = world.mesh(&self.proxy.mesh) else { return Ok(()) };
        let svid = world.svids.get(self.proxy);
        self.progress.revision = world.zone_revision;
        let unchanged = self.built.as_ref().is_some_and(|built| built.is_from(self.proxy, mesh, svid));
        if unchanged && let Some(built) = &mut self.built {
            // Compared with from now on, so that nothing older is kept.
            built.mesh = mesh.clone();
        }
        let (snapshot, reads) = match &self.built {
            Some(built) if unchanged => {
                // What it did not read is no reason to build; another revision only has to be told.
                if built.snapshot.global == world.global {
                    self.look();
                    return Ok(());
                }
                let snapshot = ProxySnapshot {
                    zone_revision: world.zone_revision,
                    global: world.global,
                    ..built.snapshot.as_ref().clone()
                };
                (snapshot, built.reads.clone())
            }
            _ => match build_tracked(world, self.proxy, &self.server.encoder) {
                Some(built) => built,
                // Deleted under a connected proxy, whose next stream brings it again if it may.
                None => return Err(Status::unavailable("the Dataplane of this proxy is gone, connect again")),
            },
        };
        let trusts = || mesh.trusts.iter().filter_map(|t| Kri::of(&t.resource)).map(|k| k.to_string());
        match svid {
            Some(svid) if svid.serial != self.certificate => {
                self.certificate.clone_from(&svid.serial);
                self.trusts = trusts().collect();
                self.server.insights.certificate(self.proxy, svid, self.trusts.clone());
            }
            Some(_) if !trusts().eq(self.trusts.iter().cloned()) => {
                self.trusts = trusts().collect();
                self.server.insights.trusts(self.proxy, self.trusts.clone());
            }
            _ => {}
        }
        self.stage("built", snapshot.global);
        let snapshot = Arc::new(snapshot);
        self.built = Some(Built {
            mesh: mesh.clone(),
            svid: svid.cloned(),
            reads,
            snapshot: snapshot.clone(),
        });
        self.handle(Event::Snapshot(snapshot)).await
    }

    /// Tells how far its Envoy is.
    fn look(&mut self) {
        let Some(built) = &self.built else { return };
        if !self.progress.unanswered.is_empty() {
            return;
        }
        // Nothing unanswered is not enough: it may have refused something, or not have asked for all of it yet.
        if self.machine.runs_all() {
            self.registration.applied(self.progress.revision);
        } else if self.machine.refuses() {
            self.registration.refused(self.progress.revision, &self.progress.refusal());
        }
        if !self.progress.serving && self.progress.listens(&built.snapshot, &self.inbounds(&built.mesh)) {
            self.progress.serving = true;
            self.registration.serving();
        }
    }

    /// It was told to end.
    fn drained(&self) -> bool {
        let world = self.server.worlds.borrow();
        let dataplane = world.mesh(&self.proxy.mesh).and_then(|m| m.dataplanes.get(&self.proxy.name));
        dataplane.is_some_and(|d| Phase::of(&d.resource) == Phase::Draining)
    }

    /// Names of the listeners of its inbounds.
    fn inbounds(&self, mesh: &MeshWorld) -> Vec<String> {
        let dataplane = mesh.dataplanes.get(&self.proxy.name);
        let inbounds = dataplane.into_iter().flat_map(|d| &d.spec.networking.inbound);
        inbounds.map(|i| names::inbound(&i.section())).collect()
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
            Event::Retry => None,
            Event::Request(request) => {
                if let Some(kind) = XdsType::by_type_url(&request.type_url) {
                    self.progress.asked_for_secrets |= kind == XdsType::Secret;
                    if !request.initial_resource_versions.is_empty() {
                        self.progress.accepted.insert(kind);
                    }
                }
                None
            }
        };
        let (metrics, insights) = (&self.server.metrics, &self.server.insights);
        for action in self.machine.handle(event) {
            match action {
                Action::Send {
                    kind,
                    mut response,
                    unchanged,
                } => {
                    if self.progress.accepted.is_empty() {
                        // Envoy keeps it as a statistic: which control plane serves it.
                        response.control_plane = Some(ControlPlane {
                            identifier: insights.instance().to_owned(),
                        });
                    }
                    self.progress.unanswered.insert(kind);
                    metrics.sent(kind, unchanged);
                    insights.count(self.proxy, kind, Count::Sent);
                    self.stage("pushed", global);
                    if self.responses.send(Ok(response)).await.is_err() {
                        // Envoy is gone; the request side notices as well.
                        return Ok(());
                    }
                }
                Action::Report(Report::Acked(kind)) => {
                    self.progress.unanswered.remove(&kind);
                    self.progress.accepted.insert(kind);
                    metrics.acked(kind);
                    insights.count(self.proxy, kind, Count::Acked);
                }
                Action::Report(Report::Nacked { kind, names, message }) => {
                    self.progress.unanswered.remove(&kind);
                    self.progress.refusals.insert(kind, message.clone());
                    metrics.nacked(kind);
                    insights.count(self.proxy, kind, Count::Nacked);
                    warn!(type_url = kind.type_url(), ?names, %message, "proxy refused configuration; it keeps what it had; of several resources the good ones are sent again, and what is refused alone only once it changes, or, for want of a socket, after a while");
                }
                Action::Report(Report::Settled { global, refused, .. }) => {
                    if !refused {
                        self.stage("acked", global);
                    }
                }
                Action::Close(status) => return Err(status),
            }
        }
        self.progress.plan_retry(&self.machine);
        self.look();
        Ok(())
    }
}
