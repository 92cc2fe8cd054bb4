//! The data-plane server as proxies meet it: who is let in, what garbage gets, what a stream leaves behind.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::time::Duration;

use common::{MESH, TestZone, backend, first_request, put};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tonic::{Code, Streaming};
use ursa_model::{Kind, ResourceKey};
use ursa_pki::token::{self, DataplaneClaims, SigningKey};
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use ursa_state::{Op, View};

/// `dp-1` with one more label.
fn with_label(key: &str, value: &str) -> String {
    backend("dp-1").replace("\"labels\":{", &format!("\"labels\":{{\"{key}\":\"{value}\","))
}

/// One refusal: what, token, request, code, part of the text.
struct Case(&'static str, Option<String>, DeltaDiscoveryRequest, Code, &'static str);

#[tokio::test]
async fn bad_proxies_get_a_typed_refusal_and_change_nothing() {
    let zone = TestZone::start().await;
    let identity = json!({"selector": {"dataplane": {"matchLabels": {}}},
        "provider": {"type": "Bundled", "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}});
    zone.store.put(vec![put(Kind::MeshIdentity, MESH, "identity", &[], identity)]);
    zone.wait("the identity's trust", |v| v.list(Kind::MeshTrust).count() == 1).await;

    let good = || first_request("default.dp-1", Some(&backend("dp-1")));
    let token = || Some(zone.token_for("dp-1", "backend"));
    let claims = |f: fn(&mut DataplaneClaims)| {
        let mut c = DataplaneClaims {
            name: "dp-1".into(),
            mesh: MESH.into(),
            workload: "backend".into(),
            ..DataplaneClaims::default()
        };
        f(&mut c);
        c
    };
    let foreign = SigningKey::generate().unwrap();
    let now = OffsetDateTime::now_utc();
    let issue = |key: &SigningKey, kid: &str, at| token::issue(key, kid, &claims(|_| ()), Duration::from_secs(60), at).unwrap().token;
    let none = {
        let real = zone.token_for("dp-1", "backend");
        let payload = real.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT","kid":"1"}
        format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIiwia2lkIjoiMSJ9.{payload}.")
    };
    let unlabelled = backend("dp-1").replace("kuma.io/workload", "team");
    let cases = [
        Case("no token", None, good(), Code::Unauthenticated, "token is required"),
        Case(
            "an empty token",
            Some(String::new()),
            good(),
            Code::Unauthenticated,
            "token is required",
        ),
        Case("garbage as token", Some("garbage".into()), good(), Code::Unauthenticated, ""),
        Case("alg none", Some(none), good(), Code::Unauthenticated, ""),
        Case(
            "an expired token",
            Some(issue(&zone.key, "1", now - time::Duration::hours(2))),
            good(),
            Code::Unauthenticated,
            "expired",
        ),
        Case("a foreign key", Some(issue(&foreign, "1", now)), good(), Code::Unauthenticated, ""),
        Case(
            "an unknown key id",
            Some(issue(&zone.key, "9", now)),
            good(),
            Code::Unauthenticated,
            "",
        ),
        Case(
            "another mesh's token",
            Some(zone.token(&claims(|c| c.mesh = "other".into()))),
            good(),
            Code::Unauthenticated,
            "mesh",
        ),
        Case(
            "another proxy's token",
            Some(zone.token_for("dp-2", "backend")),
            good(),
            Code::Unauthenticated,
            "name",
        ),
        Case(
            "another workload's token",
            Some(zone.token_for("dp-1", "frontend")),
            good(),
            Code::Unauthenticated,
            "workload",
        ),
        Case(
            "a token without workload",
            Some(zone.token_for("dp-1", "")),
            good(),
            Code::Unauthenticated,
            "--workload backend",
        ),
        Case(
            "no workload label",
            token(),
            first_request("default.dp-1", Some(&unlabelled)),
            Code::Unauthenticated,
            "workload",
        ),
        Case(
            "no node",
            token(),
            DeltaDiscoveryRequest { node: None, ..good() },
            Code::InvalidArgument,
            "node",
        ),
        Case(
            "a node id without mesh",
            token(),
            first_request("dp-1", Some(&backend("dp-1"))),
            Code::InvalidArgument,
            "<mesh>.<name>",
        ),
        Case(
            "another node's Dataplane",
            token(),
            first_request("default.dp-2", Some(&backend("dp-1"))),
            Code::InvalidArgument,
            "dp-2",
        ),
        Case(
            "garbage as Dataplane",
            token(),
            first_request("default.dp-1", Some("{]")),
            Code::InvalidArgument,
            "JSON or YAML",
        ),
        Case(
            "another type",
            token(),
            first_request("default.dp-1", Some("{\"type\":\"Mesh\"}")),
            Code::InvalidArgument,
            "Mesh",
        ),
        Case(
            "an invalid Dataplane",
            token(),
            first_request("default.dp-1", Some(&backend("dp-1").replace("8080", "80808"))),
            Code::InvalidArgument,
            "port",
        ),
        Case(
            "another zone's label",
            token(),
            first_request("default.dp-1", Some(&with_label("kuma.io/zone", "east"))),
            Code::InvalidArgument,
            "should have west",
        ),
        Case(
            "another mesh's label",
            token(),
            first_request("default.dp-1", Some(&with_label("kuma.io/mesh", "other"))),
            Code::InvalidArgument,
            "should have default",
        ),
        Case(
            "a service account that no Kubernetes vouches for",
            token(),
            first_request("default.dp-1", Some(&with_label("k8s.kuma.io/service-account", "admin"))),
            Code::InvalidArgument,
            "k8s.kuma.io",
        ),
        Case(
            "another environment's label",
            token(),
            first_request("default.dp-1", Some(&with_label("kuma.io/env", "kubernetes"))),
            Code::InvalidArgument,
            "should have universal",
        ),
        Case(
            "an unknown Dataplane",
            token(),
            first_request("default.nobody", None),
            Code::NotFound,
            "nobody",
        ),
        Case(
            "an unknown mesh",
            token(),
            first_request("other.dp-1", Some(&backend("dp-1").replace("\"default\"", "\"other\""))),
            Code::NotFound,
            "other",
        ),
    ];
    let before = zone.store.view().revision();
    for Case(what, token, request, code, part) in cases {
        let (_keep, mut responses) = zone.stream(token.as_deref(), request).await;
        let status = tokio::time::timeout(Duration::from_secs(10), responses.message())
            .await
            .expect(what)
            .expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(part), "{what}: {status}");
    }
    assert_eq!(zone.store.view().revision(), before, "a refusal left something behind");

    let (_keep, mut responses) = zone.stream(token().as_deref(), good()).await;
    let first = tokio::time::timeout(Duration::from_secs(10), responses.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(first.type_url.ends_with("v3.Cluster") && !first.nonce.is_empty());
    assert_eq!(zone.tasks.panics(), 0);
}

#[tokio::test]
async fn a_proxy_registers_its_dataplane_and_shows_as_online() {
    let zone = TestZone::start().await;
    let (_keep, mut responses) = zone
        .stream(
            Some(&zone.token_for("dp-1", "backend")),
            first_request("default.dp-1", Some(&backend("dp-1"))),
        )
        .await;
    responses.message().await.unwrap().unwrap();
    zone.wait("the service of its workload", |v| {
        v.list(Kind::MeshService).any(|s| s.name() == "backend")
    })
    .await;
    let view = zone.store.view();
    let dataplane = view.list(Kind::Dataplane).next().unwrap();
    assert_eq!(
        (dataplane.label("kuma.io/zone"), dataplane.label("kuma.io/origin")),
        (Some("west"), Some("zone"))
    );
    let insight = zone.observed.view().list(Kind::DataplaneInsight).next().unwrap().clone();
    assert!(insight.spec["subscriptions"][0]["disconnectTime"].is_null(), "{}", insight.spec);
}

#[tokio::test]
async fn a_newer_stream_of_a_proxy_takes_over() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let (_one, mut older) = zone
        .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
        .await;
    older.message().await.unwrap().unwrap();
    let (_two, mut newer) = zone
        .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
        .await;
    newer.message().await.unwrap().unwrap();
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(10), older.message())
            .await
            .expect("the older stream ends")
        {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the older stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_token_without_name_takes_no_other_proxys_place() {
    let zone = TestZone::start().await;
    let (_keep, mut responses) = zone
        .stream(
            Some(&zone.token_for("dp-1", "backend")),
            first_request("default.dp-1", Some(&backend("dp-1"))),
        )
        .await;
    responses.message().await.unwrap().unwrap();
    let before = zone
        .store
        .view()
        .get(&ResourceKey::new(Kind::Dataplane, MESH, "dp-1").unwrap())
        .unwrap()
        .clone();

    let frontend = backend("dp-1").replace("\"backend\"", "\"frontend\"");
    let (_thief, mut refused) = zone
        .stream(
            Some(&zone.token_for("", "frontend")),
            first_request("default.dp-1", Some(&frontend)),
        )
        .await;
    let status = tokio::time::timeout(Duration::from_secs(10), refused.message())
        .await
        .unwrap()
        .expect_err("let in");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("exists"), "{status}");
    let after = zone.store.view().get(&before.key).unwrap().clone();
    assert_eq!(before, after);
}

/// What a starting control plane knows from its disk: a proxy's Dataplane, its service, the CA. A proxy that comes back must never
/// be told, not even for a moment, to close its inbounds for want of a certificate that is about to be issued.
#[tokio::test]
async fn a_proxy_that_comes_back_is_never_without_a_certificate() {
    let zone = TestZone::start().await;
    let identity = json!({"selector": {"dataplane": {"matchLabels": {}}},
        "provider": {"type": "Bundled", "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}});
    zone.store.put(vec![put(Kind::MeshIdentity, MESH, "identity", &[], identity)]);
    zone.wait("the identity's trust", |v| v.list(Kind::MeshTrust).count() == 1).await;
    let token = zone.token_for("dp-1", "backend");
    for round in 0..20 {
        let (requests, mut responses) = zone
            .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
            .await;
        let first = tokio::time::timeout(Duration::from_secs(10), responses.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let names: Vec<&str> = first.resources.iter().map(|r| r.name.as_str()).collect();
        assert!(
            names.contains(&"self_inbound_dp_http"),
            "round {round}: the first clusters are {names:?}"
        );
        drop((requests, responses));
    }
}

#[tokio::test]
async fn a_dataplane_that_is_deleted_under_its_proxy_comes_back() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let (_keep, mut responses) = zone
        .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
        .await;
    responses.message().await.unwrap().unwrap();
    let key = ResourceKey::new(Kind::Dataplane, MESH, "dp-1").unwrap();
    zone.store.put(vec![Op::delete(key.clone())]);
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(10), responses.message())
            .await
            .expect("the stream ends")
        {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let (_again, mut responses) = zone
        .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
        .await;
    responses.message().await.unwrap().unwrap();
    assert!(zone.store.view().get(&key).is_some());
}

/// The first request of a zone ingress that advertises an address.
fn ingress_request() -> DeltaDiscoveryRequest {
    let dataplane = json!({"type": "Dataplane", "mesh": MESH, "name": "ingress", "labels": {"kuma.io/workload": "zone-ingress"},
        "networking": {"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "port": 10001, "name": "ingress"}]}});
    let mut request = first_request("default.ingress", Some(&dataplane.to_string()));
    let text = |s: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(s.into())),
    };
    let advertised = [("ursa.io/advertised-address", "203.0.113.7"), ("ursa.io/advertised-port", "443")];
    let fields = advertised.into_iter().map(|(k, v)| (k.to_owned(), text(v))).collect();
    let dynamic = prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct { fields })),
    };
    let metadata = request.node.as_mut().unwrap().metadata.as_mut().unwrap();
    metadata.fields.insert("dynamicMetadata".into(), dynamic);
    request
}

#[tokio::test]
async fn only_a_token_of_an_ingress_lets_a_proxy_publish_the_zones_address() {
    let zone = TestZone::start().await;
    let claims = |tags| DataplaneClaims {
        name: "ingress".into(),
        mesh: MESH.into(),
        workload: "zone-ingress".into(),
        tags,
        ..DataplaneClaims::default()
    };
    let plain = zone.token(&claims(Default::default()));
    let (_one, mut responses) = zone.stream(Some(&plain), ingress_request()).await;
    responses.message().await.unwrap().unwrap();
    assert_eq!(zone.store.view().list(Kind::MeshZoneAddress).count(), 0);
    let tags = [("kuma.io/listener-zoneingress".to_owned(), vec!["enabled".to_owned()])];
    let ingress = zone.token(&claims(tags.into_iter().collect()));
    let (requests, mut responses) = zone.stream(Some(&ingress), ingress_request()).await;
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(
        zone.store.view().list(Kind::MeshZoneAddress).count(),
        0,
        "before its Envoy has taken anything"
    );
    requests.send(ack(&first)).await.unwrap();
    zone.wait("the zone's address", |v| {
        v.list(Kind::MeshZoneAddress).any(|a| a.spec["port"] == 443)
    })
    .await;
}

/// The answer of a client that takes everything.
fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// Takes clusters, listeners and routes, as a starting Envoy does.
async fn take_all(requests: &mpsc::Sender<DeltaDiscoveryRequest>, responses: &mut Streaming<DeltaDiscoveryResponse>) {
    let mut taken = Vec::new();
    while !taken.contains(&ROUTES.to_owned()) {
        let response = tokio::time::timeout(Duration::from_secs(10), responses.message())
            .await
            .expect("a response")
            .unwrap()
            .unwrap();
        let subscribe = |url: &str, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: url.into(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        if response.type_url.ends_with("v3.Cluster") && taken.is_empty() {
            requests.send(subscribe(LISTENERS, Vec::new())).await.unwrap();
        }
        if response.type_url == LISTENERS {
            let names = response.resources.iter().map(|r| r.name.clone()).collect();
            requests.send(subscribe(ROUTES, names)).await.unwrap();
        }
        requests.send(ack(&response)).await.unwrap();
        taken.push(response.type_url);
    }
}

fn is_ready(view: &View, name: &str) -> bool {
    let inbounds = view
        .list(Kind::Dataplane)
        .find(|d| d.name() == name)
        .map(|d| d.spec["networking"]["inbound"].clone());
    inbounds.is_some_and(|i| i[0].get("state").is_none() && i[0].get("health").is_none())
}

#[tokio::test]
async fn a_dataplane_is_ready_when_its_envoy_listens_and_not_any_more_when_it_drains() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let first = || first_request("default.dp-1", Some(&backend("dp-1")));
    let (requests, mut responses) = zone.stream(Some(&token), first()).await;
    let available = |v: &View| {
        v.list(Kind::MeshService)
            .find(|s| s.name() == "backend")
            .map(|s| s.spec["state"] == "Available")
    };
    zone.wait("its service", |v| available(v) == Some(false) || available(v) == Some(true))
        .await;
    assert!(!is_ready(&zone.store.view(), "dp-1"), "before its Envoy has its listeners");
    take_all(&requests, &mut responses).await;
    zone.wait("a ready Dataplane", |v| is_ready(v, "dp-1")).await;
    zone.wait("an available service", |v| available(v) == Some(true)).await;

    // A stream that breaks changes nothing: its Envoy says what it holds.
    drop((requests, responses));
    let mut again = first();
    again.initial_resource_versions.insert("self_inbound_dp_http".into(), "1".into());
    let (requests, mut responses) = zone.stream(Some(&token), again.clone()).await;
    responses.message().await.unwrap().unwrap();
    assert!(is_ready(&zone.store.view(), "dp-1"));

    let (status, text) = zone
        .drain(json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": zone.token_for("dp-2", "backend")}))
        .await;
    assert_eq!(status, 401, "{text}");
    let (status, text) = zone.drain(json!({"mesh": MESH, "name": "dp-9", "dataplaneToken": token})).await;
    assert_eq!(status, 404, "{text}");
    let (status, text) = zone
        .drain(json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": token, "instance": "another run"}))
        .await;
    assert_eq!(status, 409, "{text}");
    assert!(is_ready(&zone.store.view(), "dp-1"), "a refused drain changes nothing");
    assert_eq!(zone.drain(json!([])).await.0, 400);
    drop((requests, responses));
}

#[tokio::test]
async fn a_drain_is_answered_when_it_is_applied_and_the_next_run_starts_anew() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let first = |instance: &str| with_instance(first_request("default.dp-1", Some(&backend("dp-1"))), instance);
    let (requests, mut responses) = zone.stream(Some(&token), first("run-1")).await;
    take_all(&requests, &mut responses).await;
    zone.wait("a ready Dataplane", |v| is_ready(v, "dp-1")).await;
    // It takes what it is sent.
    let acks = tokio::spawn(async move {
        while let Ok(Some(response)) = responses.message().await {
            requests.send(ack(&response)).await.unwrap();
        }
    });
    let body = json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": token, "instance": "run-1"});
    let (status, text) = zone.drain(body.clone()).await;
    assert_eq!(status, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (answer["applied"].as_bool(), answer["proxies"].as_u64()),
        (Some(true), Some(1)),
        "{answer}"
    );
    let inbound = zone.store.view().list(Kind::Dataplane).next().unwrap().spec["networking"]["inbound"][0].clone();
    assert_eq!(
        (inbound["state"].as_str(), inbound["health"]["ready"].as_bool()),
        (Some("NotReady"), Some(false))
    );
    let before = zone.store.view().revision();
    assert_eq!(zone.drain(body.clone()).await.0, 200, "asking again changes nothing");
    assert_eq!(zone.store.view().revision(), before);

    acks.abort();
    zone.wait("its end", |v| v.list(Kind::Dataplane).count() == 0).await;
    assert_eq!(zone.drain(body.clone()).await.0, 404);
    let (requests, mut responses) = zone.stream(Some(&token), first("run-2")).await;
    take_all(&requests, &mut responses).await;
    zone.wait("a ready Dataplane", |v| is_ready(v, "dp-1")).await;
    assert_eq!(zone.drain(body).await.0, 409, "an ended run cannot end the next one");
}

#[tokio::test]
async fn two_proxies_of_one_name_do_not_throw_each_other_out_for_ever() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let first = |instance: &str| with_instance(first_request("default.dp-1", Some(&backend("dp-1"))), instance);
    let mut kept = Vec::new();
    for instance in ["a", "b", "a", "b"] {
        let (requests, mut responses) = zone.stream(Some(&token), first(instance)).await;
        responses.message().await.unwrap().unwrap();
        kept.push((requests, responses));
    }
    let before = zone.store.view().revision();
    for _ in 0..5 {
        let (_requests, mut responses) = zone.stream(Some(&token), first("a")).await;
        let refused = responses.message().await.expect_err("it is let in");
        assert_eq!(refused.code(), Code::AlreadyExists);
        for part in ["instance b", "instance a", "default.dp-1", "127.0.0.1:"] {
            assert!(refused.message().contains(part), "{part}: {}", refused.message());
        }
    }
    assert_eq!(zone.store.view().revision(), before, "the one that is refused changes nothing");
    assert_eq!(zone.connections.now().values().next().unwrap().peer.instance.as_deref(), Some("b"));
}

/// An identity that comes after the stream asks for what its token never proved.
#[tokio::test]
async fn a_token_without_workload_never_gets_the_certificate_of_one() {
    let zone = TestZone::start().await;
    let (_one, mut bound) = zone
        .stream(
            Some(&zone.token_for("dp-1", "backend")),
            first_request("default.dp-1", Some(&backend("dp-1"))),
        )
        .await;
    let (_two, mut unbound) = zone
        .stream(
            Some(&zone.token_for("dp-2", "")),
            first_request("default.dp-2", Some(&backend("dp-2"))),
        )
        .await;
    bound.message().await.unwrap().unwrap();
    unbound.message().await.unwrap().unwrap();
    let identity = json!({"selector": {"dataplane": {"matchLabels": {}}},
        "provider": {"type": "Bundled", "bundled": {"insecureAllowSelfSigned": true, "autogenerate": {"enabled": true}}}});
    zone.store.put(vec![put(Kind::MeshIdentity, MESH, "identity", &[], identity)]);
    let mut worlds = zone.worlds.clone();
    let world = tokio::time::timeout(Duration::from_secs(10), worlds.wait_for(|w| !w.svids.is_empty())).await;
    let svids = world.expect("a certificate").unwrap().svids.clone();
    assert_eq!(svids.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default.dp-1"]);
    let service = zone.store.view().list(Kind::MeshService).next().unwrap().clone();
    assert_eq!(
        service.status.as_ref().unwrap()["tls"]["status"],
        "NotReady",
        "one of its proxies cannot speak TLS"
    );
}

fn with_instance(mut request: DeltaDiscoveryRequest, instance: &str) -> DeltaDiscoveryRequest {
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let text = value(prost_types::value::Kind::StringValue(instance.into()));
    let fields = [("ursa.io/instance".to_owned(), text)].into();
    let dynamic = value(prost_types::value::Kind::StructValue(prost_types::Struct { fields }));
    let metadata = request.node.as_mut().unwrap().metadata.as_mut().unwrap();
    metadata.fields.insert("dynamicMetadata".into(), dynamic);
    request
}

#[tokio::test]
async fn a_bad_bootstrap_request_gets_a_reason() {
    let zone = TestZone::start().await;
    let good = || json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": "x", "dataplaneResource": backend("dp-1")});
    let with = |field: &str, value: serde_json::Value| {
        let mut request = good();
        request[field] = value;
        request
    };
    assert_eq!(zone.post("/bootstrap", good().to_string()).await.0, 200);
    let cases = [
        ("[]".to_owned(), 400, "no JSON object"),
        ("{".to_owned(), 400, "no valid JSON"),
        ("null".to_owned(), 400, "no JSON object"),
        (with("caCert", json!("junk")).to_string(), 400, "caCert"),
        (
            with("caCert", json!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).to_string(),
            400,
            "caCert",
        ),
        (with("readinessPort", json!(70_000)).to_string(), 422, "readinessPort"),
        (with("dnsPort", json!(1_000_000)).to_string(), 422, "dnsPort"),
        (with("readinessPort", json!(-1)).to_string(), 400, "JSON"),
        (with("proxyType", json!("ingress")).to_string(), 422, "ingress"),
        (with("dataplaneToken", json!("")).to_string(), 422, "Dataplane Token"),
        (with("dataplaneResource", json!("{}")).to_string(), 422, "Dataplane"),
        (json!({"mesh": MESH, "name": "nobody", "dataplaneToken": "x"}).to_string(), 404, ""),
    ];
    for (body, status, part) in cases {
        let (got, text) = zone.post("/bootstrap", body.clone()).await;
        assert_eq!(got, status, "{body}: {text}");
        assert!(text.contains(part) && (status != 404 || text.is_empty()), "{body}: {text}");
    }
}

/// In a rolling restart the second is told to stop when the first says that it is ready, which its control plane may not know yet.
#[tokio::test]
async fn the_last_one_that_serves_is_not_withdrawn_before_its_successor_serves() {
    let zone = TestZone::start().await;
    let token = |name: &str| zone.token_for(name, "backend");
    let first = |name: &str| with_instance(first_request(&format!("default.{name}"), Some(&backend(name))), name);
    let (requests, mut responses) = zone.stream(Some(&token("dp-2")), first("dp-2")).await;
    take_all(&requests, &mut responses).await;
    zone.wait("the one that serves", |v| is_ready(v, "dp-2")).await;
    let acks = tokio::spawn(async move {
        while let Ok(Some(response)) = responses.message().await {
            requests.send(ack(&response)).await.unwrap();
        }
    });
    let (starting, mut responses) = zone.stream(Some(&token("dp-1")), first("dp-1")).await;
    zone.wait("the one that starts", |v| v.list(Kind::Dataplane).count() == 2).await;
    let body = json!({"mesh": MESH, "name": "dp-2", "dataplaneToken": token("dp-2"), "instance": "dp-2"});
    let (drained, ()) = tokio::join!(zone.drain(body), async {
        take_all(&starting, &mut responses).await;
        zone.wait("the end of the drain", |v| !is_ready(v, "dp-2")).await;
    });
    let revision = |name: &str| {
        zone.store
            .view()
            .list(Kind::Dataplane)
            .find(|d| d.name() == name)
            .unwrap()
            .mod_revision
    };
    assert!(
        is_ready(&zone.store.view(), "dp-1") && revision("dp-1") < revision("dp-2"),
        "{drained:?}"
    );
    acks.abort();
}

/// Whoever refuses what it is sent does not run it, though nothing is left to send.
#[tokio::test]
async fn a_drain_names_those_that_refused_or_were_not_told() {
    let zone = TestZone::start().await;
    let first = |name: &str| with_instance(first_request(&format!("default.{name}"), Some(&backend(name))), name);
    let token = |name: &str| zone.token_for(name, "backend");
    let (refusing, mut responses) = zone.stream(Some(&token("dp-2")), first("dp-2")).await;
    let refuse = tokio::spawn(async move {
        while let Ok(Some(response)) = responses.message().await {
            let mut nack = ack(&response);
            nack.error_detail = Some(ErrorDetail {
                code: 13,
                message: "no".into(),
            });
            refusing.send(nack).await.unwrap();
        }
    });
    let (_requests, mut responses) = zone.stream(Some(&token("dp-1")), first("dp-1")).await;
    responses.message().await.unwrap().unwrap();
    let body = json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": token("dp-1"), "instance": "dp-1"});
    let (status, text) = zone.drain(body).await;
    assert_eq!(status, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let behind: Vec<&str> = answer["behind"].as_array().unwrap().iter().filter_map(|p| p.as_str()).collect();
    assert_eq!(
        (answer["applied"].as_bool(), behind),
        (Some(false), vec!["default.dp-1", "default.dp-2"]),
        "{answer}"
    );
    refuse.abort();
}

/// The next run connects while the one before waits for a successor.
#[tokio::test]
async fn a_run_that_was_replaced_while_it_asked_does_not_end_the_next() {
    let zone = TestZone::start().await;
    let token = |name: &str| zone.token_for(name, "backend");
    let first = |name: &str, run: &str| with_instance(first_request(&format!("default.{name}"), Some(&backend(name))), run);
    // A successor that starts and never serves holds the drain up.
    let (_starting, mut other) = zone.stream(Some(&token("dp-1")), first("dp-1", "other")).await;
    other.message().await.unwrap().unwrap();
    let (_one, mut responses) = zone.stream(Some(&token("dp-2")), first("dp-2", "run-1")).await;
    responses.message().await.unwrap().unwrap();
    let body = json!({"mesh": MESH, "name": "dp-2", "dataplaneToken": token("dp-2"), "instance": "run-1"});
    let own = token("dp-2");
    let ((status, text), _next) = tokio::join!(zone.drain(body), async {
        let next = zone.stream(Some(&own), first("dp-2", "run-2")).await;
        let _ended = responses.message().await.expect_err("the older stream ends");
        next
    });
    assert_eq!(status, 409, "{text}");
    let inbound = zone.store.view().list(Kind::Dataplane).find(|d| d.name() == "dp-2").unwrap().spec["networking"]["inbound"][0].clone();
    assert_ne!(inbound["health"]["ready"], false, "it is not marked");
}
