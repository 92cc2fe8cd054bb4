//! Certificate authorities of a mesh, and the X.509-SVIDs they issue.
//! In: a trust domain or an operator's CA; a SPIFFE id, a validity, the time. Out: certificate and key as PEM.
//! Invariant: a leaf carries exactly one URI SAN, critical, in the CA's trust domain, no subject, and never outlives its CA.
//! Source: SPIFFE X509-SVID standard; `reference/dataplane.md` 3.3; `reference/demo.md` trap 5 (critical SAN).
//! Not here: when to issue and where secrets are kept (zone-cp). Making an RSA key takes 0.1-0.3 s: do that off the async threads.
use std::fmt;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::spiffe::{SpiffeId, TrustDomain};
use crate::text;

#[cfg(test)]
mod tests;

/// Life of a generated CA, as Kuma's.
pub const CA_LIFE: Duration = Duration::days(3650);
/// Certificates begin a little before they are made: the clocks of two machines differ. As Kuma's.
pub const BACKDATE: Duration = Duration::seconds(10);
/// Largest jitter of [`renew_at`], as a part of the life.
pub const MAX_RENEW_JITTER: f64 = 0.1;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA's certificate or key cannot be used: the operator must give another.
    #[error("CA {part}: {reason}")]
    Material { part: &'static str, reason: String },
    /// The CA vouches for another trust domain.
    #[error("{id} is not in the trust domain of the CA")]
    TrustDomain { id: SpiffeId },
    /// A domain itself is no workload.
    #[error("{id} has no path, so names no workload")]
    NoPath { id: SpiffeId },
    /// The CA is not valid at the time of issuing.
    #[error("the CA is valid from {not_before} to {not_after} only")]
    OutsideCaValidity {
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    },
    /// Zero, negative, or beyond any date.
    #[error("a validity of {0} is not possible")]
    Validity(Duration),
    /// The crypto library failed.
    #[error("cannot make a certificate")]
    Crypto(#[from] rcgen::Error),
}

/// Type of a key pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256: small and quick; the default.
    #[default]
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// Ed25519. Envoy's BoringSSL does not take it for TLS; Kuma lets operators choose it.
    Ed25519,
    /// RSA 2048, as Kuma's own CAs.
    Rsa2048,
}

impl KeyType {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// A CA as it is stored: two secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct CaMaterial {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

impl fmt::Debug for CaMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaMaterial")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

/// A workload's certificate and key.
#[derive(Clone, PartialEq, Eq)]
pub struct Svid {
    /// Whom it certifies.
    pub spiffe_id: SpiffeId,
    /// The leaf alone: the CA is in the trust bundle.
    pub cert_chain_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
    /// Begin of validity, whole seconds.
    pub not_before: OffsetDateTime,
    /// End of validity, whole seconds.
    pub not_after: OffsetDateTime,
    /// Serial number in lower-case hex.
    pub serial: String,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A CA that can issue.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    subject: Vec<u8>,
    trust_domain: Option<TrustDomain>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new self-signed CA for `domain`, ECDSA P-256, valid for [`CA_LIFE`] from `now` less [`BACKDATE`].
    ///
    /// # Errors
    /// The crypto library fails.
    pub fn generate(domain: &TrustDomain, now: OffsetDateTime) -> Result<CaMaterial, Error> {
        Self::generate_with(domain, KeyType::default(), now)
    }

    /// As [`Self::generate`] with another type of key; its leaves get the same type.
    ///
    /// # Errors
    /// The crypto library fails.
    pub fn generate_with(domain: &TrustDomain, key: KeyType, now: OffsetDateTime) -> Result<CaMaterial, Error> {
        let pair = KeyPair::generate_for(key.algorithm())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Ursa");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Mesh");
        params.distinguished_name.push(DnType::CommonName, domain.as_str());
        params.subject_alt_names = vec![uri(&domain.id())?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        params.not_before = now.checked_sub(BACKDATE).ok_or(Error::Validity(CA_LIFE))?;
        params.not_after = now.checked_add(CA_LIFE).ok_or(Error::Validity(CA_LIFE))?;
        let certificate = params.self_signed(&pair)?;
        Ok(CaMaterial {
            cert_pem: certificate.pem(),
            key_pem: pair.serialize_pem(),
        })
    }

