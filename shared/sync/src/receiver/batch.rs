//! What a complete set of received changes does to our store: ops of the durable tier, observations, removals that are held.
//! In: what is pending, the catalog, what is known of the peer. Out: a [`Batch`]. Pure.
//! Invariants: only the peer's own resources are touched; upserts come first, removals last; what is stored already costs nothing.
//!
//! **Removals that a first set implies.** If the peer proves to be who it was (same history, no step back) they are done. Otherwise (a
//! stock peer, a global restored from a backup, a zone that lost its disk) they are held: reported and left alone until they return, are
//! removed by name, or a first set of a known peer confirms them. Held for a grace; but root kinds, more than a fifth of a kind, and in a
//! zone everything that a global with another history lacks, wait for the operator. As long as anything is held the peer is not remembered as known, so that no later stream believes it either. Kinds of the observed tier are what the peer says they are, always.

use std::collections::{BTreeMap, BTreeSet};

use ursa_model::{
    Kind, Resource, ResourceKey,
    kind::{Tier, mesh_trust::MeshTrust},
    wire::Incoming,
};
use ursa_state::{Catalog, Expect, GlobalRevision, HistoryId, Op, Put, observed::Observation};

use super::{
    pending::{OfKind, Pending},
    scope::Site,
};

/// Never removed on an unknown peer's silence.
const ROOT_KINDS: [Kind; 4] = [Kind::Mesh, Kind::MeshIdentity, Kind::MeshTrust, Kind::Secret];
/// An unknown peer's silence removes at most one in so many of a kind.
const HOLD_FRACTION: usize = 5;

/// What ends a hold, beside the resource's return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Time.
    Grace,
    /// A person; time only if the peer turns out to be the one it was.
    Operator,
    /// A person, whatever the peer turns out to be: its store says itself that it is not the one that it was. A restored one has even the
    /// old one's cluster id.
    OtherHistory,
}

/// Removals of one kind that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub keys: Vec<ResourceKey>,
    pub wait: Wait,
}

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Durable ops: upserts, then removals.
    pub ops: Vec<Op>,
    pub observations: Vec<Observation>,
    /// In a zone: the global's revision that this completes, if that is news; while removals are held, what keeps the global unproven.
    pub global: Option<GlobalRevision>,
    /// The revision of the peer's store that this completes; only from a peer that reports progress, and of which no removal is held.
    pub peer: Option<GlobalRevision>,
    /// Every kind of which a first set came, with the removals that are held.
    pub held: BTreeMap<Kind, Held>,
    /// Keys that the peer spoke of by name.
    pub mentioned: BTreeSet<ResourceKey>,
}

impl Batch {
    /// Nothing to store.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.observations.is_empty() && self.global.is_none()
    }

    /// The ops in pieces of about `max_bytes` each (an op alone may be larger), in order.
    pub fn pieces(&self, max_bytes: usize) -> Vec<Vec<Op>> {
        let mut out: Vec<Vec<Op>> = Vec::new();
        let mut size = usize::MAX;
        for op in &self.ops {
            let cost = cost(op);
            if size.saturating_add(cost) > max_bytes {
                out.push(Vec::new());
                size = 0;
            }
            size += cost;
            if let Some(last) = out.last_mut() {
                last.push(op.clone());
            }
        }
        out
    }
}

/// Roughly the bytes of an op in the log.
fn cost(op: &Op) -> usize {
    const FRAME: usize = 128;
    let key = op.key();
    let names = key.mesh().len() + key.name().len() + FRAME;
    match op {
        Op::Delete { .. } => names,
        Op::Put(put) => {
            let labels: usize = put.labels.iter().map(|(k, v)| k.len() + v.len() + 8).sum();
            let json = |v: &serde_json::Value| serde_json::to_vec(v).map_or(0, |b| b.len());
            names + labels + json(&put.spec) + put.status.as_ref().map_or(0, json)
        }
    }
}

