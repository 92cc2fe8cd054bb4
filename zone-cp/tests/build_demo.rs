//! The demo's proxies: names, SNIs and priorities as in demo.md, their routes, and what changes with what.

#![allow(clippy::unwrap_used)]

#[path = "build_support/demo.rs"]
mod demo;
#[path = "build_support/mod.rs"]
mod support;

use std::time::Duration;

use demo::*;
use serde_json::json;
use support::{labels as label_map, spiffe_id, trust_domain};
use ursa_model::{Kind, labels};
use ursa_zone_cp::{
    build::{
        Encoder,
        plan::{
            self, Target,
            cluster::{HttpVersion, Members},
            listener::Handler,
            route::{Action, PathMatch, PathRewrite, Redirect, RedirectPath},
        },
    },
    snapshot::XdsType,
};

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
    assert_eq!(
        chain.server_names,
        ["sni.msvc.default.west.backend.http", "sni.msvc.default.west.backend.8080"]
    );
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

/// A Kuma 2.14.3 proxy whose explicit outbound says port 8080 asks for that, whatever the port's name.
#[test]
fn a_port_is_also_known_by_its_number_unless_another_is_named_so() {
    let (_, mut west) = demo();
    let ports = json!([{"name": "http", "port": 8080}, {"name": "8080", "port": 9090}, {"port": 7070},
        {"name": "again", "port": 9090, "appProtocol": "http"}]);
    west.put_service("backend", "west", ports, &[], true);
    let plan = west.plan("zone-ingress");
    let listener = &plan.listeners["self_zoneingress_dp_ingress"];
    let of = |section: &str| {
        let prefix = "sni.msvc.default.west.backend.";
        let chain = listener
            .chains
            .iter()
            .find(|c| c.server_names[0] == format!("{prefix}{section}"))
            .unwrap();
        chain.server_names[1..]
            .iter()
            .map(|n| n.trim_start_matches(prefix))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("http"), Vec::<&str>::new(), "8080 is the other port's name");
    assert_eq!(of("8080"), ["9090"], "the first of two with one number");
    assert_eq!(of("7070"), Vec::<&str>::new());
    assert_eq!(of("again"), Vec::<&str>::new());
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
