//! The built configuration in real Envoys, with real traffic: frontend in east -> west's zone ingress -> backend in west, and the
//! backend in east beside it. Needs `ENVOY_BIN`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "build_support/ads.rs"]
mod ads;
#[path = "build_support/envoy.rs"]
mod envoy;
#[path = "build_support/mod.rs"]
mod support;

use std::{collections::BTreeMap, time::Duration};

use ads::Ads;
use axum::{Json, Router, http::HeaderMap};
use envoy::{Connection, Envoy, binary, free_addresses, free_port, get, wait_answer};
use serde_json::{Value, json};
use support::{Addresses, Zone, east, spiffe_id, west};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use ursa_model::{Kind, labels};
use ursa_zone_cp::build::Encoder;

/// How long the application takes for `/slow`.
const SLOW: Duration = Duration::from_millis(1500);

/// An application that answers with its name and the headers it got.
async fn echo(instance: &'static str, address: String) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let answer = move |uri: axum::http::Uri, headers: HeaderMap| async move {
        if uri.path() == "/slow" {
            tokio::time::sleep(SLOW).await;
        }
        let headers: BTreeMap<String, String> = headers
            .iter()
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        Json(json!({"instance": instance, "path": uri.to_string(), "headers": headers}))
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
}

/// Two zones with an ADS server each.
struct Demo {
    a: Addresses,
    east: Zone,
    west: Zone,
    encoder: Encoder,
    ads_east: Ads,
    ads_west: Ads,
}

impl Demo {
    fn push(&mut self) {
        for proxy in ["frontend-1", "backend-1"] {
            self.ads_east
                .serve(&format!("default.{proxy}"), self.east.snapshot(proxy, &self.encoder));
        }
        for proxy in ["backend-1", "zone-ingress"] {
            self.ads_west
                .serve(&format!("default.{proxy}"), self.west.snapshot(proxy, &self.encoder));
        }
    }

    fn both(&mut self, change: impl Fn(&mut Zone)) {
        change(&mut self.east);
        change(&mut self.west);
        self.push();
    }

    fn route(&mut self, rules: Value) {
        let spec = json!({
            "targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "frontend"}},
            "to": [{"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "west"}}, "rules": rules}]
        });
        self.both(|zone| zone.put_policy(Kind::MeshHTTPRoute, "canary", spec.clone()));
    }

    fn backend(&self, zone: &str, weight: u32) -> Value {
        json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: zone}, "port": self.a.backend_inbound, "weight": weight})
    }
}

