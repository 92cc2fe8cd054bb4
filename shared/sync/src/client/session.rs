//! One connection of a zone: both sync streams, the health check and the admin streams, side by side in one task.
//! In: a channel. Out: why it ended. Invariant: the first of them to end ends all; a batch that was given to the store is seen through.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, codec::CompressionEncoding, transport::Channel};
use tracing::warn;
use ursa_model::{Kind, Timestamp, ZoneName, kind as kinds};
use ursa_proto::kds::{
    ZoneHealthCheckRequest, global_kds_service_client::GlobalKdsServiceClient, kds_sync_service_client::KdsSyncServiceClient,
};
use ursa_runtime::{
    Stages,
    lease::{Deadline, within},
    stages::STORED,
};
use ursa_state::Catalog;

use super::{ClientStatus, KdsClient, admin, elsewhere::Live, metadata};
use crate::{
    MAX_DECODED_BYTES, MAX_MESSAGE_BYTES,
    digest::{self, Tally},
    distribution::{Distribution, Distributor},
    holds,
    mapping::Recipient,
    metrics::Metrics,
    peer::{FEATURES_HEADER, Features, RESUME_HEADER},
    ports::{Sink, Source},
    receiver::{self, Batch, Held, Receiver, Site},
    revision,
    sender::{self, Sender},
    shell::{self, Applier, Contents, End, Outcome, Wire},
    storing,
};

/// Room for every initial request, so that they are on their way before the first answer.
const REQUEST_QUEUE: usize = 128;
/// Interval of health checks when the global names none, as Kuma.
const HEALTH_CHECK: Duration = Duration::from_secs(300);
const HEALTH_CHECK_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Largest changeset, in bytes of its log entry; what the store takes at most is above it.
const MAX_ENTRY: usize = 2 * 1024 * 1024;
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Towards a global of ours the health check is also how a dead peer is noticed: HTTP/2 PINGs may not come more often than every 15 s
/// to a stock global, and its class is only known once it has answered.
const HEARTBEAT: Duration = Duration::from_secs(2);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

type SyncClient = KdsSyncServiceClient<Channel>;

/// What every call of the session needs.
pub(super) struct Session<'a> {
    pub(super) client: &'a KdsClient,
    address: &'a str,
    channel: Channel,
    token: Option<String>,
    number: u64,
    /// The global turned out to be one of ours.
    ours: watch::Sender<bool>,
    /// Counts what arrives on the down stream: a peer that sends is alive, however late it answers.
    heard: AtomicU64,
}

impl Session<'_> {
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        metadata(&self.client.config, self.number, self.token.as_deref(), request.metadata_mut());
        request
    }

    fn sync(&self) -> SyncClient {
        let client = SyncClient::new(self.channel.clone())
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        if self.client.config.compress {
            client.send_compressed(CompressionEncoding::Gzip)
        } else {
            client
        }
    }

    pub(super) fn global(&self) -> GlobalKdsServiceClient<Channel> {
        let client = GlobalKdsServiceClient::new(self.channel.clone()).accept_compressed(CompressionEncoding::Gzip);
        if self.client.config.compress {
            client.send_compressed(CompressionEncoding::Gzip)
        } else {
            client
        }
    }
}

/// Runs until something ends; says what.
pub(super) async fn run(client: &KdsClient, address: &str, channel: Channel, token: Option<String>, cancel: &CancellationToken) -> String {
    let session = Session {
        client,
        address,
        channel,
        token,
        number: client.sessions.fetch_add(1, Ordering::Relaxed) + 1,
        ours: watch::Sender::new(false),
        heard: AtomicU64::new(0),
    };
    // Ends the down stream alone, in order, when anything else ends: what it is storing must not be cut off.
    let stop = CancellationToken::new();
    let down = down(&session, stop.clone());
    let rest = async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => "the zone control plane is shutting down".to_owned(),
            why = up(&session) => format!("zone-to-global: {why}"),
            why = health(&session) => format!("health check: {why}"),
            why = admin::run(&session) => format!("admin stream: {why}"),
        }
    };
    tokio::pin!(down, rest);
    tokio::select! {
        why = &mut down => format!("global-to-zone: {why}"),
        why = &mut rest => {
            stop.cancel();
            down.await;
            why
        }
    }
}

