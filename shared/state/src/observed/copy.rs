//! Copies of what was seen of a zone: who holds one, which of two is newer, what a node takes from another.
//! In: local batches, other nodes' updates. Out: the view with them, or why not.
//! Invariant: a copy only ever moves to a larger (fence, version), except at the node that speaks for the zone, which moves its own
//! above any that it hears of.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use serde::{Deserialize, Serialize};
use ursa_model::{Kind, Resource, ResourceKey, Timestamp};

use super::{Authority, MAX_JOURNAL, MAX_JOURNAL_KEYS, Observation, ObservedView, Zone};

/// Under which right a copy is held. Grows with every change of hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    pub epoch: u64,
    /// Id of the node.
    pub node: u64,
}

/// How new a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CopyAt {
    pub fence: Fence,
    /// Counts batches; goes on when the fence changes.
    pub version: u64,
}

/// Who vouches for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This node serves the zone, or was the last to.
    Here,
    /// Another node, which is heard.
    Node(u64),
    /// Nobody since [`Copy::as_of`].
    Nobody,
}

/// What is known about the copy of one zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    pub at: CopyAt,
    pub holder: Holder,
    /// When it was last confirmed. Means something only without a holder.
    pub as_of: Timestamp,
    /// The batch by which it came into this node's hands: who follows from before needs a full one.
    pub(super) since: u64,
}

/// What one node tells another of a zone.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// All of it.
    Full {
        zone: Zone,
        at: CopyAt,
        /// The sender holds it; otherwise it only has it, as of `as_of`.
        held: bool,
        as_of: Timestamp,
        resources: Vec<Arc<Resource>>,
    },
    /// What the holder changed between two versions: the newest state of each key that changed.
    Delta {
        zone: Zone,
        from: CopyAt,
        to: CopyAt,
        puts: Vec<Arc<Resource>>,
        deletes: Vec<ResourceKey>,
    },
    /// The Zone was deleted: copies up to this fence go.
    Drop { zone: Zone, up_to: Fence },
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It changed something.
    Taken,
    /// Nothing new in it.
    Known,
    /// It does not follow on what is here: a full copy is needed.
    Gap,
}

impl ObservedView {
    /// Every zone with its copy.
    pub fn copies(&self) -> impl Iterator<Item = (&str, &Copy)> {
        self.copies.iter().map(|(zone, copy)| (zone.as_ref(), copy))
    }

    pub fn copy_of(&self, zone: &str) -> Option<&Copy> {
        self.copies.get(zone)
    }

    /// What the copy of a zone contains, in key order.
    pub fn of_zone(&self, zone: &str) -> impl Iterator<Item = &Arc<Resource>> {
        let zone: Zone = zone.into();
        let first = (zone.clone(), ResourceKey::first(Kind::Mesh, ""));
        self.members
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |((of, _), ())| *of == zone)
            .filter_map(|((_, key), ())| self.objects.get(key))
    }

    /// The zone's copy whole, as an update of a node that has it. `now` is when another holder is heard.
    pub fn full(&self, zone: &str, now: Timestamp) -> Option<Update> {
        let (zone, copy) = self.copies.get_key_value(zone)?;
        Some(Update::Full {
            zone: zone.clone(),
            at: copy.at,
            held: copy.holder == Holder::Here,
            as_of: if copy.holder == Holder::Nobody { copy.as_of } else { now },
            resources: self.of_zone(zone).cloned().collect(),
        })
    }

    fn insert_member(&mut self, zone: &Zone, resource: Arc<Resource>) {
        // A key of another zone's stays that zone's.
        let other = self.objects.get(&resource.key).and_then(|old| zone_of(old.owner.as_ref()));
        if other.is_some_and(|other| other != zone.as_ref()) {
            return;
        }
        self.members.insert_mut((zone.clone(), resource.key.clone()), ());
        self.objects.insert_mut(resource.key.clone(), resource);
    }

    fn remove_member(&mut self, zone: &Zone, key: &ResourceKey) {
        if self.members.remove_mut(&(zone.clone(), key.clone())) {
            self.objects.remove_mut(key);
        }
    }

    fn remove_all(&mut self, zone: &Zone) {
        let keys: Vec<ResourceKey> = self.of_zone(zone).map(|r| r.key.clone()).collect();
        for key in &keys {
            self.remove_member(zone, key);
        }
    }

    /// With the sequence of this node: it counts what changed here.
    fn received(&self, resource: &Resource) -> Arc<Resource> {
        let sequence = self.sequence + 1;
        let old = self.objects.get(&resource.key);
        Arc::new(Resource {
            create_revision: old.map_or(sequence, |o| o.create_revision),
            mod_revision: sequence,
            ..resource.clone()
        })
    }

    fn remember(&mut self, keys: Vec<(Zone, ResourceKey)>) {
        if keys.is_empty() {
            return;
        }
        self.journal_keys += keys.len();
        self.journal.insert_mut(self.sequence, Arc::new(keys));
        while self.journal.size() > MAX_JOURNAL || self.journal_keys > MAX_JOURNAL_KEYS {
            let Some((oldest, count)) = self.journal.first().map(|(oldest, keys)| (*oldest, keys.len())) else {
                return;
            };
            self.journal.remove_mut(&oldest);
            self.journal_keys -= count;
            self.journal_floor = oldest;
        }
    }
}

