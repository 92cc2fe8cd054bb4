//! The demo's proxies: names, SNIs, identities and priorities as in demo.md, and what changes with what.

#![allow(clippy::unwrap_used)]

#[path = "build_support/mod.rs"]
mod support;

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use support::{Addresses, Zone, east, labels as label_map, spiffe_id, trust_domain, west};
use ursa_model::{Kind, labels};
use ursa_zone_cp::{
    build::{
        Encoder, Plan, build,
        plan::{
            self, Target,
            cluster::{HttpVersion, Members},
            listener::Handler,
            route::{Action, Forward, PathMatch, PathRewrite, Redirect, RedirectPath, Route},
        },
    },
    snapshot::{ProxySnapshot, XdsType},
    world::ProxyId,
};

const BACKEND_WEST: &str = "kri_msvc_default_west__backend_http";
const BACKEND_EAST: &str = "kri_msvc_default_east__backend_http";
const IDENTITY: &str = "kri_mid_default___identity_";
const TRUST: &str = "system_trust_bundle";
const INBOUND: &str = "self_inbound_dp_http";

fn demo() -> (Zone, Zone) {
    (east(&Addresses::default()), west(&Addresses::default()))
}

fn names<T>(map: &BTreeMap<String, T>) -> Vec<&str> {
    map.keys().map(String::as_str).collect()
}

fn forward(route: &Route) -> &Forward {
    match &route.action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn targets(route: &Route) -> Vec<(&str, u32)> {
    forward(route).targets.iter().map(|t| (t.cluster.as_str(), t.weight)).collect()
}

/// Puts a route of the frontend's to backend in west.
fn put_route(zone: &mut Zone, rules: Value) {
    let to =
        json!([{"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "west"}}, "rules": rules}]);
    zone.put_policy(Kind::MeshHTTPRoute, "backend-canary", json!({"to": to}));
}

fn backend(zone: &str, weight: u32) -> Value {
    json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: zone}, "port": 8080, "weight": weight})
}

fn root() -> Value {
    json!([{"path": {"type": "PathPrefix", "value": "/"}}])
}

fn versions(snapshot: &ProxySnapshot) -> BTreeMap<(XdsType, String), String> {
    let all = snapshot
        .resources
        .iter()
        .flat_map(|(kind, all)| all.iter().map(|(name, r)| ((*kind, name.clone()), r.version.to_string())));
    all.collect()
}

/// Type and name of what differs.
fn changed(before: &ProxySnapshot, after: &ProxySnapshot) -> Vec<(XdsType, String)> {
    let (before, after) = (versions(before), versions(after));
    let keys = before.keys().chain(after.keys()).filter(|k| before.get(k) != after.get(k));
    keys.cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[test]
fn the_frontend_reaches_west_through_its_ingress() {
    let (mut east, _) = demo();
    let plan = east.plan("frontend-1");
    assert_eq!(east.problems, Vec::<String>::new());
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(names(&plan.listeners), [BACKEND_WEST, INBOUND]);
    assert_eq!(names(&plan.routes), [BACKEND_WEST, INBOUND]);
    assert_eq!(names(&plan.clusters), [BACKEND_WEST, INBOUND]);
    assert_eq!(names(&plan.endpoints), [BACKEND_WEST]);
    assert_eq!(names(&plan.secrets), [IDENTITY, TRUST]);

    let listener = &plan.listeners[BACKEND_WEST];
    assert_eq!([listener.socket.to_string()], ["127.0.1.10:20001"]);
    assert_eq!(listener.tags, label_map([("kuma.io/unified-name", BACKEND_WEST)]));
    assert!(listener.chains[0].tls.is_none() && !listener.tls_inspector);
    let Handler::Http(http) = &listener.chains[0].handler else {
        panic!("not HTTP")
    };
    assert!(http.normalize_path && !http.forward_client_cert && http.routes == BACKEND_WEST);

    let cluster = &plan.clusters[BACKEND_WEST];
    let tls = cluster.tls.as_ref().unwrap();
    assert_eq!(tls.sni, "sni.msvc.default.west.backend.http");
    assert_eq!(tls.sans, [spiffe_id("west", "backend")]);
    assert_eq!((tls.identity.as_str(), tls.trust.as_str()), (IDENTITY, TRUST));
    assert_eq!(cluster.members, Members::Eds);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.http.as_ref().unwrap().version, HttpVersion::Http2);
    assert_eq!(cluster.breaker.limits.max_retries, Some(3));

    let group = &plan.endpoints[BACKEND_WEST].groups[0];
    assert_eq!((group.zone.as_str(), group.priority), ("west", 1));
    assert_eq!(group.endpoints[0].socket.to_string(), "127.0.2.2:10001");

    let routes = &plan.routes[BACKEND_WEST].routes;
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].name, "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=");
    assert_eq!(targets(&routes[0]), [(BACKEND_WEST, 100)]);
    assert_eq!(forward(&routes[0]).timeout, Some(Duration::from_secs(15)));
    assert_eq!(forward(&routes[0]).idle_timeout, Some(Duration::from_secs(1800)));
    assert_eq!(forward(&routes[0]).retry.as_ref().unwrap().num_retries, Some(5));
}

