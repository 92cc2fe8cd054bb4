//! Resolution of references: labels, age, ports, namespaces (dataplane.md 5.6, facts.md F3).

use serde_json::{Value, json};

use super::*;
use crate::testing::{destinations, kri, service, service_with};

fn backend(v: Value) -> BackendRef {
    serde_json::from_value(v).unwrap()
}

fn resolved(v: Value) -> Option<String> {
    resolve_backend(&backend(v), "", &destinations()).map(|b| b.kri().to_string())
}

#[test]
fn labels_select_and_the_oldest_wins() {
    let west = Some("kri_msvc_default_west__backend_http".to_owned());
    let east = Some("kri_msvc_default_east__backend_http".to_owned());
    for (labels, want) in [
        (json!({"kuma.io/display-name": "backend"}), &west),
        (json!({"kuma.io/display-name": "backend", "kuma.io/zone": "east"}), &east),
        (json!({"kuma.io/zone": "east"}), &east),
        (json!({"kuma.io/zone": "west"}), &west),
        (json!({"kuma.io/display-name": "nobody"}), &None),
        (json!({"kuma.io/display-name": "backend", "other": "label"}), &None),
        (json!({}), &None),
    ] {
        assert_eq!(
            &resolved(json!({"kind": "MeshService", "labels": labels, "port": 8080})),
            want,
            "{labels}"
        );
    }
    assert_eq!(resolved(json!({"kind": "MeshService"})), None);
    assert_eq!(
        resolved(json!({"kind": "MeshExternalService", "labels": {"kuma.io/display-name": "backend"}, "port": 8080})),
        None
    );
}

#[test]
fn equal_ages_are_ordered_by_name() {
    let ports = json!([{"port": 80}]);
    let twins = Destinations::new([service("b", "z", 5, ports.clone()), service("a", "z", 5, ports)]);
    let found = resolve_backend(
        &backend(json!({"kind": "MeshService", "labels": {"kuma.io/zone": "z"}})),
        "",
        &twins,
    )
    .unwrap();
    assert_eq!(found.service.resource.display_name(), "a");
}

#[test]
fn the_port_is_named_numbered_or_the_only_one() {
    let of = |rest: Value| {
        let mut v = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "west"}});
        v.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        resolved(v).map(|kri| kri.rsplit('_').next().unwrap().to_owned())
    };
    assert_eq!(of(json!({"sectionName": "http"})).as_deref(), Some("http"));
    assert_eq!(of(json!({"port": 8080})).as_deref(), Some("http"));
    assert_eq!(of(json!({"sectionName": "8080"})).as_deref(), Some("http"));
    assert_eq!(of(json!({"port": 9000})).as_deref(), Some("9000"));
    assert_eq!(of(json!({"sectionName": "http", "port": 9000})).as_deref(), Some("http"));
    assert_eq!(of(json!({"port": 1})), None);
    assert_eq!(of(json!({})), None);
    let redis = resolved(json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "redis"}}));
    assert_eq!(redis.as_deref(), Some("kri_msvc_default_west__redis_tcp"));
}

#[test]
fn the_oldest_is_not_passed_over_when_it_lacks_the_port() {
    let services = Destinations::new([
        service("a", "old", 1, json!([{"port": 1}])),
        service("a", "new", 2, json!([{"port": 2}])),
    ]);
    let to = |port: u32| backend(json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "a"}, "port": port}));
    assert!(resolve_backend(&to(1), "", &services).is_some());
    assert!(resolve_backend(&to(2), "", &services).is_none());
}

#[test]
fn a_name_alone_means_one_s_own_namespace() {
    let of = |ns: &'static str| [("kuma.io/display-name", "a"), ("k8s.kuma.io/namespace", ns)];
    let services = Destinations::new([
        service_with("a", &of("one"), "one", 1, json!([{"port": 1}])),
        service_with("a", &of("two"), "two", 2, json!([{"port": 1}])),
    ]);
    let namespace = |labels: Value, from: &str| {
        let found = resolve_backend(&backend(json!({"kind": "MeshService", "labels": labels})), from, &services);
        found.map(|b| b.kri().namespace)
    };
    assert_eq!(namespace(json!({"kuma.io/display-name": "a"}), "two").as_deref(), Some("two"));
    assert_eq!(namespace(json!({"kuma.io/display-name": "a"}), "").as_deref(), Some("one"));
    assert_eq!(namespace(json!({"kuma.io/display-name": "a"}), "three"), None);
    assert_eq!(
        namespace(json!({"kuma.io/display-name": "a", "k8s.kuma.io/namespace": "one"}), "two").as_deref(),
        Some("one")
    );
    // Other labels are taken as they are.
    assert_eq!(namespace(json!({"k8s.kuma.io/namespace": "two"}), "one").as_deref(), Some("two"));
}

#[test]
fn outbounds_of_a_dataplane() {
    let services = destinations();
    let of = |v: Value| {
        let outbound: OutboundRef = serde_json::from_value(v).unwrap();
        resolve_outbound(&outbound, "", &services).map(|b| b.kri().to_string())
    };
    let (west, east) = (
        Some("kri_msvc_default_west__backend_http"),
        Some("kri_msvc_default_east__backend_http"),
    );
    assert_eq!(of(json!({"kind": "MeshService", "name": "backend", "port": 8080})).as_deref(), west);
    assert_eq!(
        of(json!({"kind": "MeshService", "name": "redis", "labels": {"kuma.io/zone": "east"}, "port": 8080})).as_deref(),
        east
    );
    assert_eq!(of(json!({"kind": "MeshService", "name": "backend", "port": 1})), None);
    assert_eq!(of(json!({"kind": "MeshService", "port": 8080})), None);
    assert_eq!(of(json!({"kind": "MeshMultiZoneService", "name": "backend", "port": 8080})), None);

    let k8s = Destinations::new([service_with(
        "web",
        &[("kuma.io/display-name", "web"), ("k8s.kuma.io/namespace", "shop")],
        "x",
        1,
        json!([{"port": 80}]),
    )]);
    let tag = |name: &str, port: u32| {
        let outbound = OutboundRef {
            kind: "MeshService".into(),
            name: name.into(),
            port,
            ..OutboundRef::default()
        };
        resolve_outbound(&outbound, "other", &k8s).is_some()
    };
    assert!(tag("web_shop_svc_80", 0) && tag("web_shop_svc_81", 80));
    assert!(!tag("web_shop_svc_81", 0) && !tag("web", 80) && !tag("web_shop_svc_x", 80));
}

#[test]
fn lookup_by_kri() {
    let services = destinations();
    assert_eq!(
        services
            .service(&kri("kri_msvc_default_east__backend_http"))
            .unwrap()
            .resource
            .name(),
        "backend-east"
    );
    assert_eq!(
        services.port(&kri("kri_msvc_default_east__backend_8080")).unwrap().kri().section,
        "http"
    );
    assert!(services.port(&kri("kri_msvc_default_east__backend_")).is_none());
    assert_eq!(services.port(&kri("kri_msvc_default_west__redis_")).unwrap().port.port, 6379);
    assert!(services.service(&kri("kri_msvc_default_north__backend_")).is_none());
    assert_eq!(
        services.services().iter().map(|s| s.resource.created.0).collect::<Vec<_>>(),
        [10, 20, 30]
    );
}
