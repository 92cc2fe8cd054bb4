//! The global's side of zone sync: `KDSSyncService` and `GlobalKDSService` over a host-given store.
//! In: zones' calls. Out: their content, changesets and observations of what they send, ZoneInsights. Invariants: a zone is believed to
//! be who its token says; no stream ends with OK; nothing of a zone touches what is not that zone's.
//! Source: kds.md 1, 4.4, 5. Not here: the protocol ([`crate::sender`], [`crate::receiver`]).
//!
//! Every call is answered with response headers at once (the zone waits for ours to speak first on ZoneToGlobalSync); what may take
//! time (read barrier, making the Zone, a predecessor that is still storing) happens in the stream's task.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, future::join4};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, codec::CompressionEncoding, service::Routes};
use ursa_model::{Kind, ResourceKey, ZoneName};
use ursa_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    kds::{
        ClustersRequest, ClustersResponse, StatsRequest, StatsResponse, XdsConfigRequest, XdsConfigResponse, ZoneHealthCheckRequest,
        ZoneHealthCheckResponse,
        global_kds_service_server::{GlobalKdsService, GlobalKdsServiceServer},
        kds_sync_service_server::{KdsSyncService, KdsSyncServiceServer},
    },
};
use ursa_runtime::{OnExit, Stages, Tasks, lease::Deadline};
use ursa_state::GlobalRevision;

use crate::{
    MAX_DECODED_BYTES, MAX_MESSAGE_BYTES,
    claims::{Claims, Held, Refused, StreamKind},
    holds::Holds,
    mapping::Problem,
    metrics::Metrics,
    peer::{FEATURES_HEADER, Features},
    ports::{Alone, Quorum, Sink, Source, ZoneAuth},
    shell::OUTBOUND_QUEUE,
};

mod caller;
mod down;
mod elsewhere;
mod gate;
mod hub;
mod insight;
mod up;

use caller::Caller;
use gate::{Admission, Gate};
use hub::Hub;
use insight::Insights;

/// How often the lag of zones is measured. Not on the path of a change.
const LAG_PERIOD: Duration = Duration::from_secs(1);

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names this process in ZoneInsights and towards zones.
    pub instance_id: String,
    /// Our version, as told to zones.
    pub version: String,
    /// How often zones should call HealthCheck; 0 leaves it to them (Kuma: every 5 min).
    pub health_check_interval: Duration,
}

/// What the server works with.
#[derive(Clone)]
pub struct ServerParts {
    pub source: Source,
    pub sink: Arc<dyn Sink>,
    pub auth: Arc<dyn ZoneAuth>,
    pub stages: Stages,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// This node among the others of its global. The default is a node alone.
#[derive(Clone)]
pub struct Group {
    pub quorum: Arc<dyn Quorum>,
    /// Shared with the other nodes by the host.
    pub claims: Claims,
}

impl Group {
    /// A global of one node; `instance_id` names the process.
    pub fn alone(instance_id: &str) -> Self {
        Self {
            quorum: Arc::new(Alone),
            claims: Claims::new(instance_id),
        }
    }
}

/// How far a zone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneProgress {
    /// Everything up to this revision was sent.
    pub sent: Option<GlobalRevision>,
    /// The zone says it has stored everything up to this revision (only zones that report progress).
    pub stored: Option<GlobalRevision>,
}

/// See the module's text. Clones are handles to the same server.
#[derive(Clone)]
pub struct KdsServer {
    inner: Arc<Inner>,
}

struct Inner {
    config: ServerConfig,
    parts: ServerParts,
    hub: Hub,
    gate: Gate,
    claims: Claims,
    insights: Insights,
    progress: Mutex<BTreeMap<ZoneName, ZoneProgress>>,
    progressed: Notify,
    holds: Holds,
    waiters: elsewhere::Waiters,
    /// Text of the last refusal that was logged.
    last_denied: Mutex<String>,
}

