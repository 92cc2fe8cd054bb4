//! One ZoneToGlobalSync stream: what a zone made, stored here.
//! In: the zone's responses. Out: changesets of its durable resources, observations of the others, ACKs and NACKs.
//! Invariant: the predecessor of a stream has stored what it had begun before this one reads anything.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{Instrument, info_span, warn};
use ursa_model::{Kind, Resource, ResourceKey, Timestamp, ZoneName, kind as kinds};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_runtime::lease::within;
use ursa_state::{Catalog, Expect, GlobalRevision, HistoryId, Op, Put};

use super::{
    Inner,
    caller::Caller,
    down,
    gate::{Admission, Closing},
    insight::Stream,
};
use crate::{
    claims,
    metrics::Metrics,
    peer::{Features, Identity},
    receiver::{Batch, Config, Held, Receiver, Report, Site},
    shell::{self, Applier, Outcome, Wire},
};

/// Largest changeset from a zone, in bytes of its log entry: a Raft entry is sent to every node and written by each.
const MAX_ENTRY: usize = 1024 * 1024;
/// Longest wait for a predecessor; its proposals end within 30 s.
const PREDECESSOR: Duration = Duration::from_secs(40);
/// Longest wait for one at another node, which may be dead without this node knowing yet.
const REMOTE_PREDECESSOR: Duration = Duration::from_secs(1);
/// Label of a Zone: history id of its store, by which it is known again. A zone that lost its disk has another.
const HISTORY_LABEL: &str = "ursa.io/history-id";

pub(super) async fn run(
    inner: Arc<Inner>,
    caller: Caller,
    claim: claims::Held,
    mut admission: Admission,
    inbound: Streaming<DeltaDiscoveryResponse>,
    tx: mpsc::Sender<Result<DeltaDiscoveryRequest, Status>>,
    cancel: CancellationToken,
) {
    let span = info_span!("kds-zone-to-global", zone = %caller.zone);
    async {
        let status = serve(&inner, &caller, &claim, &mut admission, inbound, tx.clone(), cancel).await;
        down::finish(&tx, status).await;
    }
    .instrument(span)
    .await;
}

async fn serve(
    inner: &Arc<Inner>,
    caller: &Caller,
    claim: &claims::Held,
    admission: &mut Admission,
    inbound: Streaming<DeltaDiscoveryResponse>,
    tx: mpsc::Sender<Result<DeltaDiscoveryRequest, Status>>,
    cancel: CancellationToken,
) -> Status {
    let prepared = async {
        let here = join_all(claim.predecessors.iter().map(CancellationToken::cancelled));
        within(PREDECESSOR, here)
            .await
            .map_err(|_| Status::unavailable("the zone's earlier connection is still storing"))?;
        let elsewhere = join_all(claim.remote_predecessors.iter().map(CancellationToken::cancelled));
        if within(REMOTE_PREDECESSOR, elsewhere).await.is_err() {
            warn!("the node of the zone's earlier connection does not say that it ended; going on");
        }
        shell::barrier(inner.parts.sink.as_ref(), &inner.parts.tasks.cancel_token()).await?;
        down::ensure_zone(inner, caller).await
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Closing::Draining.status(),
        closing = admission.ended() => return closing.status(),
        () = claim.lost.cancelled() => return Status::cancelled("a newer connection of this zone took over"),
        prepared = prepared => if let Err(status) = prepared { return status },
    }
    inner.insights.stream(&caller.zone, Stream::ZoneToGlobal);
    let site = Site::Global {
        zone: caller.zone.clone(),
        prefix_names: !caller.features.contains(Features::HASH_SUFFIX),
    };
    let receiver = Receiver::new(Config {
        identity: Identity {
            zone: caller.zone.to_string(),
            instance: inner.config.instance_id.clone(),
            version: inner.config.version.clone(),
            config: String::new(),
        },
        kinds: kinds::ALL
            .iter()
            .copied()
            .filter(|k| k.descriptor().flags.zone_to_global())
            .collect(),
        progress: caller.features.contains(Features::PROGRESS),
        site,
        known: stored_history(inner, &caller.zone).map(|history| GlobalRevision { history, revision: 0 }),
    });
    let applier = ToStore {
        inner: inner.clone(),
        zone: caller.zone.clone(),
        lost: claim.lost.clone(),
    };
    // Replaced or shutting down, the loop first sees through what it had begun to store.
    let mut why = Closing::Draining;
    let stop = async {
        tokio::select! {
            () = cancel.cancelled() => {}
            closing = admission.ended() => why = closing,
            () = claim.lost.cancelled() => {}
        }
    };
    let observe = |report: Report| observe(inner, &caller.zone, report);
    let confirmed = inner.confirmed(&caller.zone);
    let wire = Wire { outbound: tx, wrap: Ok };
    let signals = shell::Signals {
        confirmed: &confirmed,
        stop,
    };
    let end = shell::run_receiver(receiver, None, inbound, applier, wire, observe, signals).await;
    match end {
        shell::End::Cancelled if claim.lost.is_cancelled() => Status::cancelled("a newer connection of this zone took over"),
        shell::End::Cancelled => why.status(),
        end => end.status(),
    }
}

