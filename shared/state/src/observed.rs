//! The observed tier: what is true only as long as somebody sees it (connections, ACKs, a zone's Dataplanes at the global).
//! In memory, never a Raft entry. Writers change it in batches; readers get immutable views and are woken by a watch.
//! Invariant: a reader never sees half of a batch; at a global of several nodes what is seen of a zone is written by one node at a time.
//!
//! **Several nodes.** Everything that belongs to a Zone (its owner is one) is one *copy*, held by the node that serves the zone and sent
//! by it to all others ([`copy`]). A node holds a copy under a fence (epoch, node), which grows with every change of hands; within a
//! fence the version counts the batches. Of two copies of a zone the one with the larger (fence, version) is the newer, on every node,
//! so whatever the order in which nodes hear of each other, all end with the same. A node that is not the holder writes nothing: what
//! comes late from a stream that was taken over is dropped. A holder that is gone leaves its copies behind, as of when it was last heard.

use std::{fmt, ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use ursa_model::{Kind, Labels, Resource, ResourceKey, Timestamp};

pub mod copy;
mod follower;
mod offline;

pub use copy::{Copy, CopyAt, Fence, Holder, Merged, Update};
pub use follower::Follower;
pub use offline::OBSERVED_AS_OF;

/// Batches whose keys are remembered for the nodes that follow. One that is further behind gets full copies.
const MAX_JOURNAL: usize = 1_024;
/// Keys remembered with them.
const MAX_JOURNAL_KEYS: usize = 65_536;

/// Name of a zone, as the owner of a resource says it.
pub(crate) type Zone = Arc<str>;

/// An immutable picture of the observed tier.
#[derive(Clone, Debug, Default)]
pub struct ObservedView {
    objects: RedBlackTreeMapSync<ResourceKey, Arc<Resource>>,
    /// Counts the batches; a resource's `mod_revision` is the batch that changed it.
    sequence: u64,
    copies: RedBlackTreeMapSync<Zone, Copy>,
    /// What belongs to which copy.
    members: RedBlackTreeMapSync<(Zone, ResourceKey), ()>,
    /// Keys of copies that are held here, by the batch that changed them.
    journal: RedBlackTreeMapSync<u64, Arc<Vec<(Zone, ResourceKey)>>>,
    journal_keys: usize,
    /// Batches up to this one are not in the journal any more.
    journal_floor: u64,
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

    /// Puts as of `at`; `true` if that changed anything.
    fn put(&mut self, at: Timestamp, key: ResourceKey, labels: Labels, spec: serde_json::Value, owner: Option<ResourceKey>) -> bool {
        let old = self.objects.get(&key);
        if old.is_some_and(|o| o.spec == spec && o.labels == labels) {
            return false;
        }
        let sequence = self.sequence + 1;
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
        self.objects.insert_mut(key, Arc::new(new));
        true
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

/// Says whether this node speaks for a zone. Asked while the tier is locked: quick, no I/O, and it must not call back.
pub trait Authority: Send + Sync + 'static {
    /// The epoch of this node's newest claim for the zone, if no other node is known to have a newer one.
    fn claimed(&self, zone: &str) -> Option<u64>;
}

/// This node among those that share the tier.
struct Node {
    id: u64,
    authority: Arc<dyn Authority>,
}

/// Shared handle; clones see and change the same tier.
#[derive(Clone)]
pub struct Observed {
    newest: Arc<watch::Sender<ObservedView>>,
    /// `None`: nobody shares it; every write counts.
    node: Option<Arc<Node>>,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed")
            .field("sequence", &self.newest.borrow().sequence)
            .finish_non_exhaustive()
    }
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            newest: Arc::new(watch::Sender::new(ObservedView::default())),
            node: None,
        }
    }
}

impl Observed {
    /// The tier of node `id`, which may be one of several.
    pub fn of_node(id: u64, authority: Arc<dyn Authority>) -> Self {
        Self {
            node: Some(Arc::new(Node { id, authority })),
            ..Self::default()
        }
    }

    pub fn view(&self) -> ObservedView {
        self.newest.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<ObservedView> {
        self.newest.subscribe()
    }

    /// Applies a batch at once. Observations that change nothing wake nobody. At a node of several, observations of a zone that
    /// another node speaks for are dropped.
    pub fn apply(&self, at: Timestamp, batch: impl IntoIterator<Item = Observation>) {
        self.update(at, |_| batch);
    }

    /// As [`Observed::apply`], with the batch computed from the newest view under the lock: for read-modify-write. The closure
    /// must not call back into this tier.
    pub fn update<B: IntoIterator<Item = Observation>>(&self, at: Timestamp, batch: impl FnOnce(&ObservedView) -> B) {
        self.newest.send_if_modified(|view| {
            let batch = batch(view);
            match &self.node {
                Some(node) => copy::write(view, node.id, node.authority.as_ref(), at, batch),
                None => write(view, at, batch),
            }
        });
    }

    /// Takes what another node says. See [`Merged`].
    pub fn merge(&self, from: u64, update: Update) -> Merged {
        let mut merged = Merged::Known;
        if let Some(node) = &self.node {
            self.newest.send_if_modified(|view| {
                merged = copy::merge(view, node.id, node.authority.as_ref(), from, update);
                merged == Merged::Taken
            });
        }
        merged
    }

    /// Node `from` is not heard any more: what it holds is as of `as_of`.
    pub fn lost(&self, from: u64, as_of: Timestamp) {
        self.newest.send_if_modified(|view| copy::lost(view, from, as_of));
    }

    /// Forgets the copies of zones that `gone` names: their Zones were deleted.
    pub fn forget(&self, gone: impl Fn(&str) -> bool) {
        self.newest.send_if_modified(|view| copy::forget(view, gone));
    }
}

/// Without other nodes: every observation counts.
fn write(view: &mut ObservedView, at: Timestamp, batch: impl IntoIterator<Item = Observation>) -> bool {
    let mut changed = false;
    for observation in batch {
        changed |= match observation {
            Observation::Delete(key) => view.objects.remove_mut(&key),
            Observation::Put { key, labels, spec, owner } => view.put(at, key, labels, spec, owner),
        };
    }
    view.sequence += u64::from(changed);
    changed
}

#[cfg(test)]
mod tests;
