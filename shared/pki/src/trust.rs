//! Trust bundles: the CA certificates by which the proxies of a trust domain are believed.
//! In: PEM from a MeshTrust or a CA. Out: certificates without repetition, grouped by trust domain.
//! Invariant: a bundle is never empty and never holds a private key, however it was labelled.
//! Source: SPIFFE Trust Domain and Bundle; Kuma's MeshTrust (`reference/dataplane.md` 3.5).
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::spiffe::TrustDomain;
use crate::text;

/// A trust domain renews its CA every few years; each zone and each renewal adds one.
pub const MAX_CERTIFICATES: usize = 256;

/// Why a text is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A private key does not belong where everyone reads it.
    #[error("section {index} is a private key")]
    PrivateKey { index: usize },
    /// No certificate at all.
    #[error("no certificate in it")]
    Empty,
    /// Broken PEM, or too large.
    #[error("not PEM: {reason}")]
    Pem { reason: String },
    /// A section that is no X.509 certificate.
    #[error("section {index}: {reason}")]
    Certificate { index: usize, reason: String },
    /// More than [`MAX_CERTIFICATES`].
    #[error("more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// SHA-256 of a certificate's DER; names the certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One CA certificate. Whether it is still valid is the verifier's business.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedCa {
    der: Arc<[u8]>,
    fingerprint: Fingerprint,
    is_ca: bool,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl TrustedCa {
    fn from_der(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes after the certificate".to_owned());
        }
        let time = |unix: i64| OffsetDateTime::from_unix_timestamp(unix).map_err(|error| error.to_string());
        Ok(Self {
            fingerprint: Fingerprint::of(der),
            is_ca: parsed.is_ca(),
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
            der: der.into(),
        })
    }

    /// The certificate.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate as PEM.
    pub fn to_pem(&self) -> String {
        text::encode(text::CERTIFICATE, &self.der)
    }

    /// SHA-256 of the DER.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Does it say that it may sign others? Kuma does not ask; a proxy will not accept it otherwise.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// Begin and end of its validity.
    pub fn validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.not_before, self.not_after)
    }
}

impl fmt::Debug for TrustedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedCa({})", self.fingerprint)
    }
}

/// CA certificates without repetition, in the order they were first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle(Vec<TrustedCa>);

impl Bundle {
    /// Reads one or more certificates. Text around them is allowed, other sections are not.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(pem: &str) -> Result<Self, Error> {
        let sections = text::sections(pem.as_bytes()).map_err(|reason| Error::Pem { reason })?;
        // A key is reported as what it is, whatever else is wrong.
        if let Some(index) = sections.iter().position(|section| text::is_private_key(section.tag())) {
            return Err(Error::PrivateKey { index });
        }
        let mut bundle = Self(Vec::with_capacity(sections.len().min(MAX_CERTIFICATES)));
        for (index, section) in sections.iter().enumerate() {
            if section.tag() != text::CERTIFICATE {
                let reason = format!("{:?} is no certificate", section.tag());
                return Err(Error::Certificate { index, reason });
            }
            let ca = TrustedCa::from_der(section.contents());
            bundle.push(ca.map_err(|reason| Error::Certificate { index, reason })?)?;
        }
        if bundle.0.is_empty() { Err(Error::Empty) } else { Ok(bundle) }
    }

    /// Adds what `other` has and this has not. `true` if that was something.
    ///
    /// # Errors
    /// [`Error::TooMany`]; the bundle then holds as many as it may.
    pub fn merge(&mut self, other: &Self) -> Result<bool, Error> {
        let mut added = false;
        for ca in &other.0 {
            added |= self.push(ca.clone())?;
        }
        Ok(added)
    }

    fn push(&mut self, ca: TrustedCa) -> Result<bool, Error> {
        if self.contains(ca.fingerprint) {
            return Ok(false);
        }
        if self.0.len() == MAX_CERTIFICATES {
            return Err(Error::TooMany);
        }
        self.0.push(ca);
        Ok(true)
    }

    /// Is that certificate in it?
    pub fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.0.iter().any(|ca| ca.fingerprint == fingerprint)
    }

    /// Do the two have a certificate in common?
    pub fn shares_a_ca_with(&self, other: &Self) -> bool {
        other.0.iter().any(|ca| self.contains(ca.fingerprint))
    }

    /// The certificates, at least one.
    pub fn certificates(&self) -> &[TrustedCa] {
        &self.0
    }

    /// Names the set of certificates, in whatever order: SHA-256 over their sorted fingerprints.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut fingerprints: Vec<_> = self.0.iter().map(|ca| ca.fingerprint).collect();
        fingerprints.sort();
        let mut hash = Sha256::new();
        fingerprints.iter().for_each(|fingerprint| hash.update(fingerprint.0));
        Fingerprint(hash.finalize().into())
    }

    /// All certificates as PEM, one after the other: what Envoy's SPIFFE validator takes as `trust_bundle`.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(TrustedCa::to_pem).collect()
    }
}

