//! Create, read, list, update, delete.

use super::*;

#[tokio::test]
async fn a_policy_at_the_global() {
    let server = Server::global().await;
    let path = "/meshes/default/meshtrafficpermissions/allow";
    let created = server.put(path, a_permission("default", "allow")).await.is(201);
    assert_eq!(created.json(), json!({}));
    let got = server.get(path).await.is(200);
    assert_eq!(got.header("content-type"), "application/json");
    let body = got.json();
    assert_eq!(
        body["labels"],
        json!({"kuma.io/display-name": "allow", "kuma.io/mesh": "default", "kuma.io/origin": "global"})
    );
    assert_eq!(
        (body["type"].as_str(), body["kri"].as_str()),
        (Some("MeshTrafficPermission"), Some("kri_mtp_default___allow_"))
    );
    assert_eq!(body["creationTime"], body["modificationTime"]);
    assert!(body.get("status").is_none() && body.get("snis").is_none());
    assert_eq!(server.get("/_kri/kri_mtp_default___allow_").await.is(200).json(), body);

    // The document that was read can be written back; user labels are replaced, computed ones are not lost.
    let mut again = body.clone();
    again["labels"]["team"] = json!("a");
    server.put(path, again).await.is(200);
    assert_eq!(server.get(path).await.json()["labels"]["team"], "a");
    server.put(path, a_permission("default", "allow")).await.is(200);
    assert!(server.get(path).await.json()["labels"].get("team").is_none());

    assert_eq!(server.delete(path).await.is(200).json(), json!({}));
    server.get(path).await.is(404);
    server.delete(path).await.is(404);
}

#[tokio::test]
async fn the_mesh_of_a_spec_kind_may_be_left_out() {
    let server = Server::global().await;
    let mut body = a_permission("default", "p");
    body.as_object_mut().unwrap().remove("mesh");
    server.put("/meshes/default/meshtrafficpermissions/p", body).await.is(201);
}

#[tokio::test]
async fn yaml_is_read_as_json_is() {
    let server = Server::global().await;
    for content in ["application/yaml", "application/x-yaml; charset=utf-8", "text/yaml"] {
        let request = Request::put("/zones/east")
            .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
            .header(header::CONTENT_TYPE, content)
            .body(Body::from("type: Zone\nname: east\nenabled: false\nlabels:\n  team: a\n"))
            .unwrap();
        assert!(server.send(request).await.status.is_success());
    }
    let zone = server.get("/zones/east").await.is(200).json();
    assert_eq!(
        (zone["enabled"].as_bool(), zone["labels"]["team"].as_str(), zone.get("spec")),
        (Some(false), Some("a"), None)
    );
}

#[tokio::test]
async fn a_new_mesh_comes_with_its_defaults_in_one_revision() {
    let server = Server::global().await;
    let created = server.put("/meshes/demo", json!({"type": "Mesh", "name": "demo"})).await.is(201);
    let now = server.memory.now();
    let in_mesh: Vec<_> = now.durable.iter().filter(|r| r.mesh() == "demo").collect();
    let mut names: Vec<_> = in_mesh.iter().map(|r| r.name().to_owned()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "dataplane-token-signing-key-demo-1",
            "mesh-circuit-breaker-all-demo",
            "mesh-retry-all-demo",
            "mesh-timeout-all-demo",
            "mesh-timeout-to-all-demo"
        ]
    );
    assert!(
        in_mesh
            .iter()
            .all(|r| r.create_revision == created.revision() && r.label("kuma.io/origin") == Some("global"))
    );
    let owner = ResourceKey::mesh_itself("demo").unwrap();
    assert!(in_mesh.iter().all(|r| r.owner.as_ref() == Some(&owner)));

    server
        .put(
            "/meshes/bare",
            json!({"type": "Mesh", "name": "bare", "skipCreatingInitialPolicies": ["*"]}),
        )
        .await
        .is(201);
    let now = server.memory.now();
    assert_eq!(
        now.durable.iter().filter(|r| r.mesh() == "bare").count(),
        1,
        "the signing key is made all the same"
    );

    // Policies that the operator deleted stay deleted, and the mesh takes everything with it.
    server.delete("/meshes/demo/meshretries/mesh-retry-all-demo").await.is(200);
    server
        .put("/meshes/demo", json!({"type": "Mesh", "name": "demo", "labels": {"a": "b"}}))
        .await
        .is(200);
    server.get("/meshes/demo/meshretries/mesh-retry-all-demo").await.is(404);
    server.delete("/meshes/demo").await.is(200);
    assert_eq!(server.memory.now().durable.iter().filter(|r| r.mesh() == "demo").count(), 0);
}

