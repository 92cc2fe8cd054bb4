//! What arrived and is not stored yet: per kind the newest word on each resource, and the answers that are owed.
//! Invariant: a later response wins over an earlier one, within a response an upsert over a removal.

use std::collections::{BTreeMap, BTreeSet};

use ursa_model::{Kind, ResourceKey, wire::Incoming};
use ursa_state::GlobalRevision;

use crate::{PROGRESS_TYPE_URL, digest::Hash};

/// Bytes that a response, a resource or a removal costs at least, whatever it holds.
pub(super) const COST: usize = 256;

/// Resources named in one NACK.
const MAX_NAMED: usize = 256;
/// Longest reason per resource in a NACK.
const MAX_REASON: usize = 512;

/// A received resource, valid and with the labels it will be stored with.
#[derive(Clone, Debug)]
pub(super) struct Upsert {
    pub(super) incoming: Incoming,
    pub(super) wire_name: String,
    /// Index of the answer that it belongs to.
    pub(super) answer: usize,
}

/// What is owed for one response.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) type_url: String,
    pub(super) nonce: String,
    /// The response began a complete set.
    pub(super) full: bool,
    /// Wire names that were put and could be read, or removed.
    pub(super) named: Vec<String>,
    /// Wire name and reason.
    pub(super) refused: Vec<(String, String)>,
    /// Wire names of what it put, so that the store's refusal finds its way back. Filled when the batch is given out.
    pub(super) keys: BTreeMap<ResourceKey, String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct OfKind {
    /// A first response is among it: what it does not hold is to be removed.
    pub(super) full: bool,
    pub(super) upserts: BTreeMap<ResourceKey, Upsert>,
    pub(super) removals: BTreeSet<ResourceKey>,
    /// Refused: neither stored nor removed.
    pub(super) kept: BTreeSet<ResourceKey>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    pub(super) kinds: BTreeMap<Kind, OfKind>,
    pub(super) answers: Vec<Answer>,
    /// Set by a marker: the revision that this completes.
    pub(super) global: Option<GlobalRevision>,
    /// Set by a marker: what we should hold then.
    pub(super) digests: BTreeMap<Kind, Hash>,
    pub(super) bytes: usize,
}

impl Pending {
    pub(super) fn of_response(kind: Kind, full: bool, nonce: String) -> Self {
        let bytes = COST + nonce.len();
        let answer = Answer {
            type_url: kind.name().to_owned(),
            nonce,
            full,
            named: Vec::new(),
            refused: Vec::new(),
            keys: BTreeMap::new(),
        };
        Self {
            kinds: BTreeMap::from([(kind, OfKind { full, ..OfKind::default() })]),
            answers: vec![answer],
            bytes,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.kinds.is_empty()
    }

    pub(super) fn upsert(&mut self, upsert: Upsert) {
        let key = upsert.incoming.key.clone();
        let of_kind = self.kinds.entry(key.kind()).or_default();
        of_kind.removals.remove(&key);
        of_kind.kept.remove(&key);
        of_kind.upserts.insert(key, upsert);
    }

    /// The response that this is of put or removed it.
    pub(super) fn names(&mut self, wire_name: String) {
        if let Some(answer) = self.answers.last_mut() {
            answer.named.push(wire_name);
        }
    }

    pub(super) fn remove(&mut self, key: ResourceKey) {
        self.kinds.entry(key.kind()).or_default().removals.insert(key);
    }

    pub(super) fn refuse(&mut self, key: Option<ResourceKey>, wire_name: String, reason: String) {
        if let Some(key) = key {
            let of_kind = self.kinds.entry(key.kind()).or_default();
            of_kind.removals.remove(&key);
            of_kind.upserts.remove(&key);
            of_kind.kept.insert(key);
        }
        if let Some(answer) = self.answers.last_mut() {
            answer.refused.push((wire_name, reason));
        }
    }

    /// Whether the peer spoke of it by name.
    pub(super) fn mentions(&self, key: &ResourceKey) -> bool {
        self.kinds
            .get(&key.kind())
            .is_some_and(|k| k.upserts.contains_key(key) || k.removals.contains(key) || k.kept.contains(key))
    }

    /// A marker: everything so far completes `at`.
    pub(super) fn mark(&mut self, at: GlobalRevision, nonce: String, digests: BTreeMap<Kind, Hash>) {
        self.global = Some(at);
        self.digests = digests;
        self.bytes += COST + nonce.len();
        self.answers.push(Answer {
            type_url: PROGRESS_TYPE_URL.to_owned(),
            nonce,
            full: false,
            named: Vec::new(),
            refused: Vec::new(),
            keys: BTreeMap::new(),
        });
    }

    /// Adds what came later.
    pub(super) fn append(&mut self, later: Self) {
        let offset = self.answers.len();
        for (kind, new) in later.kinds {
            let old = self.kinds.entry(kind).or_default();
            old.full |= new.full;
            if new.full {
                // A complete set: what it does not hold is not there, whatever came before.
                old.upserts.clear();
                old.kept.clear();
            }
            for key in new.removals {
                old.upserts.remove(&key);
                old.kept.remove(&key);
                old.removals.insert(key);
            }
            for (key, mut upsert) in new.upserts {
                old.removals.remove(&key);
                old.kept.remove(&key);
                upsert.answer += offset;
                old.upserts.insert(key, upsert);
            }
            // An older version that is good stays: only the newer one is refused.
            old.kept.extend(new.kept);
        }
        self.answers.extend(later.answers);
        if later.global.is_some() {
            self.global = later.global;
            self.digests = later.digests;
        }
        self.bytes += later.bytes;
    }
}

/// `user error: <name>: <reason>; ...`: Kuma's prefix for the sender's fault, and every refused resource by its wire name.
pub(super) fn nack_text(refused: &[(String, String)]) -> String {
    let named: Vec<String> = refused
        .iter()
        .take(MAX_NAMED)
        .map(|(name, reason)| format!("{name}: {}", reason.chars().take(MAX_REASON).collect::<String>()))
        .collect();
    let more = refused.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("user error: {}{more}", named.join("; "))
}
