//! Metrics of the xDS server. Names that Kuma's dashboards know where they fit, ours beside them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::snapshot::XdsType;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    type_url: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

/// Handles are shared by clones.
#[derive(Clone, Debug, Default)]
pub struct XdsMetrics {
    responses: Family<TypeLabel, Counter>,
    acks: Family<TypeLabel, Counter>,
    nacks: Family<TypeLabel, Counter>,
    unchanged: Counter,
    denied: Family<CodeLabel, Counter>,
    connected: Gauge,
}

impl XdsMetrics {
    /// Registers all of them. Counters show as zero from the start: a missing one cannot be told from one that is not counted.
    pub fn register(&self, registry: &mut Registry) {
        for kind in XdsType::ALL {
            let label = TypeLabel { type_url: kind.type_url() };
            for family in [&self.responses, &self.acks, &self.nacks] {
                let _ = family.get_or_create(&label);
            }
        }
        registry.register("xds_responses_sent", "Responses sent to Envoys", self.responses.clone());
        registry.register("xds_acks", "Responses accepted by Envoys", self.acks.clone());
        registry.register("xds_nacks", "Responses refused by Envoys", self.nacks.clone());
        registry.register(
            "xds_unchanged_pushes",
            "Resources sent to an Envoy that held the same version",
            self.unchanged.clone(),
        );
        registry.register("xds_denied", "Streams of proxies that were refused", self.denied.clone());
        registry.register("xds_connected_proxies", "Proxies connected now", self.connected.clone());
    }

    pub fn sent(&self, kind: XdsType, unchanged: usize) {
        self.responses.get_or_create(&TypeLabel { type_url: kind.type_url() }).inc();
        self.unchanged.inc_by(u64::try_from(unchanged).unwrap_or(u64::MAX));
    }

    pub fn acked(&self, kind: XdsType) {
        self.acks.get_or_create(&TypeLabel { type_url: kind.type_url() }).inc();
    }

    pub fn nacked(&self, kind: XdsType) {
        self.nacks.get_or_create(&TypeLabel { type_url: kind.type_url() }).inc();
    }

    pub fn denied(&self, code: tonic::Code) {
        self.denied.get_or_create(&CodeLabel { code: format!("{code:?}") }).inc();
    }

    pub fn connected(&self, change: i64) {
        self.connected.inc_by(change);
    }
}
