//! Rolling back: what it changes, what it leaves alone, what it refuses by name, and that a retry is told what the first did.

use std::{collections::BTreeMap, sync::LazyLock};

use proptest::prelude::*;
use ursa_model::Timestamp;
use ursa_state::{Wanted, observed::Observation};

use super::{
    history::{P, permission},
    *,
};
use crate::rollback;

/// What was done to which, sorted.
fn names(got: &Value, list: &str) -> Vec<String> {
    let text = |item: &Value, field: &str, default: &str| item[field].as_str().unwrap_or(default).to_owned();
    let name = |i: &Value| format!("{} {}/{}", text(i, "operation", "left"), text(i, "type", "?"), text(i, "name", "?"));
    let mut names: Vec<String> = got[list].as_array().unwrap().iter().map(name).collect();
    names.sort();
    names
}

impl Server {
    fn key_of_default(&self) -> Value {
        let key = ResourceKey::new(Kind::Secret, "default", "dataplane-token-signing-key-default-1").unwrap();
        self.memory.now().get(&key).unwrap().spec.clone()
    }

    async fn roll_back(&self, body: Value) -> Got {
        self.post("/_rollback", body).await
    }
}

#[tokio::test]
async fn one_resource_updated_deleted_or_made_since() {
    let server = Server::global().await;
    let before = server.get("/meshes").await.revision();
    let one = server.put_p("one").await;
    let was = server.get(P).await.json();
    server.put_p("two").await;
    let named = |to: u64| json!({"to": to, "type": "MeshTrafficPermission", "mesh": "default", "name": "p"});

    let done = server.roll_back(named(one)).await.is(200);
    assert_eq!(names(&done.json(), "changes"), ["update MeshTrafficPermission/p"]);
    assert_eq!(done.json()["revision"], done.revision());
    assert_eq!(server.get(P).await.json()["spec"], was["spec"]);
    assert_eq!(server.get(P).await.revision(), done.revision());
    // It is there already: no revision, no change.
    let again = server.roll_back(named(one)).await.is(200);
    assert_eq!((names(&again.json(), "changes").len(), again.revision()), (0, done.revision()));

    server.delete(P).await.is(200);
    let back = server.roll_back(named(one)).await.is(200).json();
    assert_eq!(names(&back, "changes"), ["create MeshTrafficPermission/p"]);
    assert_eq!(server.get(P).await.json()["spec"], was["spec"]);
    assert_eq!(server.get(P).await.json()["labels"], was["labels"]);

    let gone = server.roll_back(named(before)).await.is(200).json();
    assert_eq!(names(&gone, "changes"), ["delete MeshTrafficPermission/p"]);
    server.get(P).await.is(404);
    // A roll-back is a changeset like any other: it can be rolled back.
    server.roll_back(named(one)).await.is(200);
    assert_eq!(server.get(P).await.json()["spec"], was["spec"]);
}

#[tokio::test]
async fn a_dry_run_shows_and_changes_nothing() {
    let server = Server::global().await;
    let one = server.put_p("one").await;
    let now = server.put_p("two").await;
    let (stored, proposals) = (server.memory.fingerprint(), server.memory.proposals());
    let shown = server.roll_back(json!({"to": one, "dryRun": true})).await.is(200).json();
    assert_eq!(
        (&shown["dryRun"], shown["revision"].as_u64(), shown["to"].as_u64()),
        (&json!(true), Some(now), Some(one))
    );
    let item = &shown["changes"][0];
    let value = |d: &Value| d["spec"]["rules"][0]["default"]["allow"][0]["spiffeID"]["value"].clone();
    assert_eq!(
        (value(&item["before"]), value(&item["after"])),
        (json!("spiffe://two"), json!("spiffe://one"))
    );
    assert_eq!((server.memory.fingerprint(), server.memory.proposals()), (stored, proposals));
}

