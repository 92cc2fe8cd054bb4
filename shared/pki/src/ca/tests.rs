//! Issued certificates are checked by rustls (what it accepts) and by x509-parser (what is in them).
use super::*;
use proptest::prelude::*;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::UnixTime;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto::aws_lc_rs};
use std::sync::Arc;
use std::time::Duration as StdDuration;

const DAY: StdDuration = StdDuration::from_secs(86_400);

/// Files of `tests/data`, by name.
macro_rules! data {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name))
    };
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn domain() -> TrustDomain {
    "default.east.mesh.local".parse().unwrap()
}

fn frontend() -> SpiffeId {
    id("spiffe://default.east.mesh.local/workload/frontend")
}

fn new_ca(key: KeyType) -> CertificateAuthority {
    let made = CertificateAuthority::generate_with(&domain(), key, now()).unwrap();
    CertificateAuthority::load(&made.cert_pem, &made.key_pem).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Both as server and as client certificate, as in mutual TLS.
fn verify(svid: &Svid, ca_pem: &str, at: OffsetDateTime) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(der(ca_pem)).unwrap();
    let leaf = der(&svid.cert_chain_pem);
    let at = UnixTime::since_unix_epoch(StdDuration::from_secs(at.unix_timestamp().try_into().unwrap()));
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(&leaf)?, &roots, &[], at, algorithms)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    clients.verify_client_cert(&leaf, &[], at).map(drop)
}

#[test]
fn an_svid_of_every_kind_of_ca_is_accepted() {
    for key in [KeyType::EcP256, KeyType::EcP384, KeyType::Ed25519, KeyType::Rsa2048] {
        let ca = new_ca(key);
        let svid = ca.issue(&frontend(), DAY, now()).unwrap();
        verify(&svid, ca.cert_pem(), now()).unwrap_or_else(|error| panic!("{key:?}: {error}"));
        let pair = KeyPair::from_pem(&svid.key_pem).unwrap();
        assert!(
            std::ptr::eq(pair.algorithm(), key.algorithm()),
            "{key:?}: the leaf's key is of the CA's type"
        );
    }
}

#[test]
fn an_svid_is_valid_in_its_time_and_for_its_ca_only() {
    let (ca, other) = (new_ca(KeyType::EcP256), new_ca(KeyType::EcP256));
    let svid = ca.issue(&frontend(), DAY, now()).unwrap();
    assert!(verify(&svid, other.cert_pem(), now()).is_err());
    let around = |seconds| now() + Duration::seconds(seconds);
    for (at, accepted) in [(-11, false), (-10, true), (0, true), (86_400, true), (86_401, false)] {
        assert_eq!(verify(&svid, ca.cert_pem(), around(at)).is_ok(), accepted, "{at}");
    }
    assert_eq!((svid.not_before, svid.not_after), (around(-10), around(86_400)));
}

#[test]
fn a_leaf_holds_what_spiffe_wants_and_nothing_else() {
    let svid = new_ca(KeyType::EcP256).issue(&frontend(), DAY, now()).unwrap();
    let leaf = der(&svid.cert_chain_pem);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(frontend().as_str())]);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    let flags = usage.value;
    assert!(flags.digital_signature() && flags.key_encipherment() && flags.key_agreement());
    assert!(!flags.key_cert_sign() && !flags.crl_sign() && !leaf.is_ca());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.validity().not_before.timestamp(), svid.not_before.unix_timestamp());
    assert_eq!(leaf.validity().not_after.timestamp(), svid.not_after.unix_timestamp());
    let serial: String = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((serial, svid.serial.len()), (svid.serial.clone(), 32));
    assert_eq!(svid.cert_chain_pem.matches("BEGIN CERTIFICATE").count(), 1);
}

#[test]
fn a_generated_ca_names_its_domain() {
    let ca = new_ca(KeyType::EcP256);
    let certificate = der(ca.cert_pem());
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert_eq!(parsed.subject().to_string(), "O=Ursa, OU=Mesh, CN=default.east.mesh.local");
    assert_eq!(ca.trust_domain(), Some(&domain()));
    assert_eq!(parsed.validity().not_before.timestamp(), (now() - BACKDATE).unix_timestamp());
    assert_eq!(ca.not_after(), now() + CA_LIFE);
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(parsed.is_ca() && usage.key_cert_sign() && !usage.digital_signature());
}

