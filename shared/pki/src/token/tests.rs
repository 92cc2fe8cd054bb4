//! Tokens as Kuma makes them, round trips, and every way in which a token can be wrong.
use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::sync::LazyLock;
use std::time::Duration as StdDuration;

/// Files of `tests/data`, by name.
macro_rules! data {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name))
    };
}

const HOUR: StdDuration = StdDuration::from_secs(3600);

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::parse(data!("rsa.key").as_bytes()).unwrap());

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn keys() -> KeySet {
    [("1", KEY.verifying_key())].into_iter().collect()
}

fn frontend() -> DataplaneClaims {
    DataplaneClaims {
        name: "frontend-1".into(),
        mesh: "default".into(),
        tags: BTreeMap::from([("version".into(), vec!["1".into(), "2".into()])]),
        proxy_type: "dataplane".into(),
        workload: "frontend".into(),
    }
}

fn check<C: Claims>(token: &str) -> Result<C, Error> {
    validate(token, &keys(), &Revocations::new(), now()).map(|validated| validated.claims)
}

/// A token with any header and payload, correctly signed.
fn signed(header: &Value, payload: &str) -> String {
    let text = [header.to_string().as_str(), payload]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".");
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &KEY.encoding_key(), Algorithm::RS256).unwrap();
    format!("{text}.{signature}")
}

fn payload(claims: Value) -> String {
    let mut all = json!({"exp": 1_800_003_600, "nbf": 1_799_999_995, "iat": 1_799_999_995, "jti": "a"});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    all.to_string()
}

fn rs256() -> Value {
    json!({"alg": "RS256", "kid": "1", "typ": "JWT"})
}

#[test]
fn a_token_that_openssl_signed_in_kumas_form_is_accepted() {
    let token = data!("dataplane.jwt").trim();
    for key in [
        data!("rsa.key"),
        data!("rsa.pkcs8.pem"),
        data!("rsa.pkcs1.pem"),
        data!("rsa.spki.pem"),
    ] {
        let keys: KeySet = [("1", VerifyingKey::parse(key.as_bytes()).unwrap())].into_iter().collect();
        let validated = validate::<DataplaneClaims>(token, &keys, &Revocations::new(), now()).unwrap();
        let wanted = DataplaneClaims {
            tags: BTreeMap::new(),
            ..frontend()
        };
        assert_eq!(validated.claims, wanted);
        assert_eq!(
            (validated.jti.as_str(), validated.key_id.as_str()),
            ("6d3e1c1a-7a1c-4d1e-9f50-4a3f2f9f9c11", "1")
        );
        assert_eq!(validated.expires_at.unix_timestamp(), 4_000_000_000);
    }
}

#[test]
fn each_kind_makes_the_round_trip() {
    fn round_trip<C: Claims + Clone + PartialEq + fmt::Debug>(claims: &C) {
        let issued = issue(&KEY, "1", claims, HOUR, now()).unwrap();
        let validated = validate::<C>(&issued.token, &keys(), &Revocations::new(), now()).unwrap();
        assert_eq!((&validated.claims, &validated.jti), (claims, &issued.jti));
        assert_eq!(validated.expires_at, issued.expires_at);
    }
    round_trip(&frontend());
    round_trip(&DataplaneClaims::default());
    round_trip(&ZoneClaims {
        zone: "east".into(),
        scope: vec!["ingress".into()],
    });
    round_trip(&UserClaims {
        name: "mesh-system:admin".into(),
        groups: vec!["mesh-system:admin".into()],
    });
}

#[test]
fn a_token_is_written_as_kuma_writes_it() {
    let issued = issue(&KEY, "7", &frontend(), HOUR, now()).unwrap();
    let mut parts = issued.token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let header: Value = serde_json::from_slice(&parts.next().unwrap()).unwrap();
    assert_eq!(header, json!({"alg": "RS256", "kid": "7", "typ": "JWT"}));
    let payload: Value = serde_json::from_slice(&parts.next().unwrap()).unwrap();
    let wanted = json!({
        "Name": "frontend-1", "Mesh": "default", "Tags": {"version": ["1", "2"]}, "Type": "dataplane", "Workload": "frontend",
        "iat": 1_799_999_995, "nbf": 1_799_999_995, "exp": 1_800_003_600, "jti": issued.jti,
    });
    assert_eq!(payload, wanted);
    assert_eq!(Uuid::parse_str(&issued.jti).unwrap().get_version_num(), 4);
    assert!(!format!("{issued:?} {:?}", *KEY).contains(&issued.token[..20]));
}

#[test]
fn names_of_claims_are_read_in_any_case_but_once() {
    let lower = payload(json!({"name": "frontend-1", "MESH": "default", "workLoad": "frontend"}));
    let claims: DataplaneClaims = check(&signed(&rs256(), &lower)).unwrap();
    assert_eq!(
        (claims.name.as_str(), claims.mesh.as_str(), claims.workload.as_str()),
        ("frontend-1", "default", "frontend")
    );
    let twice = payload(json!({"name": "a", "Name": "b"}));
    assert_eq!(
        check::<DataplaneClaims>(&signed(&rs256(), &twice)),
        Err(Error::Malformed("a claim is there twice"))
    );
}

