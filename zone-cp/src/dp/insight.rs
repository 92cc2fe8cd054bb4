//! DataplaneInsights: what this zone knows of its proxies' connections, in the observed tier. Connects, disconnects and
//! certificates show at once; counters are written once a second, because they change with every answer of every proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp, ZoneName,
    kind::dataplane_insight::{DataplaneInsight, DpVersion, Mtls, Subscription, XdsStats},
    labels::{Site, computed},
};
use ursa_runtime::heartbeat;
use ursa_state::{Observed, View, observed::Observation};

use crate::{
    snapshot::XdsType,
    world::{IssuedSvid, ProxyId},
};

/// How often changed counters are written. Nothing waits for them.
const FLUSH: Duration = Duration::from_secs(1);
/// Subscriptions kept per proxy, as Kuma does.
const MAX_SUBSCRIPTIONS: usize = 2;

/// Counters of one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    sent: u64,
    acked: u64,
    nacked: u64,
}

#[derive(Debug, Default)]
struct Entry {
    insight: DataplaneInsight,
    counts: BTreeMap<XdsType, Counts>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<ProxyId, Entry>,
    dirty: BTreeSet<ProxyId>,
}

/// Shared recorder.
#[derive(Clone)]
pub struct Insights {
    inner: Arc<Mutex<Inner>>,
    observed: Observed,
    zone: ZoneName,
    instance: Arc<str>,
}

/// One event of a stream.
#[derive(Clone, Copy, Debug)]
pub enum Count {
    Sent,
    Acked,
    Nacked,
}

impl Insights {
    pub fn new(zone: ZoneName, instance: &str, observed: Observed) -> Self {
        Self {
            inner: Arc::default(),
            observed,
            zone,
            instance: instance.into(),
        }
    }

    /// This process, as insights name it.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A stream opened.
    pub fn connected(&self, proxy: &ProxyId, subscription: &str, version: Option<DpVersion>, metadata: serde_json::Value) {
        self.change(proxy, |entry, now| {
            for open in entry.insight.subscriptions.iter_mut().filter(|s| s.disconnect_time.is_none()) {
                open.disconnect_time = Some(now.rfc3339());
            }
            entry.counts.clear();
            entry.insight.metadata = Some(metadata);
            entry.insight.subscriptions.push(Subscription {
                id: subscription.to_owned(),
                control_plane_instance_id: self.instance.as_ref().to_owned(),
                connect_time: Some(now.rfc3339()),
                version,
                ..Subscription::default()
            });
            let excess = entry.insight.subscriptions.len().saturating_sub(MAX_SUBSCRIPTIONS);
            entry.insight.subscriptions.drain(..excess);
        });
        self.flush_one(proxy);
    }

    /// The stream ended.
    pub fn disconnected(&self, proxy: &ProxyId, subscription: &str) {
        self.change(proxy, |entry, now| {
            for s in entry.insight.subscriptions.iter_mut().filter(|s| s.id == subscription) {
                s.disconnect_time = Some(now.rfc3339());
            }
        });
        self.flush_one(proxy);
    }

    /// The proxy was given this certificate.
    pub fn certificate(&self, proxy: &ProxyId, svid: &IssuedSvid, trusts: Vec<String>) {
        let seconds = |s: i64| Timestamp(u64::try_from(s).unwrap_or(0).saturating_mul(1_000)).rfc3339();
        self.change(proxy, |entry, now| {
            let regenerations = entry
                .insight
                .mtls
                .as_ref()
                .map_or(0, |m| m.certificate_regenerations)
                .saturating_add(1);
            entry.insight.mtls = Some(Mtls {
                certificate_expiration_time: Some(seconds(svid.not_after)),
                last_certificate_regeneration: Some(now.rfc3339()),
                certificate_regenerations: regenerations,
                issued_backend: svid.secret_name.clone(),
                supported_backends: trusts,
            });
        });
        self.flush_one(proxy);
    }

    /// The CAs that the proxy trusts changed.
    pub fn trusts(&self, proxy: &ProxyId, trusts: Vec<String>) {
        self.change(proxy, |entry, _| {
            if let Some(mtls) = &mut entry.insight.mtls {
                mtls.supported_backends = trusts;
            }
        });
        self.flush_one(proxy);
    }

