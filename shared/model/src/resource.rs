//! The generic resource: what the store keeps, REST shows and KDS carries. Specs are canonical JSON, checked on the way in;
//! consumers parse them into the typed spec of their kind with [`Resource::spec`].

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    kind::{Kind, Scope, Spec},
    labels::{self, Labels, Origin},
    name::{self, InvalidName},
};

/// Identity of a resource: kind, mesh (empty for kinds of global scope) and name. Ordered so that a range holds one kind,
/// and within it one mesh.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawKey", into = "RawKey")]
pub struct ResourceKey {
    kind: Kind,
    mesh: Arc<str>,
    name: Arc<str>,
}

#[derive(Serialize, Deserialize)]
struct RawKey {
    kind: Kind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mesh: String,
    name: String,
}

/// Why three texts are no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("name {0}")]
    Name(InvalidName),
    #[error("mesh {0}")]
    Mesh(InvalidName),
    #[error("{0} is not in a mesh")]
    NotInMesh(Kind),
}

impl ResourceKey {
    /// Checks length and characters of stored names (which is looser than what a write may use) and the scope.
    pub fn new(kind: Kind, mesh: &str, name: &str) -> Result<Self, InvalidKey> {
        name::check_stored_name(name).map_err(InvalidKey::Name)?;
        match kind.descriptor().scope {
            Scope::Mesh => name::check_stored_name(mesh).map_err(InvalidKey::Mesh)?,
            Scope::Global if mesh.is_empty() => {}
            Scope::Global => return Err(InvalidKey::NotInMesh(kind)),
        }
        Ok(Self {
            kind,
            mesh: mesh.into(),
            name: name.into(),
        })
    }

    /// The key of the Mesh resource itself.
    pub fn mesh_itself(mesh: &str) -> Result<Self, InvalidKey> {
        Self::new(Kind::Mesh, "", mesh)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Empty for kinds of global scope.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The smallest possible key of a kind (and mesh): start of a range, never the key of a resource.
    pub fn first(kind: Kind, mesh: &str) -> Self {
        Self {
            kind,
            mesh: mesh.into(),
            name: "".into(),
        }
    }

    /// The same identity under another name. Errors as [`ResourceKey::new`].
    pub fn renamed(&self, name: &str) -> Result<Self, InvalidKey> {
        Self::new(self.kind, &self.mesh, name)
    }
}

impl TryFrom<RawKey> for ResourceKey {
    type Error = InvalidKey;

    fn try_from(raw: RawKey) -> Result<Self, InvalidKey> {
        Self::new(raw.kind, &raw.mesh, &raw.name)
    }
}

impl From<ResourceKey> for RawKey {
    fn from(key: ResourceKey) -> Self {
        Self {
            kind: key.kind,
            mesh: key.mesh.as_ref().into(),
            name: key.name.as_ref().into(),
        }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mesh.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.mesh, self.name)
        }
    }
}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Milliseconds since the Unix epoch, UTC. Set by a proposer, never read inside `apply`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The wall clock of this machine.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// RFC 3339 text; Go's zero time for 0.
    pub fn rfc3339(self) -> String {
        const GO_ZERO: &str = "0001-01-01T00:00:00Z";
        if self.0 == 0 {
            return GO_ZERO.into();
        }
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
            .unwrap_or_else(|| GO_ZERO.into())
    }

    /// Parses RFC 3339; `None` when it is not that or lies before the epoch (as Go's zero time does).
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(t.unix_timestamp_nanos() / 1_000_000).ok().map(Self)
    }
}

/// A stored resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    pub key: ResourceKey,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Canonical JSON of the kind's spec, always an object.
    pub spec: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
    /// Deleted together with this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ResourceKey>,
    pub created: Timestamp,
    pub modified: Timestamp,
    /// Kuma's integer version: 1 at creation, +1 per update.
    pub version: u64,
    /// Revision of the store that created it.
    pub create_revision: u64,
    /// Revision of the store that changed it last.
    pub mod_revision: u64,
}

impl Resource {
    pub fn kind(&self) -> Kind {
        self.key.kind()
    }

    /// Empty for kinds of global scope.
    pub fn mesh(&self) -> &str {
        self.key.mesh()
    }

    /// The stored name, hash suffix included.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// The name the user gave: label `kuma.io/display-name`, else the stored name.
    pub fn display_name(&self) -> &str {
        self.label(labels::DISPLAY_NAME)
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| self.name())
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// Zone the resource belongs to, by its label.
    pub fn zone(&self) -> Option<&str> {
        self.label(labels::ZONE)
    }

    pub fn origin(&self) -> Option<Origin> {
        Origin::of(&self.labels)
    }

    /// Whether all `wanted` labels match (display name compared by value, label or not).
    pub fn matches_labels(&self, wanted: &Labels) -> bool {
        labels::matches(&self.labels, self.display_name(), wanted)
    }

    /// The typed spec. An error means that what is stored is not of the kind's schema: a bug or a damaged store.
    pub fn spec<T: Spec>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.spec)
    }

    /// The typed status, the default one where there is none.
    pub fn status<T: serde::de::DeserializeOwned + Default>(&self) -> Result<T, serde_json::Error> {
        self.status.as_ref().map_or_else(|| Ok(T::default()), T::deserialize)
    }

    /// Same content for a consumer: labels, spec and status, not versions and times.
    pub fn same_content(&self, other: &Self) -> bool {
        self.spec == other.spec && self.labels == other.labels && self.status == other.status
    }
}