#[test]
fn no_algorithm_but_rs256_is_accepted() {
    let good = issue(&KEY, "1", &frontend(), HOUR, now()).unwrap().token;
    let (_, rest) = good.split_once('.').unwrap();
    let body = rest.split('.').next().unwrap();
    for alg in [
        "none", "None", "NONE", "HS256", "RS384", "RS512", "PS256", "ES256", "EdDSA", "rs256", "",
    ] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": "1"}).to_string());
        for token in [format!("{header}.{rest}"), format!("{header}.{body}.")] {
            assert_eq!(check::<DataplaneClaims>(&token), Err(Error::BadAlgorithm(alg.to_owned())));
        }
    }
    // The public key as an HMAC secret: the classic confusion.
    let header = Header {
        kid: Some("1".into()),
        ..Header::new(Algorithm::HS256)
    };
    let secret = jsonwebtoken::EncodingKey::from_secret(KEY.public_pem().as_bytes());
    let forged = jsonwebtoken::encode(&header, &json!({"Name": "x", "exp": 4_000_000_000_u64}), &secret).unwrap();
    assert_eq!(check::<DataplaneClaims>(&forged), Err(Error::BadAlgorithm("HS256".into())));
}

#[test]
fn a_changed_token_is_refused() {
    let good = issue(&KEY, "1", &frontend(), HOUR, now()).unwrap().token;
    let parts: Vec<&str> = good.split('.').collect();
    let other = URL_SAFE_NO_PAD.encode(payload(json!({"Name": "backend-1"})));
    assert_eq!(
        check::<DataplaneClaims>(&[parts[0], &other, parts[2]].join(".")),
        Err(Error::BadSignature)
    );
    assert_eq!(
        check::<DataplaneClaims>(&format!("{}.{}.", parts[0], parts[1])),
        Err(Error::BadSignature)
    );
    let stranger = SigningKey::generate().unwrap();
    let foreign = issue(&stranger, "1", &frontend(), HOUR, now()).unwrap().token;
    assert_eq!(check::<DataplaneClaims>(&foreign), Err(Error::BadSignature));
}

#[test]
fn the_key_must_be_named_and_known() {
    let unknown = issue(&KEY, "2", &frontend(), HOUR, now()).unwrap().token;
    assert_eq!(check::<DataplaneClaims>(&unknown), Err(Error::UnknownKey("2".into())));
    let body = payload(json!({"Name": "x"}));
    for header in [
        json!({"alg": "RS256"}),
        json!({"alg": "RS256", "kid": 1}),
        json!({"alg": "RS256", "kid": ""}),
    ] {
        assert!(
            matches!(check::<DataplaneClaims>(&signed(&header, &body)), Err(Error::Malformed(_))),
            "{header}"
        );
    }
    let critical = json!({"alg": "RS256", "kid": "1", "crit": ["b64"], "b64": false});
    assert!(matches!(
        check::<DataplaneClaims>(&signed(&critical, &body)),
        Err(Error::Malformed(_))
    ));
    assert!(matches!(issue(&KEY, "", &frontend(), HOUR, now()), Err(IssueError::KeyId(_))));
}

