//! What the control plane tells about itself and its state.

use ursa_state::observed::Observation;

use super::*;
use crate::{ProposeError, Unavailable, bootstrap::ensure_defaults};

#[tokio::test]
async fn the_index_is_what_kumactl_needs() {
    let server = Server::global().await;
    let request = Request::get("/")
        .header(header::AUTHORIZATION, "Bearer garbage")
        .body(Body::empty())
        .unwrap();
    let got = server.send(request).await.is(200);
    let index = got.json();
    assert_eq!(
        (index["product"].as_str(), index["hostname"].as_str(), index["instanceId"].as_str()),
        (Some("Kuma"), Some("h"), Some("i-1"))
    );
    assert!(index["version"].as_str().unwrap().contains("preview"));
    assert_eq!(index["clusterId"].as_str().unwrap().len(), 36);
    assert_eq!(got.header("ursa-history"), format!("{:032x}", 7));
}

#[tokio::test]
async fn kinds_and_policies() {
    let server = Server::global().await;
    let all = server.get("/_resources").await.is(200).json();
    let find = |name: &str| {
        all["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["name"] == name)
            .cloned()
            .unwrap()
    };
    assert_eq!(
        find("MeshTrafficPermission"),
        json!({
            "name": "MeshTrafficPermission", "scope": "Mesh", "readOnly": false, "path": "meshtrafficpermissions",
            "singularDisplayName": "Mesh Traffic Permission", "pluralDisplayName": "Mesh Traffic Permissions", "shortName": "mtp",
            "includeInFederation": true,
            "policy": {"isTargetRef": true, "hasToTargetRef": false, "hasFromTargetRef": false, "hasRulesTargetRef": true, "isFromAsRules": false},
        })
    );
    assert_eq!(
        (find("Dataplane")["readOnly"].as_bool(), find("ZoneInsight")["readOnly"].as_bool()),
        (Some(false), Some(true))
    );
    assert!(all["resources"].as_array().unwrap().iter().all(|r| r["name"] != "Config"));
    // kumactl export lists every type that is told here.
    for kind in all["resources"].as_array().unwrap() {
        let path = kind["path"].as_str().unwrap();
        let path = if kind["scope"] == "Mesh" {
            format!("/meshes/default/{path}")
        } else {
            format!("/{path}")
        };
        server.admin_get(&path).await.is(200);
    }
    let policies = server.get("/policies").await.is(200).json();
    let names: Vec<_> = policies["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert!(names.is_sorted() && names.contains(&"MeshTimeout"));
    let zone = Server::zone().await.get("/_resources").await.json();
    assert!(zone["resources"].as_array().unwrap().iter().all(|r| r["readOnly"] == true));
}

#[tokio::test]
async fn callers_and_configuration() {
    let server = Server::global().await;
    assert_eq!(
        server.get("/who-am-i").await.is(200).json(),
        json!({"name": "mesh-system:anonymous", "groups": ["mesh-system:unauthenticated"]})
    );
    assert_eq!(
        server.admin_get("/who-am-i").await.is(200).json(),
        json!({"name": "mesh-system:admin", "groups": ["mesh-system:admin", "mesh-system:authenticated"]})
    );
    assert_eq!(server.admin_get("/config").await.is(200).json()["password"], "*****");
}

#[tokio::test]
async fn overviews_join_what_is_known() {
    let server = Server::global().await;
    for zone in ["east", "west"] {
        server
            .put(&format!("/zones/{zone}"), json!({"type": "Zone", "name": zone}))
            .await
            .is(201);
    }
    let put = |kind, mesh, name, spec| Observation::Put {
        key: ResourceKey::new(kind, mesh, name).unwrap(),
        labels: Default::default(),
        spec,
        owner: None,
    };
    let connected = json!({"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z", "status": {"total": {}}}]});
    let inbound = |state: &str| json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 80}, {"port": 81, "state": state}]}});
    server.memory.observe([
        put(Kind::ZoneInsight, "", "east", connected.clone()),
        put(Kind::Dataplane, "default", "dp-1", inbound("Ready")),
        put(Kind::DataplaneInsight, "default", "dp-1", connected.clone()),
        put(Kind::Dataplane, "default", "dp-2", inbound("NotReady")),
        put(Kind::DataplaneInsight, "default", "dp-2", connected),
        put(Kind::Dataplane, "default", "dp-3", inbound("Ready")),
    ]);
    let zones = server.get("/zones/_overview").await.is(200).json();
    assert_eq!(zones, server.get("/zones+insights").await.is(200).json());
    let (east, west) = (&zones["items"][0], &zones["items"][1]);
    assert_eq!(
        (east["type"].as_str(), east["zone"].clone(), east["kri"].as_str()),
        (Some("ZoneOverview"), json!({}), Some("kri_z____east_"))
    );
    assert_eq!(east["zoneInsight"]["subscriptions"][0]["id"], "1");
    assert!(west.get("zoneInsight").is_none());
    assert_eq!(&server.get("/zones/east/_overview").await.is(200).json(), east);
    server.get("/zones/none/_overview").await.is(404);

    let proxies = server.get("/meshes/default/dataplanes/_overview?size=2").await.is(200).json();
    assert_eq!(
        (proxies["total"].as_u64(), proxies["items"].as_array().unwrap().len()),
        (Some(3), 2)
    );
    assert_eq!(proxies["items"][0]["dataplane"]["networking"]["address"], "127.0.0.1");
    let one = server.get("/meshes/default/dataplanes/dp-1/_overview").await.is(200).json();
    assert_eq!(
        (one["type"].as_str(), one["mesh"].as_str()),
        (Some("DataplaneOverview"), Some("default"))
    );
    assert_eq!(server.get("/dataplanes/_overview").await.is(200).json()["total"], 3);
    assert_eq!(server.get("/meshes/default/dataplane-insights").await.is(200).json()["total"], 2);
    assert_eq!(
        server.get("/zone-insights/east").await.is(200).json()["subscriptions"][0]["id"],
        "1"
    );

    let insight = server.get("/mesh-insights/default").await.is(200).json();
    assert_eq!(
        insight["dataplanes"],
        json!({"total": 3, "online": 1, "offline": 1, "partiallyDegraded": 1})
    );
    assert_eq!(insight["dpVersions"]["envoy"]["unknown"]["total"], 3);
    assert_eq!(insight["resources"]["Dataplane"]["total"], 3);
    assert_eq!(
        (insight["type"].as_str(), insight["name"].as_str()),
        (Some("MeshInsight"), Some("default"))
    );
    assert_eq!(server.get("/mesh-insights").await.is(200).json()["items"][0], insight);
    let global = server.get("/global-insight").await.is(200).json();
    assert_eq!(
        (&global["zones"]["controlPlanes"], global["meshes"]["total"].as_u64()),
        (&json!({"online": 1, "total": 1}), Some(1))
    );
    assert_eq!(
        global["dataplanes"]["standard"],
        json!({"total": 3, "online": 1, "offline": 1, "partiallyDegraded": 1})
    );
    let legacy = server.get("/global-insights").await.is(200).json();
    assert_eq!(legacy["resources"]["Zone"], json!({"total": 2}));
}