#[test]
fn the_ingress_passes_tls_on_by_sni() {
    let (_, mut west) = demo();
    let plan = west.plan("zone-ingress");
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(names(&plan.listeners), ["self_zoneingress_dp_ingress"]);
    assert_eq!(
        names(&plan.clusters),
        [BACKEND_WEST],
        "the backend of another zone is not behind this ingress"
    );
    let listener = &plan.listeners["self_zoneingress_dp_ingress"];
    assert!(listener.tls_inspector);
    assert_eq!(listener.socket.to_string(), "127.0.2.2:10001");
    assert_eq!(listener.chains.len(), 1);
    let chain = &listener.chains[0];
    assert_eq!(chain.name.as_deref(), Some(BACKEND_WEST));
    assert_eq!(chain.server_name.as_deref(), Some("sni.msvc.default.west.backend.http"));
    assert!(chain.tls.is_none());
    let Handler::Tcp(tcp) = &chain.handler else { panic!("not TCP") };
    assert_eq!(
        tcp.targets,
        [Target {
            cluster: BACKEND_WEST.into(),
            weight: 1
        }]
    );
    assert!(plan.clusters[BACKEND_WEST].tls.is_none());
    let group = &plan.endpoints[BACKEND_WEST].groups[0];
    assert_eq!(
        (group.zone.as_str(), group.priority, group.endpoints[0].socket.to_string().as_str()),
        ("west", 0, "127.0.2.10:8080")
    );

    // Without a destination there is no listener at all.
    west.delete(Kind::MeshService, "backend");
    assert_eq!(names(&west.plan("zone-ingress").listeners), Vec::<&str>::new());
}

#[test]
fn the_backend_takes_who_is_permitted() {
    let (_, mut west) = demo();
    let plan = west.plan("backend-1");
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(names(&plan.listeners), [INBOUND]);
    let listener = &plan.listeners[INBOUND];
    assert_eq!(listener.socket.to_string(), "127.0.2.10:8080");
    assert_eq!(listener.tags[labels::WORKLOAD], "backend");
    let chain = &listener.chains[0];
    let tls = chain.tls.as_ref().unwrap();
    assert_eq!(
        tls.prefixes,
        [
            format!("spiffe://{}/", trust_domain("east")),
            format!("spiffe://{}/", trust_domain("west"))
        ]
    );
    let Handler::Http(http) = &chain.handler else { panic!("not HTTP") };
    assert!(http.deny_by_default && http.forward_client_cert && http.remember_caller && !http.normalize_path);
    assert_eq!(
        plan.clusters[INBOUND].members,
        Members::Static(plan::Socket {
            ip: "127.0.2.10".parse().unwrap(),
            port: 18080
        })
    );
    assert_eq!(plan.clusters[INBOUND].connect_timeout, Duration::from_secs(10));
    assert_eq!(plan.clusters[INBOUND].http.as_ref().unwrap().version, HttpVersion::Http1);
    let route = &plan.routes[INBOUND].routes[0];
    assert_eq!(
        forward(route).timeout,
        Some(Duration::ZERO),
        "inbound requests have no timeout by default"
    );
    assert!(route.permissions.as_ref().unwrap().allow.is_empty(), "nobody is permitted");

    west.allow_frontend();
    let plan = west.plan("backend-1");
    let permissions = plan.routes[INBOUND].routes[0].permissions.as_ref().unwrap();
    assert_eq!(permissions.allow[0].policy.to_string(), "kri_mtp_default___allow-frontend_");
    assert_eq!(
        permissions.allow[0].matches[0].spiffe_id.as_ref().unwrap().value,
        spiffe_id("east", "frontend")
    );
}

