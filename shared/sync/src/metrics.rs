//! What zone sync counts. Names follow Kuma's where Kuma has them (api.md 8).
//! Labels are zones and kinds: both bounded by the topology.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ZoneLabel {
    pub zone_name: String,
}

/// A zone and a kind (of ours: a peer's text never becomes a label).
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub zone_name: String,
    pub resource_type: &'static str,
}

/// Counters of both ends; clones share them. A zone uses its own name as the zone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Streams open now that carry resources.
    pub active: Family<ZoneLabel, Gauge>,
    /// Responses that a peer refused, whole or in part, and that we refused.
    pub nacks: Family<KindLabel, Counter>,
    /// Resources sent, removals included.
    pub resources_sent: Family<KindLabel, Counter>,
    /// Resources received, removals included.
    pub resources_received: Family<KindLabel, Counter>,
    /// Removals that a peer's first response implied and that wait for an operator.
    pub held: Family<KindLabel, Gauge>,
    /// Kinds of which an end held something else than it should, as found by the sums in markers and heartbeats.
    pub differences: Family<KindLabel, Counter>,
    /// Streams that went on from where the last one ended.
    pub resumed: Counter,
    /// First sets that were not sent because a stock peer takes no message of that size.
    pub too_large: Family<KindLabel, Counter>,
    /// Resources that came under another zone's name and were put right.
    pub rewrites: Counter,
    /// MeshTrusts that are not passed on because their trust domain belongs to another zone.
    pub quarantined: Gauge,
    /// Revisions that a zone is behind the global; only for peers that report progress.
    pub lag: Family<ZoneLabel, Gauge>,
    /// Connections refused because of who they are.
    pub denied: Counter,
    /// Connections of the zone to a global that ended.
    pub reconnects: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("kds_zone_active_connections", "Sync streams open now", self.active.clone());
        registry.register("kds_nack", "Responses refused, whole or in part", self.nacks.clone());
        registry.register("kds_resources_sent", "Resources and removals sent", self.resources_sent.clone());
        registry.register(
            "kds_resources_received",
            "Resources and removals received",
            self.resources_received.clone(),
        );
        registry.register("kds_held_removals", "Implied removals that wait for an operator", self.held.clone());
        registry.register(
            "kds_differences",
            "Kinds found to differ between two ends",
            self.differences.clone(),
        );
        registry.register("kds_resumed", "Streams without first sets", self.resumed.clone());
        registry.register(
            "kds_too_large",
            "First sets too large for a stock peer, not sent",
            self.too_large.clone(),
        );
        registry.register(
            "kds_zone_attribution_rewrites",
            "Resources sent under another zone's name",
            self.rewrites.clone(),
        );
        registry.register(
            "kds_trust_quarantined",
            "MeshTrusts whose trust domain belongs to another zone",
            self.quarantined.clone(),
        );
        registry.register("kds_zone_lag_revisions", "Revisions a zone is behind", self.lag.clone());
        registry.register("kds_denied", "Zones refused for lack of a valid token", self.denied.clone());
        registry.register("kds_reconnects", "Connections to a global that ended", self.reconnects.clone());
    }

    /// Makes a zone's refusals show as zero before there are any: a counter that is missing cannot be told from one that is not
    /// counted.
    pub(crate) fn announce(&self, zone: &str) {
        for kind in ursa_model::kind::ALL
            .iter()
            .filter(|k| k.descriptor().flags.requested_by_zone() || k.descriptor().flags.zone_to_global())
        {
            let _ = self.nacks.get_or_create(&Self::kind(zone, *kind));
        }
    }

    pub(crate) fn zone(name: &str) -> ZoneLabel {
        ZoneLabel {
            zone_name: name.to_owned(),
        }
    }

    pub(crate) fn kind(zone: &str, kind: ursa_model::Kind) -> KindLabel {
        KindLabel {
            zone_name: zone.to_owned(),
            resource_type: kind.name(),
        }
    }
}
