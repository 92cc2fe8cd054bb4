//! What the three kinds of token say.
//! In: claims as they come, names in any case. Out: one typed struct per kind; written with capitalised names.
//! Invariant: a token of one kind is never read as another.
//! Source: `reference/api.md` 4.3 (Go field names without JSON tags).
use std::collections::BTreeMap;

use serde::Serialize;

use super::{Error, Folded, Kind};

/// Claims of one kind of token.
pub trait Claims: Serialize + Sized {
    /// The kind.
    const KIND: Kind;

    /// Reads them from a token whose signature was checked.
    ///
    /// # Errors
    /// [`Error::WrongKind`], or [`Error::Malformed`].
    fn from_claims(claims: &Folded) -> Result<Self, Error>;
}

/// Which proxies may use it: an empty field is no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DataplaneClaims {
    /// Name of the Dataplane.
    pub name: String,
    /// Its mesh.
    pub mesh: String,
    /// Labels it must have, with the values allowed for each.
    pub tags: BTreeMap<String, Vec<String>>,
    /// Type of proxy: empty or `dataplane`; `ingress` and `egress` in Kuma 2.14.
    #[serde(rename = "Type")]
    pub proxy_type: String,
    /// Value of its label `kuma.io/workload`.
    pub workload: String,
}

/// Which zone it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ZoneClaims {
    /// Name of the zone.
    pub zone: String,
    /// What it may be used for: `cp`, `ingress`, `egress`.
    pub scope: Vec<String>,
}

/// Which user it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UserClaims {
    /// Name of the user, e.g. `mesh-system:admin`.
    pub name: String,
    /// Groups of the user.
    pub groups: Vec<String>,
}

impl Claims for DataplaneClaims {
    const KIND: Kind = Kind::Dataplane;

    fn from_claims(claims: &Folded) -> Result<Self, Error> {
        if ["zone", "scope", "groups"].iter().any(|other| claims.has(other)) {
            return Err(Error::WrongKind { expected: Self::KIND });
        }
        Ok(Self {
            name: claims.value("name")?,
            mesh: claims.value("mesh")?,
            tags: claims.value("tags")?,
            proxy_type: claims.value("type")?,
            workload: claims.value("workload")?,
        })
    }
}

impl Claims for ZoneClaims {
    const KIND: Kind = Kind::Zone;

    fn from_claims(claims: &Folded) -> Result<Self, Error> {
        let zone: String = claims.value("zone")?;
        if zone.is_empty() || ["name", "mesh", "groups", "workload"].iter().any(|other| claims.has(other)) {
            return Err(Error::WrongKind { expected: Self::KIND });
        }
        Ok(Self {
            zone,
            scope: claims.value("scope")?,
        })
    }
}

impl Claims for UserClaims {
    const KIND: Kind = Kind::User;

    fn from_claims(claims: &Folded) -> Result<Self, Error> {
        let name: String = claims.value("name")?;
        if name.is_empty()
            || ["zone", "scope", "mesh", "tags", "type", "workload"]
                .iter()
                .any(|other| claims.has(other))
        {
            return Err(Error::WrongKind { expected: Self::KIND });
        }
        Ok(Self {
            name,
            groups: claims.value("groups")?,
        })
    }
}
