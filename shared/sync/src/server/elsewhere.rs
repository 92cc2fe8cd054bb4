//! Answers a zone that asks whether the other zones have stored what it changed: a health check with [`WAIT_HEADER`].
//! In: the zone's question. Out: [`Zones`], in headers. Invariants: only what a zone itself reported counts; a zone that is away or cannot
//! report (a stock one) is named, never waited for. What the asking zone sent is stored here before it asks: it waits for that answer.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tonic::{Status, metadata::MetadataMap};
use ursa_model::{
    Kind, ResourceKey,
    kind::{zone::Zone, zone_insight::ZoneInsight},
};
use ursa_runtime::lease::Deadline;
use ursa_state::{Catalog, GlobalRevision};

use super::{Inner, caller::Caller, gate::Closing};
use crate::peer::{WAIT_HEADER, Zones};

/// Questions that may wait at once: each looks at every zone whenever one reports.
const MAX_WAITERS: usize = 64;
/// Longest wait.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Places for those who wait.
pub(super) struct Waiters(Arc<Semaphore>);

impl Default for Waiters {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITERS)))
    }
}

/// How long the caller wants to wait, if it asks at all.
pub(super) fn asked(metadata: &MetadataMap) -> Option<Duration> {
    let millis = metadata.get(WAIT_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis).min(MAX_WAIT))
}

/// Waits until no other zone is behind, at most for `limit`.
pub(super) async fn answer(inner: &Inner, caller: &Caller, limit: Duration) -> Result<Zones, Status> {
    let Ok(_place) = inner.waiters.0.try_acquire() else {
        return Err(Status::resource_exhausted("too many zones wait for others, ask again"));
    };
    let mut admission = inner.gate.admit().map_err(Closing::status)?;
    let cancel = inner.parts.tasks.cancel_token();
    let mut source = inner.parts.source.clone();
    let (wanted, time) = (source.peek().durable.at_global(), Deadline::after(limit));
    loop {
        let zones = others(&source.catalog(), caller.zone.as_str(), wanted);
        if zones.behind.is_empty() {
            return Ok(zones);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Closing::Draining.status()),
            closing = admission.ended() => return Err(closing.status()),
            () = time.passed() => return Ok(zones),
            alive = source.changed() => if !alive { return Ok(zones) },
        }
    }
}

/// Who of the other zones lacks the revision. A zone that is switched off does not count.
fn others(catalog: &Catalog, asking: &str, wanted: GlobalRevision) -> Zones {
    let mut out = Zones::default();
    let zones = catalog.durable.list(Kind::Zone).filter(|z| z.name() != asking);
    for zone in zones.filter(|z| z.spec::<Zone>().is_ok_and(|z| z.is_enabled())) {
        let key = ResourceKey::new(Kind::ZoneInsight, "", zone.name()).ok();
        let insight = key
            .and_then(|key| catalog.get(&key)?.spec::<ZoneInsight>().ok())
            .unwrap_or_default();
        let progress = insight.ursa_progress.as_ref();
        // Revisions of another history say nothing about this one.
        let stored = progress
            .filter(|p| p.history == wanted.history.to_string())
            .and_then(|p| p.stored.as_ref());
        let Ok(name) = zone.name().parse() else { continue };
        if stored.and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| s >= wanted.revision) {
            continue;
        }
        let tells = insight.is_online() && progress.is_some();
        if tells { &mut out.behind } else { &mut out.silent }.push(name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use serde_json::{Value, json};
    use ursa_model::{Labels, Timestamp, labels::Site};
    use ursa_state::{Role, observed::Observation};

    fn report(memory: &Memory, zone: &str, online: bool, progress: Option<(&str, &str)>) {
        let mut spec = json!({"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z"}]});
        if !online {
            spec["subscriptions"][0]["disconnectTime"] = json!("2026-01-01T00:00:01Z");
        }
        if let Some((history, stored)) = progress {
            spec["ursaProgress"] = json!({"history": history, "stored": stored});
        }
        let put = Observation::Put {
            key: ResourceKey::new(Kind::ZoneInsight, "", zone).unwrap(),
            labels: Labels::new(),
            spec,
            owner: None,
        };
        memory.observed.apply(Timestamp::now(), [put]);
    }

    #[test]
    fn only_what_a_zone_reported_counts() {
        let memory = Memory::new(Role::Global, 0xa);
        let zone = |name: &str, spec: Value| memory.put(Site::Global, Kind::Zone, "", name, spec);
        for name in ["asks", "has", "behind", "away", "other-history", "stock", "never-seen"] {
            zone(name, json!({}));
        }
        zone("off", json!({"enabled": false}));
        let wanted = memory.view().at_global();
        let history = wanted.history.to_string();
        let (now, before) = (wanted.revision.to_string(), (wanted.revision - 1).to_string());
        report(&memory, "asks", true, Some((&history, &before)));
        report(&memory, "has", true, Some((&history, &now)));
        report(&memory, "behind", true, Some((&history, &before)));
        report(&memory, "away", false, Some((&history, &before)));
        report(&memory, "other-history", true, Some(("b", &now)));
        report(&memory, "stock", true, None);
        report(&memory, "off", true, Some((&history, &before)));
        let catalog = Catalog {
            role: Role::Global,
            durable: memory.view(),
            observed: memory.observed.view(),
        };
        let zones = others(&catalog, "asks", wanted);
        let names = |zones: &[ursa_model::ZoneName]| zones.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&zones.behind), ["behind", "other-history"]);
        assert_eq!(names(&zones.silent), ["away", "never-seen", "stock"]);
    }
}
