//! Bad input: bodies, names, labels, sizes, formats.

use super::{
    table::{As, BAD, MESHES, MTP, PROCESS, Row, Table, labelled, puts, rows, text},
    *,
};

#[tokio::test]
async fn documents() {
    let server = Server::global().await;
    let mut t = Table::of(&server);
    puts! { t;
        "malformed JSON", MESHES, "{,\n}" => 400, BAD, "line 1 column 2";
        "cut JSON", MTP, r#"{"type": "MeshTrafficPermission", "name""# => 400, BAD, "invalid MeshTrafficPermission object";
        "an empty body", MTP, "" => 400, BAD, "invalid MeshTrafficPermission object";
        "no UTF-8", MTP, b"{\"type\": \"\xff\xfe\"}".to_vec() => 400, BAD, "invalid MeshTrafficPermission object";
        "two documents", MESHES, r#"{"type":"Mesh","name":"m-1"}{"type":"Mesh","name":"m-1"}"# => 400, BAD, "trailing";
        "no object", MESHES, "[1]" => 400, BAD, "expected an object";
        "null", MESHES, "null" => 400, BAD, "expected an object";
        "a number as name", MESHES, r#"{"type":"Mesh","name":4}"# => 400, BAD, r#""field":"name","reason":"must be a text""#;
        "a list as mesh", MTP, r#"{"type":"MeshTrafficPermission","mesh":["default"],"name":"p"}"# => 400, BAD, r#""field":"mesh","reason":"must be a text""#;
        "labels that are no texts", MTP, labelled(json!({"a": 1})) => 400, BAD, r#"labels[\"a\"]"#;
        "labels that are a list", MTP, labelled(json!(["a"])) => 400, BAD, r#""field":"labels","reason":"must be an object of texts""#;
        "a spec that is no object", MTP, r#"{"type":"MeshTrafficPermission","name":"p","spec":[]}"# => 400, PROCESS, "must be an object";
        "a field of the wrong type", MTP, text(json!({"type": "MeshTrafficPermission", "name": "p", "spec": {"rules": "x"}})) => 400, PROCESS, r#""field":"spec.rules""#;
        "a field deep within", MTP, text(json!({"type": "MeshTrafficPermission", "name": "p", "spec": {"rules": [{"default": {"allow": [{"spiffeID": {"type": "Prefix", "value": 7}}]}}]}})) => 400, PROCESS, r#""field":"spec.rules[0].default.allow[0].spiffeID.value""#;
        "a flat field of the wrong type", "/zones/z", r#"{"type":"Zone","name":"z","enabled":"maybe"}"# => 400, PROCESS, r#""field":"enabled""#;
        "a secret that is no base64", "/meshes/default/secrets/s", r#"{"type":"Secret","mesh":"default","name":"s","data":"***"}"# => 400, PROCESS, r#""field":"data"#;
        "an empty secret", "/globalsecrets/s", r#"{"type":"GlobalSecret","name":"s"}"# => 400, PROCESS, "cannot be empty";
        "another type", MESHES, r#"{"type":"Zone","name":"m-1"}"# => 400, PROCESS, "type from the URL has to be the same as in body";
        "no type", MESHES, r#"{"name":"m-1"}"# => 400, PROCESS, "type from the URL has to be the same as in body";
        "an unknown type", MTP, r#"{"type":"TrafficPermission","name":"p","spec":{}}"# => 400, PROCESS, "type in body should be one of [MeshTrafficPermission]";
        "an unknown kind", "/meshes/default/nonsenses/p", r#"{"type":"Nonsense","mesh":"default","name":"p"}"# => 404, "Not Found", "nothing at this path";
        "a kind without a path", "/configs/kuma-cluster-id", r#"{"type":"Config","name":"kuma-cluster-id","config":"x"}"# => 404, "Not Found", "nothing at this path";
        "another mesh in the body", MTP, text(a_permission("other", "p")) => 400, PROCESS, "mesh from the URL has to be the same as in body";
        "a mesh that is not there", "/meshes/none/meshtrafficpermissions/p", text(a_permission("none", "p")) => 404, "Failed to retrieve Mesh", "Not found";
        "a mesh that can be none", "/meshes/NO%24/meshtrafficpermissions/p", text(a_permission("NO$", "p")) => 404, "Failed to retrieve Mesh", "Not found";
        "another name", MTP, text(a_permission("default", "q")) => 400, PROCESS, "name from the URL has to be the same as in body";
        "no name", MESHES, r#"{"type":"Mesh"}"# => 400, PROCESS, "cannot be empty";
        "an upper-case name", "/meshes/default/meshtrafficpermissions/Upper", text(a_permission("default", "Upper")) => 400, PROCESS, "RFC 1123";
        "an underscore in a name", "/meshes/default/meshtrafficpermissions/a_b", text(a_permission("default", "a_b")) => 400, PROCESS, "RFC 1123";
        "a path as name", "/meshes/default/meshtrafficpermissions/..%2f..%2fx", text(a_permission("default", "../../x")) => 400, PROCESS, "RFC 1123";
        "a name that is no UTF-8", "/meshes/default/meshtrafficpermissions/%ff", text(a_permission("default", "p")) => 400, BAD, "not UTF-8";
    }
    let long = "a".repeat(254);
    puts! { t;
        "a long name", &format!("/meshes/default/meshtrafficpermissions/{long}"), text(a_permission("default", &long)) => 400, PROCESS, "value length must less or equal 253";
        "a Mesh that is no DNS label", "/meshes/aa.a", r#"{"type":"Mesh","name":"aa.a"}"# => 400, "Failed to create a resource", "DNS-1035";
    }
    let long = "a".repeat(64);
    puts! { t;
        "a Mesh of 64 characters", &format!("/meshes/{long}"), text(json!({"type": "Mesh", "name": long})) => 400, "Failed to create a resource", "DNS-1035";
        "a Zone that begins with a digit", "/zones/1z", r#"{"type":"Zone","name":"1z"}"# => 400, "Failed to create a resource", "DNS-1035";
        "a label key with two slashes", MTP, labelled(json!({"foo/bar/baz": "x"})) => 400, PROCESS, r#"labels[\"foo/bar/baz\"]"#;
        "an empty label key", MTP, labelled(json!({"": "x"})) => 400, PROCESS, r#"labels[\"\"]"#;
        "a label value", MTP, labelled(json!({"foo": "^*bar"})) => 400, PROCESS, r#"labels[\"foo\"]"#;
    }
    let many: Value = (0..300)
        .map(|i| (format!("l{i}"), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    puts! { t;
        "300 labels", MTP, labelled(many) => 400, PROCESS, r#""field":"labels""#;
        "a zone's origin", MTP, labelled(json!({"kuma.io/origin": "zone"})) => 400, PROCESS, "the origin label must be set to 'global'";
        "an unknown origin", MTP, labelled(json!({"kuma.io/origin": "moon"})) => 400, PROCESS, "unknown resource origin";
        "a role on VMs", MTP, labelled(json!({"kuma.io/policy-role": "producer"})) => 400, PROCESS, "should have system value, got producer";
    }
    t.check().await;
}

/// The first thing that is wrong must not hide the others: a client would mend them one by one.
#[tokio::test]
async fn all_that_is_wrong_is_told_at_once() {
    let server = Server::global().await;
    let body = json!({
        "type": "MeshTrafficPermission", "mesh": "other", "name": "Q_",
        "labels": {"kuma.io/origin": "zone", "a/b/c": "x"},
        "spec": {"rules": [{"default": {"allow": [{}]}}]},
    });
    let got = server.put(MTP, body).await.is(400).json();
    let fields: Vec<&str> = got["invalid_parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["field"].as_str().unwrap())
        .collect();
    for field in [
        "name",
        "mesh",
        "labels[\"kuma.io/origin\"]",
        "labels[\"a/b/c\"]",
        "spec.rules[0].default.allow[0]",
    ] {
        assert!(fields.contains(&field), "{field} is not in {fields:?}");
    }
}

/// Otherwise a key that is none would be found out when the next token is asked for, by somebody else.
#[tokio::test]
async fn secrets_of_tokens() {
    let server = Server::global().await;
    let secret = |mesh: &str, name: &str, data: &[u8]| {
        let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, data);
        match mesh {
            "" => text(json!({"type": "GlobalSecret", "name": name, "data": data})),
            mesh => text(json!({"type": "Secret", "mesh": mesh, "name": name, "data": data})),
        }
    };
    let mut t = Table::of(&server);
    let key = "must be an RSA private key";
    for (what, name, data, says) in [
        ("junk as a user key", "user-token-signing-key-2", b"junk".as_slice(), key),
        ("junk as the first user key", "user-token-signing-key", b"junk", key),
        ("bytes as a zone key", "zone-token-signing-key-2", &[0xff; 64], key),
        (
            "a public key to sign with",
            "zone-token-signing-key-3",
            server.key(&Family::zone()).1.public_pem().as_bytes(),
            key,
        ),
        ("ids line by line", "user-token-revocations", b"a\nb\n", "separated by commas"),
        ("bytes as ids", "zone-token-revocations", &[0xff, 0xfe], "separated by commas"),
        (
            "spaces in ids",
            "dataplane-token-revocations-default",
            b"a b",
            "separated by commas",
        ),
    ] {
        puts! { t; what, &format!("/globalsecrets/{name}"), secret("", name, data) => 400, PROCESS, says; }
        puts! { t; what, &format!("/global-secrets/{name}"), secret("", name, data) => 400, PROCESS, r#""field":"data""#; }
    }
    for (what, name, data, says) in [
        (
            "junk as a dataplane key",
            "dataplane-token-signing-key-default-2",
            b"junk".as_slice(),
            key,
        ),
        (
            "ids of a mesh line by line",
            "dataplane-token-revocations-default",
            b"a\nb",
            "separated by commas",
        ),
    ] {
        puts! { t; what, &format!("/meshes/default/secrets/{name}"), secret("default", name, data) => 400, PROCESS, says; }
    }
    t.check().await;

    let name = "dataplane-token-signing-key-default-x";
    let put = |mesh: &str, name: &str, data: &[u8]| serde_json::from_str(&secret(mesh, name, data)).unwrap();
    let got = server
        .put(&format!("/meshes/default/secrets/{name}"), put("default", name, b"junk"))
        .await
        .is(201)
        .json();
    assert!(got["warnings"][0].as_str().unwrap().contains("signs no tokens"), "{got}");
    server
        .put(
            "/global-secrets/user-token-revocations",
            put("", "user-token-revocations", b" a , b\n"),
        )
        .await
        .is(201);
}

/// One that came another way: from an older version, or from a stock peer.
#[tokio::test]
async fn a_broken_key_in_the_store_is_named() {
    let server = Server::global().await;
    let junk = json!({"data": "anVuaw=="});
    server.store(Kind::GlobalSecret, "", "user-token-signing-key-7", &[], junk.clone());
    server.store(Kind::Secret, "default", "dataplane-token-signing-key-default-7", &[], junk.clone());
    let mut t = Table::of(&server);
    for (what, path, body, says) in [
        (
            "a user token",
            "/tokens/user",
            r#"{"name":"x","validFor":"1h"}"#,
            "user-token-signing-key-7",
        ),
        ("a dataplane token", "/tokens/dataplane", r#"{"mesh":"default"}"#, "in mesh"),
    ] {
        rows! { t; what, As::Admin, "POST", path, "application/json", body => 409, "Signing Key unusable", says; }
        rows! { t; what, As::Admin, "POST", path, "application/json", body => 409, "Signing Key unusable", "replace it, or delete it"; }
    }
    t.check().await;

    // It keeps no control plane from starting, with or without an administrator's token.
    let made = bootstrap::ensure_defaults(&server.memory, &Site::Global, &bootstrap::Options::default()).await;
    assert_eq!(made.unwrap().admin_token.unwrap(), server.admin);
    let bare = Memory::new(&Site::Global);
    let put = Put {
        key: ResourceKey::new(Kind::GlobalSecret, "", "user-token-signing-key-7").unwrap(),
        labels: Default::default(),
        spec: junk,
        status: None,
        owner: None,
        expect: Default::default(),
    };
    bare.apply(&Command::Change(Changeset::atomic(RequestId(1), Timestamp(1), vec![Op::Put(put)])));
    let made = bootstrap::ensure_defaults(&bare, &Site::Global, &bootstrap::Options::default())
        .await
        .unwrap();
    assert_eq!((made.admin_token, made.cluster_id.is_some()), (None, true));
}

#[tokio::test]
async fn sizes_and_formats() {
    let server = Server::global().await;
    let mut t = Table::of(&server);
    let yaml = "application/yaml";
    rows! { t;
        "malformed YAML", As::Admin, "PUT", MESHES, yaml, "type: [Mesh\nname" => 400, BAD, "line ";
        "YAML with a tab", As::Admin, "PUT", MESHES, yaml, "type:\tMesh\n\tname: x" => 400, BAD, "invalid Mesh object";
        "two YAML documents", As::Admin, "PUT", MESHES, yaml, "---\ntype: Mesh\nname: m-1\n---\ntype: Mesh\n" => 400, BAD, "more than one document";
        "YAML that is no UTF-8", As::Admin, "PUT", MESHES, yaml, vec![0xff, 0xfe, 0x00] => 400, BAD, "not UTF-8";
    }
    let deep = format!("type: Mesh\nname: m-1\nx: {}{}", "[".repeat(100), "]".repeat(100));
    rows! { t;
        "deep YAML", As::Admin, "PUT", MESHES, yaml, deep => 400, BAD, "recursion limit exceeded at line 3";
    }
    let mut bomb = String::from("type: Mesh\nname: m-1\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..9 {
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
    }
    rows! { t;
        "a YAML bomb", As::Admin, "PUT", MESHES, yaml, bomb => 400, BAD, "its aliases stand for too much";
    }
    let mut chain = String::from("type: Mesh\nname: m-1\n");
    for i in 0..60 {
        let inner = if i == 0 { "x".to_owned() } else { format!("*a{}", i - 1) };
        chain.push_str(&format!("a{i}: &a{i} {}{inner}{}\n", "[".repeat(50), "]".repeat(50)));
    }
    rows! { t;
        "YAML that nests by aliases", As::Admin, "PUT", MESHES, yaml, chain => 400, BAD, "invalid Mesh object";
    }
    puts! { t;
        "deep JSON", MESHES, format!(r#"{{"type":"Mesh","name":"m-1","x":{}{}}}"#, "[".repeat(100), "]".repeat(100)) => 400, BAD, "nested deeper than 64 levels";
        "a million brackets", MESHES, "[".repeat(1_000_000) => 400, BAD, "nested deeper than 64 levels";
    }

    let large = format!(r#"{{"type":"Mesh","name":"m-1","x":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    puts! { t;
        "3 MiB", MESHES, large.clone() => 413, "Payload too large", "2097152 bytes";
    }
    let chunks = large
        .into_bytes()
        .chunks(60_000)
        .map(|c| Ok::<_, std::convert::Infallible>(c.to_vec()))
        .collect::<Vec<_>>();
    puts! { t;
        "3 MiB of unknown length", MESHES, Body::from_stream(futures::stream::iter(chunks)) => 413, "Payload too large", "2097152 bytes";
    }

    let mesh = r#"{"type":"Mesh","name":"m-1"}"#;
    rows! { t;
        "no Content-Type", As::Admin, "PUT", MESHES, "", mesh => 415, "Unsupported Media Type", "Content-Type";
        "a form", As::Admin, "PUT", MESHES, "application/x-www-form-urlencoded", mesh => 415, "Unsupported Media Type", "Content-Type";
        "POST of a resource", As::Admin, "POST", MESHES, "application/json", mesh => 405, "Method not allowed", "method";
        "PATCH", As::Admin, "PATCH", MESHES, "application/json", mesh => 405, "Method not allowed", "method";
        "PUT of a list", As::Admin, "PUT", "/meshes", "application/json", mesh => 405, "Method not allowed", "method";
    }
    puts! { t;
        "a Dataplane at the global", "/meshes/default/dataplanes/d", text(a_dataplane("d")) => 405, "Method not allowed", "zone control plane";
        "an insight", "/zone-insights/z", r#"{"type":"ZoneInsight","name":"z"}"# => 405, "Method not allowed", "only be read";
        "a computed insight", "/mesh-insights/default", r#"{"type":"MeshInsight","name":"default"}"# => 405, "Method not allowed", "only be read";
    }
    rows! { t;
        "DELETE of a MeshService at the global", As::Admin, "DELETE", "/meshes/default/meshservices/x", "", Body::empty() => 405, "Method not allowed", "zone control plane";
    }
    let mut html = Request::get("/meshes")
        .header(header::ACCEPT, "text/html")
        .body(Body::empty())
        .unwrap();
    html.headers_mut().insert(header::HOST, "x".parse().unwrap());
    t.rows.push(Row {
        what: "Accept of HTML alone",
        request: html,
        status: 406,
        title: "Not Acceptable",
        says: "application/json",
    });
    let mut id = Request::put(MESHES)
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header("ursa-request-id", "42");
    id = id.header(header::CONTENT_TYPE, "application/json");
    t.rows.push(Row {
        what: "a request id",
        request: id.body(mesh.into()).unwrap(),
        status: 400,
        title: BAD,
        says: "32 hexadecimal digits",
    });
    t.check().await;
}
