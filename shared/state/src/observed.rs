//! The observed tier: what is true only as long as somebody sees it (connections, ACKs, a zone's Dataplanes at the global).
//! In memory, never a Raft entry. Writers change it in batches; readers get immutable views and are woken by a watch.

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use ursa_model::{Kind, Labels, Resource, ResourceKey, Timestamp};

/// An immutable picture of the observed tier.
#[derive(Clone, Debug, Default)]
pub struct ObservedView {
    objects: RedBlackTreeMapSync<ResourceKey, Arc<Resource>>,
    /// Counts the batches; a resource's `mod_revision` is the batch that changed it.
    sequence: u64,
}

impl ObservedView {
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.objects.get(key)
    }

    /// All of a kind, ordered by mesh and name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.from(ResourceKey::first(kind, "")).take_while(move |r| r.kind() == kind)
    }

    /// All of a kind in one mesh, ordered by name.
    pub fn list_in<'a>(&'a self, kind: Kind, mesh: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.from(ResourceKey::first(kind, mesh))
            .take_while(move |r| r.kind() == kind && r.mesh() == mesh)
    }

    fn from(&self, key: ResourceKey) -> impl Iterator<Item = &Arc<Resource>> {
        self.objects.range((Bound::Included(key), Bound::Unbounded)).map(|(_, r)| r)
    }
}

/// One change of the observed tier.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    Put {
        key: ResourceKey,
        labels: Labels,
        spec: serde_json::Value,
        owner: Option<ResourceKey>,
    },
    Delete(ResourceKey),
}

/// Shared handle; clones see and change the same tier.
#[derive(Clone, Debug)]
pub struct Observed(Arc<watch::Sender<ObservedView>>);

impl Default for Observed {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(ObservedView::default())))
    }
}

impl Observed {
    pub fn view(&self) -> ObservedView {
        self.0.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<ObservedView> {
        self.0.subscribe()
    }

    /// Applies a batch at once. Observations that change nothing wake nobody.
    pub fn apply(&self, at: Timestamp, batch: impl IntoIterator<Item = Observation>) {
        self.update(at, |_| batch);
    }

    /// As [`Observed::apply`], with the batch computed from the newest view under the lock: for read-modify-write. The closure
    /// must not call back into this tier.
    pub fn update<B: IntoIterator<Item = Observation>>(&self, at: Timestamp, batch: impl FnOnce(&ObservedView) -> B) {
        self.0.send_if_modified(|view| {
            let batch = batch(view);
            let sequence = view.sequence + 1;
            let mut changed = false;
            for observation in batch {
                changed |= apply_one(view, sequence, at, observation);
            }
            if changed {
                view.sequence = sequence;
            }
            changed
        });
    }
}

fn apply_one(view: &mut ObservedView, sequence: u64, at: Timestamp, observation: Observation) -> bool {
    match observation {
        Observation::Delete(key) => view.objects.remove_mut(&key),
        Observation::Put { key, labels, spec, owner } => {
            let old = view.objects.get(&key);
            if old.is_some_and(|o| o.spec == spec && o.labels == labels) {
                return false;
            }
            let new = Resource {
                labels,
                spec,
                status: None,
                owner,
                created: old.map_or(at, |o| o.created),
                modified: at,
                version: old.map_or(1, |o| o.version.saturating_add(1)),
                create_revision: old.map_or(sequence, |o| o.create_revision),
                mod_revision: sequence,
                key: key.clone(),
            };
            view.objects.insert_mut(key, Arc::new(new));
            true
        }
    }
}
