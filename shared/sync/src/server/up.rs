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
use ursa_state::{Catalog, Expect, GlobalRevision, HistoryId, Op, OpResult, Put};

use super::{
    Inner,
    caller::Caller,
    down,
    gate::{Admission, Closing},
    insight::Stream,
};
use crate::{
    claims, holds,
    metrics::Metrics,
    peer::{Features, Identity},
    receiver::{Batch, Config, Held, Receiver, Report, Site},
    shell::{self, Applier, Outcome, Wire},
    storing,
};

/// Largest changeset from a zone, in bytes of its log entry: a Raft entry is sent to every node and written by each.
const MAX_ENTRY: usize = 1024 * 1024;
/// Longest wait for a predecessor; its proposals end within 30 s.
const PREDECESSOR: Duration = Duration::from_secs(40);
/// Longest wait for one at another node, which may be dead without this node knowing yet.
const REMOTE_PREDECESSOR: Duration = Duration::from_secs(1);
/// Label of a Zone: history id of its store, by which it is known again. A zone that lost its disk has another.
const HISTORY_LABEL: &str = "ursa.io/history-id";
/// Label of a Zone: the process that serves the stream by which the zone sends. Whoever stores what a zone sent puts it first, as it
/// knows it: a stream that was taken over by another node, and does not know yet, stores nothing any more.
const STREAM_LABEL: &str = "ursa.io/stream";

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
        storing::barrier(inner.parts.sink.as_ref(), &inner.parts.tasks.cancel_token()).await?;
        down::ensure_zone(inner, caller).await?;
        take_over(inner, &caller.zone).await
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Closing::Draining.status(),
        closing = admission.ended() => return closing.status(),
        () = claim.lost.cancelled() => return Status::cancelled(storing::TAKEN_OVER),
        prepared = prepared => if let Err(status) = prepared { return status },
    }
    inner.insights.stream(&caller.zone, Stream::ZoneToGlobal);
    let site = Site::Global {
        zone: caller.zone.clone(),
        prefix_names: !caller.features.contains(Features::HASH_SUFFIX),
    };
    let grace = site.grace();
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
    let wire = Wire { outbound: tx, wrap: Ok };
    let signals = shell::Signals {
        holds: &inner.holds.open(caller.zone.as_str(), grace),
        process: &|| match caller.instance.as_str() {
            "" => inner.insights.process(&caller.zone).unwrap_or_default(),
            ours => ours.to_owned(),
        },
        kept: &|| zone_resource(inner, &caller.zone).is_some_and(|zone| holds::is_kept(&zone)),
        stop,
    };
    let end = shell::run_receiver(receiver, None, inbound, applier, wire, observe, signals).await;
    match end {
        shell::End::Cancelled if claim.lost.is_cancelled() => Status::cancelled(storing::TAKEN_OVER),
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

/// Says in the store that this process speaks for the zone now. From then on nothing that an earlier stream had on its way is stored;
/// what got there before is in this node's view.
async fn take_over(inner: &Inner, zone: &ZoneName) -> Result<(), Status> {
    let cancel = inner.parts.tasks.cancel_token();
    for _ in 0..storing::RACES {
        let stored = zone_resource(inner, zone).ok_or_else(|| Status::unavailable(format!("zone {zone} was deleted")))?;
        let me = inner.claims.node().as_ref();
        if stored.label(STREAM_LABEL) == Some(me) {
            return Ok(());
        }
        let set = storing::changeset(vec![labelled(&stored, [(STREAM_LABEL, me.to_owned())])], "");
        let applied = storing::propose(inner.parts.sink.as_ref(), set, &cancel, None).await;
        let applied = applied.map_err(|err| storing::status(&err))?;
        if !applied.results.iter().any(|result| matches!(result, OpResult::Refused(_))) {
            return Ok(());
        }
        storing::barrier(inner.parts.sink.as_ref(), &cancel).await?;
    }
    Err(Status::unavailable(format!("zone {zone} is being changed all the time")))
}

/// The Zone with these labels, if nobody changed it meanwhile.
fn labelled(zone: &Resource, with: impl IntoIterator<Item = (&'static str, String)>) -> Op {
    let mut labels = zone.labels.clone();
    labels.extend(with.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Op::Put(Put {
        key: zone.key.clone(),
        labels,
        spec: zone.spec.clone(),
        status: None,
        owner: None,
        expect: Expect::Version(zone.version),
    })
}

/// The condition of every changeset of a stream: the Zone is there, and nobody else speaks for it.
struct Fence<'a> {
    inner: &'a Inner,
    zone: &'a ZoneName,
    lost: &'a CancellationToken,
    /// Noted on the Zone by the way.
    history: Option<HistoryId>,
}

impl storing::Guard for Fence<'_> {
    fn lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    fn op(&self) -> Result<Op, String> {
        let zone = zone_resource(self.inner, self.zone).ok_or_else(|| format!("zone {} was deleted", self.zone))?;
        let me = self.inner.claims.node().as_ref();
        // An operator who replaces the Zone may leave the label out.
        if zone.label(STREAM_LABEL).is_some_and(|node| node != me) {
            return Err(storing::TAKEN_OVER.to_owned());
        }
        let history = self.history.map(|history| (HISTORY_LABEL, history.to_string()));
        Ok(labelled(&zone, [(STREAM_LABEL, me.to_owned())].into_iter().chain(history)))
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
            let history = batch.peer.map(|at| at.history);
            if pieces.is_empty() && history.is_some() && history != stored_history(&inner, &zone) {
                pieces.push(Vec::new());
            }
            let fence = Fence {
                inner: &inner,
                zone: &zone,
                lost: &lost,
                history,
            };
            let actor = format!("zone:{zone}");
            let refused = storing::store(inner.parts.sink.as_ref(), pieces, None, &actor, &cancel, Some(&fence)).await?;
            if !refused.is_empty() && zone_resource(&inner, &zone).is_none() {
                return Err(format!("zone {zone} was deleted"));
            }
            inner.parts.source.observed().apply(Timestamp::now(), batch.observations);
            Ok(refused)
        })
    }
}
