//! An immutable picture of the durable tier at one revision. Cheap to clone (persistent maps), so every consumer holds its own
//! and never sees half of a changeset.

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;
use ursa_model::{Kind, Resource, ResourceKey, Timestamp};

use crate::change::{GlobalRevision, HistoryId, Revision, RevisionChanges};

pub(crate) type Objects = RedBlackTreeMapSync<ResourceKey, Arc<Resource>>;
pub(crate) type History = RedBlackTreeMapSync<Revision, Arc<RevisionChanges>>;

/// The asked-for revision is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is no longer kept, the oldest is {oldest}")]
pub struct Compacted {
    pub asked: Revision,
    /// Changes after this revision are known.
    pub oldest: Revision,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub(crate) history_id: HistoryId,
    pub(crate) revision: Revision,
    pub(crate) time: Timestamp,
    pub(crate) global: Option<GlobalRevision>,
    pub(crate) objects: Objects,
    pub(crate) history: History,
    /// Changes up to and including this revision are forgotten.
    pub(crate) floor: Revision,
}

impl View {
    pub fn history_id(&self) -> HistoryId {
        self.history_id
    }

    /// The newest changeset in this picture; 0 before the first.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Revision and history as a peer must hear them.
    pub fn at_global(&self) -> GlobalRevision {
        GlobalRevision {
            history: self.history_id,
            revision: self.revision,
        }
    }

    /// When the newest changeset was proposed.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// In a zone: the newest global revision that is completely contained.
    pub fn global(&self) -> Option<GlobalRevision> {
        self.global
    }

    pub fn len(&self) -> usize {
        self.objects.size()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.objects.get(key)
    }

    /// Every resource, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.objects.values()
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

    /// Oldest revision after which changes are known.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// What changed after `revision`, oldest first. Errors when that is no longer kept.
    pub fn changes_since(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<RevisionChanges>>, Compacted> {
        if revision < self.floor {
            return Err(Compacted {
                asked: revision,
                oldest: self.floor,
            });
        }
        Ok(self.history.range((Bound::Excluded(revision), Bound::Unbounded)).map(|(_, c)| c))
    }

    /// The picture at an earlier revision. Errors when the changes since are no longer kept. A later revision gives this one.
    pub fn at(&self, revision: Revision) -> Result<View, Compacted> {
        let later: Vec<&Arc<RevisionChanges>> = self.changes_since(revision)?.collect();
        let mut view = self.clone();
        let moved_global = later.iter().any(|c| c.global.is_some());
        for changes in later.into_iter().rev() {
            for change in &changes.changes {
                match &change.before {
                    Some(before) => view.objects.insert_mut(change.key.clone(), before.clone()),
                    None => {
                        view.objects.remove_mut(&change.key);
                    }
                }
            }
            view.history.remove_mut(&changes.revision);
        }
        if let Some((newest, changes)) = view.history.last() {
            view.revision = *newest;
            view.time = changes.at;
        } else {
            view.revision = self.revision.min(revision);
        }
        if moved_global {
            view.global = view.history.values().rev().find_map(|c| c.global);
        }
        Ok(view)
    }
}
