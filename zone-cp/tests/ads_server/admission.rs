//! Who is let in, and what garbage gets.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;
use tonic::Code;
use ursa_model::{Kind, ResourceKey};
use ursa_pki::token::{self, DataplaneClaims, SigningKey};
use ursa_proto::discovery::DeltaDiscoveryRequest;

use crate::{
    PATIENCE, ack,
    common::{MESH, TestZone, backend, first_request, put},
    ingress_request, ingress_token,
};

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
        let status = tokio::time::timeout(PATIENCE, responses.message())
            .await
            .expect(what)
            .expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(part), "{what}: {status}");
    }
    assert_eq!(zone.store.view().revision(), before, "a refusal left something behind");

    let (_keep, mut responses) = zone.stream(token().as_deref(), good()).await;
    let first = tokio::time::timeout(PATIENCE, responses.message()).await.unwrap().unwrap().unwrap();
    assert!(first.type_url.ends_with("v3.Cluster") && !first.nonce.is_empty());
    assert_eq!(zone.tasks.panics(), 0);
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
    let status = tokio::time::timeout(PATIENCE, refused.message())
        .await
        .unwrap()
        .expect_err("let in");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("exists"), "{status}");
    let after = zone.store.view().get(&before.key).unwrap().clone();
    assert_eq!(before, after);
}

#[tokio::test]
async fn only_a_token_of_an_ingress_lets_a_proxy_publish_the_zones_address() {
    let zone = TestZone::start().await;
    let plain = zone.token_for("ingress", "zone-ingress");
    let (_one, mut responses) = zone.stream(Some(&plain), ingress_request()).await;
    responses.message().await.unwrap().unwrap();
    assert_eq!(zone.store.view().list(Kind::MeshZoneAddress).count(), 0);
    let ingress = ingress_token(&zone);
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
    let world = tokio::time::timeout(PATIENCE, worlds.wait_for(|w| !w.svids.is_empty())).await;
    let svids = world.expect("a certificate").unwrap().svids.clone();
    assert_eq!(svids.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default.dp-1"]);
    let service = zone.store.view().list(Kind::MeshService).next().unwrap().clone();
    assert_eq!(
        service.status.as_ref().unwrap()["tls"]["status"],
        "NotReady",
        "one of its proxies cannot speak TLS"
    );
}
