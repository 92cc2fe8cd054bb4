//! Bad input: tokens, queries, deletes, and what a federated zone does not own.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ursa_pki::token::{DataplaneClaims, ZoneClaims};
use ursa_state::observed::Observation;

use super::{
    table::{As, BAD, MTP, PROCESS, Row, Table, gets, puts, rows, text},
    *,
};

#[tokio::test]
async fn tokens_of_callers() {
    let server = Server::global().await;
    let now = OffsetDateTime::now_utc();
    let admin = UserClaims {
        name: crate::ADMIN.into(),
        groups: vec![crate::ADMIN.into()],
    };
    let (_, user_key) = server.key(&Family::user());
    let dataplane = DataplaneClaims {
        name: "dp".into(),
        mesh: "default".into(),
        ..DataplaneClaims::default()
    };
    let unsigned = {
        let part = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let claims = json!({"Name": crate::ADMIN, "Groups": [crate::ADMIN], "jti": "x", "exp": now.unix_timestamp() + 3600});
        let none = part(json!({"alg": "none", "typ": "JWT", "kid": "1"}));
        let hmac = part(json!({"alg": "HS256", "typ": "JWT", "kid": "1"}));
        (
            format!("{none}.{}.", part(claims.clone())),
            format!("{hmac}.{}.{}", part(claims), URL_SAFE_NO_PAD.encode([7; 32])),
        )
    };
    let tampered = {
        let mut parts: Vec<String> = server.admin.split('.').map(str::to_owned).collect();
        parts[1] = URL_SAFE_NO_PAD.encode(json!({"Name": "mesh-system:admin", "jti": "y", "exp": now.unix_timestamp() + 3600}).to_string());
        parts.join(".")
    };
    let revoked = server.user_token(crate::ADMIN, &[]);
    let jti = {
        let payload = URL_SAFE_NO_PAD.decode(revoked.split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice::<Value>(&payload).unwrap()["jti"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    server.store(
        Kind::GlobalSecret,
        "",
        Family::user().revocations(),
        &[],
        serde_json::to_value(ursa_model::kind::secret::Secret::of(format!("other,{jti}\n").as_bytes())).unwrap(),
    );
    let bad_tokens: Vec<(&'static str, String)> = vec![
        (
            "an expired token",
            server.sign(&Family::user(), &admin, now - Duration::from_secs(7200)),
        ),
        (
            "a token of the future",
            server.sign(&Family::user(), &admin, now + Duration::from_secs(7200)),
        ),
        ("a dataplane token", server.sign(&Family::dataplane("default"), &dataplane, now)),
        (
            "a user's claims signed by a mesh",
            server.sign(&Family::dataplane("default"), &admin, now),
        ),
        (
            "a dataplane token signed by the users' key",
            server.sign(&Family::user(), &dataplane, now),
        ),
        (
            "a zone token",
            server.sign(
                &Family::zone(),
                &ZoneClaims {
                    zone: "west".into(),
                    scope: vec![],
                },
                now,
            ),
        ),
        ("alg none", unsigned.0),
        ("alg HS256", unsigned.1),
        ("a tampered token", tampered),
        ("a revoked token", revoked),
        (
            "an unknown key id",
            token::issue(&user_key, "9", &admin, Duration::from_secs(60), now).unwrap().token,
        ),
        ("an empty token", String::new()),
        ("a garbage token", "garbage".into()),
        ("a huge token", "x".repeat(20_000)),
    ];
    let write = || text(a_permission("default", "p"));
    let mut t = Table::of(&server);
    for (what, token) in &bad_tokens {
        for (method, path, content, body) in [("PUT", MTP, "application/json", write()), ("GET", "/meshes", "", String::new())] {
            rows! { t;
                what, As::Token(token.clone()), method, path, content, body => 401, "Invalid authentication data", "Unauthenticated";
            }
        }
    }
    let denied = "Access Denied";
    rows! { t;
        "a write without a token", As::Nobody, "PUT", MTP, "application/json", write() => 403, denied, "mesh-system:anonymous/mesh-system:unauthenticated";
        "a write without a token, of nonsense", As::Nobody, "PUT", MTP, "application/json", "{" => 403, denied, "MeshTrafficPermission";
        "a delete without a token", As::Nobody, "DELETE", "/meshes/default", "", Body::empty() => 403, denied, r#"type \"Mesh\""#;
    }
    let plain = server.user_token("jane", &["devs"]);
    rows! { t;
        "a write by a plain user", As::Token(plain.clone()), "PUT", MTP, "application/json", write() => 403, denied, "jane/devs,mesh-system:authenticated";
    }
    for path in [
        "/globalsecrets",
        "/global-secrets/admin-user-token",
        "/meshes/default/secrets",
        "/secrets",
        "/meshes/default/secrets/x",
    ] {
        gets! { t;
            "secrets without a token", path => 403, denied, "cannot access the resource of type";
        }
        rows! { t;
            "secrets for a plain user", As::Token(plain.clone()), "GET", path, "", Body::empty() => 403, denied, "jane";
        }
    }
    gets! { t;
        "the configuration without a token", "/config" => 403, denied, "cannot access control-plane metadata";
    }
    for (path, what) in [
        ("dataplane", "generate dataplane token"),
        ("zone", "generate zone token"),
        ("user", "generate user token"),
    ] {
        let body = json!({"mesh": "default", "zone": "west", "name": "x", "validFor": "1h"}).to_string();
        rows! { t;
            "a token without a token", As::Nobody, "POST", &format!("/tokens/{path}"), "application/json", body => 403, denied, what;
        }
    }
    let mut local = Request::put(MTP)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::HOST, "localhost")
        .body(write().into())
        .unwrap();
    local
        .extensions_mut()
        .insert(axum::extract::ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 4000))));
    t.rows.push(Row {
        what: "a write from loopback",
        request: local,
        status: 403,
        title: denied,
        says: "anonymous",
    });
    let mut basic = Request::put(MTP)
        .header(header::CONTENT_TYPE, "application/json")
        .body(write().into())
        .unwrap();
    basic
        .headers_mut()
        .insert(header::AUTHORIZATION, "Basic bWVzaC1zeXN0ZW06YWRtaW46eA==".parse().unwrap());
    t.rows.push(Row {
        what: "basic authentication",
        request: basic,
        status: 403,
        title: denied,
        says: "anonymous",
    });
    t.check().await;
}

