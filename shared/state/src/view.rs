//! An immutable picture of the durable tier at one revision. Cheap to clone (persistent maps), so every consumer holds its own
//! and never sees half of a changeset.

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;
use ursa_model::{Kind, Resource, ResourceKey, Timestamp};

use crate::{
    change::{GlobalRevision, HistoryId, Revision, RevisionChanges},
    history::History,
    origin::Origin,
    past::Past,
};

pub(crate) type Objects = RedBlackTreeMapSync<ResourceKey, Arc<Resource>>;

/// The asked-for revision is not among the recent ones; [`View::past`] may still have it.
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
    pub(crate) origin: Option<Arc<Origin>>,
}

impl View {
    pub fn history_id(&self) -> HistoryId {
        self.history_id
    }

    /// Where the history comes from; `None` for one that began with nothing.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_deref()
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

    /// Oldest revision after which changes are at hand: the newest [`crate::RECENT`] revisions, unless they were compacted.
    pub fn floor(&self) -> Revision {
        self.history.recent_floor()
    }

    /// What happened before, as far as it is kept.
    pub fn past(&self) -> Past<'_> {
        Past::of(self)
    }

    /// What changed after `revision`, oldest first. Errors below [`View::floor`].
    pub fn changes_since(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<RevisionChanges>>, Compacted> {
        if revision < self.floor() {
            return Err(Compacted {
                asked: revision,
                oldest: self.floor(),
            });
        }
        Ok(self.history.recent_after(revision))
    }

    /// The picture at a recent revision: costs what changed since. Errors below [`View::floor`]. A later revision gives this one.
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
            view.history.take_back(changes.revision);
        }
        match view.history.newest() {
            Some((newest, at)) => (view.revision, view.time) = (newest, at),
            None => view.revision = self.revision.min(revision),
        }
        if moved_global {
            view.global = view.history.newest_global();
        }
        Ok(view)
    }
}