    /// Loads a CA made here, by Kuma or by an operator. Key: ECDSA (P-256, P-384, P-521), RSA of 2048 bits or more, Ed25519, as
    /// PKCS#8, PKCS#1 or SEC1. Of several certificates the first is the CA.
    ///
    /// # Errors
    /// [`Error::Material`] with the reason.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let der = first_certificate(cert_pem).map_err(|reason| Error::Material {
            part: "certificate",
            reason,
        })?;
        let pair = key_pair(key_pem).map_err(|reason| Error::Material { part: "key", reason })?;
        Self::from_parts(&der, pair).map_err(|reason| Error::Material {
            part: "certificate",
            reason,
        })
    }

    fn from_parts(der: &CertificateDer<'_>, pair: KeyPair) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes after the certificate".to_owned());
        }
        if !parsed.is_ca() {
            return Err("it is not a CA (basic constraints)".to_owned());
        }
        if let Ok(Some(usage)) = parsed.key_usage()
            && !usage.value.key_cert_sign()
        {
            return Err("its key usage does not allow signing certificates".to_owned());
        }
        if *parsed.public_key().subject_public_key.data != *pair.der_bytes() {
            return Err("it does not belong to the key".to_owned());
        }
        let time = |unix: i64| OffsetDateTime::from_unix_timestamp(unix).map_err(|error| error.to_string());
        let (not_before, not_after) = (
            time(parsed.validity().not_before.timestamp())?,
            time(parsed.validity().not_after.timestamp())?,
        );
        let authority = Self {
            subject: parsed.subject().as_raw().to_vec(),
            trust_domain: trust_domain(&parsed)?,
            issuer: Issuer::from_ca_cert_der(der, pair).map_err(|error| error.to_string())?,
            cert_pem: text::encode(text::CERTIFICATE, der),
            not_before,
            not_after,
        };
        authority.check_name()?;
        Ok(authority)
    }

    /// rcgen rebuilds the issuer's name from its parts and can lose some (two of one kind); a chain would then not verify.
    fn check_name(&self) -> Result<(), String> {
        let probe = CertificateParams::default().signed_by(self.issuer.key(), &self.issuer);
        let probe = probe.map_err(|error| error.to_string())?;
        let (_, probe) = X509Certificate::from_der(probe.der()).map_err(|error| error.to_string())?;
        if probe.issuer().as_raw() == self.subject.as_slice() {
            Ok(())
        } else {
            Err("its subject cannot be reproduced in the certificates it would issue".to_owned())
        }
    }

    /// The CA's certificate: what the trust bundle needs.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The trust domain its certificate names, if it does.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }

    /// End of the CA's validity.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// A new key of the CA's type and a certificate for `id`, from `now` less [`BACKDATE`] for `validity`,
    /// but no longer than the CA's own.
    ///
    /// # Errors
    /// `id` is not a workload of the CA's trust domain; the CA is not valid at `now`; `validity` is not positive.
    pub fn issue(&self, id: &SpiffeId, validity: std::time::Duration, now: OffsetDateTime) -> Result<Svid, Error> {
        if id.path().is_empty() {
            return Err(Error::NoPath { id: id.clone() });
        }
        if self.trust_domain.as_ref().is_some_and(|domain| !id.is_member_of(domain)) {
            return Err(Error::TrustDomain { id: id.clone() });
        }
        let now = whole_seconds(now);
        if now < self.not_before || now >= self.not_after {
            return Err(Error::OutsideCaValidity {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        let validity = Duration::try_from(validity).unwrap_or(Duration::MAX);
        if validity < Duration::SECOND {
            return Err(Error::Validity(validity));
        }
        let not_before = now.checked_sub(BACKDATE).ok_or(Error::Validity(validity))?;
        // A century is cut to the CA's end like anything else that goes beyond it.
        let not_after = now.checked_add(validity).unwrap_or(self.not_after).min(self.not_after);
        let pair = KeyPair::generate_for(self.issuer.key().algorithm())?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        // No subject: then the SAN must be critical, and rcgen makes it so.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(id)?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial.clone());
        (params.not_before, params.not_after) = (not_before, whole_seconds(not_after));
        let certificate = params.signed_by(&pair, &self.issuer)?;
        Ok(Svid {
            spiffe_id: id.clone(),
            cert_chain_pem: text::encode(text::CERTIFICATE, certificate.der()),
            key_pem: pair.serialize_pem(),
            not_before,
            not_after: params.not_after,
            serial: serial.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// When to renew what is valid from `not_before` to `not_after`: at two thirds of its life, moved by `jitter` (a part of the
/// life, -0.1..=0.1, chosen once per certificate) so that what was issued together is not renewed together. Pure.
pub fn renew_at(not_before: OffsetDateTime, not_after: OffsetDateTime, jitter: f64) -> OffsetDateTime {
    let jitter = if jitter.is_finite() {
        jitter.clamp(-MAX_RENEW_JITTER, MAX_RENEW_JITTER)
    } else {
        0.0
    };
    let life = (not_after - not_before).max(Duration::ZERO);
    not_before.saturating_add(life * (2.0 / 3.0 + jitter))
}

/// The trust domain in the URI SAN of a CA. An operator's CA may have none.
fn trust_domain(ca: &X509Certificate<'_>) -> Result<Option<TrustDomain>, String> {
    let san = ca.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut ids = san.iter().flat_map(|san| &san.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(uri.parse::<SpiffeId>()),
        _ => None,
    });
    match (ids.next(), ids.next()) {
        (None, _) => Ok(None),
        (Some(Ok(id)), None) => Ok(Some(id.trust_domain())),
        (Some(Err(error)), None) => Err(error.to_string()),
        (Some(_), Some(_)) => Err("it names more than one SPIFFE id".to_owned()),
    }
}

pub(crate) fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    let sections = text::sections(pem.as_bytes())?;
    let first = sections.into_iter().find(|section| section.tag() == text::CERTIFICATE);
    Ok(first.ok_or("no certificate in it")?.into_contents().into())
}

pub(crate) fn key_pair(pem: &str) -> Result<KeyPair, String> {
    if pem.len() > text::MAX_PEM_BYTES {
        return Err("too large".to_owned());
    }
    // openssl writes EC parameters before the key; only the key is of interest.
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    KeyPair::try_from(&der).map_err(|error| error.to_string())
}

fn uri(id: &SpiffeId) -> Result<SanType, Error> {
    Ok(SanType::URI(id.as_str().try_into()?))
}

/// 16 random bytes, positive and without leading zero, so that every encoder writes the same.
pub(crate) fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(crate) fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.unix_timestamp()).unwrap_or(time)
}
