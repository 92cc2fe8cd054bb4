//! dataplane.md 5.3: which items make which rule, and which rule a lookup finds.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    Matched, Policies,
    testing::{circuit_breaker, http_route, kri, matched, retry, timeout, west},
};

fn mesh() -> Value {
    json!({"kind": "Mesh"})
}

fn backend(more: &[(&str, &str)], section: Option<&str>) -> Value {
    let mut labels = json!({"kuma.io/display-name": "backend"});
    for (k, v) in more {
        labels[*k] = json!(v);
    }
    let mut target = json!({"kind": "MeshService", "labels": labels});
    if let Some(section) = section {
        target["sectionName"] = json!(section);
    }
    target
}

fn to(items: &[(Value, Value)]) -> Value {
    json!({"to": items.iter().map(|(target, conf)| json!({"targetRef": target, "default": conf})).collect::<Vec<_>>()})
}

fn of_timeouts(policies: &[(&str, Value)]) -> Matched {
    let timeouts = policies.iter().map(|(name, spec)| timeout(name, &[], spec.clone())).collect();
    matched(&Policies {
        timeouts,
        ..Policies::default()
    })
}

fn keys(matched: &Matched) -> Vec<String> {
    matched.outbound.timeouts.iter().map(|(kri, _)| kri.to_string()).collect()
}

#[test]
fn items_become_rules_of_the_resources_they_name() {
    let conf = json!({"idleTimeout": "1s"});
    for (target, want) in [
        (mesh(), vec!["kri_m____default_"]),
        (
            backend(&[], None),
            vec!["kri_msvc_default_east__backend_", "kri_msvc_default_west__backend_"],
        ),
        (backend(&[("kuma.io/zone", "west")], None), vec!["kri_msvc_default_west__backend_"]),
        (
            backend(&[("kuma.io/zone", "west")], Some("http")),
            vec!["kri_msvc_default_west__backend_http"],
        ),
        // A number names a port only if it has no name.
        (backend(&[("kuma.io/zone", "west")], Some("8080")), vec![]),
        (
            backend(&[("kuma.io/zone", "west")], Some("9000")),
            vec!["kri_msvc_default_west__backend_9000"],
        ),
        (backend(&[("kuma.io/zone", "north")], None), vec![]),
        (json!({"kind": "MeshService"}), vec![]),
        (
            json!({"kind": "MeshMultiZoneService", "labels": {"kuma.io/display-name": "backend"}}),
            vec![],
        ),
        (
            json!({"kind": "MeshExternalService", "labels": {"kuma.io/display-name": "backend"}}),
            vec![],
        ),
        (
            json!({"kind": "MeshHTTPRoute", "labels": {"kuma.io/display-name": "backend"}}),
            vec![],
        ),
    ] {
        let got = of_timeouts(&[("t", to(&[(target.clone(), conf.clone())]))]);
        assert_eq!(keys(&got), want, "{target}");
        assert!(got.warnings.is_empty());
    }
}

#[test]
fn a_rule_folds_in_the_mesh_and_the_whole_service() {
    let seconds = |idle: u32, connect: Option<u32>| {
        let mut conf = json!({"idleTimeout": format!("{idle}s")});
        if let Some(n) = connect {
            conf["connectionTimeout"] = json!(format!("{n}s"));
        }
        conf
    };
    let got = of_timeouts(&[
        (
            "section",
            to(&[(
                backend(&[("kuma.io/zone", "west")], Some("http")),
                json!({"http": {"requestTimeout": "3s"}}),
            )]),
        ),
        ("service", to(&[(backend(&[], None), seconds(2, None))])),
        ("mesh", to(&[(mesh(), seconds(1, Some(1)))])),
    ]);
    let of = |destination: &str| {
        let t = got.outbound.timeout(&kri(destination), None);
        (t.connect.as_secs(), t.idle.as_secs(), t.request.as_secs())
    };
    assert_eq!(of("kri_msvc_default_west__backend_http"), (1, 2, 3));
    assert_eq!(of("kri_msvc_default_west__backend_9000"), (1, 2, 15));
    assert_eq!(of("kri_msvc_default_east__backend_http"), (1, 2, 15));
    assert_eq!(of("kri_msvc_default_west__redis_tcp"), (1, 1, 15));

    let rule = got.outbound.timeouts.get(&west()).unwrap();
    let origins: Vec<&str> = rule.origins.iter().map(|o| o.policy.name.as_str()).collect();
    assert_eq!(origins, ["mesh", "service", "section"]);
}

