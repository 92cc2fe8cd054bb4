//! The data-plane server as proxies meet it: who is let in, what garbage gets, what a stream leaves behind.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::time::Duration;

use common::{MESH, TestZone, backend, first_request, put};
use serde_json::json;
use time::OffsetDateTime;
use tonic::Code;
use ursa_model::{Kind, ResourceKey};
use ursa_pki::token::{self, DataplaneClaims, SigningKey};
use ursa_proto::discovery::DeltaDiscoveryRequest;
use ursa_state::Op;

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
    let (_two, mut responses) = zone.stream(Some(&ingress), ingress_request()).await;
    responses.message().await.unwrap().unwrap();
    zone.wait("the zone's address", |v| {
        v.list(Kind::MeshZoneAddress).any(|a| a.spec["port"] == 443)
    })
    .await;
}
