//! Reading the past: at a revision or a time, between two, as a log; and that it tells nobody more than the present does.

use super::*;

pub(super) const P: &str = "/meshes/default/meshtrafficpermissions/p";

/// A permission with something to tell it by.
pub(super) fn permission(name: &str, value: &str) -> Value {
    let mut document = a_permission("default", name);
    document["spec"]["rules"][0]["default"]["allow"][0]["spiffeID"]["value"] = json!(format!("spiffe://{value}"));
    document
}

fn value(document: &Value) -> &Value {
    &document["spec"]["rules"][0]["default"]["allow"][0]["spiffeID"]["value"]
}

impl Server {
    /// Writes `p` and gives the revision.
    pub(super) async fn put_p(&self, value: &str) -> u64 {
        self.put(P, permission("p", value)).await.revision()
    }

    /// Forgets what is below `floor`.
    fn compact(&self, floor: u64) {
        self.memory.apply(&Command::Compact { floor });
    }
}

#[tokio::test]
async fn a_resource_and_a_list_as_they_were() {
    let server = Server::global().await;
    let before = server.get("/meshes").await.revision();
    let (one, two) = (server.put_p("one").await, server.put_p("two").await);
    let gone = server.delete(P).await.is(200).revision();

    server.get(P).await.is(404);
    server.get(&format!("{P}?revision={before}")).await.is(404);
    server.get(&format!("{P}?revision={gone}")).await.is(404);
    for (revision, wanted) in [(one, "spiffe://one"), (two, "spiffe://two"), (gone - 1, "spiffe://two")] {
        let got = server.get(&format!("{P}?revision={revision}")).await.is(200);
        assert_eq!((value(&got.json()), got.revision()), (&json!(wanted), revision));
        let list = server
            .get(&format!("/meshes/default/meshtrafficpermissions?revision={revision}"))
            .await;
        let list = list.is(200).json();
        assert_eq!((list["total"].as_u64(), value(&list["items"][0])), (Some(1), &json!(wanted)));
    }
    let none = server.get(&format!("/meshtrafficpermissions?revision={gone}")).await.is(200).json();
    assert_eq!(none["total"], 0);
    let kubernetes = server.get(&format!("{P}?revision={one}&format=k8s")).await.is(200).json();
    assert_eq!(kubernetes["metadata"]["name"], "p");

    // In a mesh that is gone since.
    let mesh = server
        .put(
            "/meshes/m",
            json!({"type": "Mesh", "name": "m", "skipCreatingInitialPolicies": ["*"]}),
        )
        .await
        .is(201)
        .revision();
    server.delete("/meshes/m").await.is(200);
    server.get(&format!("/meshes/m?revision={mesh}")).await.is(200);
    let list = server.get(&format!("/meshes/m/meshtrafficpermissions?revision={mesh}")).await;
    assert_eq!(list.is(200).json()["total"], 0);
    server
        .get(&format!("/meshes/m/meshtrafficpermissions?revision={gone}"))
        .await
        .is(404);
}

#[tokio::test]
async fn a_revision_by_its_time() {
    let server = Server::global().await;
    let first = server.put_p("one").await;
    let at = server.get(P).await.json()["modificationTime"].as_str().unwrap().to_owned();
    let got = server.get(&format!("{P}?revision={at}")).await.is(200);
    assert!(got.revision() >= first);
    server.get(&format!("{P}?revision=1999-01-01T00:00:00Z")).await.is(404);
    server.compact(first);
    let gone = server.get(&format!("{P}?revision=1999-01-01T00:00:00Z")).await.is(410).json();
    assert!(gone["detail"].as_str().unwrap().contains(&first.to_string()), "{gone}");
}

#[tokio::test]
async fn below_the_floor_the_oldest_revision_is_named() {
    let server = Server::global().await;
    let (one, two) = (server.put_p("one").await, server.put_p("two").await);
    let three = server.put_p("three").await;
    server.compact(two);
    for path in [
        format!("{P}?revision={one}"),
        format!("/meshes?revision={one}"),
        format!("/_changes?from={one}"),
        format!("/_changes?from={one}&to={three}"),
        format!("/_history?from={one}"),
    ] {
        let gone = server.get(&path).await.is(410).json();
        let detail = gone["detail"].as_str().unwrap();
        assert!(
            detail.contains(&format!("the oldest that can be read is {two}")),
            "{path}: {detail}"
        );
    }
    let post = server.post("/_rollback", json!({"to": one})).await.is(410).json();
    assert!(post["detail"].as_str().unwrap().contains(&two.to_string()));
    assert_eq!(
        value(&server.get(&format!("{P}?revision={two}")).await.is(200).json()),
        "spiffe://two"
    );
    // Without `from`, a log begins where history does.
    let log = server.get("/_history").await.is(200).json();
    assert_eq!(
        (log["from"].as_u64(), log["oldest"].as_u64(), log["items"].as_array().unwrap().len()),
        (Some(two), Some(two), 1)
    );
}

