//! The replicated state machine. [`State::apply`] is pure, deterministic and total: it never panics, reads no clock, and gives
//! the same result on every replica.

use std::{collections::BTreeMap, sync::Arc};

use rpds::RedBlackTreeMapSync;
use ursa_model::{Resource, ResourceKey, Timestamp};

use crate::{
    change::{Applied, Change, Changeset, Command, Expect, HistoryId, Mode, Op, OpError, OpResult, Put, Revision, RevisionChanges},
    requests::Requests,
    view::View,
};

/// Depth of ownership followed by a delete; Kuma's chains have three levels.
const MAX_CASCADE_DEPTH: usize = 16;

/// See the module's text. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) view: View,
    /// Added to a log index to give a revision.
    pub(crate) revision_base: u64,
    /// Index of the newest entry applied.
    pub(crate) applied_index: u64,
    pub(crate) feature_level: u32,
    /// (owner, owned).
    pub(crate) owned: RedBlackTreeMapSync<(ResourceKey, ResourceKey), ()>,
    pub(crate) requests: Requests,
}

/// The resources that one changeset touched so far: first `before`, newest `after`.
type Touched = BTreeMap<ResourceKey, (Option<Arc<Resource>>, Option<Arc<Resource>>)>;

impl State {
    /// The picture after the newest applied entry.
    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn history_id(&self) -> HistoryId {
        self.view.history_id
    }

    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// Index of the newest entry applied; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Marks an entry without a command (blank, membership) as applied.
    pub fn skip(&mut self, index: u64) {
        self.applied_index = self.applied_index.max(index);
    }

    /// Applies the entry at `index`. An index that is not newer than the newest applied one changes nothing.
    pub fn apply(&mut self, index: u64, command: &Command) -> Applied {
        if index <= self.applied_index {
            return Applied {
                revision: self.view.revision,
                ..Applied::default()
            };
        }
        self.applied_index = index;
        match command {
            Command::Init { history } => {
                if self.view.history_id == HistoryId::default() {
                    self.view.history_id = *history;
                }
                self.nothing()
            }
            Command::Compact { floor } => {
                self.view.history.forget((*floor).min(self.view.revision));
                self.nothing()
            }
            Command::RaiseFeatureLevel { level } => {
                self.feature_level = self.feature_level.max(*level);
                self.nothing()
            }
            Command::Change(set) => self.change(index, set),
        }
    }

    fn nothing(&self) -> Applied {
        Applied {
            revision: self.view.revision,
            ..Applied::default()
        }
    }

    fn change(&mut self, index: u64, set: &Changeset) -> Applied {
        if let Some(first) = self.requests.get(&set.id) {
            return first.as_ref().clone();
        }
        let revision = self.revision_base.saturating_add(index);
        // The clock never goes back, whatever a proposer's clock does.
        let at = set.at.max(self.view.time);
        let mut next = self.clone();
        let mut touched = Touched::new();
        let mut results = Vec::with_capacity(set.ops.len());
        let mut rejected = None;
        for (i, op) in set.ops.iter().enumerate() {
            let result = match op {
                Op::Put(put) => next.put(put, revision, at, &mut touched),
                Op::Delete { key, expect } => next.delete(key, *expect, &mut touched),
            };
            match result {
                Ok(done) => results.push(done),
                Err(err) => {
                    let whole = match set.mode {
                        Mode::Atomic => true,
                        Mode::Guarded => i == 0,
                        Mode::Each => false,
                    };
                    if whole {
                        rejected = Some((i, err));
                        break;
                    }
                    results.push(OpResult::Refused(err));
                }
            }
        }
        let applied = if rejected.is_some() {
            Applied {
                revision: self.view.revision,
                results: Vec::new(),
                rejected,
            }
        } else {
            let changes: Vec<Change> = touched
                .into_iter()
                .filter(|(_, (before, after))| before != after)
                .map(|(key, (before, after))| Change { key, before, after })
                .collect();
            let moves_global = set.global.is_some() && set.global != self.view.global;
            if !changes.is_empty() || moves_global {
                next.record(revision, at, set, changes);
                *self = next;
            }
            Applied {
                revision: self.view.revision,
                results,
                rejected: None,
            }
        };
        self.requests.remember(index, set.id, at, Arc::new(applied.clone()));
        applied
    }

