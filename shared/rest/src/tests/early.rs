//! Writes that are decided on the leader's picture before anybody was asked whether it is the newest.

use super::*;
use crate::{Backend, BoxFuture, Freshness, Info, NotEarly, ProposeError, Unavailable};
use parking_lot::Mutex;
use ursa_state::{Applied, Catalog};

const PATH: &str = "/meshes/default/meshtrafficpermissions/p";

/// What comes of a proposal in the provisional term.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Committed,
    Deposed,
    /// Whether it is committed all the same.
    Doubt(bool),
}

/// A node that takes itself for the leader.
struct Leader {
    memory: Memory,
    /// What it has, if that is not the newest.
    old: Option<Catalog>,
    outcome: Outcome,
    /// What went the early way, and what asked for the newest.
    seen: Mutex<Vec<&'static str>>,
}

impl Backend for Leader {
    fn catalog(&self, freshness: Freshness) -> BoxFuture<'_, Result<Catalog, Unavailable>> {
        if freshness == Freshness::Linearizable {
            self.seen.lock().push("barrier");
        }
        self.memory.catalog(freshness)
    }

    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        self.seen.lock().push("propose");
        self.memory.propose(set)
    }

    fn provisional(&self) -> Option<(Catalog, u64)> {
        Some((self.old.clone().unwrap_or_else(|| self.memory.now()), 5))
    }

    fn propose_in(&self, term: u64, set: Changeset) -> BoxFuture<'_, Result<Applied, NotEarly>> {
        assert_eq!(term, 5);
        self.seen.lock().push("early");
        Box::pin(async move {
            match self.outcome {
                Outcome::Committed => Ok(self.memory.propose(set).await?),
                Outcome::Deposed => Err(NotEarly::Deposed),
                Outcome::Doubt(committed) => {
                    if committed {
                        self.memory.propose(set).await?;
                    }
                    Err(NotEarly::Doubt)
                }
            }
        })
    }
}

/// The same state behind a node that leads, or believes so.
fn led(server: &Server, old: Option<Catalog>, outcome: Outcome) -> (Server, Arc<Leader>) {
    let leader = Arc::new(Leader {
        memory: server.memory.clone(),
        old,
        outcome,
        seen: Mutex::default(),
    });
    let info = Info {
        hostname: String::new(),
        version: String::new(),
        instance_id: String::new(),
        based_on_kuma: None,
    };
    let server = Server {
        router: router(Api::new(Site::Global, leader.clone(), info, Value::Null, Stages::default())),
        memory: server.memory.clone(),
        stages: Stages::default(),
        admin: server.admin.clone(),
    };
    (server, leader)
}

fn seen(leader: &Leader) -> Vec<&'static str> {
    std::mem::take(&mut leader.seen.lock())
}

#[tokio::test]
async fn a_leader_that_commits_asks_nobody_first() {
    let server = Server::global().await;
    let (server, leader) = led(&server, None, Outcome::Committed);
    server.put(PATH, a_permission("default", "p")).await.is(201);
    server.put(PATH, a_permission("default", "p")).await.is(200);
    server.delete(PATH).await.is(200);
    assert_eq!(seen(&leader), ["early", "early", "early"]);
    // Whatever is not one resource's write asks.
    server.get(PATH).await.is(404);
    assert_eq!(seen(&leader), ["barrier"]);
}

#[tokio::test]
async fn routes_of_others_are_always_answered_on_the_newest() {
    let server = Server::global().await;
    let (late, leader) = led(&server, None, Outcome::Committed);
    let info = Info {
        hostname: String::new(),
        version: String::new(),
        instance_id: String::new(),
        based_on_kuma: None,
    };
    let more = Router::new().route("/more", axum::routing::put(async || StatusCode::OK));
    let api = Api::new(Site::Global, leader.clone(), info, Value::Null, Stages::default());
    let with_more = Server {
        router: crate::router_with(api, more),
        ..late
    };
    with_more.put("/more", json!({})).await.is(200);
    assert_eq!(seen(&leader), ["barrier"]);
    with_more.delete("/more").await.is(405);
    assert_eq!(seen(&leader), ["barrier"]);
    with_more.put(PATH, a_permission("default", "p")).await.is(201);
    assert_eq!(seen(&leader), ["early"]);
}