#[tokio::test]
async fn everything_is_one_changeset_and_leaves_credentials_and_what_others_own_alone() {
    let server = Server::global().await;
    server.put_p("one").await;
    server.put("/meshes/m", json!({"type": "Mesh", "name": "m"})).await.is(201);
    let key = "/meshes/m/secrets/dataplane-token-signing-key-m-1";
    let key_was = server.admin_get(key).await.is(200).json()["data"].clone();
    let revocations = json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": "YQ=="});
    server
        .put("/global-secrets/user-token-revocations", revocations.clone())
        .await
        .is(201);
    let to = server
        .put("/zones/east", json!({"type": "Zone", "name": "east"}))
        .await
        .is(201)
        .revision();

    server.put_p("two").await;
    server
        .put("/meshes/default/meshtrafficpermissions/q", permission("q", "q"))
        .await
        .is(201);
    let from_zone = [("kuma.io/origin", "zone"), ("kuma.io/zone", "east")];
    server.store(
        Kind::MeshService,
        "default",
        "of-a-zone",
        &from_zone,
        json!({"ports": [{"port": 80}]}),
    );
    let more = json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": "YSxi"});
    server.put("/global-secrets/user-token-revocations", more).await.is(200);
    server.delete("/meshes/m").await.is(200);
    server.admin_get(key).await.is(404);

    let done = server.roll_back(json!({"to": to})).await.is(200);
    let body = done.json();
    let changed = names(&body, "changes");
    for expected in [
        "create Mesh/m",
        "create Secret/dataplane-token-signing-key-m-1",
        "create MeshTimeout/mesh-timeout-all-m",
        "update MeshTrafficPermission/p",
        "delete MeshTrafficPermission/q",
    ] {
        assert!(changed.iter().any(|c| c == expected), "{expected}: {changed:?}");
    }
    assert_eq!(
        names(&body, "skipped"),
        ["left GlobalSecret/user-token-revocations", "left MeshService/of-a-zone"]
    );
    assert_eq!(server.admin_get(key).await.is(200).json()["data"], key_was);
    let revoked = server.admin_get("/global-secrets/user-token-revocations").await.is(200).json();
    assert_eq!(revoked["data"], "YSxi", "nobody who was shut out comes in again");
    assert!(
        server
            .memory
            .now()
            .durable
            .get(&ResourceKey::new(Kind::MeshService, "default", "of-a-zone").unwrap())
            .is_some()
    );
    let log = server
        .admin_get(&format!("/_history?from={}", done.revision() - 1))
        .await
        .is(200)
        .json();
    assert_eq!(log["items"].as_array().unwrap().len(), 1);

    // By its name it is meant.
    let named = json!({"to": to, "type": "GlobalSecret", "name": "user-token-revocations"});
    server.roll_back(named).await.is(200);
    let revoked = server.admin_get("/global-secrets/user-token-revocations").await.is(200).json();
    assert_eq!(revoked["data"], revocations["data"]);
}

#[tokio::test]
async fn part_of_everything() {
    let server = Server::global().await;
    let to = server.get("/meshes").await.revision();
    server.put_p("one").await;
    server.put("/meshes/m", json!({"type": "Mesh", "name": "m"})).await.is(201);
    server.put("/zones/z", json!({"type": "Zone", "name": "z"})).await.is(201);
    let typed = server
        .roll_back(json!({"to": to, "type": "Zone", "dryRun": true}))
        .await
        .is(200)
        .json();
    assert_eq!(names(&typed, "changes"), ["delete Zone/z"]);
    let mesh = server.roll_back(json!({"to": to, "mesh": "m"})).await.is(200).json();
    assert!(names(&mesh, "changes").contains(&"delete Mesh/m".to_owned()), "{mesh}");
    assert!(
        names(&mesh, "changes").contains(&"delete Secret/dataplane-token-signing-key-m-1".to_owned()),
        "went with its mesh: {mesh}"
    );
    assert_eq!(names(&mesh, "skipped").len(), 0, "{mesh}");
    server.get("/meshes/m").await.is(404);
    server.get(P).await.is(200);
    server.get("/zones/z").await.is(200);
}

