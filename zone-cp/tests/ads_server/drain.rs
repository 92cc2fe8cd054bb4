//! From the first listener to the end: ready, drained, gone.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use ursa_model::{Kind, ResourceKey};
use ursa_proto::discovery::{DeltaDiscoveryRequest, ErrorDetail};
use ursa_state::{GlobalRevision, View};
use ursa_zone_cp::{
    dp::{
        elsewhere::{OtherZones, Others},
        phase::{self, Phase},
    },
    world::ProxyId,
};

use crate::{
    PATIENCE, ack,
    common::{MESH, MemoryStore, TestZone, backend, first_request, put},
    ingress_request, ingress_token, is_ready, take_all, with_instance,
};

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
    assert_eq!(
        (&answer["applied"], &answer["behind"], &answer["refused"]),
        (&json!(false), &json!(["default.dp-1"]), &json!(["default.dp-2"])),
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

/// What a proxy shows that runs already.
fn warm(mut request: DeltaDiscoveryRequest) -> DeltaDiscoveryRequest {
    request.initial_resource_versions.insert("self_inbound_dp_http".into(), "1".into());
    request
}

fn phase_of(zone: &TestZone, name: &str) -> Phase {
    let view = zone.store.view();
    Phase::of(view.get(&ResourceKey::new(Kind::Dataplane, MESH, name).unwrap()).unwrap())
}

/// Waits until the zone's control plane has looked at everything that came before, and stored what follows from it: it does so before
/// it looks at the next change.
async fn looked(zone: &TestZone) {
    let mut worlds = zone.worlds.clone();
    let timeouts = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"maxConnectionDuration": "1h"}}}]});
    for _ in 0..2 {
        let name = format!("any-{}", zone.store.view().revision());
        let revision = zone
            .store
            .put(vec![put(Kind::MeshTimeout, MESH, &name, &[], timeouts.clone())])
            .revision;
        let looked = worlds.wait_for(|w| w.zone_revision >= revision);
        tokio::time::timeout(PATIENCE, looked).await.expect("a look").unwrap();
    }
}

/// The request to drain of a run that has ended is late, and finds nobody connected: the next run is on its way back. That one must not
/// stay withdrawn for ever, and one that asked itself must not come back.
#[tokio::test]
async fn a_run_that_returns_warm_serves_unless_it_asked_to_drain_itself() {
    let zone = TestZone::start().await;
    let token = zone.token_for("dp-1", "backend");
    let first = |instance: &str| with_instance(first_request("default.dp-1", Some(&backend("dp-1"))), instance);
    let drain = |run: &str| json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": token, "instance": run});
    let away = async || {
        let mut connected = zone.connections.subscribe();
        tokio::time::timeout(PATIENCE, connected.wait_for(|c| c.is_empty()))
            .await
            .unwrap()
            .unwrap();
    };
    let (requests, mut responses) = zone.stream(Some(&token), first("run-2")).await;
    take_all(&requests, &mut responses).await;
    zone.wait("a ready Dataplane", |v| is_ready(v, "dp-1")).await;
    drop((requests, responses));
    away().await;
    assert_eq!(zone.drain(drain("run-1")).await.0, 200);
    assert_eq!(phase_of(&zone, "dp-1"), Phase::Draining);
    looked(&zone).await;
    assert_eq!(phase_of(&zone, "dp-1"), Phase::Draining, "it is not that run that left");
    let (requests, mut responses) = zone.stream(Some(&token), warm(first("run-2"))).await;
    responses.message().await.unwrap().unwrap();
    zone.wait("it serves", |v| is_ready(v, "dp-1")).await;
    drop((requests, responses));
    away().await;
    // Now that it left for good.
    assert_eq!(zone.drain(drain("run-2")).await.0, 200);
    zone.wait("its end", |v| v.list(Kind::Dataplane).count() == 0).await;
}

#[tokio::test]
async fn a_run_that_asked_to_drain_stays_withdrawn_when_its_stream_comes_back() {
    let zone = TestZone::start().await;
    let (token, name) = (zone.token_for("dp-1", "backend"), "dp-1");
    let spec: serde_json::Value = serde_json::from_str(&backend(name)).unwrap();
    let labels = [
        ("kuma.io/workload", "backend"),
        ("kuma.io/zone", "west"),
        (phase::LIFECYCLE, phase::BY_PROXY),
    ];
    zone.store.put(vec![put(
        Kind::Dataplane,
        MESH,
        name,
        &labels,
        json!({"networking": spec["networking"]}),
    )]);
    // As after a restart of the control plane: nobody has been seen.
    let body = json!({"mesh": MESH, "name": name, "dataplaneToken": token, "instance": "run-1"});
    assert_eq!(zone.drain(body).await.0, 200);
    let first = with_instance(first_request("default.dp-1", Some(&backend(name))), "run-1");
    let (_requests, mut responses) = zone.stream(Some(&token), warm(first)).await;
    responses.message().await.unwrap().unwrap();
    looked(&zone).await;
    assert!(zone.connections.now().contains_key(&ProxyId::new(MESH, name)));
    assert_eq!(phase_of(&zone, name), Phase::Draining);
}

