//! One GlobalToZoneSync stream: what the zone may see, as it changes.
//! In: the zone's requests, the hub's content. Out: responses; ZoneInsight, metrics, stages.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{Instrument, info, info_span, warn};
use ursa_model::{Kind, ResourceKey, kind::zone::Zone, labels};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_runtime::stages::SENT;
use ursa_state::{Expect, Op, Put};

use super::{
    Inner,
    caller::Caller,
    gate::{Admission, Closing},
    insight::Count,
};
use crate::{
    claims::Held,
    digest,
    distribution::Distribution,
    mapping::{Class, Recipient},
    metrics::Metrics,
    peer::{Features, Peer},
    sender::{CHUNK_BYTES, Config, Report, STOCK_BYTES, Sender},
    shell::{self, End, Wire},
    storing,
};

pub(super) async fn run(
    inner: Arc<Inner>,
    caller: Caller,
    claim: Held,
    mut admission: Admission,
    inbound: Streaming<DeltaDiscoveryRequest>,
    tx: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    cancel: CancellationToken,
) {
    let span = info_span!("kds-global-to-zone", zone = %caller.zone);
    async {
        let status = tokio::select! {
            biased;
            () = cancel.cancelled() => Closing::Draining.status(),
            closing = admission.ended() => closing.status(),
            () = claim.lost.cancelled() => Status::cancelled(storing::TAKEN_OVER),
            status = serve(&inner, &caller, inbound, tx.clone()) => status,
        };
        finish(&tx, status).await;
    }
    .instrument(span)
    .await;
}

/// Says how the stream ends, if the peer still listens.
pub(super) async fn finish<T>(tx: &mpsc::Sender<Result<T, Status>>, status: Status) {
    info!(code = ?status.code(), error = status.message(), "the stream ends");
    // A peer that reads nothing any more is cut off without a word.
    let _ = tx.try_send(Err(status));
}

async fn serve(
    inner: &Arc<Inner>,
    caller: &Caller,
    mut inbound: Streaming<DeltaDiscoveryRequest>,
    tx: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) -> Status {
    if let Err(status) = storing::barrier(inner.parts.sink.as_ref(), &inner.parts.tasks.cancel_token()).await {
        return status;
    }
    if let Err(status) = ensure_zone(inner, caller).await {
        return status;
    }
    let first = match inbound.message().await {
        Ok(Some(first)) => first,
        Ok(None) => return End::PeerClosed.status(),
        Err(status) => return status,
    };
    let peer = Peer::of(first.node.as_ref());
    let class = Class::ToZones {
        hash_suffix: peer.features.contains(Features::HASH_SUFFIX),
        line: peer.line(),
    };
    let mut sender = Sender::new(Config {
        identifier: "global".to_owned(),
        recipient: Recipient {
            zone: Some(caller.zone.as_str().into()),
            features: peer.features,
        },
        kinds: class.kinds().collect(),
        announce_idle: true,
        chunk_bytes: CHUNK_BYTES,
        stock_bytes: STOCK_BYTES,
    });
    let contents = inner.hub.subscribe(&class);
    let resumed = peer
        .features
        .contains(Features::PROGRESS)
        .then(|| held(inner, caller, &class, sender.recipient()))
        .flatten();
    let from = resumed.as_ref().map(|d| d.at().revision);
    if let Some(held) = resumed {
        sender.resume(held);
    }
    let connected = Connected::new(inner, caller, &peer);
    info!(version = peer.version[0], instance = peer.instance, line = ?peer.line(), progress = peer.features.contains(Features::PROGRESS), from, "the zone is connected");
    let observe = |report: Report| connected.observe(report);
    let wire = Wire { outbound: tx, wrap: Ok };
    shell::run_sender(sender, vec![first], inbound, contents, wire, observe, std::future::pending())
        .await
        .status()
}

