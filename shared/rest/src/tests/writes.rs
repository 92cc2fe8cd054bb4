//! Revisions, stages, retries, and what comes of a store that fails.

use ursa_runtime::stages;

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
