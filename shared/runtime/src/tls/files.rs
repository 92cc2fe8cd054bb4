//! The four files of a server's TLS folder: checked, made, renewed.
//! In: the folder, the wanted names, the time. Out: a certificate whose key fits, signed by the CA beside it.
//! Invariant: the key is on disk before the certificate that needs it; a CA that exists is never replaced, for clients trust it.
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, Loaded, Origin};
use crate::fs::{PRIVATE, PUBLIC, write_atomic};

/// No PEM file of ours comes near; larger is something else.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Clocks differ: a certificate is valid from a little before it was made.
const BACKDATE: Duration = Duration::minutes(5);
const CA_LIFE: Duration = Duration::days(3650);
const SERVER_LIFE: Duration = Duration::days(365);
const RENEW_BEFORE: Duration = Duration::days(30);

pub(super) fn load(origin: &Origin, now: OffsetDateTime) -> Result<Loaded, Error> {
    match origin {
        Origin::Folder { dir, sans } => load_folder(dir, sans, now),
        Origin::Files { cert, key, ca } => {
            let chain = read(cert)?;
            let ca_pem = ca.as_deref().map(read).transpose()?;
            let loaded = parse(cert, &chain, &read(key)?, ca_pem)?;
            if loaded.not_after <= now {
                return Err(invalid(cert, format!("expired at {}", loaded.not_after)));
            }
            Ok(loaded)
        }
    }
}

fn load_folder(dir: &Path, sans: &[String], now: OffsetDateTime) -> Result<Loaded, Error> {
    crate::fs::create_dir(dir, 0o700).map_err(|source| file_error(dir, source))?;
    let wanted = parse_sans(sans)?;
    let (ca_cert, ca_key) = (dir.join("ca.crt"), dir.join("ca.key"));
    let (cert, key) = (dir.join("server.crt"), dir.join("server.key"));
    if !ca_cert.exists() {
        // A key without certificate is what a crash between the two writes leaves.
        make_ca(&ca_cert, &ca_key, now)?;
    }
    let ca_pem = read(&ca_cert)?;
    let reason = if !cert.exists() || !key.exists() {
        "is missing".to_owned()
    } else {
        // A crash between writing key and certificate leaves a pair that does not fit: made anew like one that is missing.
        match parse(&cert, &read(&cert)?, &read(&key)?, Some(ca_pem.clone())) {
            Err(error @ Error::File { .. }) => return Err(error),
            Err(error) => format!("cannot be used ({error})"),
            Ok(loaded) => match why_renew(&loaded, &wanted, now) {
                None => return Ok(loaded),
                Some(reason) => reason,
            },
        }
    };
    if !ca_key.exists() {
        return Err(Error::CannotRenew { reason, ca_key });
    }
    tracing::info!(dir = %dir.display(), reason, "making a server certificate");
    make_server(&ca_pem, &read(&ca_key)?, &cert, &key, wanted, now)?;
    let loaded = parse(&cert, &read(&cert)?, &read(&key)?, Some(ca_pem))?;
    match why_renew(&loaded, &[], now) {
        // Only an expired or foreign CA can make a fresh certificate bad.
        Some(reason) => Err(invalid(&ca_cert, format!("a certificate made from it {reason}"))),
        None => Ok(loaded),
    }
}

fn why_renew(loaded: &Loaded, wanted: &[SanType], now: OffsetDateTime) -> Option<String> {
    let missing = wanted.iter().find(|san| match san {
        SanType::DnsName(name) => !loaded.dns.iter().any(|dns| dns == name.as_str()),
        SanType::IpAddress(ip) => !loaded.ips.contains(ip),
        _ => false,
    });
    if let Some(missing) = missing {
        return Some(format!("does not hold for {missing:?}"));
    }
    if loaded.not_after - now < RENEW_BEFORE {
        return Some(format!("ends at {}", loaded.not_after));
    }
    let signed = signed_by(&loaded.certified.cert, &loaded.ca_pem, now);
    signed.err().map(|reason| format!("is not signed by its CA ({reason})"))
}

