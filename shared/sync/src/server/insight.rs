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
        HealthCheck, KdsStats, KdsStream, KdsStreams, KdsSubscription, KdsSubscriptionStatus, KumaCpVersion, UrsaProgress, ZoneInsight,
        ZoneVersion,
    },
};
use ursa_runtime::lease::Deadline;
use ursa_state::{GlobalRevision, Observed, observed::Observation};

use super::ZoneProgress;
use crate::peer::{Features, Line, Peer};

/// Subscriptions kept per zone, as in Kuma.
const MAX_SUBSCRIPTIONS: usize = 10;
/// Counts wait so long for further counts. Not on the path of a change.
const COALESCE: Duration = Duration::from_millis(250);
/// How often the time of the last health check is renewed.
const HEALTH: Duration = Duration::from_secs(5);

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
    /// The newest subscription that began here, and whether it is open.
    subscription: Option<String>,
    open: bool,
    /// The time of the last health check is good enough until then.
    health: Option<Deadline>,
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
            // The zone may have been at another node since it was last here: what that one wrote counts.
            if !z.dirty {
                z.insight = self.stored(zone);
            }
            self.set_stream(z, Stream::GlobalToZone);
            // Said from the beginning of who will report it; nothing is claimed for a stock zone, nor yet for this one.
            z.insight.ursa_progress = peer.features.contains(Features::PROGRESS).then(UrsaProgress::default);
            (z.subscription, z.open) = (Some(id.clone()), true);
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
            z.open &= z.subscription.as_deref() != Some(id);
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
        self.change(zone, false, |z| self.set_stream(z, which));
    }

    fn set_stream(&self, z: &mut Zone, which: Stream) {
        let stream = Some(KdsStream {
            global_instance_id: self.instance.clone(),
            connect_time: Some(Timestamp::now().rfc3339()),
        });
        let streams = z.insight.kds_streams.get_or_insert_with(KdsStreams::default);
        match which {
            Stream::GlobalToZone => streams.global_to_zone = stream,
            Stream::ZoneToGlobal => streams.zone_to_global = stream,
            Stream::ConfigDump => streams.config_dump = stream,
            Stream::Stats => streams.stats = stream,
            Stream::Clusters => streams.clusters = stream,
        }
    }

    /// The zone was sent, or has stored, more.
    pub(super) fn progressed(&self, zone: &ZoneName, progress: ZoneProgress) {
        let Some(history) = progress.stored.or(progress.sent).map(|at| at.history) else {
            return;
        };
        let text = |at: Option<GlobalRevision>| at.filter(|at| at.history == history).map(|at| at.revision.to_string());
        let shown = UrsaProgress {
            history: history.to_string(),
            sent: text(progress.sent),
            stored: text(progress.stored),
        };
        self.change(zone, false, |z| {
            // A stock zone never says what it has stored: nothing is claimed for it.
            if let Some(progress) = &mut z.insight.ursa_progress {
                *progress = shown;
            }
        });
    }

    /// A health check came. Zones of ours send them often; the time that is shown is renewed every [`HEALTH`].
    pub(super) fn health(&self, zone: &ZoneName) {
        {
            let zones = self.zones.lock();
            if let Some(known) = zones.get(zone)
                && known.health.is_some_and(|fresh| !fresh.has_passed())
            {
                return;
            }
        }
        let time = Some(Timestamp::now().rfc3339());
        self.change(zone, false, |z| {
            z.health = Some(Deadline::after(HEALTH));
            z.insight.health_check = Some(HealthCheck { time });
        });
    }

    fn change(&self, zone: &ZoneName, at_once: bool, change: impl FnOnce(&mut Zone)) {
        {
            let mut zones = self.zones.lock();
            let entry = zones.entry(zone.clone()).or_default();
            // Not connected here, it may have been at another node meanwhile.
            if !entry.open && !entry.dirty {
                entry.insight = self.stored(zone);
            }
            change(entry);
            entry.dirty = true;
        }
        if at_once { self.flush() } else { self.dirty.notify_one() }
    }

    /// Names the zone's process, if a subscription of it is open at any node.
    pub(super) fn process(&self, zone: &ZoneName) -> Option<String> {
        let here = self.zones.lock().get(zone).filter(|z| z.open).map(|z| z.insight.clone());
        let insight = here.unwrap_or_else(|| self.stored(zone));
        let open = insight.subscriptions.into_iter().rev().find(|s| s.disconnect_time.is_none())?;
        Some(open.zone_instance_id).filter(|id| !id.is_empty())
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
        let ours = |s: &&mut KdsSubscription| self.subscription.as_deref() == Some(s.id.as_str());
        if let Some(open) = self.insight.subscriptions.iter_mut().find(ours) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(features: Features) -> Peer {
        Peer {
            features,
            instance: "zone-process".into(),
            ..Peer::default()
        }
    }

    fn shown(insights: &Insights, zone: &ZoneName) -> ZoneInsight {
        insights.flush();
        insights.stored(zone)
    }

    #[test]
    fn what_another_node_wrote_meanwhile_is_kept() {
        let observed = Observed::default();
        let (a, b) = (
            Insights::new(observed.clone(), "a".into()),
            Insights::new(observed.clone(), "b".into()),
        );
        let zone: ZoneName = "east".parse().unwrap();
        for node in [&a, &b, &a, &b] {
            // In any order, and with a health check before either.
            node.health(&zone);
            node.stream(&zone, Stream::ZoneToGlobal);
            let id = node.opened(&zone, &peer(Features::PROGRESS), false);
            node.count(&zone, Kind::Mesh, Count::Sent);
            node.closed(&zone, &id);
        }
        let insight = shown(&b, &zone);
        let nodes: Vec<_> = insight.subscriptions.iter().map(|s| s.global_instance_id.as_str()).collect();
        assert_eq!(nodes, ["a", "b", "a", "b"]);
        assert!(insight.subscriptions.iter().all(|s| s.status.total.responses_sent == "1"));
    }

    #[test]
    fn only_a_zone_that_negotiated_progress_is_said_to_report_it() {
        let insights = Insights::new(Observed::default(), "a".into());
        let at = GlobalRevision {
            revision: 7,
            ..GlobalRevision::default()
        };
        let progress = ZoneProgress {
            sent: Some(at),
            stored: None,
        };
        let (ours, stock): (ZoneName, ZoneName) = ("ours".parse().unwrap(), "stock".parse().unwrap());
        insights.opened(&ours, &peer(Features::PROGRESS), false);
        insights.opened(&stock, &peer(Features::default()), false);
        assert_eq!(shown(&insights, &ours).ursa_progress, Some(UrsaProgress::default()));
        for zone in [&ours, &stock] {
            insights.progressed(zone, progress);
        }
        let sent = shown(&insights, &ours).ursa_progress.and_then(|p| p.sent);
        assert_eq!(sent.as_deref(), Some("7"));
        assert_eq!(shown(&insights, &stock).ursa_progress, None);
    }
}