#[tokio::test]
async fn lists_are_sorted_filtered_and_cut() {
    let server = Server::global().await;
    server
        .put(
            "/meshes/other",
            json!({"type": "Mesh", "name": "other", "skipCreatingInitialPolicies": ["*"]}),
        )
        .await
        .is(201);
    for (mesh, name, team) in [
        ("other", "a", "x"),
        ("default", "c", "x"),
        ("default", "b", "y"),
        ("default", "a", "x"),
    ] {
        let mut body = a_permission(mesh, name);
        body["labels"] = json!({"team": team});
        server
            .put(&format!("/meshes/{mesh}/meshtrafficpermissions/{name}"), body)
            .await
            .is(201);
    }
    let names = |body: &Value| -> Vec<String> {
        body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| format!("{}/{}", i["mesh"].as_str().unwrap(), i["name"].as_str().unwrap()))
            .collect()
    };
    let all = server.get("/meshtrafficpermissions").await.is(200).json();
    assert_eq!(names(&all), ["default/a", "default/b", "default/c", "other/a"]);
    assert_eq!((all["total"].as_u64(), &all["next"]), (Some(4), &Value::Null));

    let first = Request::get("/meshes/default/meshtrafficpermissions?size=2&filter%5Blabels.kuma.io/mesh%5D=default")
        .header(header::HOST, "cp.example:5682")
        .body(Body::empty())
        .unwrap();
    let first = server.send(first).await.is(200).json();
    assert_eq!((names(&first).len(), first["total"].as_u64()), (2, Some(3)));
    let next = first["next"].as_str().unwrap();
    assert!(
        next.starts_with("http://cp.example:5682/meshes/default/meshtrafficpermissions?filter"),
        "{next}"
    );
    let rest = server
        .get(next.strip_prefix("http://cp.example:5682").unwrap())
        .await
        .is(200)
        .json();
    assert_eq!((names(&rest), &rest["next"]), (vec!["default/c".to_owned()], &Value::Null));

    let filtered = server
        .get("/meshtrafficpermissions?filter[labels.team]=x&filter[labels.kuma.io/mesh]=default")
        .await
        .json();
    assert_eq!(
        (names(&filtered), filtered["total"].as_u64()),
        (vec!["default/a".to_owned(), "default/c".to_owned()], Some(2))
    );
    assert_eq!(names(&server.get("/meshtrafficpermissions?name=b").await.json()), ["default/b"]);
    let beyond = server.get("/meshtrafficpermissions?offset=100").await.is(200).json();
    assert_eq!(beyond, json!({"total": 4, "items": [], "next": null}));
    let mut tls = Request::get("/meshtrafficpermissions?size=1")
        .header(header::HOST, "cp:5682")
        .body(Body::empty())
        .unwrap();
    let addr = std::net::SocketAddr::from(([10, 0, 0, 1], 4000));
    tls.extensions_mut().insert(ursa_runtime::serve::Peer {
        addr,
        local: None,
        tls: Some(Arc::default()),
    });
    assert_eq!(
        server.send(tls).await.json()["next"],
        "https://cp:5682/meshtrafficpermissions?offset=1&size=1"
    );
    let root_relative = server.get("/meshtrafficpermissions?size=1").await.json();
    assert_eq!(root_relative["next"], "/meshtrafficpermissions?offset=1&size=1");
}

