//! RSA keys of tokens, in every form that Kuma and operators store them.
//! In: PEM (PKCS#1, PKCS#8, SPKI) or raw PKCS#1. Out: keys to sign and to verify with; PEM in Kuma's form (PKCS#1).
//! Invariant: 2048 to 8192 bits; a private key is never shown.
//! Source: `reference/api.md` 4.3; Kuma reads the labels `RSA PRIVATE KEY` and `RSA PUBLIC KEY` alone (`pkg/util/rsa/pem.go`).
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use jsonwebtoken::{DecodingKey, EncodingKey};
use x509_parser::der_parser::parse_der;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
use x509_parser::public_key::RSAPublicKey;

use crate::text;

const PRIVATE_PKCS1: &str = "RSA PRIVATE KEY";
const PRIVATE_PKCS8: &str = "PRIVATE KEY";
const PUBLIC_PKCS1: &str = "RSA PUBLIC KEY";
const PUBLIC_SPKI: &str = "PUBLIC KEY";
/// Below, keys can be factored; above, a single check takes too long.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// An RSA-8192 private key takes 5 KB.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// Why something is no key for tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither PEM nor DER, or of another label than expected.
    #[error("not an RSA {expected} key: {reason}")]
    Form { expected: &'static str, reason: String },
    /// Too short or too long.
    #[error("RSA key has {0} bits; 2048 to 8192 are accepted")]
    Size(usize),
    /// The crypto library cannot make one.
    #[error("cannot generate an RSA key")]
    Generate,
}

/// Signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    pkcs1: Arc<[u8]>,
    public: VerifyingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

impl SigningKey {
    /// A new RSA-2048 key. Takes 0.1 to 0.3 s: not on an async thread.
    ///
    /// # Errors
    /// The crypto library fails.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads what a signing-key secret holds: PEM (PKCS#1 or PKCS#8), or raw PKCS#1.
    ///
    /// # Errors
    /// It is something else, or of an unsuitable size.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        match one_section(bytes, "private")? {
            None => Self::from_pkcs1(bytes),
            Some((label, der)) if label == PRIVATE_PKCS1 => Self::from_pkcs1(&der),
            Some((label, der)) if label == PRIVATE_PKCS8 => Self::from_pkcs8(&der),
            Some((label, _)) => Err(form("private", format!("it is labelled {label:?}"))),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        // RFC 5208: SEQUENCE { version, algorithm, OCTET STRING with the PKCS#1 key }
        let parsed = parse_der(der).ok().and_then(|(_, info)| {
            let items = info.as_sequence().ok()?;
            Some(items.get(2)?.as_slice().ok()?.to_vec())
        });
        Self::from_pkcs1(&parsed.ok_or_else(|| form("private", "it is no PKCS#8".to_owned()))?)
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let pair = KeyPair::from_der(der).map_err(|error| form("private", error.to_string()))?;
        Ok(Self {
            public: VerifyingKey::from_pkcs1(pair.public_key().as_ref())?,
            pkcs1: der.into(),
        })
    }

    /// The private key as Kuma stores it: PKCS#1. For the secret alone.
    pub fn private_pem(&self) -> String {
        text::encode(PRIVATE_PKCS1, &self.pkcs1)
    }

    /// The public half as Kuma stores it: PKCS#1.
    pub fn public_pem(&self) -> String {
        self.public.to_pem()
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.public.clone()
    }

    pub(super) fn encoding_key(&self) -> EncodingKey {
        EncodingKey::from_rsa_der(&self.pkcs1)
    }
}

/// Checks the signature of tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    pkcs1: Arc<[u8]>,
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey(RSA)")
    }
}

impl VerifyingKey {
    /// Reads a public key (PEM: PKCS#1 or SPKI), or the public half of anything [`SigningKey::parse`] reads.
    ///
    /// # Errors
    /// It is something else, or of an unsuitable size.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        match one_section(bytes, "public")? {
            Some((label, der)) if label == PUBLIC_PKCS1 => Self::from_pkcs1(&der),
            Some((label, der)) if label == PUBLIC_SPKI => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|error| form("public", error.to_string()))?;
                Self::from_pkcs1(&info.subject_public_key.data)
            }
            _ => SigningKey::parse(bytes).map(|key| key.public),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        let (rest, key) = RSAPublicKey::from_der(der).map_err(|error| form("public", error.to_string()))?;
        if !rest.is_empty() {
            return Err(form("public", "bytes after the key".to_owned()));
        }
        let bits = key.key_size();
        if !KEY_BITS.contains(&bits) {
            return Err(KeyError::Size(bits));
        }
        Ok(Self { pkcs1: der.into() })
    }

    /// The key as Kuma stores it: PKCS#1.
    pub fn to_pem(&self) -> String {
        text::encode(PUBLIC_PKCS1, &self.pkcs1)
    }

    pub(super) fn decoding_key(&self) -> DecodingKey {
        DecodingKey::from_rsa_der(&self.pkcs1)
    }
}

/// Label and content of the one PEM section; `None` if it is no PEM.
fn one_section(bytes: &[u8], expected: &'static str) -> Result<Option<(String, Vec<u8>)>, KeyError> {
    if bytes.len() > MAX_KEY_BYTES {
        return Err(form(expected, format!("larger than {MAX_KEY_BYTES} bytes")));
    }
    let mut sections = text::sections(bytes).map_err(|reason| form(expected, reason)).or_else(|error| {
        // DER is no text: whatever the PEM reader says about it does not matter.
        if std::str::from_utf8(bytes).is_err() {
            Ok(Vec::new())
        } else {
            Err(error)
        }
    })?;
    match (sections.pop(), sections.is_empty()) {
        (None, _) => Ok(None),
        (Some(section), true) => Ok(Some((section.tag().to_owned(), section.into_contents()))),
        (Some(_), false) => Err(form(expected, "more than one key in it".to_owned())),
    }
}

fn form(expected: &'static str, reason: String) -> KeyError {
    KeyError::Form { expected, reason }
}
