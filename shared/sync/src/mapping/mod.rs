//! What a resource looks like to a peer, and whether it is shown at all.
//! In: a catalog, a class of peers, a key. Out: the encoded resource, nothing, or why it cannot be sent. Pure.
//! Invariant: two peers of one class get the same bytes; what one of them may not see is said in the [`Entry`], not in the bytes.
//! Source: kds.md 4.2, 4.3, 4.6. Not here: what a receiver makes of it ([`crate::receiver`]).

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use ursa_model::{
    Kind, Labels, Resource, ResourceKey, ZoneName, hash, kind as kinds,
    labels::{DISPLAY_NAME, K8S_NAMESPACE, KDS_SYNC, ORIGIN, ZONE},
    wire,
};
use ursa_state::Catalog;

use crate::{
    digest,
    peer::{Features, Line},
};

pub(crate) mod down;
mod role;
pub mod trust;
mod up;

/// Peers that get the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Zones, from the global.
    ToZones {
        /// Announced in the zone's node metadata; without it names are not hashed.
        hash_suffix: bool,
        line: Line,
    },
    /// The global, from this zone.
    ToGlobal { zone: ZoneName },
}

impl Class {
    /// Whether the class is sent this kind at all.
    pub fn sends(&self, kind: Kind) -> bool {
        let flags = kind.descriptor().flags;
        match self {
            Self::ToZones { .. } => flags.requested_by_zone(),
            Self::ToGlobal { .. } => flags.zone_to_global(),
        }
    }

    /// Every kind of the class, in the order of writing.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        kinds::ALL.iter().copied().filter(|k| self.sends(*k))
    }
}

/// One resource as a class of peers gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it comes from in our own store.
    pub source: ResourceKey,
    /// `<name>.<mesh>` after mapping.
    pub name: Arc<str>,
    /// Content hash, 32 hexadecimal digits. Equal versions mean equal content.
    pub version: Arc<str>,
    /// The encoded `KumaResource`.
    pub bytes: Bytes,
    /// Zone that made it: it is not sent back there.
    pub from: Option<Arc<str>>,
    /// Shown only to peers with these features.
    pub needs: Features,
    /// Of what a receiver makes of it.
    pub hash: digest::Stored,
}

/// One peer of a class: what it may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipient {
    /// Its zone; `None` for the global.
    pub zone: Option<Arc<str>>,
    pub features: Features,
}

impl Recipient {
    pub fn sees(&self, entry: &Entry) -> bool {
        self.sees_those(entry.needs, entry.from.as_ref())
    }

    /// All entries that need these features and come from this zone.
    pub(crate) fn sees_those(&self, needs: Features, from: Option<&Arc<str>>) -> bool {
        self.features.contains(needs) && (from.is_none() || from != self.zone.as_ref())
    }
}

/// Why a resource that should be sent cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{key} cannot be encoded: {why}")]
    Encode { key: ResourceKey, why: String },
    #[error("{key} holds no RSA key: its public half cannot be sent")]
    SigningKey { key: ResourceKey },
    #[error("{key} is kept from other zones: trust domain {trust_domain:?} belongs to zone {owner:?}")]
    Quarantined {
        key: ResourceKey,
        trust_domain: String,
        owner: String,
    },
}

/// What mapping needs beside the resource itself.
pub struct Context<'a> {
    pub catalog: &'a Catalog,
    pub trust: &'a trust::Bindings,
}

/// The mapped form of one resource; `Ok(None)` when the class does not get it.
///
/// # Errors
/// [`Problem`]: it should be sent but cannot be.
pub fn map(context: &Context<'_>, class: &Class, resource: &Resource) -> Result<Option<Entry>, Problem> {
    if !class.sends(resource.kind()) || !sync_enabled(resource) {
        return Ok(None);
    }
    match class {
        Class::ToZones { hash_suffix, line } => down::map(context, resource, *hash_suffix, *line),
        Class::ToGlobal { zone } => up::map(resource, zone),
    }
}

/// Label `kuma.io/kds-sync`, and kinds that need it to be sent at all.
fn sync_enabled(resource: &Resource) -> bool {
    let by_default = resource.kind().descriptor().flags.0 & kinds::KdsFlags::DISABLED_BY_DEFAULT == 0;
    match resource.label(KDS_SYNC) {
        Some("disabled") => false,
        Some("enabled") => true,
        _ => by_default,
    }
}

/// Origin by label: absent counts as made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Here,
    InZone,
    Elsewhere,
}

fn made_at_global(resource: &Resource) -> Made {
    match resource.label(ORIGIN) {
        None | Some("global") => Made::Here,
        Some("zone") => Made::InZone,
        Some(_) => Made::Elsewhere,
    }
}

/// `hashed(mesh, display name, [zone], [namespace])`, with the labels after mapping. Sets the display name where it is missing.
fn hashed_name(mesh: &str, name: &str, labels: &mut Labels) -> String {
    let display = match labels.get(DISPLAY_NAME) {
        Some(display) if !display.is_empty() => display.clone(),
        _ => name.to_owned(),
    };
    let extra: Vec<&str> = [ZONE, K8S_NAMESPACE]
        .iter()
        .filter_map(|l| labels.get(*l))
        .map(String::as_str)
        .collect();
    let hashed = hash::hashed(mesh, &display, &extra);
    labels.entry(DISPLAY_NAME.into()).or_insert_with(|| name.to_owned());
    hashed
}

/// Encodes with a version that depends on the content alone (protobuf maps have no order, so the bytes will not do).
struct Draft<'a> {
    source: &'a Resource,
    name: String,
    labels: Labels,
    spec: &'a Value,
    status: Option<&'a Value>,
    from: Option<Arc<str>>,
    needs: Features,
}

impl Draft<'_> {
    fn finish(self, amend: impl FnOnce(Bytes) -> Result<Bytes, String>) -> Result<Option<Entry>, Problem> {
        let key = &self.source.key;
        let failed = |why: String| Problem::Encode { key: key.clone(), why };
        let bytes =
            wire::encode(key.kind(), key.mesh(), &self.name, &self.labels, self.spec, self.status).map_err(|e| failed(e.to_string()))?;
        let stored = wire::decode(key.kind(), wire::RESOURCE_TYPE_URL, &bytes).ok();
        let hash = match stored {
            Some(stored) => digest::Stored::Taken(digest::hash(&stored.key, &stored.labels, &stored.spec)),
            None => {
                let named = key.renamed(&self.name).unwrap_or_else(|_| key.clone());
                digest::Stored::Refused(digest::hash(&named, &self.labels, self.spec))
            }
        };
        let bytes = amend(bytes).map_err(failed)?;
        let content =
            serde_json::to_vec(&(&self.name, key.mesh(), &self.labels, self.spec, self.status)).map_err(|e| failed(e.to_string()))?;
        let digest = Sha256::digest(&content);
        let version: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Ok(Some(Entry {
            source: key.clone(),
            name: wire::kds_name(key.mesh(), &self.name).into(),
            version: version.into(),
            bytes,
            from: self.from,
            needs: self.needs,
            hash,
        }))
    }
}

#[cfg(test)]
mod tests;