#[tokio::test]
async fn a_zone_computes_its_own_labels() {
    let server = Server::zone().await;
    let mut body = a_dataplane("backend-1");
    body["labels"] = json!({"kuma.io/workload": "backend", "kuma.io/display-name": "mine"});
    server.put("/meshes/default/dataplanes/backend-1", body).await.is(201);
    let got = server.get("/meshes/default/dataplanes/backend-1").await.is(200).json();
    assert_eq!(
        got["labels"],
        json!({
            "kuma.io/display-name": "backend-1", "kuma.io/env": "universal", "kuma.io/mesh": "default", "kuma.io/origin": "zone",
            "kuma.io/workload": "backend", "kuma.io/zone": "west",
        })
    );
    assert_eq!(got["kri"], "kri_dp_default_west__backend-1_");
    assert_eq!(got["networking"]["inbound"][0]["servicePort"], 18080);
    assert!(got.get("spec").is_none());
    assert_eq!(server.get("/_kri/kri_dp_default_west__backend-1_").await.is(200).json(), got);

    let ingress = json!({
        "type": "Dataplane", "mesh": "default", "name": "zi",
        "networking": {"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "address": "127.0.2.2", "port": 10001}]},
    });
    server.put("/meshes/default/dataplanes/zi", ingress).await.is(201);
    let listed = server
        .get("/meshes/default/dataplanes?filter[labels.kuma.io/listener-zoneingress]=enabled")
        .await
        .json();
    assert_eq!(listed["total"], 1);

    let tagged = server.get("/meshes/default/dataplanes?tag=kuma.io/workload:back").await.json();
    assert_eq!(
        (tagged["total"].as_u64(), tagged["items"][0]["name"].as_str()),
        (Some(1), Some("backend-1"))
    );
    assert_eq!(server.get("/meshes/default/dataplanes?gateway=true").await.json()["total"], 0);
    assert_eq!(server.get("/dataplanes?gateway=false").await.json()["total"], 2);
}

#[tokio::test]
async fn a_service_shows_its_snis_and_status_and_warns() {
    let server = Server::zone().await;
    let body = json!({
        "type": "MeshService", "mesh": "default", "name": "redis", "labels": {"kuma.io/origin": "zone"},
        "spec": {"selector": {}, "ports": [{"port": 6379, "name": "Red_is"}, {"port": 80, "name": "http", "appProtocol": "http"}]},
        "status": {"vips": [{"ip": "10.0.0.2"}]},
    });
    let created = server.put("/meshes/default/meshservices/redis", body).await.is(201).json();
    let warnings = created["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let got = server.get("/meshes/default/meshservices/redis").await.json();
    assert_eq!(got["snis"], json!([{"port": 80, "sni": "sni.msvc.default.west.redis.http"}]));
    assert_eq!(
        got["status"],
        json!({"tls": {}, "dataplaneProxies": {}}),
        "a status in a request is not stored"
    );
}

#[tokio::test]
async fn secrets_are_for_administrators() {
    let server = Server::global().await;
    let body = json!({"type": "Secret", "mesh": "default", "name": "s-1", "data": "dGVzdAo="});
    server.put("/meshes/default/secrets/s-1", body).await.is(201);
    let got = server.admin_get("/meshes/default/secrets/s-1").await.is(200).json();
    assert_eq!((got["data"].as_str(), got.get("kri")), (Some("dGVzdAo="), None));
    let token = server.admin_get("/global-secrets/admin-user-token").await.is(200).json();
    let data = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, token["data"].as_str().unwrap()).unwrap();
    assert_eq!(String::from_utf8(data).unwrap(), server.admin);
    assert_eq!(server.admin_get("/globalsecrets").await.is(200).json()["total"], 3);
}

/// What README.md and the demo tell users to send.
#[tokio::test]
async fn the_demo_s_resources_are_accepted() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo");
    let (global, zone) = (Server::global().await, Server::zone().await);
    let mut sent = 0;
    for at in [folder.clone(), folder.join("dataplanes"), folder.join("propagation")] {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let document: Value = serde_saphyr::from_str(&text).unwrap();
            let kind: Kind = document["type"].as_str().unwrap().parse().unwrap();
            let name = document["name"].as_str().unwrap();
            let (server, url) = match kind {
                Kind::Mesh => (&global, format!("/meshes/{name}")),
                Kind::Dataplane => (&zone, format!("/meshes/default/dataplanes/{name}")),
                _ => (&global, format!("/meshes/default/{}/{name}", kind.descriptor().path)),
            };
            let request = Request::put(&url)
                .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
                .header(header::CONTENT_TYPE, "application/yaml")
                .body(Body::from(text))
                .unwrap();
            let got = server.send(request).await;
            assert!(got.status.is_success(), "{}: {}", path.display(), got.text());
            assert!(got.json().get("warnings").is_none(), "{}: {}", path.display(), got.text());
            sent += 1;
        }
    }
    assert!(sent >= 15, "{sent}");
}