#[test]
fn the_kind_of_an_item_counts_before_the_name_of_its_policy() {
    let one = json!({"connectionTimeout": "1s"});
    let two = json!({"connectionTimeout": "2s"});
    let west_only = backend(&[("kuma.io/zone", "west")], None);
    let got = of_timeouts(&[("a", to(&[(mesh(), one.clone())])), ("z", to(&[(west_only.clone(), two.clone())]))]);
    assert_eq!(got.outbound.timeout(&west(), None).connect, Duration::from_secs(2));

    // Of two items of equal kind the smaller display name wins, and within a policy the later item.
    let got = of_timeouts(&[
        ("a", to(&[(west_only.clone(), one.clone())])),
        ("z", to(&[(west_only.clone(), two.clone())])),
    ]);
    assert_eq!(got.outbound.timeout(&west(), None).connect, Duration::from_secs(1));
    let got = of_timeouts(&[("a", to(&[(west_only.clone(), one), (west_only, two)]))]);
    assert_eq!(got.outbound.timeout(&west(), None).connect, Duration::from_secs(2));
}

fn route_policies(timeouts: Vec<(&str, Value)>) -> Policies {
    let rules = json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "default": {}}]);
    Policies {
        http_routes: vec![
            http_route(
                "r",
                &[("team", "a")],
                json!({"to": [{"targetRef": backend(&[], None), "rules": rules}]}),
            ),
            // Not about the proxy, but other policies may name it all the same.
            http_route(
                "s",
                &[("team", "a")],
                json!({"targetRef": {"kind": "Dataplane", "labels": {"a": "b"}}, "to": []}),
            ),
        ],
        timeouts: timeouts.into_iter().map(|(name, spec)| timeout(name, &[], spec)).collect(),
        ..Policies::default()
    }
}

#[test]
fn routes_have_rules_of_their_own() {
    let team = json!({"kind": "MeshHTTPRoute", "labels": {"team": "a"}});
    let got = matched(&route_policies(vec![
        (
            "mesh",
            to(&[(mesh(), json!({"http": {"requestTimeout": "1s", "streamIdleTimeout": "11s"}}))]),
        ),
        (
            "service",
            to(&[(
                backend(&[], None),
                json!({"connectionTimeout": "7s", "http": {"requestTimeout": "2s", "streamIdleTimeout": "12s"}}),
            )]),
        ),
        ("route", to(&[(team, json!({"http": {"requestTimeout": "3s"}}))])),
    ]));
    assert_eq!(
        keys(&got),
        [
            "kri_m____default_",
            "kri_mhttpr_default___r_",
            "kri_mhttpr_default___s_",
            "kri_msvc_default_east__backend_",
            "kri_msvc_default_west__backend_"
        ]
    );
    let route = kri("kri_mhttpr_default___r_");
    let of_route = got.outbound.timeout(&west(), Some(&route));
    // The mesh is folded into the route's rule, the service is not; what is not of requests stays the destination's.
    assert_eq!(of_route.request, Duration::from_secs(3));
    assert_eq!(of_route.stream_idle, Duration::from_secs(11));
    assert_eq!(of_route.connect, Duration::from_secs(7));
    let of_destination = got.outbound.timeout(&west(), None);
    assert_eq!(
        (of_destination.request, of_destination.stream_idle),
        (Duration::from_secs(2), Duration::from_secs(12))
    );
    // A KRI with the section of a rule is the same route; an unknown route has the destination's.
    assert_eq!(got.outbound.timeout(&west(), Some(&route.with_section("rule_0"))), of_route);
    assert_eq!(got.outbound.timeout(&west(), Some(&kri("kri_mhttpr_default___t_"))), of_destination);
}

