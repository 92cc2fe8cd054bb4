//! The inspect endpoints, the format of Kubernetes, and kinds that are not here.

use ursa_state::observed::Observation;

use super::*;

const FRONTEND: &str = "/meshes/default/dataplanes/frontend";

/// A zone with a frontend that calls a backend, and policies about both.
async fn demo() -> Server {
    let server = Server::zone().await;
    let mine = [("kuma.io/origin", "zone"), ("kuma.io/zone", "west")];
    let backend_ref = json!({"kind": "MeshService", "name": "backend", "port": 8080});
    let frontend = json!({"networking": {"address": "127.0.0.1",
        "inbound": [{"port": 8080, "name": "http", "protocol": "http"}],
        "outbound": [{"port": 20001, "backendRef": backend_ref}]}});
    server.store(Kind::Dataplane, "default", "frontend", &mine, frontend);
    let backend = json!({"networking": {"address": "127.0.0.2", "inbound": [{"port": 8080, "name": "http", "protocol": "http"}]}});
    let mut labels = mine.to_vec();
    labels.push(("kuma.io/workload", "backend"));
    server.store(Kind::Dataplane, "default", "backend-1", &labels, backend);
    let service = json!({"state": "Available", "selector": {"dataplaneLabels": {"matchLabels": {"kuma.io/workload": "backend"}}},
        "ports": [{"port": 8080, "name": "http", "targetPort": 8080, "appProtocol": "http"}]});
    labels.push(("kuma.io/display-name", "backend"));
    server.store(Kind::MeshService, "default", "backend", &labels, service);
    let from_global = [("kuma.io/origin", "global")];
    let to = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}});
    let all = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "7s"}}]});
    server.store(Kind::MeshTimeout, "default", "to-all", &from_global, all);
    let route = json!({"to": [{"targetRef": to, "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "default": {"backendRefs": [{"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}, "port": 8080, "weight": 1}]}}]}]});
    server.store(Kind::MeshHTTPRoute, "default", "canary", &from_global, route);
    let allow = json!({"targetRef": {"kind": "Dataplane", "labels": {"kuma.io/workload": "backend"}},
        "rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": "spiffe://x/"}}]}}]});
    server.store(Kind::MeshTrafficPermission, "default", "allow", &from_global, allow);
    server
}

fn names(page: &Value) -> Vec<&str> {
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn which_proxies_a_policy_is_about() {
    let server = demo().await;
    let policy = "/meshes/default/meshtrafficpermissions/allow";
    for resources in ["_resources", "-resources"] {
        let page = server.get(&format!("{policy}/{resources}/dataplanes")).await.is(200).json();
        assert_eq!((names(&page), page["total"].as_u64()), (vec!["backend-1"], Some(1)));
        assert_eq!(page["items"][0]["labels"]["kuma.io/workload"], "backend");
    }
    let page = server
        .get("/meshes/default/meshtimeouts/to-all/_resources/dataplanes?size=1")
        .await
        .is(200)
        .json();
    assert_eq!((names(&page), page["total"].as_u64()), (vec!["backend-1"], Some(2)));
    assert!(page["next"].as_str().unwrap().contains("offset=1"));
    let page = server
        .get("/meshes/default/meshtimeouts/to-all/_resources/dataplanes?name=front")
        .await
        .is(200)
        .json();
    assert_eq!(names(&page), ["frontend"]);
    let legacy = server.get(&format!("{policy}/dataplanes")).await.is(200).json();
    assert_eq!(legacy["items"][0]["dataplane"], json!({"mesh": "default", "name": "backend-1"}));
    let behind = server.get("/meshes/default/meshservices/backend/_dataplanes").await.is(200).json();
    assert_eq!(names(&behind), ["backend-1"]);
    let hostnames = server.get("/meshes/default/meshservices/backend/_hostnames").await.is(200).json();
    assert_eq!(hostnames, json!({"total": 0, "items": null}));

    // One that only shows what it would do is about nobody.
    server.store(
        Kind::MeshTimeout,
        "default",
        "shadow",
        &[("kuma.io/origin", "global"), ("kuma.io/effect", "shadow")],
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "7s"}}]}),
    );
    let page = server
        .get("/meshes/default/meshtimeouts/shadow/_resources/dataplanes")
        .await
        .is(200)
        .json();
    assert_eq!(page["total"], 0);
}