fn zone_resource(inner: &Inner, zone: &ZoneName) -> Option<Arc<Resource>> {
    let key = ResourceKey::new(Kind::Zone, "", zone.as_str()).ok()?;
    inner.parts.source.peek().get(&key).cloned()
}

fn stored_history(inner: &Inner, zone: &ZoneName) -> Option<HistoryId> {
    zone_resource(inner, zone)?.label(HISTORY_LABEL)?.parse().ok()
}

fn observe(inner: &Inner, zone: &ZoneName, report: Report) {
    let metrics = &inner.parts.metrics;
    match report {
        Report::Received { kind, resources } => {
            metrics
                .resources_received
                .get_or_create(&Metrics::kind(zone.as_str(), kind))
                .inc_by(resources as u64);
        }
        Report::Refused { kind, names, text } => {
            warn!(type_url = %kind, resources = ?names, error = text, "resources of the zone were refused");
            metrics.nacks.get_or_create(&Metrics::kind(zone.as_str(), kind)).inc();
        }
        Report::Held {
            kind,
            held: Held { keys, wait },
        } => {
            if !keys.is_empty() {
                warn!(type_url = %kind, resources = ?keys, until = ?wait, "the zone's first set lacks resources that it had; their removal is held");
            }
            metrics
                .held
                .get_or_create(&Metrics::kind(zone.as_str(), kind))
                .set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        }
        Report::UpTo(_) | Report::Resumed(_) => {}
        Report::Differs { kind, repair } => {
            warn!(type_url = %kind, repair, "what is stored of the zone is not what the zone says it has");
            metrics.differences.get_or_create(&Metrics::kind(zone.as_str(), kind)).inc();
        }
        Report::Rewritten(count) => {
            metrics.rewrites.inc_by(count as u64);
        }
    }
}

/// Stores a zone's batches: durable ops in changesets of at most about a MiB, observations in one go.
struct ToStore {
    inner: Arc<Inner>,
    zone: ZoneName,
    /// A newer stream speaks for the zone: what this one has not proposed yet would overwrite what that one said.
    lost: CancellationToken,
}

impl Applier for ToStore {
    fn catalog(&self) -> Catalog {
        self.inner.parts.source.peek()
    }

    fn apply(&self, batch: Box<Batch>) -> BoxFuture<'static, Outcome> {
        let (inner, zone, lost) = (self.inner.clone(), self.zone.clone(), self.lost.clone());
        Box::pin(async move {
            let cancel = inner.parts.tasks.cancel_token();
            let mut pieces = batch.pieces(MAX_ENTRY);
            if let Some(op) = batch.peer.and_then(|at| remember(&inner, &zone, at.history)) {
                match pieces.first_mut() {
                    Some(first) => first.push(op),
                    None => pieces.push(vec![op]),
                }
            }
            let actor = format!("zone:{zone}");
            let refused = shell::store(inner.parts.sink.as_ref(), pieces, None, &actor, &cancel, Some(&lost)).await?;
            if !refused.is_empty() && zone_resource(&inner, &zone).is_none() {
                return Err(format!("zone {zone} was deleted"));
            }
            inner.parts.source.observed().apply(Timestamp::now(), batch.observations);
            Ok(refused)
        })
    }
}

/// Notes on the Zone which history its store has, if that is news.
fn remember(inner: &Inner, zone: &ZoneName, history: HistoryId) -> Option<Op> {
    let stored = zone_resource(inner, zone)?;
    let text = history.to_string();
    if stored.label(HISTORY_LABEL) == Some(text.as_str()) {
        return None;
    }
    let mut labels = stored.labels.clone();
    labels.insert(HISTORY_LABEL.to_owned(), text);
    Some(Op::Put(Put {
        key: stored.key.clone(),
        labels,
        spec: stored.spec.clone(),
        status: None,
        owner: None,
        expect: Expect::Version(stored.version),
    }))
}