/// Builds the batch and notes in `pending`'s answers what is refused here, and which key belongs to which answer.
pub(super) fn build(pending: &mut Pending, site: &Site, catalog: &Catalog, known: Option<GlobalRevision>) -> Batch {
    let trusted = match (known, pending.global) {
        (Some(known), Some(at)) => known.history == at.history && at.revision >= known.revision,
        _ => false,
    };
    // A global that was restored or recovered knows nothing of what was made since: that is not for time to remove.
    let other = match (site, known, pending.global) {
        (Site::Zone, Some(known), Some(at)) => known.history != at.history && known.history != HistoryId::default(),
        _ => false,
    };
    let news = pending
        .global
        .filter(|at| matches!(site, Site::Zone) && catalog.durable.global() != Some(*at));
    let mut batch = Batch {
        global: news,
        peer: pending.global,
        ..Batch::default()
    };
    let mut removals: Vec<ResourceKey> = Vec::new();
    for (kind, of_kind) in &mut pending.kinds {
        batch.mentioned.extend(of_kind.upserts.keys().chain(&of_kind.removals).cloned());
        let mut gone: BTreeSet<ResourceKey> = of_kind
            .removals
            .iter()
            .filter(|key| catalog.get(key).is_some_and(|stored| site.owns(stored)))
            .cloned()
            .collect();
        if of_kind.full {
            let (removed, held) = implied(*kind, of_kind, site, catalog, (trusted, other));
            gone.extend(removed);
            batch.held.insert(*kind, held);
        }
        removals.extend(gone);
        for (key, upsert) in std::mem::take(&mut of_kind.upserts) {
            let stored = catalog.get(&key);
            let Some(answer) = pending.answers.get_mut(upsert.answer) else {
                continue;
            };
            match stored {
                Some(stored) if !site.owns(stored) => {
                    answer
                        .refused
                        .push((upsert.wire_name, format!("{key} exists already and was not made by this peer")));
                }
                Some(stored) if same(stored, &upsert.incoming, site) => {}
                stored => {
                    answer.keys.insert(key, upsert.wire_name);
                    put(&mut batch, site, catalog, stored.map(AsRef::as_ref), upsert.incoming);
                }
            }
        }
    }
    // What lives in a mesh goes before the mesh.
    for key in removals.into_iter().rev() {
        match catalog.role.tier(key.kind()) {
            Tier::Durable => batch.ops.push(Op::delete(key)),
            Tier::Observed => batch.observations.push(Observation::Delete(key)),
        }
    }
    batch
}

/// Removals that a first set implies: done now, and held.
fn implied(kind: Kind, of_kind: &OfKind, site: &Site, catalog: &Catalog, (trusted, other): (bool, bool)) -> (Vec<ResourceKey>, Held) {
    let stored: Vec<_> = catalog.list(kind).into_iter().filter(|r| site.owns(r)).collect();
    let named = |key: &ResourceKey| of_kind.upserts.contains_key(key) || of_kind.kept.contains(key) || of_kind.removals.contains(key);
    let missing: Vec<ResourceKey> = stored.iter().map(|r| r.key.clone()).filter(|key| !named(key)).collect();
    let much = ROOT_KINDS.contains(&kind) || missing.len() * HOLD_FRACTION > stored.len();
    let wait = match (other, much) {
        (true, _) => Wait::OtherHistory,
        (false, true) => Wait::Operator,
        (false, false) => Wait::Grace,
    };
    if trusted || catalog.role.tier(kind) == Tier::Observed {
        return (missing, Held { keys: Vec::new(), wait });
    }
    (Vec::new(), Held { keys: missing, wait })
}

/// What would be stored is stored already. In a zone the status is the zone's own.
fn same(stored: &Resource, incoming: &Incoming, site: &Site) -> bool {
    let status = match site {
        Site::Zone => true,
        Site::Global { .. } => incoming.status.is_none() || stored.status == incoming.status,
    };
    status && stored.spec == incoming.spec && stored.labels == incoming.labels
}

fn put(batch: &mut Batch, site: &Site, catalog: &Catalog, stored: Option<&Resource>, incoming: Incoming) {
    let owner = match site {
        Site::Global { zone, .. } => ResourceKey::new(Kind::Zone, "", zone.as_str()).ok(),
        Site::Zone => None,
    };
    let Incoming { key, labels, spec, status } = incoming;
    if catalog.role.tier(key.kind()) == Tier::Observed {
        batch.observations.push(Observation::Put { key, labels, spec, owner });
        return;
    }
    let status = if matches!(site, Site::Zone) { None } else { status };
    let mut expect = if stored.is_some() { Expect::Any } else { Expect::Absent };
    // A MeshTrust for another trust domain is another MeshTrust: its age decides whom the trust domain belongs to.
    let domain = |spec: &serde_json::Value| spec.get("trustDomain").and_then(|d| d.as_str()).map(str::to_ascii_lowercase);
    if key.kind() == Kind::MeshTrust
        && matches!(site, Site::Global { .. })
        && stored.is_some_and(|s| s.spec::<MeshTrust>().is_err() || domain(&s.spec) != domain(&spec))
    {
        batch.ops.push(Op::delete(key.clone()));
        expect = Expect::Absent;
    }
    batch.ops.push(Op::Put(Put {
        key,
        labels,
        spec,
        status,
        owner,
        expect,
    }));
}