#[tokio::test]
async fn what_would_be_refused_today_is_refused_by_name() {
    let server = Server::global().await;
    // A duration that no validator of today takes, as an older version may have stored it.
    let old = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "soon"}}]});
    server.store(Kind::MeshTimeout, "default", "t", &[("kuma.io/origin", "global")], old);
    let to = server.get("/meshes").await.revision();
    let good = json!({"type": "MeshTimeout", "mesh": "default", "name": "t",
        "spec": {"to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1h"}}]}});
    server.put("/meshes/default/meshtimeouts/t", good).await.is(200);
    let at_p = server.put_p("one").await;
    let stored = server.memory.fingerprint();
    for body in [
        json!({"to": to}),
        json!({"to": to, "dryRun": true}),
        json!({"to": to, "type": "MeshTimeout", "mesh": "default", "name": "t"}),
    ] {
        let refused = server.roll_back(body).await.is(400).json();
        let field = refused["invalid_parameters"][0]["field"].as_str().unwrap();
        assert!(field.starts_with("MeshTimeout/default/t: spec.to[0]"), "{refused}");
    }
    assert_eq!(server.memory.fingerprint(), stored, "nothing of it was done");

    // A mesh with proxies, and a zone that is connected.
    server.put("/meshes/busy", json!({"type": "Mesh", "name": "busy"})).await.is(201);
    server.memory.observe([Observation::Put {
        key: ResourceKey::new(Kind::Dataplane, "busy", "d").unwrap(),
        labels: Default::default(),
        spec: a_dataplane("d"),
        owner: None,
    }]);
    let refused = server.roll_back(json!({"to": at_p})).await.is(400).json();
    let first = &refused["invalid_parameters"][0];
    assert_eq!(first["field"], "Mesh/busy: mesh");
    assert!(first["reason"].as_str().unwrap().contains("still some dataplanes attached"));

    // A resource of a mesh that is gone.
    server
        .put(
            "/meshes/m",
            json!({"type": "Mesh", "name": "m", "skipCreatingInitialPolicies": ["*"]}),
        )
        .await
        .is(201);
    let in_m = json!({"type": "MeshTrafficPermission", "mesh": "m", "name": "p", "spec": a_permission("m", "p")["spec"]});
    let then = server.put("/meshes/m/meshtrafficpermissions/p", in_m).await.is(201).revision();
    server.delete("/meshes/m").await.is(200);
    let one = json!({"to": then, "type": "MeshTrafficPermission", "mesh": "m", "name": "p"});
    let refused = server.roll_back(one).await.is(400).json();
    assert!(
        refused["invalid_parameters"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("Mesh/m, to which it belongs, is not there")
    );
    server.roll_back(json!({"to": then, "mesh": "m"})).await.is(200);
    server.get("/meshes/m/meshtrafficpermissions/p").await.is(200);
}

#[tokio::test]
async fn a_zone_rolls_back_only_what_is_its_own() {
    let server = Server::zone().await;
    let to = server.get("/meshes").await.revision();
    server.put("/meshes/default/dataplanes/d", a_dataplane("d")).await.is(201);
    server.store(
        Kind::MeshTimeout,
        "default",
        "of-global",
        &[("kuma.io/origin", "global")],
        json!({"to": []}),
    );
    server.store(Kind::MeshTrust, "default", "t", &[("kuma.io/origin", "global")], json!({}));
    let one = json!({"to": to, "type": "MeshTimeout", "mesh": "default", "name": "of-global"});
    let refused = server.roll_back(one).await.is(400).json();
    assert_eq!(refused["invalid_parameters"][0]["field"], "MeshTimeout/default/of-global");
    let done = server.roll_back(json!({"to": to})).await.is(200).json();
    assert_eq!(names(&done, "changes"), ["delete Dataplane/d"]);
    assert_eq!(names(&done, "skipped").len(), 2, "{done}");
}

#[tokio::test]
async fn a_retry_is_told_what_the_first_did() {
    let server = Server::global().await;
    let one = server.put_p("one").await;
    server.put_p("two").await;
    let body = json!({"to": one}).to_string();
    let send = async || {
        let request = Request::post("/_rollback")
            .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", "roll-back-7");
        server.send(request.body(Body::from(body.clone())).unwrap()).await.is(200)
    };
    let first = send().await;
    server.put_p("three").await;
    let again = send().await;
    assert_eq!(first.json()["changes"], again.json()["changes"]);
    assert_eq!(
        (first.revision(), first.json()["revision"].clone()),
        (again.revision(), again.json()["revision"].clone())
    );
    assert_eq!(names(&again.json(), "changes"), ["update MeshTrafficPermission/p"]);
    let now = server.get(P).await.json();
    assert!(now.to_string().contains("spiffe://three"), "the retry did nothing");
}