#[tokio::test]
async fn what_is_different_between_two_revisions() {
    let server = Server::global().await;
    let start = server.get("/meshes").await.revision();
    let one = server.put_p("one").await;
    let two = server.put_p("two").await;
    server
        .put("/meshes/default/meshtrafficpermissions/q", permission("q", "q"))
        .await
        .is(201);
    let end = server.delete(P).await.is(200).revision();

    let changes = async |query: &str| server.get(&format!("/_changes?{query}")).await.is(200).json();
    let all = changes(&format!("from={start}")).await;
    assert_eq!((all["total"].as_u64(), all["to"].as_u64()), (Some(1), Some(end)), "p came and went");
    assert_eq!(
        (&all["items"][0]["operation"], &all["items"][0]["name"]),
        (&json!("create"), &json!("q"))
    );
    assert!(all["items"][0].get("before").is_none());

    let update = changes(&format!("from={one}&to={two}")).await;
    let item = &update["items"][0];
    assert_eq!(
        (
            &item["operation"],
            &item["type"],
            &item["mesh"],
            value(&item["before"]),
            value(&item["after"])
        ),
        (
            &json!("update"),
            &json!("MeshTrafficPermission"),
            &json!("default"),
            &json!("spiffe://one"),
            &json!("spiffe://two")
        )
    );
    let delete = changes(&format!("from={two}&type=MeshTrafficPermission&mesh=default&name=p")).await;
    assert_eq!(
        (&delete["items"][0]["operation"], delete["total"].as_u64()),
        (&json!("delete"), Some(1))
    );
    assert_eq!(changes(&format!("from={two}&to={two}")).await["total"], 0);
    assert_eq!(changes(&format!("from={start}&type=Mesh")).await["total"], 0);
    let paged = changes(&format!("from={two}&size=1")).await;
    assert_eq!((paged["total"].as_u64(), paged["items"].as_array().unwrap().len()), (Some(2), 1));
    assert!(paged["next"].as_str().unwrap().contains("offset=1"));
}

