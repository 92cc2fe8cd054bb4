//! Builders of resources for the tests of this crate.

use std::sync::Arc;

use serde_json::{Value, json};
use ursa_model::{
    Kind, Kri, Labels, Resource, ResourceKey, Spec, Timestamp,
    kind::{
        dataplane::Dataplane, mesh_circuit_breaker::MeshCircuitBreaker, mesh_http_route::MeshHTTPRoute, mesh_retry::MeshRetry,
        mesh_service::MeshService, mesh_timeout::MeshTimeout, mesh_traffic_permission::MeshTrafficPermission,
    },
};

use crate::{Destinations, Matched, Parsed, Policies, match_proxy};

pub(crate) const MESH: &str = "default";

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn resource(kind: Kind, name: &str, of: &[(&str, &str)], spec: Value) -> Resource {
    Resource {
        key: ResourceKey::new(kind, MESH, name).unwrap(),
        labels: labels(of),
        spec,
        status: None,
        owner: None,
        created: Timestamp(1),
        modified: Timestamp(1),
        version: 1,
        create_revision: 1,
        mod_revision: 1,
    }
}

fn parsed<T: Spec>(kind: Kind, name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<T>> {
    Arc::new(Parsed::parse(Arc::new(resource(kind, name, of, spec))).unwrap())
}

pub(crate) fn permission(name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<MeshTrafficPermission>> {
    parsed(Kind::MeshTrafficPermission, name, of, spec)
}

pub(crate) fn http_route(name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<MeshHTTPRoute>> {
    parsed(Kind::MeshHTTPRoute, name, of, spec)
}

pub(crate) fn timeout(name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<MeshTimeout>> {
    parsed(Kind::MeshTimeout, name, of, spec)
}

pub(crate) fn retry(name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<MeshRetry>> {
    parsed(Kind::MeshRetry, name, of, spec)
}

pub(crate) fn circuit_breaker(name: &str, of: &[(&str, &str)], spec: Value) -> Arc<Parsed<MeshCircuitBreaker>> {
    parsed(Kind::MeshCircuitBreaker, name, of, spec)
}

/// A proxy of zone east with inbounds `http` and 9090 (which has no name).
pub(crate) fn frontend() -> Parsed<Dataplane> {
    dataplane(
        &[
            ("kuma.io/workload", "frontend"),
            ("kuma.io/origin", "zone"),
            ("kuma.io/zone", "east"),
            ("kuma.io/display-name", "frontend-1"),
        ],
        json!({"address": "127.0.1.10", "inbound": [{"port": 8080, "name": "http", "protocol": "http"}, {"port": 9090}]}),
    )
}

pub(crate) fn dataplane(of: &[(&str, &str)], networking: Value) -> Parsed<Dataplane> {
    Parsed::parse(Arc::new(resource(Kind::Dataplane, "dp", of, json!({"networking": networking})))).unwrap()
}

/// A service as synced to a zone; `age` is its creation time.
pub(crate) fn service(name: &str, zone: &str, age: u64, ports: Value) -> Arc<Parsed<MeshService>> {
    service_with(name, &[("kuma.io/display-name", name), ("kuma.io/zone", zone)], zone, age, ports)
}

pub(crate) fn service_with(name: &str, of: &[(&str, &str)], suffix: &str, age: u64, ports: Value) -> Arc<Parsed<MeshService>> {
    let mut resource = resource(Kind::MeshService, &format!("{name}-{suffix}"), of, json!({"ports": ports}));
    resource.created = Timestamp(age);
    Arc::new(Parsed::parse(Arc::new(resource)).unwrap())
}

/// backend in west (older) and east with ports `http` 8080 and (unnamed, tcp) 9000; redis in west with one tcp port.
pub(crate) fn destinations() -> Destinations {
    let ports = json!([{"name": "http", "port": 8080, "appProtocol": "http"}, {"port": 9000}]);
    Destinations::new([
        service("backend", "east", 20, ports.clone()),
        service("backend", "west", 10, ports),
        service("redis", "west", 30, json!([{"name": "tcp", "port": 6379, "appProtocol": "tcp"}])),
    ])
}

pub(crate) fn kri(text: &str) -> Kri {
    text.parse().unwrap()
}

/// The port `http` of the backend in west.
pub(crate) fn west() -> Kri {
    kri("kri_msvc_default_west__backend_http")
}

pub(crate) fn matched(policies: &Policies) -> Matched {
    match_proxy(policies, &destinations(), &frontend(), MESH)
}