fn text(end: &End) -> String {
    let status = end.status();
    format!("{:?}: {}", status.code(), status.message())
}

fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// What the zone holds of the global: the sums, and the header that says so.
fn held(client: &KdsClient, kinds: &[Kind]) -> (Tally, Option<String>) {
    let catalog = client.parts.source.peek();
    let mut tally = client.tally.lock();
    tally.update(&catalog);
    let at = catalog.durable.global();
    let header = at.map(|at| format!("{}/{}", revision::format(at), digest::format(tally.total(kinds.iter().copied()))));
    (tally.clone(), header)
}

/// GlobalToZoneSync: what the global sends is stored here.
async fn down(session: &Session<'_>, stop: CancellationToken) -> String {
    let client = session.client;
    let source = client.parts.source.clone();
    let asked: Vec<Kind> = kinds::ALL
        .iter()
        .copied()
        .filter(|k| k.descriptor().flags.requested_by_zone())
        .collect();
    let (tally, resume) = held(client, &asked);
    let mut receiver = Receiver::new(receiver::Config {
        site: Site::Zone,
        identity: client.identity(),
        kinds: asked,
        progress: false,
        known: source.peek().durable.global(),
    })
    .with_tally(tally);
    let (tx, rx) = mpsc::channel(REQUEST_QUEUE);
    // The requests must be on their way before we wait for headers: a stock global sends none before its first answer.
    for action in receiver.handle(receiver::Event::Start, &source.peek()) {
        if let receiver::Action::Send(message) = action
            && tx.try_send(message).is_err()
        {
            return "more kinds than fit the queue".to_owned();
        }
    }
    let mut sync = session.sync();
    let mut request = session.request(ReceiverStream::new(rx));
    if let Some(resume) = resume.and_then(|r| r.parse().ok()) {
        request.metadata_mut().insert(RESUME_HEADER, resume);
    }
    let answered = tokio::select! {
        () = stop.cancelled() => return "stopped".to_owned(),
        answered = sync.global_to_zone_sync(request) => answered,
    };
    let response = match answered {
        Ok(response) => response,
        Err(status) => return status_text(&status),
    };
    let features = response
        .metadata()
        .get_all(FEATURES_HEADER)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let progress = Features::from_names(features).contains(Features::PROGRESS);
    session.ours.send_if_modified(|ours| std::mem::replace(ours, progress) != progress);
    let opening = if progress { receiver.peer_reports_progress() } else { Vec::new() };
    let applier = ToStore {
        sink: client.parts.sink.clone(),
        source: client.parts.source.clone(),
        stages: client.parts.stages.clone(),
        status: client.status.clone(),
        zone: client.config.zone.clone(),
        cancel: stop.clone(),
    };
    let observe = |report: receiver::Report| {
        observe_down(client, &report);
        if matches!(report, receiver::Report::Received { .. } | receiver::Report::UpTo(_)) {
            session.heard.fetch_add(1, Ordering::Relaxed);
            client.flows(session.address, progress);
        }
    };
    let wire = Wire { outbound: tx, wrap: |m| m };
    let end = shell::run_receiver(
        receiver,
        Some(opening),
        response.into_inner(),
        applier,
        wire,
        observe,
        shell::Signals {
            holds: &client.holds.open(holds::GLOBAL, Site::Zone.grace()),
            // A stock global does not say which process it is, and one of ours proves which store it has.
            process: &String::new,
            kept: &|| false,
            stop: stop.cancelled(),
        },
    )
    .await;
    text(&end)
}

