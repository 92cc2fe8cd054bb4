//! What a proxy's process counts.
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of one supervisor. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Tries to get a bootstrap that failed.
    pub bootstrap_retries: Counter,
    /// 1 while Envoy says that it is live.
    pub envoy_live: Gauge,
    /// Connections that were still open when the drain time was over.
    pub drain_connections_cut: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "proxy_bootstrap_retries",
            "Failed tries to get a bootstrap",
            self.bootstrap_retries.clone(),
        );
        registry.register("proxy_envoy_live", "1 while Envoy is live", self.envoy_live.clone());
        registry.register(
            "proxy_drain_connections_cut",
            "Connections still open at the end of the drain time",
            self.drain_connections_cut.clone(),
        );
    }
}
