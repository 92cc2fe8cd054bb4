//! dataplane.md 5.6: order of routes, catch-all, backends, names.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    Policies,
    testing::{destinations, http_route, kri, matched, west},
};

const EAST: &str = "kri_msvc_default_east__backend_http";
const WEST: &str = "kri_msvc_default_west__backend_http";

fn backend(zone: &str, port: u32, weight: u32) -> Value {
    json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": zone}, "port": port, "weight": weight})
}

fn target(name: &str) -> Value {
    json!({"kind": "MeshService", "labels": {"kuma.io/display-name": name, "kuma.io/zone": "west"}})
}

fn to(name: &str, rules: Value) -> Value {
    json!({"to": [{"targetRef": target(name), "rules": rules}]})
}

fn routes_to(destination: &Kri, policies: &[(&str, Value)]) -> Vec<Route> {
    let http_routes = policies.iter().map(|(name, spec)| http_route(name, &[], spec.clone())).collect();
    matched(&Policies {
        http_routes,
        ..Policies::default()
    })
    .outbound
    .http_routes(destination, &destinations())
}

fn routes(rules: Value) -> Vec<Route> {
    routes_to(&west(), &[("r", to("backend", rules))])
}

fn path(kind: &str, value: &str) -> Value {
    json!({"path": {"type": kind, "value": value}})
}

fn rule(matches: Value, conf: Value) -> Value {
    json!({"matches": matches, "default": conf})
}

fn shown(routes: &[Route]) -> Vec<Value> {
    routes.iter().map(|r| serde_json::to_value(&r.matching).unwrap()).collect()
}

fn split(route: &Route) -> Vec<(String, u32)> {
    route.backends.iter().map(|b| (b.destination.to_string(), b.weight)).collect()
}

#[test]
fn without_policy_an_http_port_has_one_route_to_itself_and_a_tcp_port_none() {
    let all = routes_to(&west(), &[]);
    let [only] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(only.name, DEFAULT_ROUTE);
    assert_eq!(only.policy, None);
    assert_eq!(serde_json::to_value(&only.matching).unwrap(), path("PathPrefix", "/"));
    assert_eq!(split(only), [(WEST.into(), 100)]);
    assert_eq!(only.failing_share(), None);
    assert!(routes_to(&kri("kri_msvc_default_west__redis_tcp"), &[]).is_empty());
    assert!(routes_to(&kri("kri_msvc_default_north__backend_http"), &[]).is_empty());
}

#[test]
fn the_demo_s_canary() {
    let root = json!([path("PathPrefix", "/")]);
    let header =
        json!([{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"type": "Exact", "name": "x-canary", "value": "yes"}]}]);
    let all = routes(json!([
        rule(root, json!({"backendRefs": [backend("west", 8080, 90), backend("east", 8080, 10)]})),
        rule(header, json!({"backendRefs": [backend("east", 8080, 1)]})),
    ]));
    assert_eq!(all.len(), 2, "the rule for / is the catch-all");
    assert!(all[0].matching.headers.is_some());
    assert_eq!(split(&all[0]), [(EAST.into(), 1)]);
    assert_eq!(split(&all[1]), [(WEST.into(), 90), (EAST.into(), 10)]);
    for route in &all {
        assert_eq!(route.name, "kri_mhttpr_default___r_rule_0");
        assert_eq!(route.policy, Some(kri("kri_mhttpr_default___r_")));
    }
    assert_eq!(clusters(&all), BTreeSet::from([kri(WEST), kri(EAST)]));
}

#[test]
fn order_of_routes() {
    let header = json!([{"name": "a", "value": "b"}]);
    let two_headers = json!([{"name": "a", "value": "b"}, {"name": "c", "value": "d"}]);
    let param = json!([{"type": "Exact", "name": "a", "value": "b"}]);
    let root = |more: Value| {
        let mut m = path("PathPrefix", "/");
        m.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        m
    };
    // In falling precedence; each must come out before the next, in whatever order they are written.
    let want = [
        path("Exact", "/a/very/long/path"),
        path("PathPrefix", "/long/prefix"),
        path("PathPrefix", "/short"),
        root(json!({"method": "GET", "headers": two_headers})),
        root(json!({"method": "GET", "headers": header})),
        root(json!({"method": "GET"})),
        root(json!({"headers": two_headers})),
        root(json!({"headers": header, "queryParams": param})),
        root(json!({"headers": header})),
        root(json!({"queryParams": param})),
        root(json!({})),
        path("RegularExpression", "/a.*b"),
        path("RegularExpression", "/.*"),
        json!({"method": "PUT"}),
        json!({"headers": header}),
    ];
    let got_of = |order: Vec<Value>| {
        shown(&routes(Value::Array(
            order.into_iter().map(|m| rule(json!([m]), json!({}))).collect(),
        )))
    };
    // Absent paths are filled in, and header types.
    let mut expected: Vec<Value> = want
        .iter()
        .map(|m| serde_json::to_value(serde_json::from_value::<Match>(m.clone()).unwrap()).unwrap())
        .collect();
    for m in &mut expected {
        if m.get("path").is_none() {
            m["path"] = path("PathPrefix", "/")["path"].clone();
        }
    }
    assert_eq!(got_of(want.to_vec()), expected);
    assert_eq!(got_of(want.iter().rev().cloned().collect()), expected);
}