/// Other zones, which know what they are told to.
struct Told {
    answer: Others,
    asked: Mutex<Vec<GlobalRevision>>,
}

impl OtherZones for Told {
    fn have(&self, own: GlobalRevision, _: Duration) -> BoxFuture<'_, Others> {
        self.asked.lock().push(own);
        let answer = self.answer.clone();
        Box::pin(async move { answer })
    }
}

fn addresses(store: &MemoryStore) -> usize {
    store.view().list(Kind::MeshZoneAddress).count()
}

/// An ingress that serves, beside zones that say this, and the answer to its drain.
async fn drained_ingress(answer: Others) -> (TestZone, Arc<Told>, serde_json::Value) {
    let told = Arc::new(Told {
        answer,
        asked: Mutex::default(),
    });
    let zone = TestZone::beside(Some(told.clone())).await;
    let token = ingress_token(&zone);
    let (requests, mut responses) = zone.stream(Some(&token), with_instance(ingress_request(), "run-1")).await;
    let acks = tokio::spawn(async move {
        while let Ok(Some(response)) = responses.message().await {
            requests.send(ack(&response)).await.unwrap();
        }
    });
    zone.wait("the zone's address", |v| v.list(Kind::MeshZoneAddress).count() == 1)
        .await;
    let body = json!({"mesh": MESH, "name": "ingress", "dataplaneToken": token, "instance": "run-1"});
    let (status, text) = zone.drain(body).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(addresses(&zone.store), 0);
    acks.abort();
    (zone, told, serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn the_drain_of_an_ingress_waits_for_what_the_other_zones_have() {
    let others = Others {
        confirmed: true,
        ..Others::default()
    };
    let (zone, told, answer) = drained_ingress(others).await;
    assert_eq!(answer["elsewhere"], json!({"confirmed": true}), "{answer}");
    let asked = told.asked.lock().clone();
    let [asked] = asked.as_slice() else { panic!("{asked:?}") };
    let view = zone.store.view();
    assert_eq!(asked.history, view.history_id());
    assert_eq!(Some(asked.revision), answer["revision"].as_u64());
    let gone = view.changes_since(asked.revision - 1).unwrap().next().unwrap();
    assert!(
        gone.changes
            .iter()
            .any(|c| c.key.kind() == Kind::MeshZoneAddress && c.after.is_none()),
        "it asks for the revision at which the address went"
    );
}

#[tokio::test]
async fn without_the_globals_word_a_drain_takes_its_time_and_says_so() {
    let others = Others {
        reason: Some("the global control plane cannot be reached".into()),
        ..Others::default()
    };
    let began = Instant::now();
    let (_zone, _told, answer) = drained_ingress(others).await;
    assert_eq!(
        answer["elsewhere"],
        json!({"confirmed": false, "reason": "the global control plane cannot be reached"}),
        "{answer}"
    );
    assert!(began.elapsed() >= Duration::from_secs(5), "it is on its way, perhaps");
}

#[tokio::test]
async fn of_a_sidecar_the_other_zones_know_nothing() {
    let told = Arc::new(Told {
        answer: Others::default(),
        asked: Mutex::default(),
    });
    let zone = TestZone::beside(Some(told.clone())).await;
    let token = zone.token_for("dp-1", "backend");
    let (requests, mut responses) = zone
        .stream(Some(&token), first_request("default.dp-1", Some(&backend("dp-1"))))
        .await;
    responses.message().await.unwrap().unwrap();
    drop((requests, responses));
    let mut connected = zone.connections.subscribe();
    tokio::time::timeout(PATIENCE, connected.wait_for(|c| c.is_empty()))
        .await
        .unwrap()
        .unwrap();
    let (status, text) = zone.drain(json!({"mesh": MESH, "name": "dp-1", "dataplaneToken": token})).await;
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains("elsewhere") && told.asked.lock().is_empty(), "{text}");
}