#[test]
fn a_permission_changes_routes_and_nothing_else() {
    let (mut east, mut west) = demo();
    let encoder = Encoder::default();
    let before = west.snapshot("backend-1", &encoder);
    let others = (west.snapshot("zone-ingress", &encoder), east.snapshot("frontend-1", &encoder));
    for zone in [&mut east, &mut west] {
        zone.allow_frontend();
    }
    assert_eq!(
        changed(&before, &west.snapshot("backend-1", &encoder)),
        [(XdsType::Route, INBOUND.to_owned())]
    );
    assert_eq!(changed(&others.0, &west.snapshot("zone-ingress", &encoder)), []);
    assert_eq!(changed(&others.1, &east.snapshot("frontend-1", &encoder)), []);
}

#[test]
fn a_route_policy_brings_clusters_and_leaves_listeners_alone() {
    let (mut east, _) = demo();
    let encoder = Encoder::default();
    let before = east.snapshot("frontend-1", &encoder);
    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("west", 90), backend("east", 10)]}}]),
    );
    let after = east.snapshot("frontend-1", &encoder);
    let expected = [
        (XdsType::Cluster, BACKEND_EAST),
        (XdsType::Endpoint, BACKEND_EAST),
        (XdsType::Route, BACKEND_WEST),
    ];
    assert_eq!(changed(&before, &after), expected.map(|(kind, name)| (kind, name.to_owned())));

    let plan = east.plan("frontend-1");
    let route = &plan.routes[BACKEND_WEST].routes[0];
    assert_eq!(targets(route), [(BACKEND_WEST, 90), (BACKEND_EAST, 10)]);
    assert_eq!(route.name, "kri_mhttpr_default___backend-canary_rule_0");
    let local = &plan.endpoints[BACKEND_EAST].groups[0];
    assert_eq!(
        (local.priority, local.endpoints[0].socket.to_string().as_str()),
        (0, "127.0.1.20:8080")
    );
    assert_eq!(local.endpoints[0].tags["kuma.io/protocol"], "http");
    assert_eq!(
        plan.clusters[BACKEND_EAST].tls.as_ref().unwrap().sni,
        "sni.msvc.default.east.backend.http"
    );

    // A weight of 0 sends nothing there, not even a cluster.
    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("west", 0), backend("east", 100)]}}]),
    );
    let plan = east.plan("frontend-1");
    assert_eq!(targets(&plan.routes[BACKEND_WEST].routes[0]), [(BACKEND_EAST, 100)]);
}