#[tokio::test]
async fn a_refusal_is_decided_on_the_newest() {
    let server = Server::global().await;
    let old = server.memory.now();
    server.put("/meshes/new", json!({"type": "Mesh", "name": "new"})).await.is(201);
    server.put(PATH, a_permission("default", "p")).await.is(201);
    let now = server.memory.now();
    let (server, leader) = led(&server, Some(old), Outcome::Committed);
    // On the old picture neither the mesh nor the resource exists.
    let path = "/meshes/new/meshtrafficpermissions/q";
    server.put(path, a_permission("new", "q")).await.is(201);
    assert_eq!(seen(&leader), ["barrier", "propose"]);
    server.delete(PATH).await.is(200);
    assert_eq!(seen(&leader), ["barrier", "propose"]);
    // What is refused on the newest, too, is answered with that one's revision.
    let got = server.delete(PATH).await.is(404);
    assert_eq!(got.revision(), server.memory.now().durable.revision());
    assert!(got.revision() > now.durable.revision());
    assert_eq!(seen(&leader), ["barrier"]);
}

#[tokio::test]
async fn a_leader_that_was_deposed_decides_again() {
    let server = Server::global().await;
    server.put(PATH, a_permission("default", "p")).await.is(201);
    let old = server.memory.now();
    server.delete(PATH).await.is(200);
    server.put("/meshes/gone", json!({"type": "Mesh", "name": "gone"})).await.is(201);
    let with_mesh = server.memory.now();
    server.delete("/meshes/gone").await.is(200);
    let (late, leader) = led(&server, Some(old), Outcome::Deposed);
    late.delete(PATH).await.is(404);
    assert_eq!(seen(&leader), ["early", "barrier"]);
    let created = late.put(PATH, a_permission("default", "p")).await.is(201);
    assert_eq!(created.revision(), server.memory.now().durable.revision());
    assert_eq!(seen(&leader), ["early", "barrier", "propose"]);
    let (late, _) = led(&server, Some(with_mesh), Outcome::Deposed);
    let path = "/meshes/gone/meshtrafficpermissions/q";
    late.put(path, a_permission("gone", "q")).await.is(404);
}

#[tokio::test]
async fn what_may_be_committed_is_neither_done_twice_nor_denied() {
    for committed in [false, true] {
        let server = Server::global().await;
        let (late, leader) = led(&server, None, Outcome::Doubt(committed));
        let before = late.memory.now().durable.revision();
        late.put(PATH, a_permission("default", "p")).await.is(201);
        assert_eq!(seen(&leader), ["early", "barrier", "propose"]);
        let created = late.memory.now();
        assert_eq!(created.durable.get(&key()).unwrap().version, 1, "{committed}");
        assert!(created.durable.revision() > before);
        // A delete that was done meets nothing the second time, and was done all the same.
        late.delete(PATH).await.is(200);
        assert_eq!(seen(&leader), ["early", "barrier", "propose"]);
        assert!(late.memory.now().get(&key()).is_none());
    }
    // It was done, and its mesh is gone since: nothing but "unknown" would be true.
    let server = Server::global().await;
    server.put("/meshes/m", json!({"type": "Mesh", "name": "m"})).await.is(201);
    let old = server.memory.now();
    server.delete("/meshes/m").await.is(200);
    let (late, _) = led(&server, Some(old), Outcome::Doubt(false));
    let path = "/meshes/m/meshtrafficpermissions/q";
    late.put(path, a_permission("m", "q")).await.is(504);
}

#[tokio::test]
async fn a_token_that_was_revoked_meanwhile_writes_nothing() {
    let server = Server::global().await;
    let old = server.memory.now();
    let id = token_id(&server.admin);
    let list = json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": base64(&id)});
    server.put("/global-secrets/user-token-revocations", list).await.is(201);
    let before = server.memory.fingerprint();
    let (late, _) = led(&server, Some(old), Outcome::Deposed);
    late.put(PATH, a_permission("default", "p")).await.is(401);
    late.delete(PATH).await.is(401);
    assert_eq!(server.memory.fingerprint(), before);
}

fn key() -> ResourceKey {
    ResourceKey::new(Kind::MeshTrafficPermission, "default", "p").unwrap()
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The `jti` of a token.
fn token_id(token: &str) -> String {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}
