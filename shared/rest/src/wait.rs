//! "Has it been applied?": which revision each zone has stored, and waiting until all that are connected have stored one.
//! In: the Zones, and their ZoneInsights in the observed tier, which every node of a global has. Out: [`ZoneState`]s.
//! Invariant: only what a zone itself reported counts; a zone that is away or cannot report (a stock one) is shown, never waited for.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use ursa_model::{
    Kind, Resource, ResourceKey,
    duration::GoDuration,
    kind::{zone::Zone, zone_insight::ZoneInsight},
};
use ursa_runtime::lease::within;
use ursa_state::{Catalog, GlobalRevision, ObservedView};

use crate::{call::Call, error::Error};

/// On writes at the global: wait at most that long (`5s`) until the zones have stored the change. The query parameter `wait` says
/// the same.
pub const WAIT_HEADER: &str = "ursa-wait";
/// On answers to writes that were to wait: `true` when every zone that is connected and reports has stored the change.
pub const APPLIED_HEADER: &str = "ursa-applied";
/// Longest wait; proxies in between give up on a silent request after a minute.
const MAX_WAIT: Duration = Duration::from_secs(55);
/// Requests that may wait at once: each looks at every zone whenever one reports.
pub(crate) const MAX_WAITERS: usize = 64;

/// A wait that was granted.
#[derive(Clone)]
pub(crate) struct Wait {
    time: Duration,
    /// Among [`MAX_WAITERS`]; given back when the last copy is gone.
    _place: Arc<OwnedSemaphorePermit>,
}

/// How far one zone is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ZoneState {
    pub(crate) name: String,
    /// It is connected, and not switched off.
    online: bool,
    /// It tells what it has stored. Stock zones do not.
    reports: bool,
    /// Everything up to this revision was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent: Option<u64>,
    /// It has stored everything up to this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
    /// It has stored the revision that was asked for.
    applied: bool,
}

impl ZoneState {
    /// Somebody who waits for the revision waits for this zone.
    pub(crate) fn is_pending(&self) -> bool {
        self.online && self.reports && !self.applied
    }
}

/// The wait that a request asks for. Only administrators may wait, who alone can write; one place is taken.
pub(crate) fn asked(call: &Call) -> Result<Option<Wait>, Error> {
    let text = match call.headers.get(WAIT_HEADER) {
        Some(value) => value.to_str().unwrap_or("?"),
        None => call.query.first("wait"),
    };
    if text.is_empty() {
        return Ok(None);
    }
    if !call.api().site.is_global() {
        return Err(Error::bad_request(
            "only the global control plane knows what zones have applied: wait there",
        ));
    }
    let time = match text.parse::<GoDuration>() {
        Ok(GoDuration(time)) if time <= MAX_WAIT => time,
        Ok(_) => return Err(Error::bad_request(format_args!("wait must be at most {}s", MAX_WAIT.as_secs()))),
        Err(_) => return Err(Error::bad_request("wait must be a duration such as 5s")),
    };
    call.require_admin("the wait for zones")?;
    let place = call.waiting_place().ok_or_else(Error::too_many_waiters)?;
    Ok(Some(Wait {
        time,
        _place: Arc::new(place),
    }))
}

/// How far all zones are on the way to `wanted`.
pub(crate) fn zones(catalog: &Catalog, observed: &ObservedView, wanted: GlobalRevision) -> Vec<ZoneState> {
    let all = catalog.durable.list(Kind::Zone);
    all.map(|zone| {
        let insight: ZoneInsight = insight(observed, zone.name()).and_then(|i| i.spec().ok()).unwrap_or_default();
        let enabled = zone.spec::<Zone>().is_ok_and(|z| z.is_enabled());
        // Revisions of another history say nothing about this one.
        let progress = insight.ursa_progress.as_ref().filter(|p| p.history == wanted.history.to_string());
        let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<u64>().ok());
        let stored = progress.and_then(|p| number(&p.stored));
        ZoneState {
            name: zone.name().to_owned(),
            online: enabled && insight.is_online(),
            // Set for a zone that negotiated it, before it has stored anything. Stock zones send an instance id too.
            reports: insight.ursa_progress.is_some(),
            sent: progress.and_then(|p| number(&p.sent)),
            stored,
            applied: stored.is_some_and(|s| s >= wanted.revision),
        }
    })
    .collect()
}

impl Wait {
    /// Waits until no zone is pending, at most for its time. Cancel-safe.
    pub(crate) async fn until_applied(
        self,
        catalog: &Catalog,
        mut observed: watch::Receiver<ObservedView>,
        wanted: GlobalRevision,
    ) -> Vec<ZoneState> {
        let applied = async {
            let mut seen = Vec::new();
            loop {
                let now = observed.borrow_and_update().clone();
                // The observed tier changes all the time, mostly by what proxies report.
                let insights = insights(catalog, &now);
                if seen.is_empty() || !is_same(&seen, &insights) {
                    let zones = zones(catalog, &now, wanted);
                    if !zones.iter().any(ZoneState::is_pending) {
                        return Some(zones);
                    }
                    seen = insights;
                }
                if observed.changed().await.is_err() {
                    return None;
                }
            }
        };
        let all = within(self.time, applied).await.ok().flatten();
        all.unwrap_or_else(|| zones(catalog, &observed.borrow(), wanted))
    }
}

/// The ZoneInsight of each Zone.
fn insights(catalog: &Catalog, observed: &ObservedView) -> Vec<Option<Arc<Resource>>> {
    let zones = catalog.durable.list(Kind::Zone);
    zones.map(|zone| insight(observed, zone.name()).cloned()).collect()
}

fn insight<'a>(observed: &'a ObservedView, zone: &str) -> Option<&'a Arc<Resource>> {
    observed.get(&ResourceKey::new(Kind::ZoneInsight, "", zone).ok()?)
}

/// Certainly the same, without a look inside.
fn is_same(some: &[Option<Arc<Resource>>], others: &[Option<Arc<Resource>>]) -> bool {
    let same = |pair: (&Option<Arc<Resource>>, &Option<Arc<Resource>>)| match pair {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    some.len() == others.len() && some.iter().zip(others).all(same)
}

/// What the answer to a write says about the zones: the header, and a warning for each that is behind.
pub(crate) fn told(zones: &[ZoneState], revision: u64) -> (HeaderValue, Vec<String>) {
    let behind: Vec<String> = zones
        .iter()
        .filter(|z| z.is_pending())
        .map(|z| format!("zone {} has not stored revision {revision} yet", z.name))
        .collect();
    (HeaderValue::from_static(if behind.is_empty() { "true" } else { "false" }), behind)
}