impl fmt::Debug for KdsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KdsServer")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl KdsServer {
    /// A server of the only node of its global.
    pub fn new(config: ServerConfig, parts: ServerParts) -> Self {
        let group = Group::alone(&config.instance_id);
        Self::in_group(config, parts, group)
    }

    /// A server of one node of several. Which of them leads does not matter to it: writes go through [`ServerParts::sink`], which
    /// finds the leader; while there is none they wait, and the streams stay.
    pub fn in_group(config: ServerConfig, parts: ServerParts, group: Group) -> Self {
        let hub = Hub::new(parts.source.clone(), parts.metrics.clone());
        let insights = Insights::new(parts.source.observed().clone(), config.instance_id.clone());
        Self {
            inner: Arc::new(Inner {
                config,
                parts,
                hub,
                gate: Gate::new(group.quorum),
                claims: group.claims,
                insights,
                progress: Mutex::default(),
                progressed: Notify::new(),
                holds: Holds::default(),
                waiters: elsewhere::Waiters::default(),
                last_denied: Mutex::default(),
            }),
        }
    }

    /// Keeps content and ZoneInsights up to date until cancelled. Streams are served only as well as this runs:
    /// `tasks.spawn("kds", OnExit::Shutdown, |cancel| server.clone().run(cancel))`.
    pub async fn run(self, cancel: CancellationToken) {
        join4(
            self.inner.hub.run(cancel.clone()),
            self.inner.insights.run(cancel.clone()),
            self.inner.gate.run(cancel.clone()),
            self.inner.measure_lag(cancel),
        )
        .await;
    }

    /// Ends all streams with Unavailable and takes no more, so that zones go to another node at once. The first step of an orderly
    /// end, before leadership and store are given up; cancellation does the same. Does not wait.
    pub fn drain(&self) {
        self.inner.gate.drain();
    }

    /// Both services, for [`ursa_runtime::serve::https`] on the KDS port.
    pub fn router(&self) -> axum::Router {
        let sync = KdsSyncServiceServer::new(self.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let other = GlobalKdsServiceServer::new(self.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        Routes::new(sync).add_service(other).into_axum_router()
    }

    /// How far each zone is that this process serves or served.
    pub fn progress(&self) -> BTreeMap<ZoneName, ZoneProgress> {
        self.inner.progress.lock().clone()
    }

    /// Removals that zones' first sets implied and that are held (metric `kds_held_removals`), of zones whose streams end at this node.
    pub fn holds(&self) -> Holds {
        self.inner.holds.clone()
    }

    /// Resources that should reach zones but do not, and why: quarantined MeshTrusts above all.
    pub fn problems(&self) -> Vec<Problem> {
        self.inner.hub.problems()
    }
}

impl Inner {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        Caller::of(request.metadata(), self.parts.auth.as_ref()).inspect_err(|status| {
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) {
                self.parts.metrics.denied.inc();
                // One that keeps trying is told of once.
                let mut last = self.last_denied.lock();
                if *last != status.message() {
                    tracing::warn!(error = status.message(), "a zone was refused");
                    status.message().clone_into(&mut last);
                }
            }
        })
    }

    fn update_progress(&self, zone: &ZoneName, change: impl FnOnce(&mut ZoneProgress)) {
        let progress = {
            let mut all = self.progress.lock();
            let entry = all.entry(zone.clone()).or_default();
            change(entry);
            *entry
        };
        self.insights.progressed(zone, progress);
        self.progressed.notify_one();
    }

    /// Keeps the lag metric at most once per [`LAG_PERIOD`], and forgets zones that were deleted.
    async fn measure_lag(&self, cancel: CancellationToken) {
        let mut source = self.parts.source.clone();
        loop {
            let catalog = source.catalog();
            let newest = catalog.durable.at_global();
            self.holds
                .retain(|zone| ResourceKey::new(Kind::Zone, "", zone).is_ok_and(|key| catalog.get(&key).is_some()));
            self.progress.lock().retain(|zone, progress| {
                let label = Metrics::zone(zone.as_str());
                let known = ResourceKey::new(Kind::Zone, "", zone.as_str()).is_ok_and(|key| catalog.get(&key).is_some());
                match progress.stored.filter(|s| s.history == newest.history) {
                    Some(stored) if known => {
                        let lag = newest.revision.saturating_sub(stored.revision);
                        self.parts
                            .metrics
                            .lag
                            .get_or_create(&label)
                            .set(i64::try_from(lag).unwrap_or(i64::MAX));
                    }
                    _ => {
                        self.parts.metrics.lag.remove(&label);
                    }
                }
                known
            });
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.progressed.notified() => {}
                alive = source.changed() => if !alive { return },
            }
            // What changes now is measured once it has had time to arrive.
            let pause = Deadline::after(LAG_PERIOD);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = pause.passed() => {}
            }
        }
    }
}

/// A response stream that never ends with OK: when the task behind it is gone without a word, it says Unavailable.
fn never_ok<T: Send + 'static>(inner: ReceiverStream<Result<T, Status>>) -> BoxStream<T> {
    Box::pin(inner.chain(futures::stream::once(async { Err(Status::unavailable("the stream was lost")) })))
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers in the encoding of the request, as grpc-go does; announces what we can.
fn respond<T>(caller: &Caller, stream: BoxStream<T>) -> Response<BoxStream<T>> {
    let mut response = Response::new(stream);
    if !caller.compressed {
        response.disable_compression();
    }
    let features: Vec<&str> = Features::PROGRESS.names().collect();
    if let Ok(value) = features.join(",").parse() {
        response.metadata_mut().insert(FEATURES_HEADER, value);
    }
    response
}

#[tonic::async_trait]
impl KdsSyncService for KdsServer {
    type GlobalToZoneSyncStream = BoxStream<DeltaDiscoveryResponse>;
    type ZoneToGlobalSyncStream = BoxStream<DeltaDiscoveryRequest>;

