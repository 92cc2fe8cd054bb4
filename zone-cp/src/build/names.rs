//! Names of what a proxy is configured with. They are a contract: metrics, dashboards, MeshProxyPatch and the inspect API
//! name things by them. Source: dataplane.md 2.2.

use std::collections::BTreeMap;

use ursa_model::{Kri, Resource};

use super::plan::Socket;

/// The secret with the trust bundles of all trust domains.
pub const TRUST_BUNDLE: &str = "system_trust_bundle";

/// Listener, cluster, routes and statistics of an inbound.
pub fn inbound(section: &str) -> String {
    format!("self_inbound_dp_{section}")
}

/// Listener of a zone ingress.
pub fn zone_ingress(section: &str) -> String {
    format!("self_zoneingress_dp_{section}")
}

/// Listener, cluster, endpoints and routes of one port of a destination: its KRI. `None` for a kind without one.
pub fn destination(resource: &Resource, section: &str) -> Option<String> {
    Kri::of(resource).map(|kri| kri.with_section(section).to_string())
}

/// Listener of an outbound: the destination's name, and where the same destination has a listener already, where this one listens.
pub fn outbound(destination: &str, second: Option<&Socket>) -> String {
    second.map_or_else(|| destination.to_owned(), |socket| format!("{destination}@{socket}"))
}

/// Metadata of a listener that stands for one thing: its name.
pub fn unified(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("kuma.io/unified-name".into(), name.into())])
}