#[test]
fn matches_and_filters_become_routes_in_order() {
    let (mut east, _) = demo();
    put_route(
        &mut east,
        json!([
            {"matches": [{"path": {"type": "PathPrefix", "value": "/api"}, "method": "GET",
                "headers": [{"type": "Exact", "name": "x-canary", "value": "yes"}, {"type": "Present", "name": "x-canary"}],
                "queryParams": [{"type": "RegularExpression", "name": "q", "value": "a+"}]}],
             "default": {"backendRefs": [backend("east", 1)], "filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "b.test", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2/"}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-a", "value": "1"}], "add": [{"name": "x-b", "value": "2"}], "remove": ["x-c"]}},
                {"type": "RequestMirror", "requestMirror": {"percentage": "12.5", "backendRef": backend("west", 1)}}
             ]}},
            {"matches": [{"path": {"type": "Exact", "value": "/old"}}],
             "default": {"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "new.test", "port": 8443, "statusCode": 308,
                "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}}}]}},
            {"matches": [{"path": {"type": "RegularExpression", "value": "/r/[0-9]+"}}],
             "default": {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/a\\1"}}}]}}
        ]),
    );
    let plan = east.plan("frontend-1");
    let routes = &plan.routes[BACKEND_WEST].routes;
    let paths: Vec<_> = routes.iter().map(|r| r.matcher.path.clone()).collect();
    assert_eq!(
        paths,
        [
            PathMatch::Exact("/old".into()),
            PathMatch::Exact("/api".into()),
            PathMatch::Prefix("/api/".into()),
            PathMatch::Regex("/r/[0-9]+".into()),
            PathMatch::Prefix("/".into()),
        ],
        "as the Gateway API orders them, a prefix as itself and what is below it, the rest last"
    );
    assert_eq!(
        routes[0].action,
        Action::Redirect(Redirect {
            scheme: Some("https".into()),
            host: Some("new.test".into()),
            port: Some(8443),
            status: 308,
            path: Some(RedirectPath::Full("/new".into())),
        })
    );
    for (route, prefix) in [(&routes[1], "/v2"), (&routes[2], "/v2/")] {
        assert_eq!(targets(route), [(BACKEND_EAST, 1)]);
        assert_eq!(forward(route).path_rewrite, Some(PathRewrite::Prefix(prefix.into())));
        assert_eq!(forward(route).host_rewrite.as_deref(), Some("b.test"));
        assert_eq!(
            (forward(route).mirrors[0].cluster.as_str(), forward(route).mirrors[0].share),
            (BACKEND_WEST, 125_000)
        );
        assert_eq!(route.matcher.method.as_deref(), Some("GET"));
        assert_eq!(route.matcher.headers.len(), 1, "of two matches for one header the first counts");
        assert_eq!(route.request_headers.set, [("x-a".to_owned(), "1".to_owned())]);
        assert_eq!(route.request_headers.add, [("x-b".to_owned(), "2".to_owned())]);
        assert_eq!(route.request_headers.remove, ["x-c"]);
    }
    assert_eq!(
        forward(&routes[3]).path_rewrite,
        Some(PathRewrite::Regex {
            pattern: "^/.*$".into(),
            with: "/a\\\\1".into()
        })
    );
}

#[test]
fn what_is_not_there_is_answered_with_500() {
    let (mut east, _) = demo();
    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("west", 3), backend("nowhere", 1)]}}]),
    );
    let plan = east.plan("frontend-1");
    let routes = &plan.routes[BACKEND_WEST].routes;
    assert_eq!(
        (routes[0].matcher.share, &routes[0].action),
        (Some(250_000), &Action::Respond { status: 500 })
    );
    assert_eq!((routes[1].matcher.share, targets(&routes[1])), (None, vec![(BACKEND_WEST, 3)]));

    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("nowhere", 1)]}}]),
    );
    let plan = east.plan("frontend-1");
    let routes = &plan.routes[BACKEND_WEST].routes;
    assert_eq!(
        (routes.len(), routes[0].matcher.share, &routes[0].action),
        (1, None, &Action::Respond { status: 500 })
    );
}

#[test]
fn huge_weights_are_scaled_to_what_envoy_counts_with() {
    let (mut east, _) = demo();
    // No write lets this pass, a peer might send it all the same.
    let backends = [backend("west", u32::MAX), backend("east", u32::MAX), backend("east", 1)];
    let rules = json!([{"matches": root(), "default": {"backendRefs": backends}}]);
    let target = json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "west"}});
    let spec = json!({"to": [{"targetRef": target, "rules": rules}]});
    east.put_raw(Kind::MeshHTTPRoute, "default", "huge", label_map([]), spec, None);
    let plan = east.plan("frontend-1");
    let weights: Vec<u64> = forward(&plan.routes[BACKEND_WEST].routes[0])
        .targets
        .iter()
        .map(|t| u64::from(t.weight))
        .collect();
    assert!(
        weights.iter().sum::<u64>() <= u64::from(u32::MAX) && weights[0].abs_diff(weights[1]) <= 1,
        "{weights:?}"
    );
}