fn signed_by(chain: &[CertificateDer<'_>], ca_pem: &str, now: OffsetDateTime) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots
            .add(ca.map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
    }
    let (leaf, rest) = chain.split_first().ok_or("no certificate")?;
    let leaf = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
    let now = u64::try_from(now.unix_timestamp()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, rest, now, algorithms).map_err(|error| error.to_string())
}

fn make_ca(cert: &Path, key: &Path, now: OffsetDateTime) -> Result<(), Error> {
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ursa");
    // The name carries a random part: two CAs never look like one to a client that knows both.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Ursa server CA {:08x}", rand::random::<u32>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_LIFE;
    let made = params.self_signed(&pair)?;
    write(key, &pair.serialize_pem(), PRIVATE)?;
    write(cert, &made.pem(), PUBLIC)
}

fn make_server(ca_pem: &str, ca_key: &str, cert: &Path, key: &Path, sans: Vec<SanType>, now: OffsetDateTime) -> Result<(), Error> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key)?)?;
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ursa");
    params.distinguished_name.push(DnType::CommonName, "Ursa server");
    params.subject_alt_names = sans;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial()));
    params.not_before = now - BACKDATE;
    params.not_after = now + SERVER_LIFE;
    let made = params.signed_by(&pair, &issuer)?;
    write(key, &pair.serialize_pem(), PRIVATE)?;
    write(cert, &made.pem(), PUBLIC)
}

/// 127 random bits: positive, not zero.
fn serial() -> [u8; 16] {
    let mut serial = rand::random::<u128>().to_be_bytes();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn parse_sans(sans: &[String]) -> Result<Vec<SanType>, Error> {
    let unique: BTreeSet<&str> = sans.iter().map(String::as_str).collect();
    unique
        .into_iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) if is_dns_name(name) => Ok(SanType::DnsName(name.try_into()?)),
            Err(_) => Err(Error::Name { name: name.to_owned() }),
        })
        .collect()
}

/// RFC 1123 host name, lower case.
pub(super) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Reads a chain and its key, and checks that they belong together.
fn parse(cert: &Path, chain_pem: &str, key_pem: &str, ca_pem: Option<String>) -> Result<Loaded, Error> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(cert, error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| invalid(cert, "no certificate in it".to_owned()))?;
    let (dns, ips, not_after) = names(leaf).map_err(|reason| invalid(cert, reason))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| invalid(cert, format!("its key: {error}")))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(chain.clone(), key);
    certified.keys_match().map_err(|error| invalid(cert, format!("its key: {error}")))?;
    let ca_pem = match ca_pem {
        Some(pem) => pem,
        None => last_pem(chain_pem).ok_or_else(|| invalid(cert, "no certificate in it".to_owned()))?,
    };
    Ok(Loaded {
        certified: Arc::new(certified),
        chain_pem: chain_pem.to_owned(),
        ca_pem,
        dns,
        ips,
        not_after,
    })
}

type Names = (Vec<String>, Vec<IpAddr>, OffsetDateTime);

fn names(leaf: &CertificateDer<'_>) -> Result<Names, String> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    let san = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    for name in san.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => ips.push(IpAddr::from([a, b, c, d])),
                _ => ips.extend(<[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from)),
            },
            _ => {}
        }
    }
    let not_after = parsed.validity().not_after.timestamp();
    let not_after = OffsetDateTime::from_unix_timestamp(not_after).map_err(|error| error.to_string())?;
    Ok((dns, ips, not_after))
}

/// Text of the last certificate of a chain.
fn last_pem(chain: &str) -> Option<String> {
    chain.rfind("-----BEGIN CERTIFICATE-----").map(|start| chain[start..].to_owned())
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = crate::fs::read_bounded(path, MAX_FILE_BYTES).map_err(|source| file_error(path, source))?;
    String::from_utf8(bytes).map_err(|_| invalid(path, "no PEM".to_owned()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    write_atomic(path, text.as_bytes(), mode).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: std::io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        source,
    }
}

fn invalid(path: &Path, reason: String) -> Error {
    Error::Invalid {
        what: path.display().to_string(),
        reason,
    }
}
