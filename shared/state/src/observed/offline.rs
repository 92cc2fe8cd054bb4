//! How a zone that nobody vouches for is shown: what was last seen of it stays, as offline and as of when.
//! In: a view. Out: the view for readers. Invariant: what is stored is not touched; streams and copies never see this.
//! Source: DESIGN.md 2.

use std::sync::Arc;

use serde_json::Value;
use ursa_model::{Kind, Resource, ResourceKey, Timestamp, kind::zone_insight::ZoneInsight};

use super::{Copy, Holder, ObservedView, Zone};

/// Label of a resource that is shown although nobody sees it now: since when, as ISO 8601 in its basic form (`20260131T120000Z`), which a
/// label may hold.
pub const OBSERVED_AS_OF: &str = "ursa.io/observed-as-of";

impl ObservedView {
    /// As readers should see it: zones without a live stream at a live node are offline, and with them their proxies.
    pub fn shown(&self) -> Self {
        let offline: Vec<(&Zone, Timestamp)> = self
            .copies
            .iter()
            .filter_map(|(zone, copy)| Some((zone, self.offline_since(zone, copy)?)))
            .collect();
        let mut shown = self.clone();
        for (zone, since) in offline {
            for resource in self.of_zone(zone) {
                shown.objects.insert_mut(resource.key.clone(), Arc::new(as_of(resource, since)));
            }
        }
        shown
    }

    /// When the zone was last seen; `None` while it is.
    fn offline_since(&self, zone: &str, copy: &Copy) -> Option<Timestamp> {
        let insight = ResourceKey::new(Kind::ZoneInsight, "", zone).ok();
        let insight: Option<ZoneInsight> = insight.and_then(|key| self.objects.get(&key)?.spec().ok());
        let open = insight.as_ref().is_some_and(ZoneInsight::is_online);
        let closed = insight.as_ref().and_then(|insight| {
            let ends = insight.subscriptions.iter().filter_map(|s| s.disconnect_time.as_deref());
            ends.filter_map(Timestamp::parse_rfc3339).max()
        });
        match copy.holder {
            Holder::Here | Holder::Node(_) if open => None,
            // A zone that has only begun to connect has no subscription, and nothing that could be outdated.
            Holder::Here | Holder::Node(_) => closed,
            Holder::Nobody if open => Some(copy.as_of),
            Holder::Nobody => Some(closed.unwrap_or(copy.as_of)),
        }
    }
}

fn as_of(resource: &Resource, since: Timestamp) -> Resource {
    let mut shown = resource.clone();
    let text = since.rfc3339();
    let basic: String = text
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !matches!(c, '-' | ':' | 'Z'))
        .collect();
    shown.labels.insert(OBSERVED_AS_OF.to_owned(), format!("{basic}Z"));
    if matches!(resource.kind(), Kind::ZoneInsight | Kind::DataplaneInsight)
        && let Some(Value::Array(subscriptions)) = shown.spec.get_mut("subscriptions")
    {
        for subscription in subscriptions.iter_mut().filter_map(Value::as_object_mut) {
            let open = subscription.get("disconnectTime").is_none_or(Value::is_null);
            if open {
                subscription.insert("disconnectTime".to_owned(), Value::String(text.clone()));
            }
        }
    }
    shown
}