#[test]
fn equal_routes_keep_the_order_of_rules_and_exact_paths_are_equal() {
    let all = routes(json!([
        rule(json!([path("Exact", "/b")]), json!({})),
        rule(json!([path("Exact", "/aaaa"), path("PathPrefix", "/x")]), json!({})),
        rule(json!([path("PathPrefix", "/y")]), json!({})),
    ]));
    let paths: Vec<&str> = all.iter().map(|r| r.matching.path.as_ref().unwrap().value.as_str()).collect();
    assert_eq!(paths, ["/b", "/aaaa", "/x", "/y", "/"]);
    assert_eq!(all[4].name, DEFAULT_ROUTE);
}

#[test]
fn an_empty_match_is_for_all_requests_and_yet_not_the_catch_all() {
    let all = routes(json!([rule(json!([{}]), json!({"backendRefs": [backend("east", 8080, 1)]}))]));
    assert_eq!(shown(&all), [path("PathPrefix", "/"), path("PathPrefix", "/")]);
    // The catch-all goes last, so it never gets a request.
    assert_eq!(all[1].name, DEFAULT_ROUTE);
}

#[test]
fn backends_that_cannot_be_used() {
    let all_of = |refs: Value| routes(json!([rule(json!([path("PathPrefix", "/")]), json!({"backendRefs": refs}))])).remove(0);
    let nobody = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "nobody"}, "weight": 3});
    let mzms = json!({"kind": "MeshMultiZoneService", "labels": {"a": "b"}, "port": 80, "weight": 4});

    let some = all_of(json!([
        backend("west", 8080, 2),
        nobody,
        backend("west", 9000, 5),
        mzms,
        backend("east", 8080, 0)
    ]));
    assert_eq!(split(&some), [(WEST.into(), 2)]);
    assert_eq!(
        (some.unresolved_weight, some.all_unresolved, some.failing_share()),
        (12, false, Some((12, 14)))
    );

    let none = all_of(json!([nobody, mzms]));
    assert_eq!(
        (none.backends.len(), none.all_unresolved, none.failing_share()),
        (0, true, Some((1, 1)))
    );
    let zero = all_of(json!([backend("west", 8080, 0)]));
    assert_eq!(
        (zero.unresolved_weight, zero.all_unresolved, zero.failing_share()),
        (0, true, Some((1, 1)))
    );

    let empty = all_of(json!([]));
    assert_eq!(split(&empty), [(WEST.into(), 100)]);

    let redirect = routes(json!([rule(
        json!([path("PathPrefix", "/")]),
        json!({"backendRefs": [nobody], "filters": [{"type": "RequestRedirect", "requestRedirect": {}}]})
    )]))
    .remove(0);
    assert!(redirect.redirects() && redirect.failing_share().is_none());
}

#[test]
fn mirrors_are_resolved_by_filter() {
    let mirror = |b: Value| json!({"type": "RequestMirror", "requestMirror": {"backendRef": b}});
    let headers = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}});
    let nobody = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "nobody"}});
    let filters = json!([
        headers,
        mirror(nobody),
        mirror(backend("east", 8080, 1)),
        mirror(backend("east", 9000, 1))
    ]);
    let route = routes(json!([rule(json!([path("PathPrefix", "/")]), json!({"filters": filters}))])).remove(0);
    assert_eq!(route.mirrors, BTreeMap::from([(2, kri(EAST))]));
    assert_eq!(clusters([&route]), BTreeSet::from([kri(WEST), kri(EAST)]));
}