/// The zone that a resource belongs to.
pub(super) fn zone_of(owner: Option<&ResourceKey>) -> Option<&str> {
    owner.filter(|owner| owner.kind() == Kind::Zone).map(ResourceKey::name)
}

/// A local batch at a node of several.
pub(super) fn write(
    view: &mut ObservedView,
    node: u64,
    authority: &dyn Authority,
    at: Timestamp,
    batch: impl IntoIterator<Item = Observation>,
) -> bool {
    let mut rights: BTreeMap<Zone, bool> = BTreeMap::new();
    let mut touched: BTreeMap<Zone, ()> = BTreeMap::new();
    let mut keys = Vec::new();
    let mut changed = false;
    for observation in batch {
        let zone: Option<Zone> = match &observation {
            Observation::Put { key, owner, .. } => {
                let stored = view.objects.get(key).and_then(|old| zone_of(old.owner.as_ref()));
                let wanted = zone_of(owner.as_ref());
                if stored.is_some() && stored != wanted {
                    continue;
                }
                wanted.map(Into::into)
            }
            Observation::Delete(key) => view.objects.get(key).and_then(|old| zone_of(old.owner.as_ref())).map(Into::into),
        };
        let Some(zone) = zone else {
            changed |= match observation {
                Observation::Delete(key) => view.objects.remove_mut(&key),
                Observation::Put { key, labels, spec, owner } => view.put(at, key, labels, spec, owner),
            };
            continue;
        };
        let may = *rights.entry(zone.clone()).or_insert_with(|| {
            let before = view.copies.get(&zone).copied();
            let may = hold(view, node, authority, &zone);
            changed |= before != view.copies.get(&zone).copied();
            may
        });
        if !may {
            continue;
        }
        let (key, did) = match observation {
            Observation::Delete(key) => {
                view.remove_member(&zone, &key);
                (key, true)
            }
            Observation::Put { key, labels, spec, owner } => {
                let did = view.put(at, key.clone(), labels, spec, owner);
                if did {
                    view.members.insert_mut((zone.clone(), key.clone()), ());
                }
                (key, did)
            }
        };
        if did {
            touched.insert(zone.clone(), ());
            keys.push((zone, key));
        }
    }
    for zone in touched.keys() {
        if let Some(copy) = view.copies.get(zone).copied() {
            let at = CopyAt {
                version: copy.at.version + 1,
                ..copy.at
            };
            view.copies.insert_mut(zone.clone(), Copy { at, ..copy });
        }
    }
    changed |= !touched.is_empty();
    view.sequence += u64::from(changed);
    view.remember(keys);
    changed
}

/// May this node write about the zone? Takes the copy over if it has the right and does not hold it yet.
fn hold(view: &mut ObservedView, node: u64, authority: &dyn Authority, zone: &Zone) -> bool {
    let claimed = authority.claimed(zone);
    let (fence, since) = match (view.copies.get(zone).copied(), claimed) {
        (Some(copy), None) => return copy.holder == Holder::Here,
        (Some(copy), Some(epoch)) if copy.holder == Holder::Here => {
            if epoch <= copy.at.fence.epoch {
                return true;
            }
            (Fence { epoch, node }, copy.since)
        }
        (Some(copy), Some(epoch)) => {
            let epoch = epoch.max(copy.at.fence.epoch.saturating_add(1));
            (Fence { epoch, node }, view.sequence + 1)
        }
        (None, Some(epoch)) => (Fence { epoch, node }, view.sequence + 1),
        // The last words of a stream whose zone is gone.
        (None, None) => return false,
    };
    let version = view.copies.get(zone).map_or(0, |copy| copy.at.version) + 1;
    let copy = Copy {
        at: CopyAt { fence, version },
        holder: Holder::Here,
        as_of: Timestamp::default(),
        since,
    };
    view.copies.insert_mut(zone.clone(), copy);
    true
}