    pub fn count(&self, proxy: &ProxyId, kind: XdsType, event: Count) {
        self.change(proxy, |entry, _| {
            let counts = entry.counts.entry(kind).or_default();
            match event {
                Count::Sent => counts.sent += 1,
                Count::Acked => counts.acked += 1,
                Count::Nacked => counts.nacked += 1,
            }
        });
    }

    fn change(&self, proxy: &ProxyId, f: impl FnOnce(&mut Entry, Timestamp)) {
        let mut inner = self.inner.lock();
        f(inner.entries.entry(proxy.clone()).or_default(), Timestamp::now());
        inner.dirty.insert(proxy.clone());
    }

    fn flush_one(&self, proxy: &ProxyId) {
        // Written under the lock, here and below: otherwise an older state could be written over a newer one, and a proxy that left
        // would show as online.
        let mut inner = self.inner.lock();
        inner.dirty.remove(proxy);
        let observation = self.observation(&mut inner, proxy);
        self.observed.apply(Timestamp::now(), observation);
    }

    fn flush_all(&self) {
        let mut inner = self.inner.lock();
        let dirty = std::mem::take(&mut inner.dirty);
        let batch: Vec<Observation> = dirty.iter().filter_map(|proxy| self.observation(&mut inner, proxy)).collect();
        self.observed.apply(Timestamp::now(), batch);
    }

    fn observation(&self, inner: &mut Inner, proxy: &ProxyId) -> Option<Observation> {
        let entry = inner.entries.get_mut(proxy)?;
        if let Some(open) = entry.insight.subscriptions.last_mut() {
            let stats = |c: Counts| XdsStats {
                responses_sent: c.sent.to_string(),
                responses_acknowledged: c.acked.to_string(),
                responses_rejected: c.nacked.to_string(),
            };
            let of = |kind| entry.counts.get(&kind).copied().unwrap_or_default();
            let total = entry.counts.values().fold(Counts::default(), |a, b| Counts {
                sent: a.sent + b.sent,
                acked: a.acked + b.acked,
                nacked: a.nacked + b.nacked,
            });
            open.status.last_update_time = Some(Timestamp::now().rfc3339());
            open.status.total = stats(total);
            open.status.cds = stats(of(XdsType::Cluster));
            open.status.eds = stats(of(XdsType::Endpoint));
            open.status.lds = stats(of(XdsType::Listener));
            open.status.rds = stats(of(XdsType::Route));
        }
        let key = ResourceKey::new(Kind::DataplaneInsight, &proxy.mesh, &proxy.name).ok()?;
        let labels = computed(
            Site::Zone(self.zone.as_str()),
            Kind::DataplaneInsight,
            &proxy.mesh,
            &proxy.name,
            Labels::new(),
            None,
        );
        let owner = ResourceKey::new(Kind::Dataplane, &proxy.mesh, &proxy.name).ok();
        Some(Observation::Put {
            key,
            labels,
            spec: serde_json::to_value(&entry.insight).ok()?,
            owner,
        })
    }

    /// Forgets proxies that have neither a Dataplane nor a stream.
    fn forget_gone(&self, view: &View) {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        inner.entries.retain(|proxy, entry| {
            let Ok(key) = ResourceKey::new(Kind::Dataplane, &proxy.mesh, &proxy.name) else {
                return false;
            };
            let stays = entry.insight.is_online() || view.get(&key).is_some();
            if !stays {
                gone.extend(ResourceKey::new(Kind::DataplaneInsight, &proxy.mesh, &proxy.name).map(Observation::Delete));
            }
            stays
        });
        self.observed.apply(Timestamp::now(), gone);
    }

    /// Writes counters until cancelled.
    pub async fn run(self, views: watch::Receiver<View>, cancel: CancellationToken) {
        let mut ticker = heartbeat::every(FLUSH, &cancel);
        while ticker.tick().await {
            self.flush_all();
            let view = views.borrow().clone();
            self.forget_gone(&view);
        }
        self.flush_all();
    }
}
