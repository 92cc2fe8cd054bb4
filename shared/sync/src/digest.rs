//! An additive hash of a set of resources, so that two ends find out with a few bytes whether they hold the same.
//! In: resources as the receiver stores them. Out: a sum per kind. Invariants: equal sets have equal sums in any order, and one change
//! costs one addition; the hash does not depend on the order of a map.
//! Source: DESIGN.md 4. Not here: who says and compares it ([`crate::sender`], [`crate::receiver`]).
//!
//! What is hashed is what a receiver makes of the message: kind, mesh, name, labels, spec. Not the status: a zone keeps its own. Kinds
//! of the observed tier, at either end, are left out ([`is_covered`]): they have no log to keep a sum up to date with.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use ursa_model::{Kind, Labels, Resource, ResourceKey, kind as kinds, kind::Tier};
use ursa_state::{Catalog, HistoryId, Revision, Role};

use crate::receiver::Site;

/// Hash of one resource.
pub type Hash = u128;

/// Both ends can keep a sum of the kind.
pub fn is_covered(kind: Kind) -> bool {
    [Role::Global, Role::Zone].iter().all(|role| role.tier(kind) == Tier::Durable)
}

/// Hash of a resource as a receiver stores it.
pub fn hash(key: &ResourceKey, labels: &Labels, spec: &Value) -> Hash {
    let mut hasher = Sha256::new();
    for text in [key.kind().name(), key.mesh(), key.name()] {
        feed_text(&mut hasher, text);
    }
    for (label, value) in labels {
        feed_text(&mut hasher, label);
        feed_text(&mut hasher, value);
    }
    feed(&mut hasher, spec);
    let digest = hasher.finalize();
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | Hash::from(*byte))
}

/// Length first, so that two texts are not taken for another two.
fn feed_text(hasher: &mut Sha256, text: &str) {
    hasher.update((text.len() as u64).to_be_bytes());
    hasher.update(text);
}

fn feed(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hasher.update(b"n"),
        Value::Bool(true) => hasher.update(b"t"),
        Value::Bool(false) => hasher.update(b"f"),
        Value::Number(number) => {
            hasher.update(b"#");
            feed_text(hasher, &number.to_string());
        }
        Value::String(text) => {
            hasher.update(b"s");
            feed_text(hasher, text);
        }
        Value::Array(items) => {
            hasher.update(b"[");
            items.iter().for_each(|item| feed(hasher, item));
            hasher.update(b"]");
        }
        Value::Object(fields) => {
            hasher.update(b"{");
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (name, field) in fields {
                feed_text(hasher, name);
                feed(hasher, field);
            }
            hasher.update(b"}");
        }
    }
}

/// Sum of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    total: Hash,
    /// Members that a receiver of our kind refuses, and their hashes as they stand: one that took them earlier may still have them.
    refused: usize,
    as_they_stand: Hash,
}

impl Sum {
    pub(crate) fn add(&mut self, hash: Stored) {
        match hash {
            Stored::Taken(hash) => self.total = self.total.wrapping_add(hash),
            Stored::Refused(hash) => {
                self.refused += 1;
                self.as_they_stand = self.as_they_stand.wrapping_add(hash);
            }
        }
    }

    pub(crate) fn remove(&mut self, hash: Stored) {
        match hash {
            Stored::Taken(hash) => self.total = self.total.wrapping_sub(hash),
            Stored::Refused(hash) => {
                self.refused = self.refused.saturating_sub(1);
                self.as_they_stand = self.as_they_stand.wrapping_sub(hash);
            }
        }
    }

    /// Of two sets without a common member.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            total: self.total.wrapping_add(other.total),
            refused: self.refused + other.refused,
            as_they_stand: self.as_they_stand.wrapping_add(other.as_they_stand),
        }
    }

    /// `None` when a receiver refuses some of it, so that what it holds instead is not known.
    pub(crate) fn known(self) -> Option<Hash> {
        (self.refused == 0).then_some(self.total)
    }

    /// Whether a receiver with this sum has all that it does not refuse, and of what it refuses nothing, or all as it stands (from before
    /// it refused it).
    pub(crate) fn is_held_by(self, sum: Hash) -> bool {
        sum == self.total || sum == self.total.wrapping_add(self.as_they_stand)
    }

    pub(crate) fn has_refused(self) -> bool {
        self.refused > 0
    }
}

/// What a receiver makes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It stores this.
    Taken(Hash),
    /// It refuses it. This is the hash of the resource as it stands here.
    Refused(Hash),
}

/// 32 hexadecimal digits.
pub(crate) fn format(hash: Hash) -> String {
    format!("{hash:032x}")
}

/// The other way; `None` when it is anything else.
pub(crate) fn parse(text: &str) -> Option<Hash> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| Hash::from_str_radix(text, 16).ok())?
}