#[test]
fn a_tcp_port_with_a_route_has_only_the_routes_that_lead_to_http() {
    let rules = json!([
        rule(
            json!([path("PathPrefix", "/a")]),
            json!({"backendRefs": [backend("east", 8080, 1)]})
        ),
        rule(json!([path("PathPrefix", "/b")]), json!({})),
    ]);
    let all = routes_to(&kri("kri_msvc_default_west__redis_tcp"), &[("r", to("redis", rules.clone()))]);
    assert_eq!(shown(&all), [path("PathPrefix", "/a")]);
    let only_own = json!([rule(json!([path("PathPrefix", "/b")]), json!({}))]);
    assert!(routes_to(&kri("kri_msvc_default_west__redis_tcp"), &[("r", to("redis", only_own))]).is_empty());
}

#[test]
fn a_route_is_named_after_the_most_important_policy_with_its_matches_and_the_to_item() {
    let a = json!([path("Exact", "/a")]);
    let b = json!([path("Exact", "/b")]);
    let low = to(
        "backend",
        json!([
            rule(a.clone(), json!({"backendRefs": [backend("east", 8080, 1)]})),
            rule(b.clone(), json!({}))
        ]),
    );
    let mut high = to("redis", json!([]));
    high["to"]
        .as_array_mut()
        .unwrap()
        .push(to("backend", json!([rule(a, json!({"filters": []}))]))["to"][0].clone());
    high["targetRef"] = json!({"kind": "Dataplane"});
    let all = routes_to(&west(), &[("low", low), ("high", high)]);
    let named: Vec<(&str, &str)> = all
        .iter()
        .map(|r| (r.matching.path.as_ref().unwrap().value.as_str(), r.name.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("/a", "kri_mhttpr_default___high_rule_1"),
            ("/b", "kri_mhttpr_default___low_rule_0"),
            ("/", DEFAULT_ROUTE)
        ]
    );
    // Merged: the backends are the lower policy's.
    assert_eq!(split(&all[0]), [(EAST.into(), 1)]);
}

#[test]
fn rules_for_a_port_stand_before_rules_for_the_service_and_contain_them() {
    let a = json!([path("Exact", "/a")]);
    let b = json!([path("Exact", "/b")]);
    let mut port = to(
        "backend",
        json!([rule(a.clone(), json!({"backendRefs": [backend("east", 8080, 1)]}))]),
    );
    port["to"][0]["targetRef"]["sectionName"] = json!("http");
    let service = to(
        "backend",
        json!([rule(a, json!({"backendRefs": [backend("west", 8080, 1)]})), rule(b, json!({}))]),
    );
    let all = routes_to(&west(), &[("z", port), ("a", service)]);
    let names: Vec<&str> = all.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names,
        ["kri_mhttpr_default___z_rule_0", "kri_mhttpr_default___a_rule_0", DEFAULT_ROUTE]
    );
    assert_eq!(split(&all[0]), [(EAST.into(), 1)]);
}

fn any_match() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![Just("Exact"), Just("PathPrefix"), Just("RegularExpression")];
    (proptest::option::of((kind, "/[a-c]{0,3}")), any::<bool>(), 0_usize..3).prop_map(|(p, method, headers)| {
        let mut m = p.map_or(json!({}), |(kind, value)| path(kind, &value));
        if method {
            m["method"] = json!("GET");
        }
        if headers > 0 {
            m["headers"] = json!(
                (0..headers)
                    .map(|i| json!({"name": format!("h{i}"), "value": "v"}))
                    .collect::<Vec<_>>()
            );
        }
        m
    })
}

proptest! {
    #[test]
    fn routes_are_in_order_complete_and_end_in_a_catch_all(matches in proptest::collection::vec(any_match(), 0..12)) {
        let rules: Vec<Value> = matches.iter().map(|m| rule(json!([m]), json!({}))).collect();
        let all = routes(Value::Array(rules));
        let catch_all = Match { path: Some(root()), ..Match::default() };
        prop_assert!(all.iter().any(|r| r.matching == catch_all));
        for route in &all {
            prop_assert!(route.matching.path.is_some());
            prop_assert!(route.backends.iter().all(|b| b.weight > 0) && !route.backends.is_empty());
        }
        for m in matches {
            let mut m: Match = serde_json::from_value(m).unwrap();
            m.path.get_or_insert_with(root);
            prop_assert!(all.iter().any(|r| r.matching == m));
        }
        let with_path: Vec<_> = all.iter().filter(|r| r.matching != catch_all).map(|r| precedence(&r.matching)).collect();
        // Filled-in paths sort as they were written: after all others.
        let first_filled = with_path.windows(2).position(|w| w[0] > w[1]).map_or(with_path.len(), |i| i + 1);
        prop_assert!(with_path[first_filled..].iter().all(|key| key.0 == 1));
    }
}