/// Bundles of all trust domains that a proxy believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles(BTreeMap<TrustDomain, Bundle>);

impl TrustBundles {
    /// Of no domain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bundle` to what is known of `domain`.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn add(&mut self, domain: TrustDomain, bundle: &Bundle) -> Result<(), Error> {
        match self.0.entry(domain) {
            Entry::Vacant(entry) => {
                entry.insert(bundle.clone());
                Ok(())
            }
            Entry::Occupied(mut entry) => entry.get_mut().merge(bundle).map(drop),
        }
    }

    /// What is known of `domain`.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(domain)
    }

    /// All, by name of the domain.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.0.iter()
    }

    /// Number of domains.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// No domain is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::CertificateAuthority;

    fn ca(domain: &str) -> crate::ca::CaMaterial {
        CertificateAuthority::generate(&domain.parse().unwrap(), OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_bundle_is_read_without_repetition() {
        let (a, b) = (ca("a").cert_pem, ca("b").cert_pem);
        let bundle = Bundle::parse(&format!("# first\n{a}\n{b}{a}")).unwrap();
        assert_eq!(bundle.certificates().len(), 2);
        assert_eq!(bundle.to_pem(), format!("{a}{b}"));
        assert!(bundle.certificates().iter().all(TrustedCa::is_ca));
        let swapped = Bundle::parse(&format!("{b}{a}")).unwrap();
        assert_ne!(bundle, swapped);
        assert_eq!(bundle.fingerprint(), swapped.fingerprint());
        assert_ne!(bundle.fingerprint(), Bundle::parse(&a).unwrap().fingerprint());
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let made = ca("a");
        assert_eq!(Bundle::parse(""), Err(Error::Empty));
        assert_eq!(Bundle::parse("just words"), Err(Error::Empty));
        let with_key = format!("{}{}", made.cert_pem, made.key_pem);
        assert_eq!(Bundle::parse(&with_key), Err(Error::PrivateKey { index: 1 }));
        for label in ["RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            assert_eq!(
                Bundle::parse(&text::encode(label, b"x")),
                Err(Error::PrivateKey { index: 0 }),
                "{label}"
            );
        }
        assert!(matches!(Bundle::parse(&made.cert_pem[..100]), Err(Error::Pem { .. })));
        let rubbish = text::encode(text::CERTIFICATE, b"rubbish");
        assert!(matches!(Bundle::parse(&rubbish), Err(Error::Certificate { index: 0, .. })));
        let request = text::encode("CERTIFICATE REQUEST", b"x");
        let mixed = format!("{}{request}", made.cert_pem);
        assert!(matches!(Bundle::parse(&mixed), Err(Error::Certificate { index: 1, .. })));
        let mut longer = pem::parse(&made.cert_pem).unwrap().into_contents();
        longer.push(0);
        assert!(matches!(
            Bundle::parse(&text::encode(text::CERTIFICATE, &longer)),
            Err(Error::Certificate { .. })
        ));
    }

    #[test]
    fn bundles_of_one_domain_are_joined() {
        let (a, b): (TrustDomain, TrustDomain) = ("a".parse().unwrap(), "b".parse().unwrap());
        let parse = |domain| Bundle::parse(&ca(domain).cert_pem).unwrap();
        let (old, new, other) = (parse("a"), parse("a"), parse("b"));
        let mut all = TrustBundles::new();
        for (domain, bundle) in [(&a, &old), (&a, &new), (&b, &other), (&a, &old)] {
            all.add(domain.clone(), bundle).unwrap();
        }
        assert_eq!((all.len(), all.get(&a).unwrap().certificates().len()), (2, 2));
        assert!(all.get(&a).unwrap().shares_a_ca_with(&new) && !new.shares_a_ca_with(&old));
        assert_eq!(all.iter().map(|(domain, _)| domain.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }
}