    pub(crate) fn record(&mut self, revision: Revision, at: Timestamp, set: &Changeset, changes: Vec<Change>) {
        let entry = RevisionChanges {
            revision,
            at,
            global: set.global,
            actor: set.actor.clone(),
            changes,
        };
        let view = &mut self.view;
        view.revision = revision;
        view.time = at;
        view.global = set.global.or(view.global);
        view.history.push(Arc::new(entry));
    }

    fn check(&self, key: &ResourceKey, expect: Expect) -> Result<(), OpError> {
        match (expect, self.view.get(key)) {
            (Expect::Any, _) | (Expect::Absent, None) | (Expect::Present, Some(_)) => Ok(()),
            (Expect::Absent, Some(_)) => Err(OpError::Exists(key.clone())),
            (Expect::Present | Expect::Version(_), None) => Err(OpError::Missing(key.clone())),
            (Expect::Version(want), Some(have)) if have.version == want => Ok(()),
            (Expect::Version(want), Some(have)) => Err(OpError::Conflict {
                key: key.clone(),
                have: have.version,
                want,
            }),
        }
    }

    fn put(&mut self, put: &Put, revision: Revision, at: Timestamp, touched: &mut Touched) -> Result<OpResult, OpError> {
        self.check(&put.key, put.expect)?;
        if let Some(owner) = &put.owner {
            if *owner == put.key {
                return Err(OpError::OwnerCycle(put.key.clone()));
            }
            if self.view.get(owner).is_none() {
                return Err(OpError::OwnerMissing(owner.clone()));
            }
        }
        let old = self.view.get(&put.key).cloned();
        let status = put.status.clone().or_else(|| old.as_ref().and_then(|o| o.status.clone()));
        if let Some(old) = &old
            && old.spec == put.spec
            && old.labels == put.labels
            && old.status == status
            && (put.owner.is_none() || old.owner == put.owner)
        {
            return Ok(OpResult::Unchanged);
        }
        let owner = put.owner.clone().or_else(|| old.as_ref().and_then(|o| o.owner.clone()));
        if let Some(previous) = old.as_ref().and_then(|o| o.owner.as_ref())
            && Some(previous) != owner.as_ref()
        {
            self.owned.remove_mut(&(previous.clone(), put.key.clone()));
        }
        if let Some(owner) = &owner {
            self.owned.insert_mut((owner.clone(), put.key.clone()), ());
        }
        let new = Arc::new(Resource {
            key: put.key.clone(),
            labels: put.labels.clone(),
            spec: put.spec.clone(),
            status,
            owner,
            created: old.as_ref().map_or(at, |o| o.created),
            modified: at,
            version: old.as_ref().map_or(1, |o| o.version.saturating_add(1)),
            create_revision: old.as_ref().map_or(revision, |o| o.create_revision),
            mod_revision: revision,
        });
        let done = if old.is_some() { OpResult::Updated } else { OpResult::Created };
        self.view.objects.insert_mut(put.key.clone(), new.clone());
        touched.entry(put.key.clone()).or_insert((old, None)).1 = Some(new);
        Ok(done)
    }

    fn delete(&mut self, key: &ResourceKey, expect: Expect, touched: &mut Touched) -> Result<OpResult, OpError> {
        self.check(key, expect)?;
        if self.view.get(key).is_none() {
            return Ok(OpResult::Unchanged);
        }
        let mut removed = 0;
        let mut level = vec![key.clone()];
        for _ in 0..MAX_CASCADE_DEPTH {
            let mut next = Vec::new();
            for key in level {
                let Some(old) = self.view.objects.get(&key).cloned() else {
                    continue;
                };
                if let Some(owner) = &old.owner {
                    self.owned.remove_mut(&(owner.clone(), key.clone()));
                }
                next.extend(self.owned_by(&key));
                self.view.objects.remove_mut(&key);
                touched.entry(key).or_insert((Some(old), None)).1 = None;
                removed += 1;
            }
            if next.is_empty() {
                break;
            }
            level = next;
        }
        Ok(OpResult::Deleted(removed))
    }

    fn owned_by(&self, owner: &ResourceKey) -> Vec<ResourceKey> {
        let start = (owner.clone(), ResourceKey::first(ursa_model::Kind::Mesh, ""));
        self.owned
            .range(start..)
            .map(|(pair, ())| pair)
            .take_while(|(o, _)| o == owner)
            .map(|(_, child)| child.clone())
            .collect()
    }
}
