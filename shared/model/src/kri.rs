//! KRIs, Kuma's resource identifiers: `kri_<short>_<mesh>_<zone>_<namespace>_<name>_<section>`.
//! Source: Kuma, `pkg/core/kri/kri.go`. Quirk kept: a parsed section is the join of the tail without its underscores.

use std::{fmt, str::FromStr};

use crate::{kind::Kind, labels, resource::Resource};

/// A resource identifier; empty parts stay empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kri {
    pub short: String,
    pub mesh: String,
    pub zone: String,
    pub namespace: String,
    pub name: String,
    pub section: String,
}

impl Kri {
    /// The KRI of a resource; `None` for kinds without a short name.
    pub fn of(resource: &Resource) -> Option<Self> {
        let short = resource.kind().descriptor().short;
        if short.is_empty() {
            return None;
        }
        Some(Self {
            short: short.into(),
            mesh: resource.mesh().into(),
            zone: resource.zone().unwrap_or_default().into(),
            namespace: resource.label(labels::K8S_NAMESPACE).unwrap_or_default().into(),
            name: resource.display_name().into(),
            section: String::new(),
        })
    }

    /// The same resource, one of its ports or rules.
    pub fn with_section(mut self, section: impl Into<String>) -> Self {
        self.section = section.into();
        self
    }

    pub fn kind(&self) -> Option<Kind> {
        Kind::by_short(&self.short)
    }
}

impl fmt::Display for Kri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kri_{}_{}_{}_{}_{}_{}",
            self.short, self.mesh, self.zone, self.namespace, self.name, self.section
        )
    }
}

/// Why a text is no KRI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKri {
    #[error("invalid identifier string: {0:?}")]
    Shape(String),
    #[error("identifier must start with 'kri'")]
    Prefix,
    #[error("unknown short name of resource type")]
    ShortName,
}

impl FromStr for Kri {
    type Err = InvalidKri;

    fn from_str(s: &str) -> Result<Self, InvalidKri> {
        let parts: Vec<&str> = s.split('_').collect();
        let [prefix, short, mesh, zone, namespace, name, section @ ..] = parts.as_slice() else {
            return Err(InvalidKri::Shape(s.chars().take(300).collect()));
        };
        if section.is_empty() {
            return Err(InvalidKri::Shape(s.chars().take(300).collect()));
        }
        if *prefix != "kri" {
            return Err(InvalidKri::Prefix);
        }
        if Kind::by_short(short).is_none() {
            return Err(InvalidKri::ShortName);
        }
        Ok(Self {
            short: (*short).into(),
            mesh: (*mesh).into(),
            zone: (*zone).into(),
            namespace: (*namespace).into(),
            name: (*name).into(),
            section: section.concat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let kri: Kri = "kri_msvc_default_west__backend_http".parse().unwrap();
        assert_eq!(
            (kri.zone.as_str(), kri.name.as_str(), kri.section.as_str()),
            ("west", "backend", "http")
        );
        assert_eq!(kri.to_string(), "kri_msvc_default_west__backend_http");
        assert_eq!("kri_mhttpr_default___r_rule_0".parse::<Kri>().unwrap().section, "rule0");
        assert!(matches!("kri_msvc_default".parse::<Kri>(), Err(InvalidKri::Shape(_))));
        assert_eq!("xri_msvc_default_west__backend_http".parse::<Kri>(), Err(InvalidKri::Prefix));
        assert_eq!("kri_zzz_default_west__backend_http".parse::<Kri>(), Err(InvalidKri::ShortName));
    }
}
