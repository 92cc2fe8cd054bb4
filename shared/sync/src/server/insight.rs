//! ZoneInsights: what the global knows of each zone's connection, in the observed tier.
//! In: connects, disconnects, counts, health checks. Out: one ZoneInsight per zone. Invariant: connects, disconnects and NACKs are
//! visible at once; mere counts within [`COALESCE`].
//! Source: kds.md 5.2, `api/system/v1alpha1/zone_insight.proto`.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp, ZoneName,
    kind::zone_insight::{
        HealthCheck, KdsStats, KdsStream, KdsStreams, KdsSubscription, KdsSubscriptionStatus, KumaCpVersion, ZoneInsight, ZoneVersion,
    },
};
use ursa_runtime::lease::Deadline;
use ursa_state::{Observed, observed::Observation};

use crate::peer::{Line, Peer};

/// Subscriptions kept per zone, as in Kuma.
const MAX_SUBSCRIPTIONS: usize = 10;
/// Counts wait so long for further counts. Not on the path of a change.
const COALESCE: Duration = Duration::from_millis(250);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Sent,
    Acknowledged,
    Rejected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    GlobalToZone,
    ZoneToGlobal,
    ConfigDump,
    Stats,
    Clusters,
}

pub(super) struct Insights {
    observed: Observed,
    instance: String,
    zones: Mutex<BTreeMap<ZoneName, Zone>>,
    dirty: Notify,
}

#[derive(Default)]
struct Zone {
    insight: ZoneInsight,
    /// Counters of the open subscription: total, then by kind.
    total: [u64; 3],
    by_kind: BTreeMap<Kind, [u64; 3]>,
    dirty: bool,
}

impl Insights {
    pub(super) fn new(observed: Observed, instance: String) -> Self {
        Self {
            observed,
            instance,
            zones: Mutex::default(),
            dirty: Notify::new(),
        }
    }

    /// A GlobalToZoneSync stream began: a new subscription, which closes those that were left open. Gives its id.
    pub(super) fn opened(&self, zone: &ZoneName, peer: &Peer, token: bool) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let now = Timestamp::now().rfc3339();
        self.change(zone, true, |z| {
            for old in z.insight.subscriptions.iter_mut().filter(|s| s.disconnect_time.is_none()) {
                old.disconnect_time = Some(now.clone());
            }
            z.total = [0; 3];
            z.by_kind.clear();
            let [version, git_tag, git_commit, build_date] = peer.version.clone();
            z.insight.subscriptions.push(KdsSubscription {
                id: id.clone(),
                global_instance_id: self.instance.clone(),
                connect_time: Some(now.clone()),
                status: KdsSubscriptionStatus {
                    last_update_time: Some(now.clone()),
                    ..KdsSubscriptionStatus::default()
                },
                version: Some(ZoneVersion {
                    kuma_cp: Some(KumaCpVersion {
                        version,
                        git_tag,
                        git_commit,
                        build_date,
                        kuma_cp_global_compatible: peer.line() == Line::V3,
                    }),
                }),
                config: peer.config.clone(),
                auth_token_provided: token,
                zone_instance_id: peer.instance.clone(),
                ..KdsSubscription::default()
            });
            let excess = z.insight.subscriptions.len().saturating_sub(MAX_SUBSCRIPTIONS);
            z.insight.subscriptions.drain(..excess);
        });
        id
    }

    pub(super) fn closed(&self, zone: &ZoneName, id: &str) {
        let now = Timestamp::now().rfc3339();
        self.change(zone, true, |z| {
            if let Some(subscription) = z
                .insight
                .subscriptions
                .iter_mut()
                .find(|s| s.id == id && s.disconnect_time.is_none())
            {
                subscription.disconnect_time = Some(now);
            }
        });
    }

    pub(super) fn count(&self, zone: &ZoneName, kind: Kind, what: Count) {
        self.change(zone, what == Count::Rejected, |z| {
            z.total[what as usize] += 1;
            z.by_kind.entry(kind).or_default()[what as usize] += 1;
        });
    }

    pub(super) fn stream(&self, zone: &ZoneName, which: Stream) {
        let stream = Some(KdsStream {
            global_instance_id: self.instance.clone(),
            connect_time: Some(Timestamp::now().rfc3339()),
        });
        self.change(zone, false, |z| {
            let streams = z.insight.kds_streams.get_or_insert_with(KdsStreams::default);
            match which {
                Stream::GlobalToZone => streams.global_to_zone = stream,
                Stream::ZoneToGlobal => streams.zone_to_global = stream,
                Stream::ConfigDump => streams.config_dump = stream,
                Stream::Stats => streams.stats = stream,
                Stream::Clusters => streams.clusters = stream,
            }
        });
    }

    pub(super) fn health(&self, zone: &ZoneName) {
        let time = Some(Timestamp::now().rfc3339());
        self.change(zone, false, |z| z.insight.health_check = Some(HealthCheck { time }));
    }

    fn change(&self, zone: &ZoneName, at_once: bool, change: impl FnOnce(&mut Zone)) {
        {
            let mut zones = self.zones.lock();
            let entry = zones.entry(zone.clone()).or_insert_with(|| Zone {
                insight: self.stored(zone),
                ..Zone::default()
            });
            change(entry);
            entry.dirty = true;
        }
        if at_once { self.flush() } else { self.dirty.notify_one() }
    }

    /// What another process, or this one before, left of it.
    fn stored(&self, zone: &ZoneName) -> ZoneInsight {
        let key = ResourceKey::new(Kind::ZoneInsight, "", zone.as_str()).ok();
        let view = self.observed.view();
        let stored = key.and_then(|key| view.get(&key).cloned());
        stored.and_then(|stored| stored.spec().ok()).unwrap_or_default()
    }

    fn flush(&self) {
        let now = Timestamp::now();
        let mut zones = self.zones.lock();
        let dirty = zones.iter_mut().filter(|(_, z)| z.dirty);
        let batch: Vec<Observation> = dirty.filter_map(|(name, zone)| zone.observation(name, now)).collect();
        self.observed.apply(now, batch);
    }

    /// Writes counts until cancelled.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = self.dirty.notified() => {}
            }
            let window = Deadline::after(COALESCE);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = window.passed() => self.flush(),
            }
        }
        self.flush();
    }
}

impl Zone {
    fn observation(&mut self, name: &ZoneName, now: Timestamp) -> Option<Observation> {
        self.dirty = false;
        let stats = |c: &[u64; 3]| {
            let text = |n: u64| if n == 0 { String::new() } else { n.to_string() };
            KdsStats {
                responses_sent: text(c[0]),
                responses_acknowledged: text(c[1]),
                responses_rejected: text(c[2]),
            }
        };
        if let Some(open) = self.insight.subscriptions.last_mut() {
            open.status.last_update_time = Some(now.rfc3339());
            open.status.total = stats(&self.total);
            open.status.stat = self
                .by_kind
                .iter()
                .map(|(kind, counts)| (kind.name().to_owned(), stats(counts)))
                .collect();
        }
        Some(Observation::Put {
            key: ResourceKey::new(Kind::ZoneInsight, "", name.as_str()).ok()?,
            labels: Labels::new(),
            spec: serde_json::to_value(&self.insight).ok()?,
            owner: ResourceKey::new(Kind::Zone, "", name.as_str()).ok(),
        })
    }
}