    async fn global_to_zone_sync(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::GlobalToZoneSyncStream>, Status> {
        let caller = self.inner.caller(&request)?;
        let (claim, admission) = self.admit(&caller, StreamKind::GlobalToZone)?;
        let (tx, rx) = tokio::sync::mpsc::channel(OUTBOUND_QUEUE);
        let response = respond(&caller, never_ok(ReceiverStream::new(rx)));
        let (inner, inbound) = (self.inner.clone(), request.into_inner());
        self.inner.parts.tasks.spawn("kds-global-to-zone", OnExit::Contain, |cancel| {
            down::run(inner, caller, claim, admission, inbound, tx, cancel)
        });
        Ok(response)
    }

    async fn zone_to_global_sync(
        &self,
        request: Request<Streaming<DeltaDiscoveryResponse>>,
    ) -> Result<Response<Self::ZoneToGlobalSyncStream>, Status> {
        let caller = self.inner.caller(&request)?;
        let (claim, admission) = self.admit(&caller, StreamKind::ZoneToGlobal)?;
        let (tx, rx) = tokio::sync::mpsc::channel(OUTBOUND_QUEUE);
        let response = respond(&caller, never_ok(ReceiverStream::new(rx)));
        let (inner, inbound) = (self.inner.clone(), request.into_inner());
        self.inner.parts.tasks.spawn("kds-zone-to-global", OnExit::Contain, |cancel| {
            up::run(inner, caller, claim, admission, inbound, tx, cancel)
        });
        Ok(response)
    }
}

impl KdsServer {
    /// Leave to serve, and the right to speak for the zone.
    fn admit(&self, caller: &Caller, kind: StreamKind) -> Result<(Held, Admission), Status> {
        let admission = self.inner.gate.admit().map_err(gate::Closing::status)?;
        let claimed = self.inner.claims.claim(&caller.zone, kind, &caller.instance, caller.session);
        let held = claimed.map_err(|refused| {
            tracing::warn!(zone = %caller.zone, "{refused}");
            match refused {
                Refused::Contested { .. } => Status::already_exists(refused.to_string()),
                Refused::Late { .. } => Status::cancelled(refused.to_string()),
            }
        })?;
        Ok((held, admission))
    }

    /// Holds an admin stream open: nothing is asked on it, so an answer is a mistake. It ends with the server or the zone.
    fn hold<Q, A>(&self, request: Request<Streaming<A>>, which: insight::Stream) -> Result<Response<BoxStream<Q>>, Status>
    where
        A: Send + 'static,
    {
        let caller = self.inner.caller(&request)?;
        let mut admission = self.inner.gate.admit().map_err(gate::Closing::status)?;
        self.inner.insights.stream(&caller.zone, which);
        let cancel = self.inner.parts.tasks.cancel_token();
        let mut inbound = request.into_inner();
        let end = async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(gate::Closing::Draining.status()),
                closing = admission.ended() => Err(closing.status()),
                message = inbound.message() => match message {
                    Ok(Some(_)) => Err(Status::invalid_argument("an answer to nothing that was asked")),
                    Ok(None) => Err(Status::cancelled("the peer closed the stream")),
                    Err(status) => Err(status),
                },
            }
        };
        Ok(respond(&caller, Box::pin(futures::stream::once(end))))
    }
}

#[tonic::async_trait]
impl GlobalKdsService for KdsServer {
    type StreamXDSConfigsStream = BoxStream<XdsConfigRequest>;
    type StreamStatsStream = BoxStream<StatsRequest>;
    type StreamClustersStream = BoxStream<ClustersRequest>;

    async fn health_check(&self, request: Request<ZoneHealthCheckRequest>) -> Result<Response<ZoneHealthCheckResponse>, Status> {
        let caller = self.inner.caller(&request)?;
        self.inner.insights.health(&caller.zone);
        let interval = self.inner.config.health_check_interval;
        let interval = prost_types::Duration {
            seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(interval.subsec_nanos()).unwrap_or_default(),
        };
        let mut response = Response::new(ZoneHealthCheckResponse { interval: Some(interval) });
        if let Some(limit) = elsewhere::asked(request.metadata()) {
            elsewhere::answer(&self.inner, &caller, limit).await?.write(response.metadata_mut());
        }
        Ok(response)
    }

    async fn stream_xds_configs(
        &self,
        request: Request<Streaming<XdsConfigResponse>>,
    ) -> Result<Response<Self::StreamXDSConfigsStream>, Status> {
        self.hold(request, insight::Stream::ConfigDump)
    }

    async fn stream_stats(&self, request: Request<Streaming<StatsResponse>>) -> Result<Response<Self::StreamStatsStream>, Status> {
        self.hold(request, insight::Stream::Stats)
    }

    async fn stream_clusters(&self, request: Request<Streaming<ClustersResponse>>) -> Result<Response<Self::StreamClustersStream>, Status> {
        self.hold(request, insight::Stream::Clusters)
    }
}
