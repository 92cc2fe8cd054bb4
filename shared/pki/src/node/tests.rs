//! What is issued is checked by rustls (what it accepts) and by x509-parser (what is in it).
use super::*;
use proptest::prelude::*;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto::aws_lc_rs};

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn ca(name: &str) -> (CaMaterial, ClusterCa) {
    let material = ClusterCa::generate(&cluster(name), now()).unwrap();
    let loaded = ClusterCa::load(&material).unwrap();
    (material, loaded)
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn addresses(all: &[&str]) -> Vec<String> {
    all.iter().map(|a| (*a).to_owned()).collect()
}

/// Both as server and as client certificate, as in mutual TLS.
fn verify(cert_pem: &str, ca_pem: &str, at: OffsetDateTime) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(der(ca_pem)).unwrap();
    let leaf = der(cert_pem);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap()));
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(&leaf)?, &roots, &[], at, algorithms)?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
    clients.verify_client_cert(&leaf, &[], at).map(drop)
}

#[test]
fn a_node_is_a_client_and_a_server_under_its_uri_and_addresses() {
    let (material, ca) = ca("demo");
    let node = ca
        .issue(
            3,
            &addresses(&["127.0.100.3", "::1", "Global-3.example.com", "localhost"]),
            NODE_LIFE,
            now(),
        )
        .unwrap();
    verify(&node.cert_pem, &material.cert_pem, now()).unwrap();
    let leaf = der(&node.cert_pem);
    assert_eq!(identity_of(&leaf).unwrap(), node.identity);
    assert_eq!(node_uri(&node.identity.cluster, node.identity.id), "ursa://demo/node/3");
    let parsed = ParsedCertificate::try_from(&leaf).unwrap();
    for name in ["127.0.100.3", "::1", "global-3.example.com", "localhost"] {
        verify_server_name(&parsed, &ServerName::try_from(name).unwrap()).unwrap();
    }
    assert!(verify_server_name(&parsed, &ServerName::try_from("127.0.100.1").unwrap()).is_err());
    assert_eq!(node.not_after, now() + NODE_LIFE);
    verify(&node.cert_pem, &material.cert_pem, now() + NODE_LIFE - Duration::SECOND).unwrap();
    assert!(verify(&node.cert_pem, &material.cert_pem, now() + NODE_LIFE + Duration::SECOND).is_err());
    assert!(!format!("{node:?}").contains("PRIVATE"));
}

#[test]
fn another_cluster_of_the_same_name_is_another_cluster() {
    let (mine, _) = ca("demo");
    let (_, theirs) = ca("demo");
    let foreign = theirs.issue(1, &addresses(&["localhost"]), NODE_LIFE, now()).unwrap();
    assert!(verify(&foreign.cert_pem, &mine.cert_pem, now()).is_err());
}

#[test]
fn a_node_never_outlives_its_ca() {
    let (_, ca) = ca("demo");
    let late = now() + CA_LIFE - Duration::days(10);
    let node = ca.issue(1, &addresses(&["localhost"]), NODE_LIFE, late).unwrap();
    assert_eq!(node.not_after, ca.not_after());
    let after = ca.issue(1, &addresses(&["localhost"]), NODE_LIFE, ca.not_after());
    assert!(matches!(after, Err(Error::OutsideCaValidity { .. })), "{after:?}");
}

#[test]
fn what_makes_no_certificate_is_refused_with_its_reason() {
    let (material, ca) = ca("demo");
    let issue = |id, all: &[&str], life| ca.issue(id, &addresses(all), life, now()).unwrap_err();
    assert_eq!(issue(0, &["a"], NODE_LIFE), Error::NodeId);
    assert_eq!(issue(1, &[], NODE_LIFE), Error::NoAddress);
    assert_eq!(issue(1, &["a"], Duration::ZERO), Error::Validity(Duration::ZERO));
    for bad in ["", "a:5683", "127.0.0.256", "1.2.3", "a b", "-a", "a..b", "https://a", "*", "[::1]"] {
        assert_eq!(issue(1, &[bad], NODE_LIFE), Error::Address(bad.to_owned()));
    }
    for bad in ["", "A", "a_b", "-a", "a-", "a/b", &"a".repeat(64)] {
        assert_eq!(bad.parse::<ClusterName>(), Err(Error::ClusterName(bad.to_owned())));
    }
    let other = ClusterCa::generate(&cluster("demo"), now()).unwrap();
    let mixed = CaMaterial {
        key_pem: other.key_pem,
        ..material.clone()
    };
    assert!(
        ClusterCa::load(&mixed)
            .unwrap_err()
            .to_string()
            .contains("does not belong to the key")
    );
    let leaf = ca.issue(1, &addresses(&["a"]), NODE_LIFE, now()).unwrap();
    let no_ca = CaMaterial {
        cert_pem: leaf.cert_pem,
        key_pem: leaf.key_pem,
    };
    assert!(ClusterCa::load(&no_ca).unwrap_err().to_string().contains("not a CA"));
    let mesh = crate::CertificateAuthority::generate(&"a.mesh.local".parse().unwrap(), now()).unwrap();
    assert!(ClusterCa::load(&mesh).unwrap_err().to_string().contains("names no cluster"));
    assert!(matches!(identity_of(&der(&mesh.cert_pem)), Err(Error::Uri(_))));
    assert!(matches!(
        identity_of(&CertificateDer::from(vec![1, 2, 3])),
        Err(Error::Certificate(_))
    ));
}

#[test]
fn a_uri_has_one_spelling() {
    for bad in [
        "",
        "ursa://demo/node/",
        "ursa://demo/node/0",
        "ursa://demo/node/01",
        "ursa://demo/node/+1",
        "ursa://demo/node/1/",
        "ursa://demo/node/99999999999999999999",
        "ursa:///node/1",
        "URSA://demo/node/1",
        "spiffe://demo/node/1",
        "ursa://de mo/node/1",
        "ursa://demo",
    ] {
        assert_eq!(parse_node_uri(bad), Err(Error::Uri(bad.to_owned())), "{bad}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics_and_keeps_the_text(text in "(ursa://)?[a-z0-9/-]{0,20}(/node/)?[0-9]{0,21}") {
        if let Ok(identity) = parse_node_uri(&text) {
            prop_assert_eq!(node_uri(&identity.cluster, identity.id), text);
        }
    }
}