/// Another node's update.
pub(super) fn merge(view: &mut ObservedView, node: u64, authority: &dyn Authority, from: u64, update: Update) -> Merged {
    match update {
        Update::Drop { zone, up_to } => {
            let goes = view
                .copies
                .get(&zone)
                .is_some_and(|copy| copy.holder != Holder::Here && copy.at.fence <= up_to);
            if !goes {
                return Merged::Known;
            }
            view.remove_all(&zone);
            view.copies.remove_mut(&zone);
            view.sequence += 1;
            Merged::Taken
        }
        Update::Full {
            zone,
            at,
            held,
            as_of,
            resources,
        } => {
            let held = held && at.fence.node == from;
            let current = view.copies.get(&zone).copied();
            if let Some(current) = current {
                if at <= current.at {
                    return confirm(view, zone, current, at, held.then_some(from), as_of);
                }
                if keep_mine(view, node, authority, &zone, current, at) {
                    return Merged::Taken;
                }
            }
            let keys: std::collections::BTreeSet<&ResourceKey> = resources.iter().map(|r| &r.key).collect();
            let gone: Vec<ResourceKey> = view
                .of_zone(&zone)
                .map(|r| r.key.clone())
                .filter(|key| !keys.contains(key))
                .collect();
            for key in &gone {
                view.remove_member(&zone, key);
            }
            for resource in &resources {
                take(view, &zone, resource);
            }
            let holder = match current {
                _ if held => Holder::Node(from),
                // It is newer, and of the same holder, who is heard.
                Some(current) if current.at.fence == at.fence => current.holder,
                _ => Holder::Nobody,
            };
            let copy = Copy {
                at,
                holder,
                as_of,
                since: 0,
            };
            view.copies.insert_mut(zone, copy);
            view.sequence += 1;
            Merged::Taken
        }
        Update::Delta {
            zone,
            from: base,
            to,
            puts,
            deletes,
        } => {
            let Some(current) = view.copies.get(&zone).copied() else {
                return Merged::Gap;
            };
            if to <= current.at {
                return confirm(view, zone, current, to, Some(from), Timestamp::default());
            }
            if keep_mine(view, node, authority, &zone, current, to) {
                return Merged::Taken;
            }
            // The newest state of every key that changed since `base`: right for whoever has that, or something between.
            let follows = to.fence.node == from && [base.fence, to.fence].contains(&current.at.fence) && base.version <= current.at.version;
            if !follows {
                return Merged::Gap;
            }
            for key in &deletes {
                view.remove_member(&zone, key);
            }
            for resource in &puts {
                take(view, &zone, resource);
            }
            let copy = Copy {
                at: to,
                holder: Holder::Node(from),
                as_of: current.as_of,
                since: 0,
            };
            view.copies.insert_mut(zone, copy);
            view.sequence += 1;
            Merged::Taken
        }
    }
}

fn take(view: &mut ObservedView, zone: &Zone, resource: &Resource) {
    if zone_of(resource.owner.as_ref()) != Some(zone) {
        return;
    }
    let same = view.objects.get(&resource.key).is_some_and(|old| {
        let content = |r: &Resource| (r.version, r.created, r.modified);
        content(old) == content(resource) && old.labels == resource.labels && old.spec == resource.spec
    });
    if !same {
        let received = view.received(resource);
        view.insert_member(zone, received);
    }
}

/// Nothing new, but perhaps that somebody vouches for it again.
fn confirm(view: &mut ObservedView, zone: Zone, current: Copy, at: CopyAt, by: Option<u64>, as_of: Timestamp) -> Merged {
    let mut copy = current;
    match by {
        _ if at != current.at || current.holder == Holder::Here => {}
        Some(by) => copy.holder = Holder::Node(by),
        None => copy.as_of = copy.as_of.max(as_of),
    }
    if copy == current {
        return Merged::Known;
    }
    view.copies.insert_mut(zone, copy);
    view.sequence += 1;
    Merged::Taken
}

/// A copy that looks newer than ours, of a zone that we speak for: the other node does not know yet, or its clock is ahead. Ours stays and
/// goes above it.
fn keep_mine(view: &mut ObservedView, node: u64, authority: &dyn Authority, zone: &Zone, current: Copy, at: CopyAt) -> bool {
    if current.holder != Holder::Here || at.fence == current.at.fence || authority.claimed(zone).is_none() {
        return false;
    }
    let fence = Fence {
        epoch: at.fence.epoch.saturating_add(1),
        node,
    };
    let copy = Copy {
        at: CopyAt {
            fence,
            version: current.at.version.max(at.version) + 1,
        },
        since: view.sequence + 1,
        ..current
    };
    view.copies.insert_mut(zone.clone(), copy);
    view.sequence += 1;
    true
}

pub(super) fn lost(view: &mut ObservedView, node: u64, as_of: Timestamp) -> bool {
    let held = view.copies.iter().filter(|(_, copy)| copy.holder == Holder::Node(node));
    let zones: Vec<(Zone, Copy)> = held.map(|(zone, copy)| (zone.clone(), *copy)).collect();
    for (zone, copy) in &zones {
        let copy = Copy {
            holder: Holder::Nobody,
            as_of: copy.as_of.max(as_of),
            ..*copy
        };
        view.copies.insert_mut(zone.clone(), copy);
    }
    view.sequence += u64::from(!zones.is_empty());
    !zones.is_empty()
}

pub(super) fn forget(view: &mut ObservedView, gone: impl Fn(&str) -> bool) -> bool {
    let zones: Vec<Zone> = view.copies.keys().filter(|zone| gone(zone)).cloned().collect();
    for zone in &zones {
        view.remove_all(zone);
        view.copies.remove_mut(zone);
    }
    view.sequence += u64::from(!zones.is_empty());
    !zones.is_empty()
}