#[test]
fn time_is_the_callers() {
    let issued = issue(&KEY, "1", &frontend(), HOUR, now()).unwrap();
    let at = |seconds: i64| {
        let when = now() + Duration::seconds(seconds);
        validate::<DataplaneClaims>(&issued.token, &keys(), &Revocations::new(), when).map(drop)
    };
    assert_eq!((at(-5), at(0), at(3599)), (Ok(()), Ok(()), Ok(())));
    assert_eq!(at(3600), Err(Error::Expired(now() + HOUR)));
    assert_eq!(at(-6), Err(Error::NotYetValid(now() - BACKDATE)));
    for times in [
        json!({"exp": null}),
        json!({"exp": "soon"}),
        json!({"exp": 1e300}),
        json!({"nbf": {}}),
        json!({"exp": 1e15}),
    ] {
        let mut claims = times;
        claims["Name"] = "x".into();
        let token = signed(&rs256(), &payload(claims.clone()));
        assert!(matches!(check::<DataplaneClaims>(&token), Err(Error::Malformed(_))), "{claims}");
    }
    let fraction = signed(&rs256(), &payload(json!({"Name": "x", "exp": 1_800_000_100.5})));
    assert!(check::<DataplaneClaims>(&fraction).is_ok());
    for wrong in [StdDuration::ZERO, StdDuration::from_millis(999), StdDuration::MAX] {
        assert!(
            matches!(issue(&KEY, "1", &frontend(), wrong, now()), Err(IssueError::Validity(_))),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_revoked_token_is_refused() {
    let issued = issue(&KEY, "1", &frontend(), HOUR, now()).unwrap();
    let mut revoked = Revocations::parse(&format!("x,{} ,y\n", issued.jti));
    let result = validate::<DataplaneClaims>(&issued.token, &keys(), &revoked, now());
    assert_eq!(result, Err(Error::Revoked { jti: issued.jti.clone() }));
    revoked = Revocations::parse("x,y\n");
    assert_eq!(Revocations::parse("\n"), Revocations::new());
    assert!(validate::<DataplaneClaims>(&issued.token, &keys(), &revoked, now()).is_ok());
    revoked.extend(&Revocations::parse(&issued.jti));
    assert!(validate::<DataplaneClaims>(&issued.token, &keys(), &revoked, now()).is_err());
    let without = payload(json!({"Name": "x", "jti": null}));
    assert_eq!(
        check::<DataplaneClaims>(&signed(&rs256(), &without)),
        Err(Error::Malformed("it has no jti"))
    );
}

#[test]
fn a_token_of_one_kind_is_not_one_of_another() {
    let dataplane = issue(&KEY, "1", &frontend(), HOUR, now()).unwrap().token;
    let zone = issue(
        &KEY,
        "1",
        &ZoneClaims {
            zone: "east".into(),
            scope: vec![],
        },
        HOUR,
        now(),
    )
    .unwrap()
    .token;
    let user = issue(
        &KEY,
        "1",
        &UserClaims {
            name: "x".into(),
            groups: vec![],
        },
        HOUR,
        now(),
    )
    .unwrap()
    .token;
    for token in [&zone, &user] {
        assert_eq!(check::<DataplaneClaims>(token), Err(Error::WrongKind { expected: Kind::Dataplane }));
    }
    for token in [&dataplane, &user] {
        assert_eq!(check::<ZoneClaims>(token), Err(Error::WrongKind { expected: Kind::Zone }));
    }
    for token in [&dataplane, &zone] {
        assert_eq!(check::<UserClaims>(token), Err(Error::WrongKind { expected: Kind::User }));
    }
}

#[test]
fn malformed_and_oversized_tokens_are_refused() {
    let body = payload(json!({"Name": "x"}));
    let good = signed(&rs256(), &body);
    for token in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "Bearer x",
        &format!("{good}.x"),
        "\u{fffd}.\u{0}.x",
    ] {
        assert!(matches!(check::<DataplaneClaims>(token), Err(Error::Malformed(_))), "{token:?}");
    }
    for wrong in ["[]", "1", "nonsense", "", &"[".repeat(5000), &body.replace("\"x\"", "[1]")] {
        let token = signed(&rs256(), wrong);
        assert!(matches!(check::<DataplaneClaims>(&token), Err(Error::Malformed(_))), "{wrong:.20}");
    }
    assert!(matches!(check::<DataplaneClaims>(&format!("{}!", good)), Err(Error::Malformed(_))));
    assert_eq!(check::<DataplaneClaims>(&"x".repeat(MAX_TOKEN_BYTES + 1)), Err(Error::TooLong));
    let large = DataplaneClaims {
        name: "x".repeat(MAX_TOKEN_BYTES),
        ..frontend()
    };
    assert!(matches!(issue(&KEY, "1", &large, HOUR, now()), Err(IssueError::TooLong)));
}

#[test]
fn keys_are_read_in_every_form_and_written_in_kumas() {
    let wanted = KEY.verifying_key();
    let raw = pem::parse(data!("rsa.key")).unwrap().into_contents();
    for key in [data!("rsa.key").as_bytes(), data!("rsa.pkcs8.pem").as_bytes(), &raw] {
        assert_eq!(SigningKey::parse(key).unwrap().verifying_key(), wanted);
        assert_eq!(VerifyingKey::parse(key).unwrap(), wanted);
    }
    assert_eq!(KEY.private_pem().trim(), data!("rsa.key").trim());
    assert_eq!(KEY.public_pem().trim(), data!("rsa.pkcs1.pem").trim());
    let made = SigningKey::generate().unwrap();
    assert_eq!(
        SigningKey::parse(made.private_pem().as_bytes()).unwrap().verifying_key(),
        made.verifying_key()
    );
    assert_eq!(VerifyingKey::parse(made.public_pem().as_bytes()).unwrap(), made.verifying_key());
}

#[test]
fn what_is_no_key_is_refused() {
    let both = format!("{}{}", data!("rsa.key"), data!("rsa.pkcs8.pem"));
    for wrong in [
        "",
        "words",
        data!("p256.key"),
        data!("p384.key"),
        data!("rsa.crt"),
        data!("rsa1024.key"),
        &both,
    ] {
        assert!(SigningKey::parse(wrong.as_bytes()).is_err(), "{wrong:.40}");
        assert!(VerifyingKey::parse(wrong.as_bytes()).is_err(), "{wrong:.40}");
    }
    assert!(SigningKey::parse(data!("rsa.spki.pem").as_bytes()).is_err());
    assert!(SigningKey::parse(&[0xff; 100]).is_err());
    assert!(SigningKey::parse(&vec![0x30; 1024 * 1024]).is_err());
}

proptest! {
    #[test]
    fn no_text_panics(text in "[A-Za-z0-9_.=-]{0,200}", header in "\\PC{0,60}", body in "\\PC{0,60}") {
        let _ = check::<UserClaims>(&text);
        let crafted = [header, body].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let crafted = format!("{crafted}.x");
        prop_assert!(check::<UserClaims>(&crafted).is_err());
    }
}