fn observe_down(client: &KdsClient, report: &receiver::Report) {
    let (zone, metrics) = (client.config.zone.as_str(), &client.parts.metrics);
    match report {
        receiver::Report::Received { kind, resources } => {
            metrics
                .resources_received
                .get_or_create(&Metrics::kind(zone, *kind))
                .inc_by(*resources as u64);
        }
        receiver::Report::Refused { kind, names, text } => {
            warn!(zone, type_url = %kind, resources = ?names, error = text, "resources of the global were refused");
            metrics.nacks.get_or_create(&Metrics::kind(zone, *kind)).inc();
        }
        receiver::Report::Held {
            kind,
            held: Held { keys, wait },
        } => {
            if !keys.is_empty() {
                warn!(zone, type_url = %kind, resources = ?keys, until = ?wait, "the global's first set lacks resources that it had; their removal is held");
            }
            metrics
                .held
                .get_or_create(&Metrics::kind(zone, *kind))
                .set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        }
        receiver::Report::Rewritten(_) | receiver::Report::UpTo(_) => {}
        receiver::Report::Resumed(at) => {
            tracing::info!(zone, revision = at.revision, "the global goes on from what this zone has");
            metrics.resumed.inc();
        }
        receiver::Report::Differs { kind, repair } => {
            warn!(zone, type_url = %kind, repair, "what this zone holds is not what the global says it should");
            metrics.differences.get_or_create(&Metrics::kind(zone, *kind)).inc();
        }
    }
}

/// Stores a batch of the global as one changeset, with the global's revision. One that is larger than a log entry may be is cut;
/// then its last piece has the revision.
#[derive(Clone)]
struct ToStore {
    sink: Arc<dyn Sink>,
    source: Source,
    stages: Stages,
    status: watch::Sender<ClientStatus>,
    zone: ZoneName,
    cancel: CancellationToken,
}

impl Applier for ToStore {
    fn catalog(&self) -> Catalog {
        self.source.peek()
    }

    fn apply(&self, batch: Box<Batch>) -> BoxFuture<'static, Outcome> {
        let this = self.clone();
        Box::pin(async move {
            let refused = storing::store(
                this.sink.as_ref(),
                batch.pieces(MAX_ENTRY),
                batch.global,
                "global",
                &this.cancel,
                None,
            )
            .await?;
            if let Some(at) = batch.peer.and(batch.global) {
                this.stages.record(STORED, &at.history.to_string(), at.revision, this.zone.as_str());
                this.status.send_modify(|status| status.global = Some(at));
            }
            this.source.observed().apply(Timestamp::now(), batch.observations);
            Ok(refused)
        })
    }
}

/// The zone's own content, mapped as it changes. The distributor outlives the connection.
struct OwnContent<'a> {
    source: Source,
    distributor: &'a parking_lot::Mutex<Distributor>,
    started: bool,
}

impl Contents for OwnContent<'_> {
    async fn next(&mut self) -> Option<Distribution> {
        if self.started && !self.source.changed().await {
            return None;
        }
        self.started = true;
        let catalog = self.source.catalog();
        Some(self.distributor.lock().update(catalog))
    }
}