#[tokio::test]
async fn queries_and_requests_for_tokens() {
    let server = Server::global().await;
    let mut t = Table::of(&server);
    let list = "Could not retrieve resources";
    for path in [
        "/meshes?size=0",
        "/meshes?size=1001",
        "/meshes?size=abc",
        "/meshes?size=-3",
        "/mesh-insights?size=x",
    ] {
        gets! { t;
            "a page size", path => 400, list, "Invalid page size";
        }
    }
    gets! { t;
        "an offset", "/meshes?offset=x" => 400, list, "invalid offset";
        "a negative offset", "/meshes?offset=-1" => 400, list, "must be non-negative";
        "a huge offset", "/meshes?offset=99999999999999999999" => 400, list, "invalid offset";
        "a filter on no label", "/meshes/default/dataplanes?filter[labelds.a]=b" => 400, list, "/meshes/{mesh}/dataplanes.filter[labelds.a]";
        "a filter with an operator", "/meshes/default/dataplanes?filter[labels.a][eq]=b" => 400, list, "advanced filters are not supported";
        "a filter without an end", "/meshes/default/dataplanes?filter[labels.a=b" => 400, list, "only supported on labels";
        "a gateway mode", "/meshes/default/dataplanes/_overview?gateway=maybe" => 400, list, "/meshes/{mesh}/dataplanes/_overview.gateway";
        "a thousand parameters", &format!("/meshes?{}", "a=b&".repeat(1000)) => 400, BAD, "query parameters";
        "stale", "/meshes?stale=perhaps" => 400, BAD, "true or false";
        "a format", "/meshes/default?format=xml" => 400, "Could not retrieve a resource", r#""field":"format""#;
        "nothing there", "/meshes/none" => 404, "Could not retrieve a resource", "Not found";
        "a list in no mesh", "/meshes/none/dataplanes" => 404, "Failed to retrieve Mesh", "Not found";
        "an unknown path", "/nonsense" => 404, "Not Found", "nothing at this path";
        "a KRI of nothing", "/_kri/nonsense" => 400, BAD, "invalid identifier string";
        "a KRI with another prefix", "/_kri/xri_m____default_" => 400, BAD, "identifier must start with 'kri'";
        "a KRI of an unknown kind", "/_kri/kri_zzz_a_b_c_d_" => 400, BAD, "unknown short name of resource type: \\\"zzz\\\"";
        "a KRI of what is not there", "/_kri/kri_mtp_default___none_" => 404, "Could not retrieve a resource", "Not found";
        "a proxy's config at the global", "/meshes/default/dataplanes/d/_config" => 405, "Method not allowed", "Not allowed on global CP";
    }

    let json_type = "application/json";
    let request = "Invalid request";
    for (what, path, body, says) in [
        ("no mesh", "dataplane", json!({"name": "dp"}), r#""field":"mesh""#),
        ("an impossible mesh", "dataplane", json!({"mesh": "NO$"}), r#""field":"mesh""#),
        (
            "a type",
            "dataplane",
            json!({"mesh": "default", "type": "ingress"}),
            "ingress is not a valid proxy type",
        ),
        (
            "no duration",
            "dataplane",
            json!({"mesh": "default", "validFor": "soon"}),
            "is invalid:",
        ),
        (
            "a negative duration",
            "zone",
            json!({"zone": "west", "validFor": "-1h"}),
            "validFor",
        ),
        (
            "a life of nothing",
            "zone",
            json!({"zone": "west", "validFor": "0s"}),
            "cannot be empty or nil",
        ),
        ("no zone", "zone", json!({}), r#""field":"zone""#),
        ("an impossible zone", "zone", json!({"zone": "West!"}), "DNS-1035"),
        ("a scope", "zone", json!({"zone": "west", "scope": ["root"]}), "must be any of"),
        ("no name", "user", json!({"validFor": "1h"}), r#""field":"name""#),
        ("no life", "user", json!({"name": "jane"}), r#""field":"validFor""#),
        (
            "a name of a megabyte",
            "user",
            json!({"name": "x".repeat(1_000_000), "validFor": "1h"}),
            "token would be longer",
        ),
    ] {
        rows! { t;
            what, As::Admin, "POST", &format!("/tokens/{path}"), json_type, body.to_string() => 400, request, says;
        }
    }
    rows! { t;
        "a token request that is no JSON", As::Admin, "POST", "/tokens/zone", json_type, "{" => 400, BAD, "bad request";
        "a token request of other types", As::Admin, "POST", "/tokens/zone", json_type, r#"{"zone": 7}"# => 400, BAD, "bad request";
        "a token of no mesh", As::Admin, "POST", "/tokens/dataplane", json_type, r#"{"mesh":"none"}"# => 404, "Signing Key not found", "dataplane-token-signing-key-none-1";
        "a token that is got", As::Admin, "GET", "/tokens/zone", "", Body::empty() => 405, "Method not allowed", "method";
    }
    t.check().await;
}

#[tokio::test]
async fn deletes() {
    let server = Server::global().await;
    server.put("/zones/west", json!({"type": "Zone", "name": "west"})).await.is(201);
    server.put("/meshes/used", json!({"type": "Mesh", "name": "used"})).await.is(201);
    server.store(
        Kind::MeshTrafficPermission,
        "default",
        "from-west",
        &[("kuma.io/origin", "zone"), ("kuma.io/zone", "west")],
        json!({}),
    );
    let put = |kind, mesh, name, spec| Observation::Put {
        key: ResourceKey::new(kind, mesh, name).unwrap(),
        labels: Default::default(),
        spec,
        owner: None,
    };
    server.memory.observe([
        put(Kind::Dataplane, "used", "dp", json!({"networking": {"address": "127.0.0.1"}})),
        put(
            Kind::ZoneInsight,
            "",
            "west",
            json!({"subscriptions": [{"id": "1", "connectTime": "2026-01-01T00:00:00Z"}]}),
        ),
    ]);
    let mut t = Table::of(&server);
    let title = "Could not delete a resource";
    for (what, path, status, says) in [
        ("nothing there", "/meshes/default/meshtrafficpermissions/none", 404, "Not found"),
        (
            "an impossible name",
            "/meshes/default/meshtrafficpermissions/NO%24",
            404,
            "Not found",
        ),
        (
            "what a zone made",
            "/meshes/default/meshtrafficpermissions/from-west",
            400,
            "the origin label must be set to 'global'",
        ),
        (
            "a mesh with proxies",
            "/meshes/used",
            400,
            "there are still some dataplanes attached",
        ),
        ("a zone that is connected", "/zones/west", 400, "Zone CP is still connected"),
    ] {
        rows! { t;
            what, As::Admin, "DELETE", path, "", Body::empty() => status, title, says;
        }
    }
    rows! { t;
        "a resource in no mesh", As::Admin, "DELETE", "/meshes/none/meshtrafficpermissions/x", "", Body::empty() => 404, "Failed to retrieve Mesh", "Not found";
    }
    let mut taken = a_permission("default", "from-west");
    taken["labels"] = json!({"kuma.io/zone": "west"});
    puts! { t;
        "taking over what a zone made", "/meshes/default/meshtrafficpermissions/from-west", text(taken) => 400, "Could not update a resource", "the origin label must be set to 'global'";
    }
    t.check().await;

    server.memory.set_unknown_zones(vec!["east".parse().unwrap()]);
    let got = server.delete("/meshes/default").await.is(400);
    assert!(got.text().contains("zone east are not known"));
}

#[tokio::test]
async fn in_a_federated_zone() {
    let server = Server::zone().await;
    server.store(
        Kind::MeshTrafficPermission,
        "default",
        "from-global",
        &[("kuma.io/origin", "global")],
        json!({}),
    );
    server.put("/meshes/default/dataplanes/d", a_dataplane("d")).await.is(201);
    let with = |mut body: Value, labels: Value| {
        body["labels"] = labels;
        text(body)
    };
    let zone = json!({"kuma.io/origin": "zone"});
    let mut t = Table::of(&server);
    puts! { t;
        "a Mesh", "/meshes/m-1", r#"{"type":"Mesh","name":"m-1"}"# => 405, "Method not allowed", "global control plane";
        "a policy without an origin", MTP, text(a_permission("default", "p")) => 400, PROCESS, "the origin label must be set to 'zone'";
        "a policy of the global", MTP, with(a_permission("default", "p"), json!({"kuma.io/origin": "global"})) => 400, PROCESS, "must be set to 'zone'";
        "a policy of another zone", MTP, with(a_permission("default", "p"), json!({"kuma.io/origin": "zone", "kuma.io/zone": "east"})) => 400, PROCESS, "kuma.io/zone label should have west value";
        "a policy of another mesh", MTP, with(a_permission("default", "p"), json!({"kuma.io/origin": "zone", "kuma.io/mesh": "other"})) => 400, PROCESS, "must not differ from mesh";
        "taking over what the global made", "/meshes/default/meshtrafficpermissions/from-global", with(a_permission("default", "from-global"), zone.clone()) => 400, "Could not update a resource", "must be set to 'zone'";
    }
    rows! { t;
        "deleting what the global made", As::Admin, "DELETE", "/meshes/default/meshtrafficpermissions/from-global", "", Body::empty() => 400, "Could not delete a resource", "must be set to 'zone'";
        "deleting a secret of the global", As::Admin, "DELETE", "/meshes/default/secrets/dataplane-token-signing-key-default-1", "", Body::empty() => 400, "Could not delete a resource", "must be set to 'zone'";
    }
    let long = "a".repeat(249);
    puts! { t;
        "a name too long for the global", &format!("/meshes/default/meshtrafficpermissions/{long}"), with(a_permission("default", &long), zone) => 400, PROCESS, "the length of the name must be shorter";
        "a workload", "/meshes/default/dataplanes/w", with(a_dataplane("w"), json!({"kuma.io/workload": "Not.A.Label"})) => 400, BAD, "DNS-1035";
        "a Dataplane without an address", "/meshes/default/dataplanes/w", r#"{"type":"Dataplane","mesh":"default","name":"w","networking":{}}"# => 400, PROCESS, r#""field":"networking.address""#;
        "a Dataplane with a port of 70000", "/meshes/default/dataplanes/w", r#"{"type":"Dataplane","mesh":"default","name":"w","networking":{"address":"127.0.0.1","inbound":[{"port":70000}]}}"# => 400, PROCESS, "networking.inbound[0].port";
        "an update to another zone", "/meshes/default/dataplanes/d", with(a_dataplane("d"), json!({"kuma.io/origin": "global", "kuma.io/zone": "east"})) => 400, "Could not update a resource", "is immutable, cannot be changed from";
    }
    rows! { t;
        "a zone token without its key", As::Admin, "POST", "/tokens/zone", "application/json", r#"{"zone":"west"}"# => 404, "Signing Key not found", "zone-token-signing-key-1";
    }
    t.check().await;
}