fn instance(body: &str) -> String {
    serde_json::from_str::<Value>(body)
        .ok()
        .and_then(|v| v["instance"].as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_between_zones_follows_the_policies() {
    let Some(binary) = binary() else { return };
    let a = free_addresses();
    echo("west", format!("{}:{}", a.backend_west, a.app_port)).await;
    echo("east", format!("{}:{}", a.backend_east, a.app_port)).await;
    let mut demo = Demo {
        east: east(&a),
        west: west(&a),
        encoder: Encoder::default(),
        ads_east: Ads::start().await,
        ads_west: Ads::start().await,
        a: a.clone(),
    };
    demo.push();
    let frontend = Envoy::start(&binary, "default.frontend-1", demo.ads_east.address);
    let backend_east = Envoy::start(&binary, "default.backend-1", demo.ads_east.address);
    let backend_west = Envoy::start(&binary, "default.backend-1", demo.ads_west.address);
    let ingress = Envoy::start(&binary, "default.zone-ingress", demo.ads_west.address);
    let outbound = format!("{}:{}", a.frontend, a.frontend_outbound);

    // Nobody is let in without a permission: the destination's Envoy says so, so the whole way works.
    let denied = wait_answer("denied by default", &outbound, "/", &[], |r| r.status == 403).await;
    assert_eq!(denied.body, "RBAC: access denied");

    // A permission takes effect on the connection that was denied, which stays open.
    let mut kept = Connection::new(TcpStream::connect(&outbound).await.unwrap());
    assert_eq!(kept.get("/", &[]).await.unwrap().status, 403);
    demo.both(Zone::allow_frontend);
    wait_answer("allowed", &outbound, "/", &[], |r| r.status == 200).await;
    let answer = kept
        .get(
            "/some/path?q=1",
            &[("x-forwarded-client-cert", "URI=spiffe://forged/workload/admin")],
        )
        .await
        .unwrap();
    assert_eq!((answer.status, instance(&answer.body).as_str()), (200, "west"), "{answer:?}");
    let seen: Value = serde_json::from_str(&answer.body).unwrap();
    let caller = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    assert!(caller.ends_with(&format!("URI={}", spiffe_id("east", "frontend"))), "{caller}");
    assert!(!caller.contains("forged"), "{caller}");
    assert_eq!(seen["path"], "/some/path?q=1");

    // Mutual TLS 1.3 end to end, and the ingress only passes bytes on.
    assert!(backend_west.stat("ssl.versions.TLSv1.3").await > 0);
    assert_eq!(backend_west.stat("ssl.versions.TLSv1.2").await, 0);
    let listeners = ingress.admin("/config_dump?resource=dynamic_listeners").await;
    assert!(
        listeners.contains("self_zoneingress_dp_ingress") && !listeners.contains("transport_socket"),
        "{listeners}"
    );
    // A caller without a certificate gets nowhere.
    assert!(get(&format!("{}:{}", a.backend_west, a.backend_inbound), "/", &[]).await.is_err());

    // A canary by header, then everything to east, then a split; headers change on the way.
    let by_header = json!([
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"type": "Exact", "name": "x-canary", "value": "yes"}]}],
         "default": {"backendRefs": [demo.backend("east", 1)]}},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
         "default": {"backendRefs": [demo.backend("west", 1)], "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-added", "value": "100%"}]}}]}}
    ]);
    demo.route(by_header);
    wait_answer("canary by header", &outbound, "/", &[("x-canary", "yes")], |r| {
        r.status == 200 && instance(&r.body) == "east"
    })
    .await;
    let plain = get(&outbound, "/", &[]).await.unwrap();
    let seen: Value = serde_json::from_str(&plain.body).unwrap();
    assert_eq!(
        (instance(&plain.body).as_str(), seen["headers"]["x-added"].as_str()),
        ("west", Some("100%"))
    );

    let split = |demo: &Demo, west: u32, east: u32| {
        json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "default": {"backendRefs": [demo.backend("west", west), demo.backend("east", east)]}}])
    };
    let rules = split(&demo, 0, 100);
    demo.route(rules);
    wait_answer("all to east", &outbound, "/", &[], |r| instance(&r.body) == "east").await;
    for _ in 0..20 {
        assert_eq!(instance(&kept.get("/", &[]).await.unwrap().body), "east");
    }
    let rules = split(&demo, 50, 50);
    demo.route(rules);
    wait_answer("split", &outbound, "/", &[], |r| instance(&r.body) == "west").await;
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..200 {
        let answer = kept.get("/", &[]).await.unwrap();
        assert_eq!(answer.status, 200);
        *counts.entry(instance(&answer.body)).or_default() += 1;
    }
    assert!(counts.values().all(|n| (50..=150).contains(n)) && counts.len() == 2, "{counts:?}");

    // The permission is taken back, on the same connection.
    demo.both(|zone| {
        zone.delete_policy(Kind::MeshTrafficPermission, "allow-frontend");
        zone.delete_policy(Kind::MeshHTTPRoute, "canary");
    });
    wait_answer("denied again", &outbound, "/", &[], |r| r.status == 403).await;
    assert_eq!(kept.get("/", &[]).await.unwrap().status, 403);

    assert_eq!(*demo.ads_east.refusals.lock(), Vec::<String>::new());
    assert_eq!(*demo.ads_west.refusals.lock(), Vec::<String>::new());
    for envoy in [frontend, backend_east, backend_west, ingress] {
        assert_eq!(envoy.complaints().await, Vec::<String>::new());
    }
}

/// One zone: frontend and backend, which speaks HTTP, and TCP at a second port.
struct OneZone {
    a: Addresses,
    zone: Zone,
    encoder: Encoder,
    ads: Ads,
    frontend: Envoy,
    backend: Envoy,
    /// Outbounds of the frontend.
    http: String,
    tcp: String,
}