#[tokio::test]
async fn bad_requests_roll_nothing_back() {
    let server = Server::global().await;
    let one = server.put_p("one").await;
    server.put_p("two").await;
    let stored = server.memory.fingerprint();
    for (body, part) in [
        (json!({}), "to"),
        (json!({"to": one, "dryrun": true}), "dryrun"),
        (json!({"to": one, "dryRun": "yes"}), "dryRun"),
        (json!({"to": null}), "to"),
        (json!({"to": "yesterday"}), "must be a revision, or a time"),
        (json!({"to": one + 50}), "has not happened yet"),
        (json!({"to": one, "history": "00000000000000000000000000000001"}), "is at history"),
        (json!({"to": one, "type": "Nonsense"}), "there is no type"),
        (json!({"to": one, "type": "Config"}), "there is no type"),
        (json!({"to": one, "name": "p"}), "goes together with type"),
        (json!({"to": one, "type": "Dataplane"}), "has no history"),
        (json!([one]), "expected an object"),
    ] {
        let refused = server.roll_back(body.clone()).await.is(400).text();
        assert!(refused.contains(part), "{body}: {refused}");
    }
    assert_eq!(server.memory.fingerprint(), stored);
    let get = server.admin_get("/_rollback").await.status.as_u16();
    assert_eq!(get, 405);
}

#[tokio::test]
async fn who_writes_in_between_wins() {
    let server = Server::global().await;
    let one = server.put_p("one").await;
    server.put_p("two").await;
    let info = Info {
        hostname: String::new(),
        version: String::new(),
        instance_id: String::new(),
        based_on_kuma: None,
    };
    let api = Api::new(Site::Global, Arc::new(server.memory.clone()), info, json!({}), Stages::default());
    let catalog = server.memory.now();
    let view = &catalog.durable;
    let differences = view.past().diff(one, view.revision(), Wanted::Those(&|_| true)).unwrap();
    let plan = rollback::plan(&api, &catalog, &[], differences, false);
    server.put_p("three").await;
    let set = Changeset::atomic(RequestId(1), Timestamp(1), plan.ops);
    let applied = server.memory.apply(&Command::Change(set));
    assert!(
        matches!(applied.rejected, Some((0, ursa_state::OpError::Conflict { .. }))),
        "{applied:?}"
    );
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
});

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Mesh(u8),
    NoMesh(u8),
    Back(prop::sample::Index),
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6u8, 0..4u8).prop_map(|(n, value)| Step::Put(n, value)),
        2 => (0..6u8).prop_map(Step::Delete),
        2 => (0..2u8).prop_map(Step::Mesh),
        1 => (0..2u8).prop_map(Step::NoMesh),
        2 => any::<prop::sample::Index>().prop_map(Step::Back),
    ]
}

/// What is stored and may be rolled back, by key.
fn content(server: &Server) -> BTreeMap<String, (Value, ursa_model::Labels, Option<ResourceKey>)> {
    let catalog = server.memory.now();
    let all = catalog.durable.iter();
    all.map(|r| (r.key.to_string(), (r.spec.clone(), r.labels.clone(), r.owner.clone())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever was done through the API, a roll-back of everything gives what was there, and roll-backs can be rolled back.
    #[test]
    fn everything_is_as_it_was(script in prop::collection::vec(arb_step(), 1..25)) {
        RUNTIME.block_on(async {
            let server = Server::global().await;
            // Keys that are there already, and stay: making them takes its time.
            let (key, of) = (server.key_of_default(), |n| format!("dataplane-token-signing-key-m{n}-1"));
            (0..2).for_each(|n| server.store(Kind::Secret, &format!("m{n}"), &of(n), &[("kuma.io/origin", "global")], key.clone()));
            let mut states = vec![(server.get("/meshes").await.revision(), content(&server))];
            for step in script {
                let place = |n: u8| (format!("m{}", n % 2), format!("p{}", n / 2));
                let revision = match step {
                    Step::Put(n, value) => {
                        let (mesh, name) = place(n);
                        let mut document = permission(&name, &format!("v{value}"));
                        document["mesh"] = json!(mesh);
                        server.put(&format!("/meshes/{mesh}/meshtrafficpermissions/{name}"), document).await.revision()
                    }
                    Step::Delete(n) => {
                        let (mesh, name) = place(n);
                        server.delete(&format!("/meshes/{mesh}/meshtrafficpermissions/{name}")).await.revision()
                    }
                    Step::Mesh(n) => {
                        let document = json!({"type": "Mesh", "name": format!("m{n}"), "skipCreatingInitialPolicies": ["*"]});
                        server.put(&format!("/meshes/m{n}"), document).await.revision()
                    }
                    Step::NoMesh(n) => server.delete(&format!("/meshes/m{n}")).await.revision(),
                    Step::Back(index) => {
                        let (to, wanted) = index.get(&states).clone();
                        let done = server.roll_back(json!({"to": to})).await.is(200);
                        assert_eq!(content(&server), wanted, "back to {to}: {}", done.text());
                        done.revision()
                    }
                };
                states.push((revision, content(&server)));
            }
        });
    }
}
