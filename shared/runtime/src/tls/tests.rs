//! First start, restart, renewal, damaged and foreign files.
use super::*;
use std::os::unix::fs::PermissionsExt;
use time::Duration as Span;

fn sans(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn at(unix: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix).unwrap()
}

const NOW: i64 = 1_790_000_000;

fn load(dir: &Path, names: &[&str], now: OffsetDateTime) -> Result<ServerTls, Error> {
    ServerTls::load_or_create_at(dir, &sans(names), now)
}

#[test]
fn a_first_start_makes_private_keys_and_a_restart_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("tls");
    let first = load(&dir, &["localhost", "127.0.1.1", "::1", "zone.example"], at(NOW)).unwrap();
    for (file, mode) in [("ca.crt", 0o644), ("ca.key", 0o600), ("server.crt", 0o644), ("server.key", 0o600)] {
        let permissions = std::fs::metadata(dir.join(file)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{file}");
    }
    let (dns, ips) = first.dns_and_ip_sans();
    assert_eq!(dns, ["localhost", "zone.example"]);
    assert_eq!(ips, ["127.0.1.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    let again = load(&dir, &["localhost"], at(NOW + 86_400)).unwrap();
    assert_eq!(first.server_chain_pem(), again.server_chain_pem());
    assert_eq!(first.ca_pem(), again.ca_pem());
}

#[test]
fn a_new_name_or_the_end_near_renews_the_certificate_but_not_the_ca() {
    let dir = tempfile::tempdir().unwrap();
    let first = load(dir.path(), &["localhost"], at(NOW)).unwrap();
    let renamed = load(dir.path(), &["localhost", "10.0.0.1"], at(NOW)).unwrap();
    assert_ne!(first.server_chain_pem(), renamed.server_chain_pem());
    let later = at(NOW) + Span::days(340);
    let renewed = load(dir.path(), &["localhost"], later).unwrap();
    assert_ne!(renamed.server_chain_pem(), renewed.server_chain_pem());
    assert!(renewed.not_after() > later + Span::days(360));
    assert_eq!(first.ca_pem(), renewed.ca_pem());
}

#[test]
fn a_pair_that_a_crash_left_apart_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path(), &["localhost"], at(NOW)).unwrap();
    let other = tempfile::tempdir().unwrap();
    load(other.path(), &["localhost"], at(NOW)).unwrap();
    std::fs::copy(other.path().join("server.key"), dir.path().join("server.key")).unwrap();
    load(dir.path(), &["localhost"], at(NOW)).unwrap();
    // A foreign certificate with its own key fits itself, but not our CA.
    std::fs::copy(other.path().join("server.key"), dir.path().join("server.key")).unwrap();
    std::fs::copy(other.path().join("server.crt"), dir.path().join("server.crt")).unwrap();
    let foreign = std::fs::read_to_string(other.path().join("server.crt")).unwrap();
    assert_ne!(load(dir.path(), &["localhost"], at(NOW)).unwrap().server_chain_pem(), foreign);
}

#[test]
fn without_the_ca_key_nothing_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path(), &["localhost"], at(NOW)).unwrap();
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    load(dir.path(), &["localhost"], at(NOW)).unwrap();
    assert!(matches!(
        load(dir.path(), &["localhost", "other"], at(NOW)),
        Err(Error::CannotRenew { .. })
    ));
}

#[test]
fn bad_input_has_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "-a", "a..b", "Upper", "spiffe://x", "a b"] {
        assert!(matches!(load(dir.path(), &[name], at(NOW)), Err(Error::Name { .. })), "{name:?}");
    }
    load(dir.path(), &["localhost"], at(NOW)).unwrap();
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(load(dir.path(), &["localhost"], at(NOW)).is_err(), "a damaged CA is not replaced");
    assert!(client_config(&std::fs::read(&ca).unwrap(), &[]).is_err());
    assert!(matches!(client_config(b"", &[]), Err(Error::Invalid { .. })));
}

#[test]
fn files_of_the_operator_are_used_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let made = ServerTls::load_or_create(dir.path(), &sans(&["localhost"])).unwrap();
    let file = |name: &str| dir.path().join(name);
    let given = ServerTls::from_files(&file("server.crt"), &file("server.key"), Some(&file("ca.crt"))).unwrap();
    assert_eq!((given.ca_pem(), given.server_chain_pem()), (made.ca_pem(), made.server_chain_pem()));
    let alone = ServerTls::from_files(&file("server.crt"), &file("server.key"), None).unwrap();
    assert_eq!(alone.ca_pem(), made.server_chain_pem());
    assert!(matches!(
        ServerTls::from_files(&file("server.crt"), &file("ca.key"), None),
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        ServerTls::from_files(&file("no"), &file("ca.key"), None),
        Err(Error::File { .. })
    ));
}

#[test]
fn a_running_server_takes_up_the_renewed_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let tls = load(dir.path(), &["localhost"], at(NOW)).unwrap();
    let config = tls.server_config(&["h2"]);
    assert!(!tls.refresh(at(NOW) + Span::days(10)).unwrap());
    let before = tls.not_after();
    assert!(tls.refresh(at(NOW) + Span::days(340)).unwrap());
    assert!(tls.not_after() > before);
    assert_eq!(config.alpn_protocols, [b"h2".to_vec()]);
}

#[test]
fn local_names_can_be_certified() {
    let dir = tempfile::tempdir().unwrap();
    let names = local_names();
    assert!(names.contains(&"localhost".to_owned()));
    ServerTls::load_or_create(dir.path(), &names).unwrap();
}
