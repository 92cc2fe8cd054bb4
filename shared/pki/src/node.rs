//! The cluster's own CA and the certificates of its nodes, for the traffic between them and, unless others are configured, for their servers.
//! In: a cluster's name, a node's id and addresses, a validity, the time. Out: certificate and key as PEM; who a certificate names.
//! Invariant: a node's certificate carries exactly one URI SAN, `ursa://<cluster>/node/<id>`, and never outlives its CA; whoever has
//! another cluster's certificate cannot pass for a node of this one, even if both CAs have the same name.
//! Not here: files and command lines (global-cp), the handshake (ursa-store).
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::{BACKDATE, CaMaterial, first_certificate, key_pair, serial, whole_seconds};
use crate::text;

#[cfg(test)]
mod tests;

/// Life of a cluster's CA: ten years.
pub const CA_LIFE: Duration = Duration::days(3650);
/// Life of a node's certificate unless asked otherwise: a year.
pub const NODE_LIFE: Duration = Duration::days(365);
/// Longest name of a cluster: a DNS label.
pub const MAX_CLUSTER_NAME: usize = 63;
/// DNS: longest name.
const MAX_DNS_NAME: usize = 253;

const SCHEME: &str = "ursa://";

/// Why there is no certificate, or why one is not a node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A cluster's name is not usable.
    #[error("{0:?} cannot name a cluster: 1 to {MAX_CLUSTER_NAME} lower-case letters, digits and dashes, no dash at either end")]
    ClusterName(String),
    /// Node ids begin at 1.
    #[error("a node's id is 1 or greater")]
    NodeId,
    /// An address is neither IP nor DNS name.
    #[error("{0:?} is neither an IP address nor a DNS name (without port)")]
    Address(String),
    /// A node that nobody can reach.
    #[error("a node needs at least one address")]
    NoAddress,
    /// A URI is not a node's.
    #[error("{0:?} does not name a node: ursa://<cluster>/node/<id> does")]
    Uri(String),
    /// The CA's files cannot be used.
    #[error("cluster CA {part}: {reason}")]
    Ca { part: &'static str, reason: String },
    /// The CA is not valid at the time of issuing.
    #[error("the cluster's CA is valid from {not_before} to {not_after} only")]
    OutsideCaValidity {
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    },
    /// Zero, negative, or beyond any date.
    #[error("a validity of {0} is not possible")]
    Validity(Duration),
    /// What a peer presented cannot be read, or names nobody.
    #[error("not a node's certificate: {0}")]
    Certificate(String),
    /// The crypto library failed.
    #[error("cannot make a certificate: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// Name of a group of nodes that form one control plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > MAX_CLUSTER_NAME || !name.bytes().all(inner) || name.starts_with('-') || name.ends_with('-') {
            return Err(Error::ClusterName(name.to_owned()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One node of one cluster, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdentity {
    /// The cluster.
    pub cluster: ClusterName,
    /// 1 or greater.
    pub id: u64,
}

/// `ursa://<cluster>/node/<id>`.
pub fn node_uri(cluster: &ClusterName, id: u64) -> String {
    format!("{SCHEME}{cluster}/node/{id}")
}

/// Reads what [`node_uri`] wrote; there is no other spelling.
///
/// # Errors
/// [`Error::Uri`].
pub fn parse_node_uri(uri: &str) -> Result<NodeIdentity, Error> {
    let wrong = || Error::Uri(uri.chars().take(200).collect());
    let (cluster, id) = uri
        .strip_prefix(SCHEME)
        .and_then(|rest| rest.split_once("/node/"))
        .ok_or_else(wrong)?;
    let cluster: ClusterName = cluster.parse().map_err(|_| wrong())?;
    let number: u64 = id.parse().map_err(|_| wrong())?;
    if number == 0 || number.to_string() != id {
        return Err(wrong());
    }
    Ok(NodeIdentity { cluster, id: number })
}

/// Whom a certificate names. Its signature is the handshake's business.
///
/// # Errors
/// [`Error::Certificate`]: unreadable, or not exactly one `ursa://` URI.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<NodeIdentity, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| Error::Certificate(error.to_string()))?;
    let uris = uris(&parsed).map_err(Error::Certificate)?;
    match uris.as_slice() {
        [uri] => parse_node_uri(uri),
        [] => Err(Error::Certificate("it has no URI".to_owned())),
        _ => Err(Error::Certificate("it has more than one URI".to_owned())),
    }
}

fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let san = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    Ok(san
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect())
}

/// Certificate and key of one node.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// Whom it certifies.
    pub identity: NodeIdentity,
    /// The leaf alone: the CA has a file of its own.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
    /// End of validity, whole seconds.
    pub not_after: OffsetDateTime,
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A cluster's CA that can issue.
pub struct ClusterCa {
    issuer: Issuer<'static, KeyPair>,
    cluster: ClusterName,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa")
            .field("cluster", &self.cluster)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new self-signed CA, ECDSA P-256, valid for [`CA_LIFE`].
    ///
    /// # Errors
    /// The crypto library fails.
    pub fn generate(cluster: &ClusterName, now: OffsetDateTime) -> Result<CaMaterial, Error> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Ursa");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Cluster");
        params.distinguished_name.push(DnType::CommonName, cluster.as_str());
        params.subject_alt_names = vec![SanType::URI(format!("{SCHEME}{cluster}").as_str().try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial().map_err(|error| Error::Crypto(error.to_string()))?);
        params.not_before = now.checked_sub(BACKDATE).ok_or(Error::Validity(CA_LIFE))?;
        params.not_after = now.checked_add(CA_LIFE).ok_or(Error::Validity(CA_LIFE))?;
        let certificate = params.self_signed(&pair)?;
        Ok(CaMaterial {
            cert_pem: certificate.pem(),
            key_pem: pair.serialize_pem(),
        })
    }

    /// Loads what [`Self::generate`] made.
    ///
    /// # Errors
    /// [`Error::Ca`] with the reason.
    pub fn load(material: &CaMaterial) -> Result<Self, Error> {
        let of = |part: &'static str| move |reason: String| Error::Ca { part, reason };
        let der = first_certificate(&material.cert_pem).map_err(of("certificate"))?;
        let pair = key_pair(&material.key_pem).map_err(of("key"))?;
        Self::from_parts(&der, pair).map_err(of("certificate"))
    }

    fn from_parts(der: &CertificateDer<'_>, pair: KeyPair) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !parsed.is_ca() {
            return Err("it is not a CA (basic constraints)".to_owned());
        }
        if *parsed.public_key().subject_public_key.data != *pair.der_bytes() {
            return Err("it does not belong to the key".to_owned());
        }
        let names = uris(&parsed)?;
        let cluster = match names.as_slice() {
            [uri] => uri.strip_prefix(SCHEME).and_then(|name| name.parse().ok()),
            _ => None,
        };
        let time = |unix: i64| OffsetDateTime::from_unix_timestamp(unix).map_err(|error| error.to_string());
        Ok(Self {
            cluster: cluster.ok_or("it names no cluster (a URI ursa://<cluster>): `global-cp pki init` makes one that does")?,
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
            issuer: Issuer::from_ca_cert_der(der, pair).map_err(|error| error.to_string())?,
        })
    }

    /// Whose CA it is.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// End of the CA's validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// A new P-256 key and a certificate for node `id`, good as client and as server, for `addresses` (IPs and DNS names without
    /// port) as well. From `now` less [`BACKDATE`] for `validity`, but no longer than the CA's own.
    ///
    /// # Errors
    /// The id is 0, an address is none, there is no address, the validity is under a second, the CA is not valid at `now`.
    pub fn issue(&self, id: u64, addresses: &[String], validity: Duration, now: OffsetDateTime) -> Result<NodeCertificate, Error> {
        if id == 0 {
            return Err(Error::NodeId);
        }
        if addresses.is_empty() {
            return Err(Error::NoAddress);
        }
        if validity < Duration::SECOND {
            return Err(Error::Validity(validity));
        }
        let now = whole_seconds(now);
        if now < self.not_before || now >= self.not_after {
            return Err(Error::OutsideCaValidity {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        let mut names = vec![SanType::URI(node_uri(&self.cluster, id).as_str().try_into()?)];
        for address in addresses {
            names.push(address_san(address)?);
        }
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Ursa");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{} node {id}", self.cluster));
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial().map_err(|error| Error::Crypto(error.to_string()))?);
        params.not_before = now.checked_sub(BACKDATE).ok_or(Error::Validity(validity))?;
        params.not_after = whole_seconds(now.checked_add(validity).unwrap_or(self.not_after).min(self.not_after));
        let certificate = params.signed_by(&pair, &self.issuer)?;
        Ok(NodeCertificate {
            identity: NodeIdentity {
                cluster: self.cluster.clone(),
                id,
            },
            cert_pem: text::encode(text::CERTIFICATE, certificate.der()),
            key_pem: pair.serialize_pem(),
            not_after: params.not_after,
        })
    }
}

fn address_san(address: &str) -> Result<SanType, Error> {
    if let Ok(ip) = address.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    // A last label of digits is a mistyped IPv4 address.
    let digits = address
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if address.len() > MAX_DNS_NAME || digits || !address.split('.').all(label) {
        return Err(Error::Address(address.chars().take(260).collect()));
    }
    Ok(SanType::DnsName(address.to_ascii_lowercase().as_str().try_into()?))
}