#[test]
fn a_remote_service_without_known_identities_is_not_spoken_to() {
    let (mut east, _) = demo();
    let ports = json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}]);
    east.put_service("backend", "west", ports.clone(), &[], true);
    let plan = east.plan("frontend-1");
    assert!(plan.clusters[BACKEND_WEST].tls.is_none() && plan.endpoints[BACKEND_WEST].is_empty());
    assert_eq!(
        plan.warnings,
        [format!("{BACKEND_WEST} has no endpoints: its identities are not known")]
    );

    // Nor any remote one by a proxy that has no identity itself.
    east.put_service("backend", "west", ports, &[spiffe_id("west", "backend")], true);
    east.svids.clear();
    east.delete(Kind::MeshIdentity, &ursa_model::hash::hashed("default", "identity", &[]));
    let plan = east.plan("frontend-1");
    assert!(plan.clusters[BACKEND_WEST].tls.is_none() && plan.endpoints[BACKEND_WEST].is_empty());
    assert_eq!(names(&plan.secrets), Vec::<&str>::new());
    assert!(plan.warnings[0].contains("this proxy has no identity"), "{:?}", plan.warnings);
}

#[test]
fn a_local_service_is_spoken_to_with_tls_once_all_of_it_is_ready() {
    let (mut east, _) = demo();
    put_route(
        &mut east,
        json!([{"matches": root(), "default": {"backendRefs": [backend("east", 1)]}}]),
    );
    let ports = json!([{"name": "http", "port": 8080, "targetPort": 8080, "appProtocol": "http"}]);
    east.put_service(
        "backend",
        "east",
        ports.clone(),
        &[spiffe_id("east", "backend"), "spiffe://a/b".into()],
        true,
    );
    let plan = east.plan("frontend-1");
    let sans = &plan.clusters[BACKEND_EAST].tls.as_ref().unwrap().sans;
    assert_eq!(sans, &["spiffe://a/b".into(), spiffe_id("east", "backend")], "sorted");

    let mut before = Zone::clone(&east);
    before.delete(Kind::MeshService, "backend");
    before.put_service("backend", "east", ports, &[], false);
    let plan = before.plan("frontend-1");
    assert!(plan.clusters[BACKEND_EAST].tls.is_none());
    assert_eq!(plan.endpoints[BACKEND_EAST].len(), 1);
}

#[test]
fn inbounds_are_plain_without_identity_and_closed_while_one_is_missing() {
    let (_, mut west) = demo();
    let mut plain = Zone::clone(&west);
    plain.svids.clear();
    plain.delete(Kind::MeshIdentity, &ursa_model::hash::hashed("default", "identity", &[]));
    let plan = plain.plan("backend-1");
    assert!(plan.listeners[INBOUND].chains[0].tls.is_none());
    assert!(plan.routes[INBOUND].routes[0].permissions.is_none());
    assert_eq!(plan.warnings, Vec::<String>::new());

    // The identity is there and cannot have issued yet, because its authority does not exist: still plain, as before it.
    let mut early = Zone::clone(&west);
    early.svids.clear();
    early.delete(Kind::MeshTrust, "trust-west");
    assert!(early.plan("backend-1").listeners[INBOUND].chains[0].tls.is_none());

    // Nor does one that only names identities, for a migration.
    let naming = json!({"selector": {"dataplane": {"matchLabels": {}}}});
    early.put_trust("west");
    early.put(
        Kind::MeshIdentity,
        &ursa_model::hash::hashed("default", "identity", &[]),
        label_map([]),
        naming,
    );
    assert!(early.plan("backend-1").listeners[INBOUND].chains[0].tls.is_none());

    // The authority is there and the certificate is not: nothing is let in.
    west.svids.clear();
    let plan = west.plan("backend-1");
    assert_eq!(names(&plan.listeners), Vec::<&str>::new());
    assert!(plan.warnings[0].contains("its inbounds are closed"), "{:?}", plan.warnings);

    // A certificate without anybody to trust is no use either.
    west.issue("backend-1", "backend");
    for zone in ["east", "west"] {
        west.delete(Kind::MeshTrust, &format!("trust-{zone}"));
    }
    let plan = west.plan("backend-1");
    assert_eq!((names(&plan.listeners), names(&plan.secrets)), (vec![], vec![]));
}

