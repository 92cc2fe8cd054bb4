//! Names: of resources, meshes and zones, and the DNS syntaxes they follow.
//! Source: Kuma, `pkg/core/resources/apis/mesh/meta_validator.go`; RFC 1035 and RFC 1123 as Kubernetes reads them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::hash::MAX_NAME;

/// Why a text is no valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("cannot be empty")]
    Empty,
    #[error("value length must less or equal {0}")]
    TooLong(usize),
    #[error(
        "invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
    )]
    NotSubdomain,
    #[error("invalid characters. Valid characters are numbers, lowercase latin letters and '-', '_', '.' symbols.")]
    NotMeshRef,
    #[error(
        "invalid characters. A DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character, at most 63 characters"
    )]
    NotLabel,
}

/// RFC 1035 label: starts with a letter, ends with a letter or digit, 1..=63 bytes of `[a-z0-9-]`.
pub fn is_dns1035_label(s: &str) -> bool {
    s.as_bytes().first().is_some_and(u8::is_ascii_lowercase) && is_dns1123_label(s)
}

/// RFC 1123 label: 1..=63 bytes of `[a-z0-9-]`, letter or digit at both ends.
pub fn is_dns1123_label(s: &str) -> bool {
    let b = s.as_bytes();
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    b.len() <= 63 && edge(b.first()) && edge(b.last()) && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 bytes. (Kubernetes does not bound the single label here.)
pub fn is_dns1123_subdomain(s: &str) -> bool {
    s.len() <= MAX_NAME
        && !s.is_empty()
        && s.split('.').all(|l| {
            let b = l.as_bytes();
            let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(b.first()) && edge(b.last()) && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        })
}

/// The rule for the name of any resource on a write: non-empty, at most 253 bytes, an RFC 1123 subdomain.
pub fn check_resource_name(s: &str) -> Result<(), InvalidName> {
    if s.is_empty() {
        return Err(InvalidName::Empty);
    }
    if s.len() > MAX_NAME {
        return Err(InvalidName::TooLong(MAX_NAME));
    }
    if is_dns1123_subdomain(s) {
        Ok(())
    } else {
        Err(InvalidName::NotSubdomain)
    }
}

/// The looser rule for a stored name and for a reference to a mesh: `[0-9a-z-_.]`, 1..=253 bytes.
pub fn check_stored_name(s: &str) -> Result<(), InvalidName> {
    if s.is_empty() {
        return Err(InvalidName::Empty);
    }
    if s.len() > MAX_NAME {
        return Err(InvalidName::TooLong(MAX_NAME));
    }
    if s.bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.'))
    {
        Ok(())
    } else {
        Err(InvalidName::NotMeshRef)
    }
}

/// Name of a zone: RFC 1035 label, 1..=63 bytes, unique in one global control plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ZoneName(Arc<str>);

impl ZoneName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        if s.is_empty() {
            return Err(InvalidName::Empty);
        }
        if is_dns1035_label(s) {
            Ok(Self(s.into()))
        } else {
            Err(InvalidName::NotLabel)
        }
    }
}

impl TryFrom<String> for ZoneName {
    type Error = InvalidName;

    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<ZoneName> for String {
    fn from(z: ZoneName) -> Self {
        z.0.as_ref().to_owned()
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_dns1035_label("east-1") && !is_dns1035_label("1east") && !is_dns1035_label("east-") && !is_dns1035_label(""));
        assert!(is_dns1123_subdomain("a.b-c.9") && !is_dns1123_subdomain("a..b") && !is_dns1123_subdomain("A"));
        assert_eq!(check_resource_name(""), Err(InvalidName::Empty));
        assert_eq!(check_resource_name(&"a".repeat(254)), Err(InvalidName::TooLong(253)));
        assert!(check_stored_name("old_mesh").is_ok() && check_resource_name("old_mesh").is_err());
        assert!("West".parse::<ZoneName>().is_err() && "west".parse::<ZoneName>().is_ok());
    }
}
