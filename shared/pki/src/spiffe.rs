//! SPIFFE ids: `spiffe://<trust domain>/<path>`, parsed once into types whose only constructors check.
//! In: text. Out: [`SpiffeId`], [`TrustDomain`], or what is wrong with it.
//! Invariant: an id has exactly one spelling; no percent-encoding, no empty, `.` or `..` segment, no trailing slash.
//! Source: SPIFFE-ID standard, sections 2.1-2.4 (what go-spiffe, and so Kuma, accepts).
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// SPIFFE-ID standard, 2.3: the longest id that implementations must support; longer ones are refused.
pub const MAX_ID_BYTES: usize = 2048;
/// SPIFFE-ID standard, 2.3.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("SPIFFE id is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    #[error("SPIFFE id must begin with {SCHEME}")]
    Scheme,
    #[error("trust domain is empty")]
    EmptyTrustDomain,
    #[error("trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")]
    TrustDomainTooLong,
    #[error("trust domain may hold lower-case letters, digits, dots, dashes and underscores only")]
    TrustDomainCharacter,
    #[error("path must begin with a slash")]
    PathWithoutSlash,
    #[error("path must not end with a slash")]
    TrailingSlash,
    #[error("path must not hold an empty segment")]
    EmptySegment,
    #[error("path must not hold a segment . or ..")]
    DotSegment,
    #[error("path may hold letters, digits, dots, dashes and underscores only")]
    PathCharacter,
}

/// Name of a trust domain, such as `default.east.mesh.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the domain itself, `spiffe://<name>`: what its CA's certificate carries.
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            text: format!("{SCHEME}{self}").into(),
            domain_len: self.0.len(),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        if name.is_empty() {
            return Err(Error::EmptyTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(Error::TrustDomainTooLong);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !name.bytes().all(allowed) {
            return Err(Error::TrustDomainCharacter);
        }
        Ok(Self(name.into()))
    }
}

/// A SPIFFE id. Without a path it names the trust domain, with one a workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    domain_len: usize,
}

impl SpiffeId {
    /// The id of `path` in `domain`; `path` is empty or begins with a slash.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn new(domain: &TrustDomain, path: &str) -> Result<Self, Error> {
        check_path(path)?;
        let text = format!("{SCHEME}{domain}{path}");
        if text.len() > MAX_ID_BYTES {
            return Err(Error::TooLong);
        }
        Ok(Self {
            text: text.into(),
            domain_len: domain.0.len(),
        })
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.text[SCHEME.len()..][..self.domain_len].into())
    }

    /// The path with its leading slash; empty for the domain itself.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.domain_len..]
    }

    /// Does it belong to `domain`?
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.text[SCHEME.len()..][..self.domain_len] == *domain.0
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_ID_BYTES {
            return Err(Error::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(Error::Scheme)?;
        let domain_len = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(domain_len);
        domain.parse::<TrustDomain>()?;
        check_path(path)?;
        Ok(Self {
            text: text.into(),
            domain_len,
        })
    }
}

fn check_path(path: &str) -> Result<(), Error> {
    if path.is_empty() {
        return Ok(());
    }
    let segments = path.strip_prefix('/').ok_or(Error::PathWithoutSlash)?;
    if path.ends_with('/') {
        return Err(Error::TrailingSlash);
    }
    for segment in segments.split('/') {
        if segment.is_empty() {
            return Err(Error::EmptySegment);
        }
        if segment == "." || segment == ".." {
            return Err(Error::DotSegment);
        }
        if !segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        {
            return Err(Error::PathCharacter);
        }
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(TrustDomain);
as_text!(SpiffeId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_taken_apart() {
        let id: SpiffeId = "spiffe://default.east.mesh.local/workload/frontend".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "default.east.mesh.local");
        assert_eq!(id.path(), "/workload/frontend");
        assert!(id.is_member_of(&"default.east.mesh.local".parse().unwrap()));
        assert!(!id.is_member_of(&"default.west.mesh.local".parse().unwrap()));
        let domain: SpiffeId = "spiffe://default.east.mesh.local".parse().unwrap();
        assert_eq!(domain.path(), "");
        assert_eq!(domain, id.trust_domain().id());
    }

    #[test]
    fn what_is_no_id_is_refused_with_its_reason() {
        let cases = [
            ("", Error::Scheme),
            ("http://a/b", Error::Scheme),
            ("SPIFFE://a/b", Error::Scheme),
            ("spiffe:///b", Error::EmptyTrustDomain),
            ("spiffe://", Error::EmptyTrustDomain),
            ("spiffe://A/b", Error::TrustDomainCharacter),
            ("spiffe://a:80/b", Error::TrustDomainCharacter),
            ("spiffe://u@a/b", Error::TrustDomainCharacter),
            ("spiffe://a/", Error::TrailingSlash),
            ("spiffe://a/b/", Error::TrailingSlash),
            ("spiffe://a//b", Error::EmptySegment),
            ("spiffe://a/./b", Error::DotSegment),
            ("spiffe://a/b/..", Error::DotSegment),
            ("spiffe://a/b c", Error::PathCharacter),
            ("spiffe://a/%41", Error::PathCharacter),
            ("spiffe://a/b?c", Error::PathCharacter),
            ("spiffe://a/b#c", Error::PathCharacter),
            ("spiffe://a/ü", Error::PathCharacter),
            ("spiffe://a?b", Error::TrustDomainCharacter),
        ];
        for (text, wanted) in cases {
            assert_eq!(text.parse::<SpiffeId>(), Err(wanted), "{text}");
        }
        assert_eq!(
            format!("spiffe://{}", "a".repeat(256)).parse::<SpiffeId>(),
            Err(Error::TrustDomainTooLong)
        );
        assert_eq!(format!("spiffe://a/{}", "b".repeat(2048)).parse::<SpiffeId>(), Err(Error::TooLong));
        let domain: TrustDomain = "a".parse().unwrap();
        assert_eq!(SpiffeId::new(&domain, "b"), Err(Error::PathWithoutSlash));
        assert_eq!(SpiffeId::new(&domain, "/workload/"), Err(Error::TrailingSlash));
        assert_eq!(SpiffeId::new(&domain, &format!("/{}", "b".repeat(2048))), Err(Error::TooLong));
    }

    #[test]
    fn it_is_text_in_json() {
        let id: SpiffeId = "spiffe://a/B.c-d_9".parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"spiffe://a/B.c-d_9\"");
        assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SpiffeId>("\"spiffe://a/\"").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "(spiffe://)?[a-z/.%A-Z?]{0,40}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(SpiffeId::new(&id.trust_domain(), id.path()), Ok(id));
            }
        }
    }
}