#[test]
fn an_authority_that_is_no_certificate_is_left_out_alone() {
    let (_, mut west) = demo();
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    west.put(
        Kind::MeshTrust,
        "bad",
        label_map([]),
        json!({"trustDomain": "bad.test", "caBundles": [{"type": "Pem", "pem": {"value": rubbish}}]}),
    );
    let plan = west.plan("backend-1");
    let plan::Secret::Trust { domains } = &plan.secrets[TRUST] else {
        panic!("no bundle")
    };
    assert_eq!(names(domains), [trust_domain("east"), trust_domain("west")]);
    assert!(west.problems[0].contains("bad.test"), "{:?}", west.problems);
}

#[test]
fn only_ready_inbounds_of_the_right_port_are_endpoints() {
    let mut zone = Zone::new("east");
    let inbounds = |state: &str| json!([{"port": 80, "name": "web", "protocol": "http", "state": state}, {"port": 81, "name": "other"}]);
    for (name, address, state) in [
        ("b", "10.0.0.2", "Ready"),
        ("a", "10.0.0.10", "Ready"),
        ("c", "10.0.0.3", "NotReady"),
        ("d", "10.0.0.4", "Ignored"),
    ] {
        zone.put_dataplane(name, "web", json!({"address": address, "inbound": inbounds(state)}));
    }
    zone.put_dataplane("named", "web", json!({"address": "host.test", "inbound": inbounds("Ready")}));
    zone.put_dataplane("other", "other", json!({"address": "10.0.0.9", "inbound": inbounds("Ready")}));
    zone.put_service(
        "web",
        "east",
        json!([{"port": 8000, "targetPort": "web", "appProtocol": "http"}]),
        &[],
        false,
    );
    let reference = json!({"kind": "MeshService", "name": "web", "port": 8000});
    zone.put_dataplane(
        "caller",
        "caller",
        json!({"address": "10.0.0.1", "inbound": [{"port": 9}], "outbound": [{"port": 7000, "backendRef": reference}]}),
    );
    let plan = zone.plan("caller");
    let name = "kri_msvc_default_east__web_8000";
    let sockets: Vec<String> = plan.endpoints[name]
        .groups
        .iter()
        .flat_map(|g| &g.endpoints)
        .map(|e| e.socket.to_string())
        .collect();
    assert_eq!(sockets, ["10.0.0.2:80", "10.0.0.10:80"], "by address as a number");
    assert_eq!(
        plan.listeners[name].socket.to_string(),
        "127.0.0.1:7000",
        "the default address of an outbound"
    );
    assert!(plan.warnings[0].contains("host.test"), "{:?}", plan.warnings);
}

#[test]
fn listeners_never_share_a_socket() {
    let (mut east, _) = demo();
    let to = |zone: &str| json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: zone}, "port": 8080});
    east.put_dataplane(
        "frontend-1",
        "frontend",
        json!({
            "address": "127.0.1.10",
            "inbound": [{"port": 8080, "servicePort": 18080, "name": "http", "protocol": "http"}],
            "outbound": [
                {"address": "127.0.1.10", "port": 20001, "backendRef": to("west")},
                {"address": "127.0.1.10", "port": 20002, "backendRef": to("west")},
                {"address": "127.0.1.10", "port": 20001, "backendRef": to("east")},
                {"address": "127.0.1.10", "port": 8080, "backendRef": to("east")},
                {"address": "127.0.1.10", "port": 20003, "backendRef": to("nowhere")},
            ]
        }),
    );
    let plan = east.plan("frontend-1");
    let second = format!("{BACKEND_WEST}@127.0.1.10:20002");
    assert_eq!(names(&plan.listeners), [BACKEND_WEST, &second, INBOUND]);
    assert_eq!(plan.listeners[BACKEND_WEST].socket.to_string(), "127.0.1.10:20001");
    assert_eq!(plan.listeners[&second].chains, plan.listeners[BACKEND_WEST].chains);
    assert_eq!(plan.warnings.len(), 3, "{:?}", plan.warnings);
    assert_eq!(
        plan.clusters[INBOUND].members,
        Members::Static(plan::Socket {
            ip: "127.0.0.1".parse().unwrap(),
            port: 18080
        })
    );
}