#[test]
fn a_route_without_stream_idle_keeps_the_destination_s_but_not_its_request_timeout() {
    let route = json!({"kind": "MeshHTTPRoute", "labels": {"kuma.io/display-name": "r"}});
    let got = matched(&route_policies(vec![
        (
            "service",
            to(&[(
                backend(&[], None),
                json!({"http": {"requestTimeout": "2s", "streamIdleTimeout": "12s"}}),
            )]),
        ),
        ("route", to(&[(route, json!({"idleTimeout": "1s"}))])),
    ]));
    let t = got.outbound.timeout(&west(), Some(&kri("kri_mhttpr_default___r_")));
    assert!(
        !keys(&got).contains(&"kri_mhttpr_default___s_".to_owned()),
        "only the named route has a rule"
    );
    assert_eq!((t.request, t.stream_idle), (Duration::from_secs(15), Duration::from_secs(12)));
}

#[test]
fn retries_by_protocol_and_route() {
    let conf = json!({"tcp": {"maxConnectAttempt": 5}, "http": {"numRetries": 5}, "grpc": {"numRetries": 6}});
    let route = |conf: Value| to(&[(json!({"kind": "MeshHTTPRoute", "labels": {"team": "a"}}), conf)]);
    let with = |spec: Option<Value>| {
        let mut policies = route_policies(vec![]);
        policies.retries = vec![retry("service", &[], to(&[(backend(&[], None), conf.clone())]))];
        policies.retries.extend(spec.map(|spec| retry("route", &[], spec)));
        matched(&policies).outbound
    };
    let r = kri("kri_mhttpr_default___r_");
    let times = |rules: &OutboundRules, route: Option<&Kri>, protocol: &str| rules.retry(&west(), route, protocol).map(|p| p.num_retries);

    let plain = with(None);
    assert_eq!(plain.connect_attempts(&west()), Some(5));
    assert_eq!(times(&plain, None, "http"), Some(Some(5)));
    assert_eq!(times(&plain, None, "grpc"), Some(Some(6)));
    assert_eq!(times(&plain, None, "http2"), None);
    assert_eq!(times(&plain, None, "tcp"), None);
    assert_eq!(times(&plain, Some(&r), "http"), Some(Some(5)));
    assert_eq!(plain.connect_attempts(&kri("kri_msvc_default_west__redis_tcp")), None);

    assert_eq!(
        times(&with(Some(route(json!({"http": {"numRetries": 2}})))), Some(&r), "http"),
        Some(Some(2))
    );
    assert_eq!(
        times(&with(Some(route(json!({"http": {"numRetries": 0}})))), Some(&r), "http"),
        None
    );
    // A route's rule without a section for the protocol leaves the destination's.
    assert_eq!(
        times(&with(Some(route(json!({"grpc": {"numRetries": 2}})))), Some(&r), "http"),
        Some(Some(5))
    );
}

#[test]
fn circuit_breakers_of_destinations() {
    let limits = |n: u32| json!({"connectionLimits": {"maxConnections": n}});
    let policies = Policies {
        circuit_breakers: vec![
            circuit_breaker("mesh", &[], to(&[(mesh(), limits(1))])),
            circuit_breaker("west", &[], to(&[(backend(&[("kuma.io/zone", "west")], None), limits(2))])),
        ],
        ..Policies::default()
    };
    let got = matched(&policies).outbound;
    let of = |destination: &str| got.circuit_breaker(&kri(destination)).unwrap().limits.max_connections;
    assert_eq!(of("kri_msvc_default_west__backend_http"), Some(2));
    assert_eq!(of("kri_msvc_default_east__backend_http"), Some(1));
    assert_eq!(matched(&Policies::default()).outbound.circuit_breaker(&west()), None);
}