/// ZoneToGlobalSync: the global asks, we send.
async fn up(session: &Session<'_>) -> String {
    let client = session.client;
    let (tx, rx) = mpsc::channel(shell::OUTBOUND_QUEUE);
    let response = match session.sync().zone_to_global_sync(session.request(ReceiverStream::new(rx))).await {
        Ok(response) => response,
        Err(status) => return status_text(&status),
    };
    let zone = client.config.zone.as_str();
    let sender = Sender::new(sender::Config {
        identifier: zone.to_owned(),
        recipient: Recipient::default(),
        kinds: kinds::ALL
            .iter()
            .copied()
            .filter(|k| k.descriptor().flags.zone_to_global())
            .collect(),
        // The global has no use for revisions of ours of which nothing concerns it.
        announce_idle: false,
        chunk_bytes: sender::CHUNK_BYTES,
        stock_bytes: sender::STOCK_BYTES,
    });
    let metrics = &client.parts.metrics;
    let (stored, stored_seen) = watch::channel(None);
    let observe = |report: sender::Report| match report {
        sender::Report::Sent { kind, resources } => {
            metrics
                .resources_sent
                .get_or_create(&Metrics::kind(zone, kind))
                .inc_by(resources as u64);
        }
        sender::Report::Nacked { kind, names, text } => {
            warn!(zone, type_url = %kind, resources = ?names, error = text, "the global refused resources");
            metrics.nacks.get_or_create(&Metrics::kind(zone, kind)).inc();
        }
        sender::Report::StoredUpTo(at) => {
            stored.send_replace(Some(at));
        }
        sender::Report::Acked { .. } | sender::Report::SentUpTo(_) => {}
        sender::Report::AskedAgain { kind } => {
            warn!(zone, type_url = %kind, "the global holds something else of this type than it should: it gets the complete set");
            metrics.differences.get_or_create(&Metrics::kind(zone, kind)).inc();
        }
        sender::Report::Unknown { type_url } => tracing::debug!(type_url, "the global asks for a type that is not synced here"),
        sender::Report::TooLarge { kind, bytes } => {
            tracing::error!(zone, type_url = %kind, bytes, limit = sender::STOCK_BYTES, "the global gets none of this type: a stock global takes a first set only in one message, and this one is too large");
            metrics.too_large.get_or_create(&Metrics::kind(zone, kind)).inc();
        }
    };
    let contents = OwnContent {
        source: client.parts.source.clone(),
        distributor: &client.distributor,
        started: false,
    };
    let wire = Wire { outbound: tx, wrap: |m| m };
    metrics.announce(zone);
    let _active = Active::new(metrics, zone);
    let _shown = client.live.show(Live {
        number: session.number,
        channel: session.channel.clone(),
        metadata: session.request(()).metadata().clone(),
        stored: stored_seen,
    });
    let end = shell::run_sender(
        sender,
        Vec::new(),
        response.into_inner(),
        contents,
        wire,
        observe,
        std::future::pending(),
    )
    .await;
    text(&end)
}

/// Counts a connection while it lasts.
struct Active<'a>(&'a Metrics, &'a str);

impl<'a> Active<'a> {
    fn new(metrics: &'a Metrics, zone: &'a str) -> Self {
        metrics.active.get_or_create(&Metrics::zone(zone)).inc();
        Self(metrics, zone)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.get_or_create(&Metrics::zone(self.1)).dec();
    }
}

/// Calls HealthCheck at once, then at the global's interval; a global of ours is called often enough to notice within seconds that it
/// is dead or no longer reachable.
async fn health(session: &Session<'_>) -> String {
    let mut ours = session.ours.subscribe();
    loop {
        let is_ours = *ours.borrow_and_update();
        let heard = session.heard.load(Ordering::Relaxed);
        let patience = if is_ours { HEARTBEAT_TIMEOUT } else { HEALTH_CHECK_TIMEOUT };
        let answered = within(patience, session.global().health_check(session.request(ZoneHealthCheckRequest {}))).await;
        let interval = match answered {
            Ok(Ok(response)) => response.into_inner().interval,
            Ok(Err(status)) if status.code() == Code::Unimplemented => return std::future::pending().await,
            Ok(Err(status)) => return status_text(&status),
            // Its answer stands behind what it sends.
            Err(_) if session.heard.load(Ordering::Relaxed) != heard => continue,
            Err(late) => return late.to_string(),
        };
        let asked = interval.and_then(|i| Duration::try_from(i).ok()).filter(|i| !i.is_zero());
        let interval = asked.map_or(HEALTH_CHECK, |i| i.clamp(HEALTH_CHECK_BOUNDS.0, HEALTH_CHECK_BOUNDS.1));
        let pause = Deadline::after(if is_ours { interval.min(HEARTBEAT) } else { interval });
        tokio::select! {
            () = pause.passed() => {}
            Ok(()) = ours.changed() => {}
        }
    }
}