#[test]
fn tcp_is_guarded_in_the_listener() {
    let (_, mut west) = demo();
    west.put_dataplane(
        "db-1",
        "db",
        json!({"address": "127.0.2.30", "inbound": [{"port": 5432, "servicePort": 15432, "name": "sql"}]}),
    );
    west.issue("db-1", "db");
    let plan = west.plan("db-1");
    let Handler::Tcp(tcp) = &plan.listeners["self_inbound_dp_sql"].chains[0].handler else {
        panic!("not TCP")
    };
    assert!(tcp.permissions.as_ref().is_some_and(|p| p.allow.is_empty()));
    assert_eq!(tcp.idle_timeout, Some(Duration::from_secs(7200)));
    assert_eq!(names(&plan.routes), Vec::<&str>::new());

    west.put_policy(
        Kind::MeshTrafficPermission,
        "by-sni",
        json!({"rules": [{"default": {"allow": [{"sni": {"type": "Exact", "value": "sni.msvc.default.west.db.sql"}}]}}]}),
    );
    assert!(
        west.plan("db-1").listeners["self_inbound_dp_sql"].tls_inspector,
        "an SNI has to be read to be compared"
    );
}

#[test]
fn callers_may_have_timeouts_of_their_own() {
    let (_, mut west) = demo();
    west.put_policy(
        Kind::MeshTimeout,
        "for-frontend",
        json!({"targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "backend"}}, "rules": [{
            "matches": [{"spiffeID": {"type": "Exact", "value": spiffe_id("east", "frontend")}}],
            "default": {"http": {"requestTimeout": "3s"}}}]}),
    );
    let plan = west.plan("backend-1");
    let routes = &plan.routes[INBOUND].routes;
    assert_eq!(routes.len(), 2);
    assert_eq!(
        routes[0].matcher.caller.as_ref().unwrap().spiffe_id.as_ref().unwrap().value,
        spiffe_id("east", "frontend")
    );
    assert_eq!(
        (forward(&routes[0]).timeout, forward(&routes[0]).idle_timeout),
        (Some(Duration::from_secs(3)), Some(Duration::from_secs(3600)))
    );
    assert_eq!(
        (routes[1].matcher.caller.as_ref(), forward(&routes[1]).timeout),
        (None, Some(Duration::ZERO))
    );
    assert!(routes.iter().all(|r| r.permissions.is_some()), "every route is guarded");
}

#[test]
fn keys_are_not_shown_and_certificates_change_only_their_secret() {
    let (_, mut west) = demo();
    let encoder = Encoder::default();
    let before = west.snapshot("backend-1", &encoder);
    let key = west.svids[&ProxyId::new("default", "backend-1")].key_pem.clone();
    let plan: Plan = west.plan("backend-1");
    let shown = format!("{plan:?}{}", serde_json::to_string(&plan).unwrap());
    assert!(!shown.contains("PRIVATE KEY") && !shown.contains(key.lines().nth(1).unwrap()));
    assert!(!format!("{encoder:?}{before:?}").contains("PRIVATE KEY"));

    west.issue("backend-1", "backend");
    assert_eq!(
        changed(&before, &west.snapshot("backend-1", &encoder)),
        [(XdsType::Secret, IDENTITY.to_owned())]
    );
}

#[test]
fn equal_worlds_give_equal_versions_and_share_bytes() {
    let (mut east_a, _) = demo();
    let mut east_b = Zone::clone(&east_a);
    let encoder = Encoder::default();
    let a = east_a.snapshot("frontend-1", &encoder);
    let b = east_b.snapshot("frontend-1", &Encoder::default());
    assert_eq!(versions(&a), versions(&b), "the cache does not matter");
    let again = east_b.snapshot("frontend-1", &encoder);
    for (name, resource) in a.of(XdsType::Cluster) {
        assert_eq!(
            resource.bytes.as_ptr(),
            again.of(XdsType::Cluster)[name].bytes.as_ptr(),
            "{name} is encoded once"
        );
    }
    assert!(a.resources.values().flatten().all(|(_, r)| r.version.len() == 16));
    let world = east_a.world();
    assert!(build(&world, &ProxyId::new("default", "nobody"), &encoder).is_none());
    assert!(build(&world, &ProxyId::new("other", "frontend-1"), &encoder).is_none());
    assert_eq!(a.zone_revision, world.zone_revision);
}