#[tokio::test]
async fn which_policies_hold_for_a_proxy() {
    let server = demo().await;
    let legacy = server.get(&format!("{FRONTEND}/policies")).await.is(200).json();
    let matched = &legacy["items"][0]["matchedPolicies"];
    assert_eq!(matched["MeshTimeout"][0]["name"], "to-all");
    assert!(matched.get("MeshTrafficPermission").is_none());
    assert_eq!(
        server.get(&format!("{FRONTEND}/_policies")).await.is(200).json(),
        json!({"policies": []})
    );

    let rules = server.get(&format!("{FRONTEND}/_rules")).await.is(200).json();
    let of = |kind: &str| rules["rules"].as_array().unwrap().iter().find(|r| r["type"] == kind).cloned();
    let timeout = of("MeshTimeout").unwrap();
    assert_eq!(timeout["toResourceRules"][0]["resourceMeta"]["type"], "Mesh");
    assert_eq!(timeout["toResourceRules"][0]["conf"][0]["connectionTimeout"], "7s");
    assert_eq!(timeout["toResourceRules"][0]["origin"][0]["resourceMeta"]["name"], "to-all");
    assert_eq!(
        of("MeshHTTPRoute").unwrap()["toResourceRules"][0]["resourceMeta"]["name"],
        "backend"
    );
    assert!(of("MeshTrafficPermission").is_none());
    let rules = server.get("/meshes/default/dataplanes/backend-1/_rules").await.is(200).json();
    let permission = rules["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["type"] == "MeshTrafficPermission")
        .unwrap();
    assert_eq!(
        permission["inboundRules"][0]["inbound"],
        json!({"name": "http", "port": 8080, "tags": {}})
    );
    assert_eq!(
        permission["inboundRules"][0]["rules"][0]["origin"][0]["resourceMeta"]["name"],
        "allow"
    );

    let layout = server.get(&format!("{FRONTEND}/_layout")).await.is(200).json();
    assert_eq!(layout["inbounds"][0]["proxyResourceName"], "self_inbound_dp_http");
    let outbound = layout["outbounds"][0]["kri"].as_str().unwrap().to_owned();
    assert_eq!(outbound, "kri_msvc_default_west__backend_http");
    let inbound = layout["inbounds"][0]["kri"].as_str().unwrap();
    server.get(&format!("{FRONTEND}/_inbounds/{inbound}/_policies")).await.is(200);
    let policies = server
        .get(&format!("{FRONTEND}/_outbounds/{outbound}/_policies"))
        .await
        .is(200)
        .json();
    assert_eq!(policies["policies"][0]["kind"], "MeshTimeout");
    assert_eq!(policies["policies"][0]["origins"][0]["kri"], "kri_mt_default___to-all_");
    let routes = server
        .get(&format!("{FRONTEND}/_outbounds/{outbound}/_routes"))
        .await
        .is(200)
        .json();
    assert_eq!(routes["routes"][0]["rules"][0]["conf"]["backendRefs"][0]["weight"], 1);
    let route = routes["routes"][0]["origins"][0]["kri"].as_str().unwrap();
    server
        .get(&format!("{FRONTEND}/_outbounds/{outbound}/_routes/{route}/_policies"))
        .await
        .is(200);
}

#[tokio::test]
async fn inspecting_what_is_not_there() {
    let server = demo().await;
    for path in [
        "/meshes/none/dataplanes/frontend/_rules",
        "/meshes/default/dataplanes/none/_rules",
        "/meshes/default/dataplanes/none/policies",
        "/meshes/default/dataplanes/none/xds",
        "/meshes/default/meshtimeouts/none/dataplanes",
        "/meshes/default/meshtimeouts/none/_resources/dataplanes",
        "/meshes/default/meshservices/none/_dataplanes",
        "/meshes/default/meshservices/none/_hostnames",
        "/meshes/default/dataplanes/frontend/nonsense",
        "/meshes/default/dataplanes/frontend/_inbounds/kri_dp_default_west__frontend_none/_policies",
        "/meshes/default/dataplanes/frontend/_outbounds/kri_msvc_default_west__none_http/_policies",
        "/meshes/default/dataplanes/frontend/_outbounds/kri_msvc_default_west__none_http/_routes",
    ] {
        let got = server.get(path).await;
        assert_eq!(
            (got.status.as_u16(), got.json()["status"].as_u64()),
            (404, Some(404)),
            "{path}: {}",
            got.text()
        );
    }
    for path in [
        "/_inbounds/x/_policies",
        "/_outbounds/kri_nope_a_b_c_d_e/_policies",
        "/_outbounds/%ff/_routes",
    ] {
        server.get(&format!("{FRONTEND}{path}")).await.is(400);
    }
    for question in ["xds", "stats", "clusters", "_config"] {
        let got = server.get(&format!("{FRONTEND}/{question}")).await.is(501);
        assert!(got.text().contains("kuma-envoy-admin.sock"));
    }
    // What was stored by another version and cannot be read hides nothing else.
    server.store(Kind::Dataplane, "default", "odd", &[], json!({"networking": 7}));
    server.store(Kind::MeshTimeout, "default", "odd", &[], json!({"targetRef": 7, "to": 7}));
    server.get(&format!("{FRONTEND}/_rules")).await.is(200);
    server.get("/meshes/default/meshtimeouts/odd/_resources/dataplanes").await.is(200);
    server.get("/meshes/default/dataplanes/odd/_rules").await.is(500);
}

#[tokio::test]
async fn at_the_global_proxies_of_all_zones_are_inspected() {
    let server = Server::global().await;
    let labels = [
        ("kuma.io/origin", "zone"),
        ("kuma.io/zone", "west"),
        ("kuma.io/display-name", "frontend"),
    ];
    server.memory.observe([Observation::Put {
        key: ResourceKey::new(Kind::Dataplane, "default", "frontend-abc").unwrap(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        spec: json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 8080}]}}),
        owner: None,
    }]);
    let page = server
        .get("/meshes/default/meshtimeouts/mesh-timeout-all-default/_resources/dataplanes")
        .await
        .is(200)
        .json();
    assert_eq!(names(&page), ["frontend-abc"]);
    server.get("/meshes/default/dataplanes/frontend-abc/_rules").await.is(200);
    server.get("/meshes/default/dataplanes/frontend-abc/_config").await.is(405);
}

