//! Commands of the replicated log and what comes of them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use ursa_model::{Labels, Resource, ResourceKey, Timestamp};

/// Revision of this store: strictly increasing, one per changeset, always meant together with the [`HistoryId`].
pub type Revision = u64;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(s: &str) -> Result<Self, InvalidId> {
                if s.len() != 32 || !s.bytes().all(|c| c.is_ascii_hexdigit()) {
                    return Err(InvalidId($what));
                }
                u128::from_str_radix(s, 16).map(Self).map_err(|_| InvalidId($what))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

/// A text that is no 32-digit hexadecimal id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {0} id (32 hexadecimal digits)")]
pub struct InvalidId(&'static str);

id128! {
    /// Which history a revision belongs to; changes when a store is restored or recovered.
    HistoryId, "history"
}
id128! {
    /// Chosen by whoever proposes; a retry with the same id gets the first result.
    RequestId, "request"
}

/// A revision of the global's store, as a zone keeps it: never to be confused with the zone's own [`Revision`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GlobalRevision {
    pub history: HistoryId,
    pub revision: u64,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// First entry of a store: names its history. Later ones change nothing.
    Init {
        history: HistoryId,
    },
    Change(Changeset),
    /// Forget history below this revision.
    Compact {
        floor: Revision,
    },
    /// Raise the feature level; lower ones change nothing.
    RaiseFeatureLevel {
        level: u32,
    },
}

/// How a changeset meets a bad op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A bad op rejects the whole set (API writes).
    #[default]
    Atomic,
    /// A bad op is skipped and reported, the others go on (sync ingest).
    Each,
    /// As [`Mode::Each`], but a bad first op rejects the whole set: it says under which condition the others mean anything.
    Guarded,
}

/// Puts and deletes that become one revision. `id` and `at` are set once, by the proposer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changeset {
    pub id: RequestId,
    pub at: Timestamp,
    #[serde(default)]
    pub mode: Mode,
    pub ops: Vec<Op>,
    /// In a zone: the global revision this changeset completes. Moves [`crate::View::global`] even when `ops` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalRevision>,
    /// Who asked, for the audit trail; empty for the control plane itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub actor: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    Put(Put),
    Delete {
        key: ResourceKey,
        #[serde(default)]
        expect: Expect,
    },
}

/// Create or replace. The spec is canonical already; `apply` looks at its identity only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Put {
    pub key: ResourceKey,
    #[serde(default)]
    pub labels: Labels,
    pub spec: Value,
    /// `None` keeps the stored status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
    /// Deleted with this resource, which must exist (before the changeset or earlier within it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ResourceKey>,
    #[serde(default)]
    pub expect: Expect,
}

/// Precondition of an op on its own key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    #[default]
    Any,
    /// It must not exist.
    Absent,
    /// It must exist.
    Present,
    /// It must exist with this version.
    Version(u64),
}

/// Why an op was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum OpError {
    #[error("{0} already exists")]
    Exists(ResourceKey),
    #[error("{0} does not exist")]
    Missing(ResourceKey),
    #[error("{key} has version {have}, not {want}")]
    Conflict { key: ResourceKey, have: u64, want: u64 },
    #[error("the owner {0} does not exist")]
    OwnerMissing(ResourceKey),
    #[error("{0} cannot own itself")]
    OwnerCycle(ResourceKey),
}

/// What became of one op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpResult {
    Created,
    Updated,
    /// The content was the same, or a delete met nothing; nothing was recorded.
    Unchanged,
    /// The number tells how many resources went with it, itself included.
    Deleted(usize),
    Refused(OpError),
}

/// Outcome of a command, equal on all replicas and for every retry of the same request id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Revision of the store after the changeset: its own if it changed something, the one before otherwise.
    pub revision: Revision,
    /// One per op, in order.
    pub results: Vec<OpResult>,
    /// Set when the whole set was rejected: index of the bad op and why. Nothing was changed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<(usize, OpError)>,
}

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub key: ResourceKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Arc<Resource>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Arc<Resource>>,
}

/// Everything that one revision changed, at most once per key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionChanges {
    pub revision: Revision,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalRevision>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub actor: String,
    pub changes: Vec<Change>,
}

impl Changeset {
    /// An atomic set.
    pub fn atomic(id: RequestId, at: Timestamp, ops: Vec<Op>) -> Self {
        Self {
            id,
            at,
            mode: Mode::Atomic,
            ops,
            ..Self::default()
        }
    }

    /// A set of independent ops.
    pub fn each(id: RequestId, at: Timestamp, ops: Vec<Op>) -> Self {
        Self {
            id,
            at,
            mode: Mode::Each,
            ops,
            ..Self::default()
        }
    }
}

impl Op {
    pub fn key(&self) -> &ResourceKey {
        match self {
            Self::Put(put) => &put.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// An unconditional delete.
    pub fn delete(key: ResourceKey) -> Self {
        Self::Delete { key, expect: Expect::Any }
    }
}