#[tokio::test]
async fn older_paths_answer_empty_lists() {
    let server = Server::global().await;
    for path in [
        "/zoneingresses/_overview",
        "/zoneegresses/_overview",
        "/meshes/default/service-insights",
        "/service-insights",
    ] {
        assert_eq!(
            server.get(path).await.is(200).json(),
            json!({"total": 0, "items": [], "next": null})
        );
    }
    server.get("/meshes/default/service-insights/x").await.is(404);
    server.get("/meshes/none/service-insights").await.is(404);
}

#[tokio::test]
async fn without_a_leader_reads_fail_unless_stale_ones_will_do() {
    let server = Server::global().await;
    server.memory.fail_reads(Some(Unavailable {
        reason: "there is no leader",
        leader: None,
    }));
    let got = server.get("/meshes").await.is(503);
    assert_eq!(
        (got.header("retry-after"), got.json()["title"].as_str()),
        ("1", Some("Service unavailable"))
    );
    server.get("/meshes?stale=true").await.is(200);
    let header = Request::get("/meshes").header("ursa-stale", "true").body(Body::empty()).unwrap();
    server.send(header).await.is(200);
    server.get("/").await.is(200);
    server
        .admin(Method::PUT, "/zones/east?stale=true", &json!({"type": "Zone", "name": "east"}))
        .await
        .is(503);
}

#[tokio::test]
async fn defaults_are_made_once_and_in_one_piece() {
    let site = Site::Global;
    let memory = Memory::new(&site);
    let first = ensure_defaults(&memory, &site, &Default::default()).await.unwrap();
    let revisions: std::collections::BTreeSet<u64> = memory.now().durable.iter().map(|r| r.create_revision).collect();
    assert_eq!(revisions.len(), 1, "one changeset");
    let mut names: Vec<String> = memory.now().durable.iter().map(|r| r.key.to_string()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "Config/kuma-cluster-id",
            "GlobalSecret/admin-user-token",
            "GlobalSecret/user-token-signing-key-1",
            "GlobalSecret/zone-token-signing-key-1",
            "Mesh/default",
            "MeshCircuitBreaker/default/mesh-circuit-breaker-all-default",
            "MeshRetry/default/mesh-retry-all-default",
            "MeshTimeout/default/mesh-timeout-all-default",
            "MeshTimeout/default/mesh-timeout-to-all-default",
            "Secret/default/dataplane-token-signing-key-default-1",
        ]
    );
    assert!(memory.now().durable.iter().all(|r| r.label("kuma.io/origin") == Some("global")));
    let second = ensure_defaults(&memory, &site, &Default::default()).await.unwrap();
    assert_eq!((second.created, second.revision), (0, first.revision));
    assert_eq!((second.admin_token, second.cluster_id), (first.admin_token, first.cluster_id));
}

#[tokio::test]
async fn a_federated_zone_makes_only_itself_and_its_own_administrator() {
    let site = zone_site(true);
    let memory = Memory::new(&site);
    ensure_defaults(&memory, &site, &Default::default()).await.unwrap();
    let names: Vec<String> = memory.now().durable.iter().map(|r| r.key.to_string()).collect();
    assert_eq!(
        names,
        [
            "Zone/west",
            "GlobalSecret/admin-user-token",
            "GlobalSecret/user-token-signing-key-1"
        ]
    );
}

#[tokio::test]
async fn defaults_fail_in_a_way_that_tells_whether_to_retry() {
    let site = zone_site(true);
    let memory = Memory::new(&site);
    memory.fail_writes(Some((ProposeError::Unknown, true)));
    let error = ensure_defaults(&memory, &site, &Default::default()).await.err().unwrap();
    assert!(error.is_retryable());
    memory.fail_writes(None);
    // What the first attempt did after all is found.
    assert_eq!(ensure_defaults(&memory, &site, &Default::default()).await.unwrap().created, 0);
}