impl OneZone {
    async fn start(binary: &std::path::Path) -> Self {
        let a = free_addresses();
        echo("east", format!("{}:{}", a.backend_east, a.app_port)).await;
        let mut taken = vec![a.backend_inbound, a.app_port, a.frontend_inbound, a.frontend_outbound];
        let mut free = |host: &str| {
            taken.push(free_port(host, &taken));
            taken[taken.len() - 1]
        };
        let (sql, sql_app, sql_outbound) = (free(&a.backend_east), free(&a.backend_east), free(&a.frontend));
        shout(format!("{}:{sql_app}", a.backend_east)).await;
        let mut zone = east(&a);
        let address = &a.backend_east;
        zone.put_dataplane(
            "backend-1",
            "backend",
            json!({"address": address, "inbound": [
                {"port": a.backend_inbound, "servicePort": a.app_port, "serviceAddress": address, "name": "http", "protocol": "http"},
                {"port": sql, "servicePort": sql_app, "serviceAddress": address, "name": "sql"}]}),
        );
        let ports = json!([
            {"name": "http", "port": a.backend_inbound, "targetPort": a.backend_inbound, "appProtocol": "http"},
            {"name": "sql", "port": sql, "targetPort": sql}]);
        zone.put_service("backend", "east", ports, &[spiffe_id("east", "backend")], true);
        let to =
            |port: u16| json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "east"}, "port": port});
        zone.put_dataplane(
            "frontend-1",
            "frontend",
            json!({"address": a.frontend,
                "inbound": [{"port": a.frontend_inbound, "servicePort": a.app_port, "serviceAddress": a.frontend, "name": "http", "protocol": "http"}],
                "outbound": [
                    {"address": a.frontend, "port": a.frontend_outbound, "backendRef": to(a.backend_inbound)},
                    {"address": a.frontend, "port": sql_outbound, "backendRef": to(sql)}]}),
        );
        let ads = Ads::start().await;
        let (frontend, backend) = (
            Envoy::start(binary, "default.frontend-1", ads.address),
            Envoy::start(binary, "default.backend-1", ads.address),
        );
        let (http, tcp) = (
            format!("{}:{}", a.frontend, a.frontend_outbound),
            format!("{}:{sql_outbound}", a.frontend),
        );
        let mut out = Self {
            a,
            zone,
            encoder: Encoder::default(),
            ads,
            frontend,
            backend,
            http,
            tcp,
        };
        out.push().await;
        out
    }

    /// Serves what the zone says now and waits until both proxies have taken it.
    async fn push(&mut self) {
        for proxy in ["frontend-1", "backend-1"] {
            let snapshot = self.zone.snapshot(proxy, &self.encoder);
            assert_eq!(snapshot.warnings, Vec::<String>::new());
            self.ads.serve(&format!("default.{proxy}"), snapshot);
        }
        for proxy in ["frontend-1", "backend-1"] {
            assert_eq!(self.ads.settled(&format!("default.{proxy}")).await, Vec::<String>::new());
        }
    }

    async fn route(&mut self, rules: Value) {
        let to = json!([{"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "east"}}, "rules": rules}]);
        self.zone.put_policy(Kind::MeshHTTPRoute, "route", json!({"to": to}));
        self.push().await;
    }

    /// What a TCP connection to the second port answers; empty when it is closed.
    async fn say(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(&self.tcp).await.unwrap();
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = vec![0; text.len()];
        match stream.read_exact(&mut answer).await {
            Ok(_) => String::from_utf8(answer).unwrap(),
            Err(_) => String::new(),
        }
    }
}

/// A TCP application that answers in capitals.
async fn shout(address: String) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 256];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let _ = stream.write_all(&buffer[..n].to_ascii_uppercase()).await;
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_rewrite_redirect_and_fail_as_they_say() {
    let Some(binary) = binary() else { return };
    let mut it = OneZone::start(&binary).await;
    it.zone.allow_frontend();
    let path = |kind: &str, value: &str| json!([{"path": {"type": kind, "value": value}}]);
    let nowhere = json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "nowhere"}, "port": 1});
    it.route(json!([
        {"matches": path("PathPrefix", "/api"), "default": {"filters": [
            {"type": "URLRewrite", "urlRewrite": {"hostname": "b.test", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2"}}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-answer", "value": "50%"}]}}]}},
        {"matches": path("PathPrefix", "/strip"), "default": {"filters": [
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}]}},
        {"matches": path("RegularExpression", "/r/[0-9]+"), "default": {"filters": [
            {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/fixed\\1"}}}]}},
        {"matches": path("Exact", "/old"), "default": {"filters": [{"type": "RequestRedirect", "requestRedirect":
            {"scheme": "https", "hostname": "new.test", "port": 8443, "statusCode": 308, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}}}]}},
        {"matches": path("PathPrefix", "/moved"), "default": {"filters": [{"type": "RequestRedirect", "requestRedirect":
            {"statusCode": 302, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/here"}}}]}},
        {"matches": path("PathPrefix", "/broken"), "default": {"backendRefs": [nowhere]}}
    ]))
    .await;
    let seen = async |path: &str| -> (String, String) {
        let answer = get(&it.http, path, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        (
            body["path"].as_str().unwrap().to_owned(),
            body["headers"]["host"].as_str().unwrap().to_owned(),
        )
    };
    wait_answer("the first route", &it.http, "/api", &[], |r| r.status == 200).await;
    for (asked, path, host) in [
        ("/api", "/v2", "b.test"),
        ("/api/", "/v2/", "b.test"),
        ("/api/x?q=1", "/v2/x?q=1", "b.test"),
        ("/apix", "/apix", "test"),
        ("/strip", "/", "test"),
        ("/strip/x/y", "/x/y", "test"),
        ("/r/12?q=1", "/fixed\\1?q=1", "test"),
    ] {
        assert_eq!(seen(asked).await, (path.to_owned(), host.to_owned()), "{asked}");
    }
    let header = |answer: &envoy::Answer, name: &str| answer.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let answer = get(&it.http, "/api", &[]).await.unwrap();
    assert_eq!(header(&answer, "x-answer").as_deref(), Some("50%"));
    for (asked, status, location) in [
        ("/old", 308, "https://new.test:8443/new"),
        ("/moved", 302, "http://test/here"),
        ("/moved/x", 302, "http://test/here/x"),
    ] {
        let answer = get(&it.http, asked, &[]).await.unwrap();
        assert_eq!(
            (answer.status, header(&answer, "location").as_deref()),
            (status, Some(location)),
            "{asked}"
        );
    }
    assert_eq!(get(&it.http, "/broken/x", &[]).await.unwrap().status, 500);
    assert_eq!(it.frontend.complaints().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_told_apart_on_open_connections() {
    let Some(binary) = binary() else { return };
    let mut it = OneZone::start(&binary).await;
    it.zone.allow_frontend();
    // No retries, so that a timeout is seen as one.
    it.zone.put_policy(
        Kind::MeshRetry,
        "none",
        json!({"targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "frontend"}},
            "to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"numRetries": 0}}}]}),
    );
    it.push().await;
    wait_answer("allowed", &it.http, "/", &[], |r| r.status == 200).await;
    let mut kept = Connection::new(TcpStream::connect(&it.http).await.unwrap());
    assert_eq!(kept.get("/slow", &[]).await.unwrap().status, 200);

    let timeout_for = |caller: &str| {
        json!({"targetRef": {"kind": "Dataplane", "labels": {labels::WORKLOAD: "backend"}}, "rules": [{
            "matches": [{"spiffeID": {"type": "Exact", "value": caller}, "sni": {"type": "Exact", "value": "sni.msvc.default.east.backend.http"}}],
            "default": {"http": {"requestTimeout": "200ms"}}}]})
    };
    // The first rule with an SNI has the listener read it: that is the one change that needs a new connection.
    it.zone
        .put_policy(Kind::MeshTimeout, "short", timeout_for(&spiffe_id("east", "somebody-else")));
    it.push().await;
    assert_eq!(kept.get("/slow", &[]).await.unwrap().status, 200);
    it.zone
        .put_policy(Kind::MeshTimeout, "short", timeout_for(&spiffe_id("east", "frontend")));
    it.push().await;
    wait_answer("timed out", &it.http, "/slow", &[], |r| r.status == 504).await;
    it.zone.delete_policy(Kind::MeshTimeout, "short");

    // A deny beats every allow; by prefix and at once.
    it.zone.put_policy(
        Kind::MeshTrafficPermission,
        "no-workloads",
        json!({"rules": [{"default": {"deny": [{"spiffeID": {"type": "Prefix", "value": "spiffe://default.east.mesh.local/workload"}}]}}]}),
    );
    it.push().await;
    wait_answer("denied", &it.http, "/", &[], |r| r.status == 403).await;
    assert_eq!(it.backend.complaints().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_goes_through_for_who_is_permitted() {
    let Some(binary) = binary() else { return };
    let mut it = OneZone::start(&binary).await;
    wait_answer("HTTP is denied, so all is up", &it.http, "/", &[], |r| r.status == 403).await;
    assert_eq!(it.say("hello").await, "");
    it.zone.allow_frontend();
    it.push().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while it.say("hello").await != "HELLO" {
        assert!(tokio::time::Instant::now() < deadline, "no answer over TCP");
    }
    assert!(it.backend.stat("ssl.versions.TLSv1.3").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_identity_everything_is_plain() {
    let Some(binary) = binary() else { return };
    let mut it = OneZone::start(&binary).await;
    it.zone.svids.clear();
    it.zone
        .delete(Kind::MeshIdentity, &ursa_model::hash::hashed("default", "identity", &[]));
    let ports = json!([{"name": "http", "port": it.a.backend_inbound, "targetPort": it.a.backend_inbound, "appProtocol": "http"}]);
    it.zone.delete(Kind::MeshService, "backend");
    it.zone.put_service("backend", "east", ports, &[], false);
    for proxy in ["frontend-1", "backend-1"] {
        it.ads.serve(&format!("default.{proxy}"), it.zone.snapshot(proxy, &it.encoder));
        assert_eq!(it.ads.settled(&format!("default.{proxy}")).await, Vec::<String>::new());
    }
    let answer = wait_answer("plain", &it.http, "/", &[], |r| r.status == 200).await;
    assert_eq!(instance(&answer.body), "east");
    assert!(!answer.body.contains("x-forwarded-client-cert"), "{}", answer.body);
    let direct = get(
        &format!("{}:{}", it.a.backend_east, it.a.backend_inbound),
        "/",
        &[("x-kuma-tags", "forged")],
    )
    .await
    .unwrap();
    assert!(direct.status == 200 && !direct.body.contains("forged"), "{direct:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_is_accepted() {
    let Some(binary) = binary() else { return };
    let mut it = OneZone::start(&binary).await;
    it.zone.allow_frontend();
    let mesh = json!({"kind": "Mesh"});
    let http = json!({
        "numRetries": 2, "perTryTimeout": "1s", "backOff": {"baseInterval": "1ms", "maxInterval": "1s"},
        "rateLimitedBackOff": {"resetHeaders": [{"name": "retry-after", "format": "Seconds"}, {"name": "x-at", "format": "UnixTimestamp"}], "maxInterval": "10s"},
        "retryOn": ["5xx", "GatewayError", "Reset", "Retriable4xx", "ConnectFailure", "EnvoyRatelimited", "RefusedStream", "Http3PostConnectFailure", "HttpMethodGet", "503"],
        "retriableResponseHeaders": [{"type": "Exact", "name": "x-retry", "value": "yes"}, {"type": "Prefix", "name": "x-p"}],
        "retriableRequestHeaders": [{"type": "RegularExpression", "name": "x-q", "value": "a.*"}, {"type": "Absent", "name": "x-r"}],
        "hostSelection": [{"predicate": "OmitPreviousHosts"}, {"predicate": "OmitHostsWithTags", "tags": {"a": "b"}}, {"predicate": "OmitPreviousPriorities", "updateFrequency": 3}],
        "hostSelectionMaxAttempts": 3});
    it.zone.put_policy(
        Kind::MeshRetry,
        "all",
        json!({"to": [{"targetRef": mesh, "default": {"tcp": {"maxConnectAttempt": 3}, "http": http}}]}),
    );
    let breaker = json!({
        "connectionLimits": {"maxConnections": 10, "maxConnectionPools": 11, "maxPendingRequests": 12, "maxRetries": 13, "maxRequests": 14},
        "outlierDetection": {"interval": "1s", "baseEjectionTime": "2s", "maxEjectionPercent": 50, "splitExternalAndLocalErrors": true,
            "healthyPanicThreshold": "12.5", "detectors": {"totalFailures": {"consecutive": 5}, "gatewayFailures": {"consecutive": 5},
                "localOriginFailures": {"consecutive": 5}, "successRate": {"minimumHosts": 5, "requestVolume": 10, "standardDeviationFactor": "1.9"},
                "failurePercentage": {"minimumHosts": 5, "requestVolume": 10, "threshold": 85}}}});
    it.zone.put_policy(
        Kind::MeshCircuitBreaker,
        "all",
        json!({"to": [{"targetRef": mesh, "default": breaker}], "rules": [{"default": breaker}]}),
    );
    let timeouts = json!({"connectionTimeout": "1s", "idleTimeout": "2s", "http": {"requestTimeout": "3s", "streamIdleTimeout": "4s",
        "maxStreamDuration": "5s", "maxConnectionDuration": "6s", "requestHeadersTimeout": "7s"}});
    it.zone
        .put_policy(Kind::MeshTimeout, "to", json!({"to": [{"targetRef": mesh, "default": timeouts}]}));
    it.zone
        .put_policy(Kind::MeshTimeout, "rules", json!({"rules": [{"default": timeouts}]}));
    let caller = |id: &str| json!({"spiffeID": {"type": "Prefix", "value": id}, "sni": {"type": "Exact", "value": "sni.a"}});
    it.zone.put_policy(
        Kind::MeshTrafficPermission,
        "all",
        json!({"rules": [{"default": {"deny": [caller("spiffe://a"), caller("spiffe://b")], "allowWithShadowDeny": [caller("spiffe://c")], "allow": [caller("spiffe://d")]}}]}),
    );
    let backend =
        json!({"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend", labels::ZONE: "east"}, "port": it.a.backend_inbound});
    it.route(json!([{
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}, "method": "GET",
            "headers": [{"type": "Exact", "name": "a", "value": "1"}, {"type": "Present", "name": "b"}, {"type": "Absent", "name": "c"},
                {"type": "Prefix", "name": "d", "value": "x"}, {"type": "Prefix", "name": "e"}, {"type": "RegularExpression", "name": "f", "value": "x+"}],
            "queryParams": [{"type": "Exact", "name": "q", "value": "1"}, {"type": "RegularExpression", "name": "r", "value": "1+"}]}],
        "default": {"backendRefs": [backend], "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "s", "value": ""}], "add": [{"name": "t", "value": "%START_TIME%"}], "remove": ["u"]}},
            {"type": "RequestMirror", "requestMirror": {"percentage": "0.5", "backendRef": backend}}]}
    }]))
    .await;
    // Protocols of an application beside HTTP/1.1, and an identity's certificate renewed under way.
    for protocol in ["http2", "grpc", "tcp"] {
        let address = it.a.backend_east.clone();
        let inbound = json!({"port": it.a.backend_inbound, "servicePort": it.a.app_port, "serviceAddress": address, "name": "http", "protocol": protocol});
        it.zone
            .put_dataplane("backend-1", "backend", json!({"address": address, "inbound": [inbound]}));
        let ports = json!([{"name": "http", "port": it.a.backend_inbound, "targetPort": it.a.backend_inbound, "appProtocol": protocol}]);
        it.zone.put_service("backend", "east", ports, &[spiffe_id("east", "backend")], true);
        it.zone.issue("backend-1", "backend");
        for proxy in ["frontend-1", "backend-1"] {
            it.ads.serve(&format!("default.{proxy}"), it.zone.snapshot(proxy, &it.encoder));
            assert_eq!(
                it.ads.settled(&format!("default.{proxy}")).await,
                Vec::<String>::new(),
                "{protocol}"
            );
        }
    }
    for envoy in [it.frontend, it.backend] {
        assert_eq!(envoy.complaints().await, Vec::<String>::new());
    }
}