/// Sums of what a store holds of a peer, kept up to date with its changes.
#[derive(Clone, Debug)]
pub struct Tally {
    site: Site,
    at: Option<(HistoryId, Revision)>,
    sums: BTreeMap<Kind, Sum>,
}

impl Tally {
    pub fn new(site: Site) -> Self {
        Self {
            site,
            at: None,
            sums: BTreeMap::new(),
        }
    }

    /// Takes a newer picture up. Costs what changed, not what there is, as long as the changes are kept.
    pub fn update(&mut self, catalog: &Catalog) {
        let view = &catalog.durable;
        let now = (view.history_id(), view.revision());
        let known = self
            .at
            .replace(now)
            .filter(|(history, revision)| *history == now.0 && *revision <= now.1);
        match known.map(|(_, revision)| view.changes_since(revision)) {
            Some(Ok(changes)) => {
                for change in changes.flat_map(|c| &c.changes) {
                    if let Some(before) = change.before.as_deref().and_then(|r| self.count(r)) {
                        self.sums.entry(change.key.kind()).or_default().remove(Stored::Taken(before));
                    }
                    if let Some(after) = change.after.as_deref().and_then(|r| self.count(r)) {
                        self.sums.entry(change.key.kind()).or_default().add(Stored::Taken(after));
                    }
                }
            }
            _ => {
                self.sums.clear();
                for resource in kinds::ALL.iter().filter(|k| is_covered(**k)).flat_map(|k| view.list(*k)) {
                    if let Some(hash) = self.count(resource) {
                        self.sums.entry(resource.kind()).or_default().add(Stored::Taken(hash));
                    }
                }
            }
        }
    }

    /// The hash of a resource that is the peer's.
    fn count(&self, resource: &Resource) -> Option<Hash> {
        (is_covered(resource.kind()) && self.site.owns(resource)).then(|| hash(&resource.key, &resource.labels, &resource.spec))
    }

    /// Of one kind.
    pub fn sum(&self, kind: Kind) -> Hash {
        self.sums.get(&kind).map_or(0, |s| s.total)
    }

    /// Of these kinds together.
    pub fn total(&self, kinds: impl IntoIterator<Item = Kind>) -> Hash {
        kinds.into_iter().fold(0, |total, kind| total.wrapping_add(self.sum(kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, key, labels_of};
    use proptest::prelude::*;
    use serde_json::json;
    use ursa_model::labels::ORIGIN;

    #[test]
    fn a_hash_is_of_the_content_not_of_its_order() {
        let key = key(Kind::Mesh, "", "a");
        let of = |spec: Value| hash(&key, &Labels::new(), &spec);
        let (one, other): (Value, Value) = (
            serde_json::from_str(r#"{"a": 1, "b": {"c": [1, 2], "d": null}}"#).unwrap(),
            serde_json::from_str(r#"{"b": {"d": null, "c": [1, 2]}, "a": 1}"#).unwrap(),
        );
        assert_eq!(of(one.clone()), of(other));
        for different in [
            json!({"a": 1, "b": {"c": [2, 1], "d": null}}),
            json!({"a": "1", "b": {"c": [1, 2], "d": null}}),
            json!({"a": 1, "b": {"c": [[1], 2], "d": null}}),
            json!({}),
        ] {
            assert_ne!(of(one.clone()), of(different.clone()), "{different}");
        }
        assert_eq!(parse(&format(of(one.clone()))), Some(of(one)));
        assert_eq!(parse("+0000000000000000000000000000001"), None);
    }

    proptest! {
        /// Kept step by step, or made from nothing: the same; and only what is the peer's counts.
        #[test]
        fn a_tally_is_a_function_of_the_store(steps in proptest::collection::vec((0..6_usize, 0..3_u8, any::<bool>(), any::<bool>()), 1..40)) {
            let memory = Memory::new(Role::Zone, 1);
            let mut tally = Tally::new(Site::Zone);
            for (slot, variant, delete, look) in steps {
                let name = format!("a{slot}");
                if delete {
                    memory.delete(Kind::MeshZoneAddress, "default", &name);
                } else {
                    let origin = if slot == 0 { "zone" } else { "global" };
                    let spec = json!({"address": "127.0.0.1", "port": 100 + u32::from(variant)});
                    memory.put_with(key(Kind::MeshZoneAddress, "default", &name), labels_of(&[(ORIGIN, origin)]), spec);
                }
                if look {
                    tally.update(&memory.catalog());
                }
            }
            tally.update(&memory.catalog());
            let mut fresh = Tally::new(Site::Zone);
            fresh.update(&memory.catalog());
            prop_assert_eq!(tally.sum(Kind::MeshZoneAddress), fresh.sum(Kind::MeshZoneAddress));
            memory.delete(Kind::MeshZoneAddress, "default", "a0");
            fresh.update(&memory.catalog());
            prop_assert_eq!(tally.sum(Kind::MeshZoneAddress), fresh.sum(Kind::MeshZoneAddress), "a0 is the zone's own");
        }
    }
}
