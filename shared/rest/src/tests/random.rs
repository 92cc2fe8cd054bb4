//! Whatever is sent, the answer is no server error, a refusal changes nothing, and what was accepted can be read back.

use std::sync::LazyLock;

use proptest::prelude::*;
use ursa_model::{Scope, kind::ALL};

use super::*;

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
});

fn arb_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "Mesh",
            "Dataplane",
            "10s",
            "127.0.0.1",
            "Prefix",
            "zone",
            "a-b",
            "ä\u{0}",
            "-1h",
            "*"
        ])
        .prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "targetRef",
            "kind",
            "labels",
            "rules",
            "to",
            "default",
            "allow",
            "spiffeID",
            "type",
            "value",
            "networking",
            "inbound",
            "port",
            "address",
            "listeners",
            "gateway",
            "enabled",
            "data",
            "skipCreatingInitialPolicies",
            "selector",
            "ports",
            "matches",
            "trustDomain",
            "caBundles",
            "pem",
            "provider",
            "bundled",
            "http",
            "idleTimeout",
            "appProtocol",
            "state",
            "name",
            "conf",
            "spec",
            "status",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    })
}

/// A document with the right identity and any content.
fn arb_document() -> impl Strategy<Value = (Kind, Value)> {
    let kinds: Vec<Kind> = ALL.iter().copied().filter(|k| !k.descriptor().internal).collect();
    (
        prop::sample::select(kinds),
        arb_value(),
        arb_value(),
        prop::collection::btree_map("[a-z./]{0,8}", "[a-zA-Z.-]{0,8}", 0..3),
    )
        .prop_map(|(kind, spec, more, labels)| {
            let mut document = match more {
                Value::Object(map) => map,
                _ => serde_json::Map::new(),
            };
            for (key, value) in [
                ("type", json!(kind.name())),
                ("name", json!("x")),
                ("spec", spec),
                ("labels", json!(labels)),
            ] {
                document.insert(key.into(), value);
            }
            if kind.descriptor().scope == Scope::Mesh {
                document.insert("mesh".into(), json!("default"));
            }
            (kind, Value::Object(document))
        })
}

fn path(kind: Kind) -> String {
    match kind.descriptor().scope {
        Scope::Global => format!("/{}/x", kind.descriptor().path),
        Scope::Mesh => format!("/meshes/default/{}/x", kind.descriptor().path),
    }
}

async fn write_and_check(server: &Server, path: &str, content: &str, body: Vec<u8>) {
    let before = server.memory.fingerprint();
    let request = Request::put(path)
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header(header::CONTENT_TYPE, content)
        .body(Body::from(body))
        .unwrap();
    let got = server.send(request).await;
    assert!(got.status.as_u16() < 500, "{}", got.text());
    if got.status.is_success() {
        server.admin_get(path).await.is(200);
    } else {
        assert_eq!(server.memory.fingerprint(), before, "{}", got.text());
        assert_eq!(got.json()["type"], "/std-errors");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn documents_with_any_content((kind, document) in arb_document(), zone in any::<bool>()) {
        RUNTIME.block_on(async {
            let server = if zone { Server::zone().await } else { Server::global().await };
            write_and_check(&server, &path(kind), "application/json", document.to_string().into_bytes()).await;
        });
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), yaml in any::<bool>()) {
        RUNTIME.block_on(async {
            let server = Server::global().await;
            let content = if yaml { "application/yaml" } else { "application/json" };
            write_and_check(&server, "/meshes/x", content, bytes).await;
        });
    }

    #[test]
    fn yaml_like_text(text in "[-a-z:&*!|>%@`'\"{}\\[\\], \n\t#?]{0,120}") {
        RUNTIME.block_on(async {
            let server = Server::global().await;
            write_and_check(&server, "/meshes/x", "application/yaml", format!("type: Mesh\nname: x\n{text}").into_bytes()).await;
        });
    }

    /// What each of the endpoints that take an identifier makes of any.
    #[test]
    fn any_part_of_an_inspection(part in "[ -~]{0,40}", query in "(size|offset|name|wait|revision|history|format|namespace|stale)=[ -~]{0,20}") {
        let safe = |text: &str| text.replace([' ', '"', '<', '>', '`', '{', '}', '\\', '^', '|', '#', '/', '?', '%'], "_");
        let (part, query) = (safe(&part), safe(&query));
        RUNTIME.block_on(async {
            let server = Server::zone().await;
            server.put("/meshes/default/dataplanes/d", a_dataplane("d")).await.is(201);
            for path in [
                format!("/meshes/default/dataplanes/d/_inbounds/kri_dp_default_west__d_{part}/_policies"),
                format!("/meshes/default/dataplanes/d/_outbounds/{part}/_policies"),
                format!("/meshes/default/dataplanes/d/_outbounds/kri_msvc_default_{part}/_routes/{part}/_policies"),
                format!("/meshes/default/dataplanes/{part}/_rules"),
                format!("/meshes/default/meshtimeouts/{part}/_resources/dataplanes"),
                format!("/meshes/default/meshservices/{part}/_dataplanes"),
                format!("/_kri/{part}"),
                format!("/meshes/default/{part}"),
                "/zones/_applied".to_owned(),
                "/meshes/default/dataplanes/d".to_owned(),
            ] {
                let Ok(uri) = format!("{path}?{query}").parse::<http::Uri>() else { continue };
                let got = server.send(Request::get(uri).body(Body::empty()).unwrap()).await;
                assert!(got.status.as_u16() < 500, "{path}?{query}: {}", got.text());
            }
        });
    }

    /// Headers of a write: whatever they say, it is done once, or refused.
    #[test]
    fn any_identity_of_a_write(key in prop::collection::vec(1_u8..=255, 0..300), wait in "[ -~]{0,8}", both in any::<bool>()) {
        let Ok(key) = http::HeaderValue::from_bytes(&key) else { return Ok(()) };
        RUNTIME.block_on(async {
            let server = Server::global().await;
            let mut revisions = Vec::new();
            for _ in 0..2 {
                let mut request = Request::put("/zones/z")
                    .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
                    .header(header::CONTENT_TYPE, "application/json")
                    .header("idempotency-key", key.clone())
                    .header("ursa-wait", wait.as_str());
                if both {
                    request = request.header("ursa-request-id", "x");
                }
                let got = server.send(request.body(Body::from(r#"{"type":"Zone","name":"z"}"#)).unwrap()).await;
                assert!(matches!(got.status.as_u16(), 201 | 400), "{}", got.text());
                revisions.push(got.revision());
            }
            assert_eq!(revisions[0], revisions[1]);
        });
    }

    #[test]
    fn any_path_and_query(path in "/[ -~]{0,60}", query in "[ -~]{0,60}") {
        let target = format!("{path}?{query}").replace([' ', '"', '<', '>', '`', '{', '}', '\\', '^', '|', '#'], "%7B");
        let Ok(uri) = target.parse::<http::Uri>() else { return Ok(()) };
        RUNTIME.block_on(async {
            let server = Server::global().await;
            let got = server.send(Request::get(uri).body(Body::empty()).unwrap()).await;
            assert!(got.status.as_u16() < 500, "{target}: {}", got.text());
        });
    }
}
