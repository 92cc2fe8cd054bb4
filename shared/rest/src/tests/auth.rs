//! Tokens: who may do what, and the tokens that are issued.

use ursa_pki::token::{DataplaneClaims, KeySet, Revocations, Validated, ZoneClaims, validate};

use super::*;

fn check<C: Claims>(server: &Server, family: &Family, token: &str) -> Validated<C> {
    let (id, key) = server.key(family);
    validate(
        token,
        &KeySet::from_iter([(id, key.verifying_key())]),
        &Revocations::new(),
        OffsetDateTime::now_utc(),
    )
    .unwrap()
}

#[tokio::test]
async fn tokens_are_issued_as_raw_text() {
    let server = Server::global().await;
    let body = json!({"name": "dp-1", "mesh": "default", "tags": {"kuma.io/workload": ["a"]}, "workload": "a", "validFor": "1h"});
    let got = server.post("/tokens/dataplane", body).await.is(200);
    assert_eq!(got.header("content-type"), "text/plain");
    let valid: Validated<DataplaneClaims> = check(&server, &Family::dataplane("default"), &got.text());
    assert_eq!(
        (valid.claims.name.as_str(), valid.claims.workload.as_str(), valid.key_id.as_str()),
        ("dp-1", "a", "1")
    );
    let life = valid.expires_at - OffsetDateTime::now_utc();
    assert!(life.whole_minutes() >= 59 && life.whole_minutes() <= 60);

    // kumactl sends no scope, and null for what it was not given.
    let got = server
        .post("/tokens/zone", json!({"zone": "west", "scope": null, "validFor": ""}))
        .await
        .is(200);
    let valid: Validated<ZoneClaims> = check(&server, &Family::zone(), &got.text());
    assert_eq!(valid.claims.zone, "west");
    assert!((valid.expires_at - OffsetDateTime::now_utc()).whole_days() > 3640);

    let got = server
        .post(
            "/tokens/user",
            json!({"name": "jane", "groups": ["mesh-system:admin"], "validFor": "1h"}),
        )
        .await
        .is(200);
    let request = Request::get("/who-am-i")
        .header(header::AUTHORIZATION, format!("Bearer {}", got.text()))
        .body(Body::empty())
        .unwrap();
    let who = server.send(request).await.is(200).json();
    assert_eq!(
        who,
        json!({"name": "jane", "groups": ["mesh-system:admin", "mesh-system:authenticated"]})
    );
    let write = Request::put("/zones/z")
        .header(header::AUTHORIZATION, format!("Bearer {}", got.text()))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(r#"{"type":"Zone","name":"z"}"#))
        .unwrap();
    server.send(write).await.is(201);
}

#[tokio::test]
async fn tokens_may_be_asked_for_as_plain_text() {
    let server = Server::global().await;
    let request = Request::post("/tokens/zone")
        .header(header::AUTHORIZATION, format!("Bearer {}", server.admin))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/plain")
        .body(Body::from(r#"{"zone":"west"}"#))
        .unwrap();
    server.send(request).await.is(200);
}

#[tokio::test]
async fn keys_rotate() {
    let server = Server::global().await;
    let old = server.user_token("jane", &[]);
    let data = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        SigningKey::generate().unwrap().private_pem(),
    );
    let path = "/global-secrets/user-token-signing-key-10";
    server
        .put(
            path,
            json!({"type": "GlobalSecret", "name": "user-token-signing-key-10", "data": data}),
        )
        .await
        .is(201);
    let new = server
        .post("/tokens/user", json!({"name": "joe", "validFor": "1h"}))
        .await
        .is(200)
        .text();
    let valid: Validated<UserClaims> = check(&server, &Family::user(), &new);
    assert_eq!(valid.key_id, "10");
    let who = async |token: &str| {
        let request = Request::get("/who-am-i")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        server.send(request).await
    };
    who(&old).await.is(200);
    who(&new).await.is(200);
    server.delete("/global-secrets/user-token-signing-key-10").await.is(200);
    who(&old).await.is(200);
    who(&new).await.is(401);
}

#[tokio::test]
async fn a_refused_token_is_challenged() {
    let server = Server::global().await;
    let request = Request::get("/meshes")
        .header(header::AUTHORIZATION, "Bearer x")
        .body(Body::empty())
        .unwrap();
    let got = server.send(request).await.is(401);
    assert_eq!(got.header("www-authenticate"), "Bearer");
    assert_eq!(
        got.json(),
        json!({"type": "/std-errors", "status": 401, "title": "Invalid authentication data", "detail": "Unauthenticated", "details": "Unauthenticated"})
    );
}

/// A writer that tests read.
#[derive(Clone, Default)]
pub(super) struct Log(pub(super) Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_audit_log_names_who_and_what_and_no_token() {
    let server = Server::global().await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let issued = {
        let _guard = tracing::subscriber::set_default(subscriber);
        let created = server.put("/zones/z", json!({"type": "Zone", "name": "z"})).await.is(201);
        let issued = server.post("/tokens/zone", json!({"zone": "z"})).await.is(200).text();
        server.get("/globalsecrets").await.is(403);
        let bad = Request::get("/meshes")
            .header(header::AUTHORIZATION, "Bearer nonsense-token")
            .body(Body::empty())
            .unwrap();
        server.send(bad).await.is(401);
        (issued, created.revision())
    };
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let line = |event: &str| {
        text.lines()
            .find(|l| l.contains(&format!("event=\"{event}\"")))
            .unwrap_or_else(|| panic!("{event}: {text}"))
    };
    assert!(
        line("write").contains("Zone/z") && line("write").contains("mesh-system:admin"),
        "{text}"
    );
    assert!(line("write").contains(&format!("revision={}", issued.1)), "{text}");
    assert!(line("token_issued").contains("subject=\"z\""), "{text}");
    assert!(
        line("denied").contains("/globalsecrets") && line("denied").contains("anonymous"),
        "{text}"
    );
    assert!(line("token_refused").contains("/meshes"), "{text}");
    assert!(line("token_used").contains("mesh-system:admin"), "{text}");
    assert!(text.lines().all(|l| l.contains(" audit: ")), "{text}");
    for secret in [&issued.0, &server.admin, &"nonsense-token".to_owned()] {
        assert!(!text.contains(secret.as_str()), "{text}");
    }
}

#[tokio::test]
async fn an_accepted_token_is_remembered_no_longer_than_it_is_valid() {
    let server = Server::global().await;
    let token = server.user_token("jane", &[]);
    let authenticator = crate::auth::Authenticator::default();
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]);
    let ask = |now| authenticator.authenticate(&server.memory.now(), &headers, now);
    let now = OffsetDateTime::now_utc();
    for _ in 0..2 {
        assert_eq!(ask(now).unwrap().0.name, "jane");
    }
    assert!(matches!(
        ask(now + time::Duration::days(36_500)),
        Err(ursa_pki::token::Error::Expired(_))
    ));
    let jti = ask(now).unwrap().1.unwrap();
    let list = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, jti);
    let body = json!({"type": "GlobalSecret", "name": "user-token-revocations", "data": list});
    server
        .admin(Method::PUT, "/global-secrets/user-token-revocations", &body)
        .await
        .is(201);
    assert!(matches!(ask(now), Err(ursa_pki::token::Error::Revoked { .. })));
}