#[tokio::test]
async fn the_log_is_newest_first_and_goes_on_where_a_page_ends() {
    let server = Server::global().await;
    let start = server.get("/meshes").await.revision();
    let revisions = [
        server.put_p("one").await,
        server.put_p("two").await,
        server.delete(P).await.revision(),
    ];
    server.put("/zones/z", json!({"type": "Zone", "name": "z"})).await.is(201);
    let log = server.admin_get(&format!("/_history?from={start}")).await.is(200).json();
    let seen: Vec<(u64, &str, &str)> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            let change = &e["changes"][0];
            (
                e["revision"].as_u64().unwrap(),
                change["operation"].as_str().unwrap(),
                change["name"].as_str().unwrap(),
            )
        })
        .collect();
    let newest = server.get("/meshes").await.revision();
    let [one, two, three] = revisions;
    assert_eq!(
        seen,
        [
            (newest, "create", "z"),
            (three, "delete", "p"),
            (two, "update", "p"),
            (one, "create", "p")
        ]
    );
    assert_eq!(
        (&log["items"][0]["actor"], log["next"].is_null()),
        (&json!("mesh-system:admin"), true)
    );

    let mut next = Some(format!("/_history?from={start}&size=1&type=MeshTrafficPermission"));
    let mut pages = Vec::new();
    while let Some(path) = next {
        let page = server.get(&path).await.is(200).json();
        pages.extend(page["items"].as_array().unwrap().iter().map(|e| e["revision"].as_u64().unwrap()));
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(pages, [three, two, one]);
    let one_key = server
        .get(&format!("/_history?type=MeshTrafficPermission&mesh=default&name=p&from={one}"))
        .await;
    assert_eq!(one_key.is(200).json()["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn bad_questions_name_the_way_out() {
    let server = Server::global().await;
    let now = server.put_p("one").await;
    for (path, status, part) in [
        (format!("{P}?revision={}", now + 1), 400, format!("the newest is {now}")),
        (format!("{P}?revision=x"), 400, "must be a revision, or a time".to_owned()),
        (format!("{P}?revision=-1"), 400, "must be a revision".to_owned()),
        (
            format!("{P}?revision={now}&history=00"),
            400,
            "this control plane is at history".to_owned(),
        ),
        ("/_changes".to_owned(), 400, "must be given".to_owned()),
        (format!("/_changes?from={now}&to=1"), 400, "must not be newer than to".to_owned()),
        (format!("/_changes?from=1&to={}", now + 5), 400, "has not happened yet".to_owned()),
        ("/_changes?from=1&type=Nonsense".to_owned(), 400, "there is no type".to_owned()),
        ("/_changes?from=1&name=x".to_owned(), 400, "goes together with type".to_owned()),
        ("/_changes?from=1&type=Config".to_owned(), 400, "there is no type".to_owned()),
        ("/_changes?from=1&size=0".to_owned(), 400, "greater than 0".to_owned()),
        ("/_history?to=99999".to_owned(), 400, "has not happened yet".to_owned()),
        ("/meshes/default/dataplanes?revision=1".to_owned(), 400, "has no history".to_owned()),
        (
            "/meshes/default/dataplanes/_overview?revision=1".to_owned(),
            400,
            "observed now".to_owned(),
        ),
        (format!("/meshes/none/meshtimeouts?revision={now}"), 404, "Not found".to_owned()),
    ] {
        let got = server.get(&path).await.is(status);
        assert!(got.text().contains(&part), "{path}: {}", got.text());
    }
}

#[tokio::test]
async fn history_tells_nobody_more_than_the_present_does() {
    let server = Server::global().await;
    let start = server.get("/meshes").await.revision();
    let secret = |data: &str| json!({"type": "Secret", "mesh": "default", "name": "hidden-name", "data": data});
    let path = "/meshes/default/secrets/hidden-name";
    server.put(path, secret("aHVudGVyMg==")).await.is(201);
    let revision = server.put(path, secret("aHVudGVyMw==")).await.is(200).revision();
    let global = json!({"type": "GlobalSecret", "name": "hidden-name", "data": "aHVudGVyMg=="});
    server.put("/global-secrets/hidden-name", global).await.is(201);
    server.delete(path).await.is(200);

    let somebody = server.user_token("somebody", &["team"]);
    for token in ["", &somebody] {
        let ask = async |path: &str| {
            let mut request = Request::get(path);
            if !token.is_empty() {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            server.send(request.body(Body::empty()).unwrap()).await
        };
        for open in [
            format!("/_changes?from={start}"),
            "/_changes?from=0".to_owned(),
            "/_history".to_owned(),
            "/_history?mesh=default".to_owned(),
        ] {
            let text = ask(&open).await.is(200).text();
            for hidden in [
                "hidden-name",
                "aHVudGVyM",
                "Secret",
                "signing-key",
                "mesh-system:admin",
                "kuma-cluster-id",
            ] {
                assert!(!text.contains(hidden), "{open} tells {hidden}");
            }
        }
        for closed in [
            format!("{path}?revision={revision}"),
            format!("/meshes/default/secrets?revision={revision}"),
            format!("/global-secrets/hidden-name?revision={revision}"),
            format!("/_changes?from={start}&type=Secret"),
            "/_history?type=GlobalSecret".to_owned(),
            "/_history?type=Secret&mesh=default&name=hidden-name".to_owned(),
        ] {
            let refused = ask(&closed).await.is(403).text();
            assert!(!refused.contains("aHVudGVyM"));
        }
        let rollback = Request::post("/_rollback")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        let rollback = rollback.body(Body::from(json!({"to": start, "dryRun": true}).to_string())).unwrap();
        let status = server.send(rollback).await.status.as_u16();
        assert!(matches!(status, 401 | 403), "{status}");
    }
    let seen = server.admin_get(&format!("{path}?revision={revision}")).await.is(200).json();
    assert_eq!(seen["data"], "aHVudGVyMw==");
    let internal = server.admin_get("/_changes?from=0&size=1000").await.is(200).text();
    assert!(internal.contains("hidden-name") && !internal.contains("kuma-cluster-id"));
}

/// What was packed away is read like the rest.
#[tokio::test]
async fn the_past_reaches_beyond_what_is_kept_as_it_was() {
    let server = Server::global().await;
    let first = server.put_p("first").await;
    let second = server.put_p("second").await;
    for n in 0..ursa_state::RECENT + 200 {
        server.store(Kind::Zone, "", "z", &[], json!({"enabled": n % 2 == 0}));
    }
    assert!(server.memory.now().durable.floor() > second, "nothing was packed");
    assert_eq!(
        value(&server.get(&format!("{P}?revision={first}")).await.is(200).json()),
        "spiffe://first"
    );
    let list = server
        .get(&format!("/meshtrafficpermissions?revision={first}"))
        .await
        .is(200)
        .json();
    assert_eq!(
        (list["total"].as_u64(), value(&list["items"][0])),
        (Some(1), &json!("spiffe://first"))
    );
    let changes = server
        .get(&format!("/_changes?from={first}&type=MeshTrafficPermission"))
        .await
        .is(200)
        .json();
    assert_eq!(value(&changes["items"][0]["after"]), "spiffe://second");
    let log = server
        .get(&format!("/_history?type=MeshTrafficPermission&from={}", first - 1))
        .await
        .is(200)
        .json();
    assert_eq!(log["items"].as_array().unwrap().len(), 2);
    server
        .post(
            "/_rollback",
            json!({"to": first, "type": "MeshTrafficPermission", "mesh": "default", "name": "p"}),
        )
        .await
        .is(200);
    assert_eq!(value(&server.get(P).await.json()), "spiffe://first");
}
