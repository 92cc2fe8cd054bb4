//! The demo's two zones by name, and short words for what is asked of their plans.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use ursa_model::{Kind, labels};
use ursa_zone_cp::{
    build::plan::route::{Action, Forward, Route},
    snapshot::{ProxySnapshot, XdsType},
};

use crate::support::{Addresses, Zone, east, west};

pub const BACKEND_WEST: &str = "kri_msvc_default_west__backend_http";
pub const BACKEND_EAST: &str = "kri_msvc_default_east__backend_http";
pub const IDENTITY: &str = "kri_mid_default___identity_";
pub const TRUST: &str = "system_trust_bundle";
pub const INBOUND: &str = "self_inbound_dp_http";

pub fn demo() -> (Zone, Zone) {
    (east(&Addresses::default()), west(&Addresses::default()))
}

pub fn names<T>(map: &BTreeMap<String, T>) -> Vec<&str> {
    map.keys().map(String::as_str).collect()
}

pub fn forward(route: &Route) -> &Forward {
    match &route.action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

pub fn targets(route: &Route) -> Vec<(&str, u32)> {
    forward(route).targets.iter().map(|t| (t.cluster.as_str(), t.weight)).collect()
}

/// Puts a route of the frontend's to backend in west.
pub fn put_route(zone: &mut Zone, rules: Value) {
    let to =
        json!([{"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "west"}}, "rules": rules}]);
    zone.put_policy(Kind::MeshHTTPRoute, "backend-canary", json!({"to": to}));
}

pub fn backend(zone: &str, weight: u32) -> Value {
    json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: zone}, "port": 8080, "weight": weight})
}

pub fn root() -> Value {
    json!([{"path": {"type": "PathPrefix", "value": "/"}}])
}

pub fn versions(snapshot: &ProxySnapshot) -> BTreeMap<(XdsType, String), String> {
    let all = snapshot
        .resources
        .iter()
        .flat_map(|(kind, all)| all.iter().map(|(name, r)| ((*kind, name.clone()), r.version.to_string())));
    all.collect()
}

/// Type and name of what differs.
pub fn changed(before: &ProxySnapshot, after: &ProxySnapshot) -> Vec<(XdsType, String)> {
    let (before, after) = (versions(before), versions(after));
    let keys = before.keys().chain(after.keys()).filter(|k| before.get(k) != after.get(k));
    keys.cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}
