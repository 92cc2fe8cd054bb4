//! Revisions, stages, retries, and what comes of a store that fails.

use ursa_runtime::stages;

use ursa_state::observed::Observation;

use super::*;
use crate::{ProposeError, Unavailable};

const PATH: &str = "/meshes/default/meshtrafficpermissions/p";

fn with_id(server: &Server, method: &str, path: &str, body: &Value, id: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .header("ursa-request-id", id)
        .body(if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        })
        .unwrap()
}

#[tokio::test]
async fn a_write_answers_its_own_revision_and_leaves_its_stages() {
    let server = Server::global().await;
    let before = server.get("/meshes").await.revision();
    let created = server.put(PATH, a_permission("default", "p")).await.is(201);
    assert_eq!(created.revision(), before + 1);
    assert_eq!(created.header("ursa-history"), server.get("/meshes").await.header("ursa-history"));
    assert_eq!(created.header("ursa-request-id").len(), 32);
    let (_, entries) = server.stages.since(0);
    let seen: Vec<_> = entries.iter().map(|e| (e.stage, e.revision, &*e.subject)).collect();
    let subject = "MeshTrafficPermission/default/p";
    assert_eq!(
        seen,
        [(stages::RECEIVED, before + 1, subject), (stages::COMMITTED, before + 1, subject)]
    );
    assert!(entries[0].at_unix_ns <= entries[1].at_unix_ns);
    assert_eq!(&*entries[0].history, created.header("ursa-history"));

    // Writing the same again changes nothing, so it has no revision of its own and leaves no stage.
    let same = server.put(PATH, a_permission("default", "p")).await.is(200);
    assert_eq!((same.revision(), server.stages.since(0).1.len()), (before + 1, 2));
    let deleted = server.delete(PATH).await.is(200);
    assert_eq!((deleted.revision(), server.stages.since(0).1.len()), (before + 3, 4));
}

#[tokio::test]
async fn a_zone_leaves_no_stages_since_its_revisions_are_its_own() {
    let server = Server::zone().await;
    server.put("/meshes/default/dataplanes/d", a_dataplane("d")).await.is(201);
    assert!(server.stages.since(0).1.is_empty());
}

#[tokio::test]
async fn a_retry_gets_the_answer_of_the_first() {
    let server = Server::global().await;
    let id = "00000000000000000000000000000abc";
    let body = a_permission("default", "p");
    let first = server.send(with_id(&server, "PUT", PATH, &body, id)).await.is(201);
    assert_eq!(first.header("ursa-request-id"), id);
    server.put("/zones/other", json!({"type": "Zone", "name": "other"})).await.is(201);
    let again = server.send(with_id(&server, "PUT", PATH, &body, id)).await.is(201);
    assert_eq!(again.revision(), first.revision());
    // The same id with another request is another write.
    let mut other = body.clone();
    other["labels"] = json!({"a": "b"});
    let second = server.send(with_id(&server, "PUT", PATH, &other, id)).await.is(200);
    assert!(second.revision() > first.revision());

    let id = "00000000000000000000000000000def";
    let deleted = server.send(with_id(&server, "DELETE", PATH, &Value::Null, id)).await.is(200);
    let again = server.send(with_id(&server, "DELETE", PATH, &Value::Null, id)).await.is(200);
    assert_eq!(again.revision(), deleted.revision());
    server
        .send(with_id(&server, "DELETE", PATH, &Value::Null, "00000000000000000000000000000fff"))
        .await
        .is(404);
}

#[tokio::test]
async fn an_unknown_outcome_is_told_and_can_be_learnt() {
    let server = Server::global().await;
    server.memory.fail_writes(Some((ProposeError::Unknown, true)));
    let got = server.put(PATH, a_permission("default", "p")).await.is(504);
    assert_eq!(got.json()["title"], "Outcome unknown");
    let id = got.header("ursa-request-id").to_owned();
    assert!(got.json()["detail"].as_str().unwrap().contains(&id));
    server.memory.fail_writes(None);
    server
        .send(with_id(&server, "PUT", PATH, &a_permission("default", "p"), &id))
        .await
        .is(201);
    assert_eq!(server.get(PATH).await.is(200).json()["name"], "p");
}

#[tokio::test]
async fn a_store_that_fails() {
    let server = Server::global().await;
    let before = server.memory.fingerprint();
    let lost = Unavailable {
        reason: "the leader is another node",
        leader: Some("n2".into()),
    };
    server.memory.fail_writes(Some((ProposeError::Unavailable(lost), false)));
    let got = server.put(PATH, a_permission("default", "p")).await.is(503);
    assert_eq!(
        (got.header("retry-after"), got.json()["title"].as_str()),
        ("1", Some("Service unavailable"))
    );
    assert!(got.text().contains("the leader is n2"));
    server
        .memory
        .fail_writes(Some((ProposeError::TooLarge { bytes: 9, limit: 5 }, false)));
    server.put(PATH, a_permission("default", "p")).await.is(413);
    let full = ProposeError::NoSpace("the disk takes nothing: make room in /data".to_owned());
    server.memory.fail_writes(Some((full, false)));
    let got = server.put(PATH, a_permission("default", "p")).await.is(507);
    assert_eq!(
        (
            got.header("retry-after"),
            got.json()["title"].as_str(),
            got.json()["status"].as_u64()
        ),
        ("1", Some("Insufficient storage"), Some(507))
    );
    assert!(got.text().contains("make room in /data"));
    server.get(PATH).await.is(404);
    assert_eq!(server.memory.fingerprint(), before);
}