#[test]
fn cas_of_kuma_and_of_operators_are_loaded() {
    let west = id("spiffe://default.west.mesh.local/workload/backend");
    let kuma = CertificateAuthority::load(data!("rsa.crt"), data!("rsa.key")).unwrap();
    assert_eq!(kuma.trust_domain().map(TrustDomain::as_str), Some("default.west.mesh.local"));
    verify(&kuma.issue(&west, DAY, now()).unwrap(), data!("rsa.crt"), now()).unwrap();
    assert!(matches!(kuma.issue(&frontend(), DAY, now()), Err(Error::TrustDomain { .. })));
    for (name, cert, key) in [
        ("p256, SEC1 behind parameters", data!("p256.crt"), data!("p256.key")),
        ("p384, PKCS#8", data!("p384.crt"), data!("p384.key")),
        ("Ed25519, PKCS#8 v1", data!("ed25519.crt"), data!("ed25519.key")),
        ("RSA, PKCS#8", data!("rsa.crt"), data!("rsa.pkcs8.pem")),
    ] {
        let ca = CertificateAuthority::load(cert, key).unwrap_or_else(|error| panic!("{name}: {error}"));
        let svid = ca.issue(&west, DAY, now()).unwrap();
        verify(&svid, cert, now()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn a_ca_that_would_not_work_is_refused_when_loaded() {
    let material = |cert: &str, key: &str| match CertificateAuthority::load(cert, key) {
        Err(Error::Material { part, reason }) => (part, reason),
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert_eq!(
        material(data!("no-ca.crt"), data!("p256.key")).1,
        "it is not a CA (basic constraints)"
    );
    assert_eq!(material(data!("rsa.crt"), data!("p256.key")).1, "it does not belong to the key");
    assert_eq!(material("", data!("p256.key")), ("certificate", "no certificate in it".to_owned()));
    assert_eq!(material(data!("rsa.crt"), "").0, "key");
    assert_eq!(material(data!("rsa.crt"), data!("rsa.crt")).0, "key");
    assert_eq!(material(&data!("rsa.crt")[..200], data!("rsa.key")).0, "certificate");
    assert_eq!(material(data!("rsa.crt"), data!("rsa1024.key")).0, "key");
}

#[test]
fn a_subject_that_cannot_be_reproduced_is_refused() {
    let refused = CertificateAuthority::load(data!("two-ous.crt"), data!("p256.key")).unwrap_err();
    assert!(matches!(refused, Error::Material { part: "certificate", reason } if reason.contains("subject")));
}

#[test]
fn impossible_requests_are_refused() {
    let ca = new_ca(KeyType::EcP256);
    assert!(matches!(ca.issue(&domain().id(), DAY, now()), Err(Error::NoPath { .. })));
    assert!(matches!(ca.issue(&frontend(), StdDuration::ZERO, now()), Err(Error::Validity(_))));
    for at in [now() - Duration::days(1), now() + CA_LIFE, now() + CA_LIFE * 2] {
        assert!(
            matches!(ca.issue(&frontend(), DAY, at), Err(Error::OutsideCaValidity { .. })),
            "{at}"
        );
    }
}

#[test]
fn a_leaf_never_outlives_its_ca() {
    let ca = new_ca(KeyType::EcP256);
    let late = ca.not_after() - Duration::hours(1);
    assert_eq!(ca.issue(&frontend(), DAY, late).unwrap().not_after, ca.not_after());
    assert_eq!(ca.issue(&frontend(), StdDuration::MAX, now()).unwrap().not_after, ca.not_after());
}

#[test]
fn two_svids_share_neither_key_nor_serial() {
    let ca = new_ca(KeyType::EcP256);
    let (a, b) = (
        ca.issue(&frontend(), DAY, now()).unwrap(),
        ca.issue(&frontend(), DAY, now()).unwrap(),
    );
    assert_ne!(a.serial, b.serial);
    assert_ne!(a.key_pem, b.key_pem);
}

#[test]
fn keys_do_not_show() {
    let made = CertificateAuthority::generate(&domain(), now()).unwrap();
    let ca = CertificateAuthority::load(&made.cert_pem, &made.key_pem).unwrap();
    let shown = format!("{made:?} {ca:?} {:?}", ca.issue(&frontend(), DAY, now()).unwrap());
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

#[test]
fn renewal_is_at_two_thirds() {
    let (begin, end) = (now(), now() + Duration::hours(24));
    assert_eq!(renew_at(begin, end, 0.0), begin + Duration::hours(16));
    assert!(renew_at(begin, end, f64::NAN) == renew_at(begin, end, 0.0));
    assert_eq!(renew_at(end, begin, 0.0), end, "nothing to wait for");
}

proptest! {
    #[test]
    fn renewal_is_within_the_life(life in 0_i64..1_000_000_000, jitter in -1.0..1.0_f64) {
        let (begin, end) = (now(), now() + Duration::seconds(life));
        let at = renew_at(begin, end, jitter);
        prop_assert!(begin <= at && at <= end);
        let part = (at - begin) / (end - begin).max(Duration::SECOND);
        prop_assert!(life == 0 || (0.56..0.78).contains(&part), "{part}");
    }
}
