//! How much may be stored.

use serde::{Deserialize, Serialize};
use ursa_runtime::config::Problems;

/// Least that makes sense: the resources of an empty control plane and some more.
const LEAST: u64 = 1 << 20;

/// Limits of the store. Give all nodes the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Bytes of all resources together, as JSON and without their history: a write that would make it more is refused with 507, deletes
    /// and writes that make it less are not. At least 1 MiB. Default 2 GiB; memory holds a few times as much.
    pub max_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { max_bytes: 2 << 30 }
    }
}

impl Store {
    pub fn validate(&self, problems: &mut Problems) {
        problems.check(self.max_bytes >= LEAST, || format!("store.max_bytes must be {LEAST} or more"));
    }
}