/// What the zone says it holds, if it is what this zone was shown at that revision.
fn held(inner: &Inner, caller: &Caller, class: &Class, recipient: &Recipient) -> Option<Distribution> {
    let (at, claimed) = caller.resume?;
    let covered: Vec<Kind> = class.kinds().filter(|k| digest::is_covered(*k)).collect();
    inner.hub.at(class, at)?.held_by(&covered, recipient, claimed)
}

/// Makes the Zone on first contact. Racing with another stream is fine.
pub(super) async fn ensure_zone(inner: &Inner, caller: &Caller) -> Result<(), Status> {
    let Ok(key) = ResourceKey::new(Kind::Zone, "", caller.zone.as_str()) else {
        return Err(Status::internal("zone name"));
    };
    if inner.parts.source.peek().get(&key).is_some() {
        return Ok(());
    }
    let labels = labels::computed(labels::Site::Global, Kind::Zone, "", key.name(), labels::Labels::new(), None);
    let spec = serde_json::to_value(Zone { enabled: Some(true) }).map_err(|err| Status::internal(err.to_string()))?;
    let op = Op::Put(Put {
        key,
        labels,
        spec,
        status: None,
        owner: None,
        expect: Expect::Absent,
    });
    info!("first contact: making the Zone");
    let cancel = inner.parts.tasks.cancel_token();
    let set = storing::changeset(vec![op], "");
    storing::propose(inner.parts.sink.as_ref(), set, &cancel, None)
        .await
        .map_err(|err| storing::status(&err))?;
    Ok(())
}

/// The subscription of this stream, closed when it ends, however it ends.
struct Connected<'a> {
    inner: &'a Inner,
    caller: &'a Caller,
    subscription: String,
}

impl<'a> Connected<'a> {
    fn new(inner: &'a Inner, caller: &'a Caller, peer: &Peer) -> Self {
        let subscription = inner.insights.opened(&caller.zone, peer, caller.token);
        inner.parts.metrics.announce(caller.zone.as_str());
        inner.parts.metrics.active.get_or_create(&Metrics::zone(caller.zone.as_str())).inc();
        Self {
            inner,
            caller,
            subscription,
        }
    }

    fn observe(&self, report: Report) {
        let zone = &self.caller.zone;
        let metrics = &self.inner.parts.metrics;
        match report {
            Report::Sent { kind, resources } => {
                metrics
                    .resources_sent
                    .get_or_create(&Metrics::kind(zone.as_str(), kind))
                    .inc_by(resources as u64);
                self.inner.insights.count(zone, kind, Count::Sent);
            }
            Report::Acked { kind } => self.inner.insights.count(zone, kind, Count::Acknowledged),
            Report::Nacked { kind, names, text } => {
                warn!(type_url = %kind, resources = ?names, error = text, "the zone refused resources");
                metrics.nacks.get_or_create(&Metrics::kind(zone.as_str(), kind)).inc();
                self.inner.insights.count(zone, kind, Count::Rejected);
            }
            Report::SentUpTo(at) => {
                self.inner
                    .parts
                    .stages
                    .record(SENT, &at.history.to_string(), at.revision, zone.as_str());
                self.inner.update_progress(zone, |p| p.sent = Some(at));
            }
            Report::StoredUpTo(at) => self.inner.update_progress(zone, |p| p.stored = Some(at)),
            Report::AskedAgain { kind } => {
                warn!(type_url = %kind, "the zone holds something else of this type than it should: it gets the complete set");
                metrics.differences.get_or_create(&Metrics::kind(zone.as_str(), kind)).inc();
            }
            Report::Unknown { type_url } => tracing::debug!(type_url, "asked for a type that is not synced here"),
            Report::TooLarge { kind, bytes } => {
                tracing::error!(type_url = %kind, bytes, limit = STOCK_BYTES, "the zone gets none of this type: a stock zone takes a first set only in one message, and this one is too large");
                metrics.too_large.get_or_create(&Metrics::kind(zone.as_str(), kind)).inc();
            }
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.inner.insights.closed(&self.caller.zone, &self.subscription);
        self.inner
            .parts
            .metrics
            .active
            .get_or_create(&Metrics::zone(self.caller.zone.as_str()))
            .dec();
    }
}