/// Reads from one picture and writes to a newer one, as a request does that is overtaken by another.
struct Overtaken(Memory, parking_lot::Mutex<Option<ursa_state::Catalog>>);

impl crate::Backend for Overtaken {
    fn catalog(&self, _: crate::Freshness) -> crate::BoxFuture<'_, Result<ursa_state::Catalog, Unavailable>> {
        let catalog = self.1.lock().clone().unwrap_or_else(|| self.0.now());
        Box::pin(async move { Ok(catalog) })
    }

    fn propose(&self, set: Changeset) -> crate::BoxFuture<'_, Result<ursa_state::Applied, ProposeError>> {
        self.0.propose(set)
    }
}

#[tokio::test]
async fn a_write_that_was_overtaken_is_a_conflict() {
    let server = Server::global().await;
    server.put(PATH, a_permission("default", "p")).await.is(201);
    let backend = Arc::new(Overtaken(server.memory.clone(), parking_lot::Mutex::new(Some(server.memory.now()))));
    let info = Info {
        hostname: String::new(),
        version: String::new(),
        instance_id: String::new(),
        based_on_kuma: None,
    };
    let late = Server {
        router: router(Api::new(Site::Global, backend, info, Value::Null, Stages::default())),
        memory: server.memory.clone(),
        stages: Stages::default(),
        admin: server.admin.clone(),
    };
    let mut other = a_permission("default", "p");
    other["labels"] = json!({"a": "b"});
    server.put(PATH, other.clone()).await.is(200);
    other["labels"] = json!({"a": "c"});
    let got = late.put(PATH, other).await.is(409);
    assert_eq!(got.json()["title"], "Conflict");
    // Created meanwhile, deleted meanwhile, its mesh deleted meanwhile.
    server.put("/zones/z", json!({"type": "Zone", "name": "z"})).await.is(201);
    late.put("/zones/z", json!({"type": "Zone", "name": "z", "enabled": false}))
        .await
        .is(409);
    server.delete(PATH).await.is(200);
    late.delete(PATH).await.is(404);
    server.delete("/meshes/default").await.is(200);
    let got = late
        .put("/meshes/default/meshtrafficpermissions/q", a_permission("default", "q"))
        .await
        .is(400);
    assert_eq!(
        (got.json()["detail"].as_str(), got.json()["title"].as_str()),
        (Some("Mesh is not found"), Some("Failed to create a resource"))
    );
}

fn progress(server: &Server, zone: &str, stored: Option<u64>, instance: &str) {
    let history = server.memory.now().durable.history_id().to_string();
    let progress = stored.map(|s| json!({"history": history, "sent": s.to_string(), "stored": s.to_string()}));
    let mut spec = json!({"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z", "status": {}, "zoneInstanceId": instance}]});
    if let Some(progress) = progress {
        spec["ursaProgress"] = progress;
    }
    server.memory.observe([Observation::Put {
        key: ResourceKey::new(Kind::ZoneInsight, "", zone).unwrap(),
        labels: Default::default(),
        spec,
        owner: None,
    }]);
}

async fn put_waiting(server: &Server, wait: &str, label: &str) -> Got {
    let mut body = a_permission("default", "p");
    body["labels"] = json!({"a": label});
    let request = Request::put(format!("{PATH}?wait={wait}"))
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    server.send(request).await
}

