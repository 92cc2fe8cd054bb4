//! Streams of one proxy: they come, replace each other and come back.

use serde_json::json;
use tonic::Code;
use ursa_model::{Kind, ResourceKey};
use ursa_state::Op;

use crate::{
    PATIENCE,
    common::{MESH, TestZone, backend, first_request, put},
    with_instance,
};

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
        match tokio::time::timeout(PATIENCE, older.message())
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
        let first = tokio::time::timeout(PATIENCE, responses.message()).await.unwrap().unwrap().unwrap();
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
        match tokio::time::timeout(PATIENCE, responses.message()).await.expect("the stream ends") {
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
