//! Both tiers behind one set of reads. Which tier holds a kind is said in its descriptor and depends on where we are.

use std::sync::Arc;

use ursa_model::{
    Kind, Resource, ResourceKey,
    kind::{ALL, Tier},
};

use crate::{observed::ObservedView, view::View};

/// Which control plane this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Global,
    Zone,
}

impl Role {
    pub fn tier(self, kind: Kind) -> Tier {
        match self {
            Self::Global => kind.descriptor().tier_global,
            Self::Zone => kind.descriptor().tier_zone,
        }
    }
}

/// A picture of both tiers.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub role: Role,
    pub durable: View,
    pub observed: ObservedView,
}

impl Catalog {
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        match self.role.tier(key.kind()) {
            Tier::Durable => self.durable.get(key),
            Tier::Observed => self.observed.get(key),
        }
    }

    /// All of a kind, ordered by mesh and name.
    pub fn list(&self, kind: Kind) -> Vec<Arc<Resource>> {
        match self.role.tier(kind) {
            Tier::Durable => self.durable.list(kind).cloned().collect(),
            Tier::Observed => self.observed.list(kind).cloned().collect(),
        }
    }

    /// All of a kind in one mesh, ordered by name.
    pub fn list_in(&self, kind: Kind, mesh: &str) -> Vec<Arc<Resource>> {
        match self.role.tier(kind) {
            Tier::Durable => self.durable.list_in(kind, mesh).cloned().collect(),
            Tier::Observed => self.observed.list_in(kind, mesh).cloned().collect(),
        }
    }

    /// Kinds whose content may differ between two pictures of the same control plane. Exact for the durable tier while its
    /// history is kept; otherwise every kind.
    pub fn changed_kinds(&self, older: &Self) -> Vec<Kind> {
        let mut changed = std::collections::BTreeSet::new();
        if self.durable.history_id() != older.durable.history_id() {
            return ALL.to_vec();
        }
        match self.durable.changes_since(older.durable.revision()) {
            Ok(all) => changed.extend(all.flat_map(|c| c.changes.iter().map(|c| c.key.kind()))),
            Err(_) => return ALL.to_vec(),
        }
        if self.observed.sequence() != older.observed.sequence() {
            changed.extend(ALL.iter().copied().filter(|k| self.role.tier(*k) == Tier::Observed));
        }
        changed.into_iter().collect()
    }
}