#[tokio::test]
async fn a_write_can_wait_for_the_zones() {
    let server = Server::global().await;
    for zone in ["east", "west", "stock", "away"] {
        server
            .put(&format!("/zones/{zone}"), json!({"type": "Zone", "name": zone}))
            .await
            .is(201);
    }
    let newest = server.memory.now().durable.revision();
    progress(&server, "east", Some(newest), "i-1");
    progress(&server, "west", Some(0), "i-2");
    progress(&server, "stock", None, "i-3");

    // West, which reports, has not: the answer says so, and the write is done all the same.
    let got = put_waiting(&server, "1ms", "late").await.is(201);
    assert_eq!(got.header("ursa-applied"), "false");
    let warnings = got.json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 2, "{warnings}");
    assert!(warnings[1].as_str().unwrap().starts_with("zone west has not stored revision"));

    // Once both have, it returns at once.
    let waiting = put_waiting(&server, "50s", "soon");
    let zones = async {
        let deadline = ursa_runtime::lease::Deadline::after(Duration::from_secs(20));
        while server.memory.now().durable.revision() == got.revision() && !deadline.has_passed() {
            tokio::task::yield_now().await;
        }
        let revision = server.memory.now().durable.revision();
        progress(&server, "east", Some(revision), "i-1");
        progress(&server, "west", Some(revision + 3), "i-2");
    };
    let (got, ()) = tokio::join!(waiting, zones);
    let got = got.is(200);
    assert_eq!(got.header("ursa-applied"), "true");
    assert!(got.json().get("warnings").is_none());

    // East has not stored the next one.
    server.put("/zones/more", json!({"type": "Zone", "name": "more"})).await.is(201);
    let state = server
        .get(&format!("/zones/_applied?revision={}", got.revision() + 1))
        .await
        .is(200)
        .json();
    assert_eq!(
        (state["applied"].as_bool(), state["zones"].as_array().unwrap().len()),
        (Some(false), 5)
    );
    let of = |name: &str| {
        state["zones"]
            .as_array()
            .unwrap()
            .iter()
            .find(|z| z["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (of("east")["applied"].as_bool(), of("west")["applied"].as_bool()),
        (Some(false), Some(true))
    );
    assert_eq!(
        (of("stock")["reports"].as_bool(), of("away")["online"].as_bool()),
        (Some(false), Some(false))
    );
    let newest = server.admin_get("/zones/_applied?wait=1ms").await.is(200).json();
    assert_eq!(newest["applied"], false);
    progress(&server, "east", Some(got.revision() + 1), "i-1");
    let newest = server.admin_get("/zones/_applied?wait=50s").await.is(200).json();
    assert_eq!(newest["applied"], true);
    server.get("/zones/_applied?wait=1ms").await.is(403);
    for bad in [
        "/zones/_applied?wait=x",
        "/zones/_applied?wait=2m",
        "/zones/_applied?revision=-1",
        "/zones/_applied?history=1",
        &format!("/zones/_applied?revision={}", got.revision() + 2),
        "/zones/_applied?revision=18446744073709551615",
    ] {
        server.get(bad).await.is(400);
    }
    put_waiting(&server, "1h", "x").await.is(400);
    let zone = Server::zone().await;
    zone.get("/zones/_applied").await.is(404);
}

#[tokio::test]
async fn only_so_many_may_wait_and_a_write_is_in_the_log_before_it_waits() {
    let server = Server::global().await;
    server.put("/zones/east", json!({"type": "Zone", "name": "east"})).await.is(201);
    progress(&server, "east", Some(0), "i-1");
    let log = auth::Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let mut write = Box::pin(put_waiting(&server, "50s", "x"));
    assert!(futures::poll!(&mut write).is_pending(), "it waits");
    drop(guard);
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    assert!(text.contains("MeshTrafficPermission/default/p") && text.contains("201"), "{text}");

    let mut reads = Vec::new();
    for _ in 1..crate::wait::MAX_WAITERS {
        let mut read = Box::pin(server.admin_get("/zones/_applied?wait=50s"));
        assert!(futures::poll!(&mut read).is_pending(), "it waits");
        reads.push(read);
    }
    let got = server.admin_get("/zones/_applied?wait=50s").await.is(503);
    assert_eq!(got.header("retry-after"), "1");
    let before = server.memory.now().durable.revision();
    put_waiting(&server, "50s", "y").await.is(503);
    assert_eq!(server.memory.now().durable.revision(), before, "nothing was written");
    server.get("/zones/_applied").await.is(200);

    progress(&server, "east", Some(before), "i-1");
    assert_eq!(write.await.is(201).header("ursa-applied"), "true");
    for read in reads {
        assert_eq!(read.await.is(200).json()["applied"], true);
    }
    server.admin_get("/zones/_applied?wait=50s").await.is(200);
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_safe() {
    let server = Server::global().await;
    let send = async |key: &str, id: &str, label: &str| {
        let mut body = a_permission("default", "p");
        body["labels"] = json!({"a": label});
        let mut request = Request::put(PATH)
            .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key);
        if !id.is_empty() {
            request = request.header("ursa-request-id", id);
        }
        server.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let first = send("order 66/a", "", "1").await.is(201);
    let again = send("order 66/a", "", "1").await.is(201);
    assert_eq!(first.revision(), again.revision());
    assert_eq!(first.header("ursa-request-id"), again.header("ursa-request-id"));
    // The same key for another request is not taken for a retry.
    send("order 66/a", "", "2").await.is(200);
    for (key, id) in [("", ""), (&*"k".repeat(256), ""), ("k\u{e9}", ""), ("k", &*"1".repeat(32))] {
        send(key, id, "3").await.is(400);
    }
}

#[tokio::test]
async fn without_a_quorum_an_answer_says_how_far_this_node_is() {
    let server = Server::global().await;
    let revision = server.memory.now().durable.revision();
    server.memory.fail_reads(Some(crate::Unavailable {
        reason: "there is no leader",
        leader: None,
    }));
    let got = server.put(PATH, a_permission("default", "p")).await.is(503);
    assert_eq!((got.header("retry-after"), got.revision()), ("1", revision));
    assert!(got.json()["detail"].as_str().unwrap().contains("there is no leader"));
    server.get("/meshes?stale=true").await.is(200);
}