/// Shapes: Kuma's documentation of its CRDs.
#[tokio::test]
async fn resources_as_objects_of_kubernetes() {
    let server = demo().await;
    let mesh = server.get("/meshes/default?format=k8s").await.is(200).json();
    assert_eq!(
        (mesh["apiVersion"].as_str(), mesh["kind"].as_str(), &mesh["metadata"]["name"]),
        (Some("kuma.io/v1alpha1"), Some("Mesh"), &json!("default"))
    );
    assert!(mesh["metadata"].get("namespace").is_none() && mesh.get("type").is_none());
    let policy = server
        .get("/meshes/default/meshtimeouts/to-all?format=kubernetes&namespace=here")
        .await
        .is(200)
        .json();
    assert_eq!(policy["metadata"]["namespace"], "here");
    assert_eq!(policy["metadata"]["labels"]["kuma.io/mesh"], "default");
    assert_eq!(policy["spec"]["to"][0]["default"]["connectionTimeout"], "7s");
    let dataplane = server.get(&format!("{FRONTEND}?format=k8s")).await.is(200).json();
    assert_eq!(
        (dataplane["mesh"].as_str(), &dataplane["metadata"]["namespace"]),
        (Some("default"), &json!("kuma-system"))
    );
    let path = "/meshes/default/secrets/dataplane-token-signing-key-default-1?format=k8s";
    server.get(path).await.is(403);
    let secret = server.admin_get(path).await.is(200).json();
    assert_eq!(
        (secret["apiVersion"].as_str(), secret["kind"].as_str(), secret["type"].as_str()),
        (Some("v1"), Some("Secret"), Some("system.kuma.io/secret"))
    );
    assert!(secret["data"]["value"].as_str().is_some_and(|v| !v.is_empty()));
    server.get("/meshes/default?format=x").await.is(400);
}

#[tokio::test]
async fn kinds_that_are_not_here_say_so() {
    let server = Server::global().await;
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let body = json!({"type": "MeshTLS", "mesh": "default", "name": "x"});
        let got = server.admin(method, "/meshes/default/meshtlses/x", &body).await.is(404);
        assert!(
            got.text().contains("MeshTLS is not yet in this version, which has Mesh, Zone"),
            "{}",
            got.text()
        );
    }
    let got = server.get("/meshes/default/traffic-routes").await.is(404);
    assert!(got.text().contains("in whose place is MeshHTTPRoute"));
}
