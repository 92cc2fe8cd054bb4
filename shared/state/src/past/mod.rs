//! Reading the past of a [`View`]: a resource or everything at an earlier revision, what changed between two, what each revision changed.
//! In: a view. Out: the same answers for as long as the revisions are kept; an error that names the oldest one below it.
//! Cost: one resource, and the changes of one, look into the blocks that touch its key only; everything else unpacks all blocks from the
//! older revision on, some hundred thousand changes a second. So not on an async thread, unless the range is known to be short.
mod walk;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
    time::Duration,
};

use ursa_model::{Resource, ResourceKey, Timestamp};

use crate::{
    change::{Change, GlobalRevision, Revision},
    history::{History, Kept, Run},
    view::View,
};
use walk::{Flow, MetRevision, visit};

/// Why the past cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PastError {
    /// It was compacted away.
    #[error("revision {asked} is no longer kept: the oldest that can be read is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// It has not happened yet.
    #[error("revision {asked} has not happened yet: the newest is {newest}")]
    Newer { asked: Revision, newest: Revision },
    /// A fault of this program or machine.
    #[error("the history from revision {first} to {last} cannot be read: {reason}")]
    Damaged { first: Revision, last: Revision, reason: String },
}

/// What became of a key in a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// One revision of the log of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    pub revision: Revision,
    pub at: Timestamp,
    /// Who asked; empty for the control plane itself.
    pub actor: String,
    pub global: Option<GlobalRevision>,
    /// Those that were wanted, by key.
    pub changes: Vec<(ResourceKey, Operation)>,
}

/// Which keys are of interest. One key is found by index.
#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    Key(&'a ResourceKey),
    Those(&'a dyn Fn(&ResourceKey) -> bool),
}

/// What is kept. The last revision itself can always be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Revisions to keep, and up to a block of 64 more.
    pub revisions: u64,
    /// Older ones are dropped, but for the newest [`Retention::ALWAYS`]: a clock that is wrong must not take all of it.
    pub age: Duration,
}

impl Retention {
    /// Revisions that age alone never takes.
    pub const ALWAYS: u64 = 1_000;
}

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a>(&'a View);

impl<'a> Past<'a> {
    pub(crate) fn of(view: &'a View) -> Self {
        Self(view)
    }

    /// The oldest revision that can be read.
    pub fn oldest(&self) -> Revision {
        self.0.history.floor()
    }

    /// How much is kept.
    pub fn kept(&self) -> Kept {
        self.0.history.kept()
    }

    fn check(&self, asked: Revision) -> Result<(), PastError> {
        let (oldest, newest) = (self.oldest(), self.0.revision());
        if asked < oldest {
            Err(PastError::Compacted { asked, oldest })
        } else if asked > newest {
            Err(PastError::Newer { asked, newest })
        } else {
            Ok(())
        }
    }

    /// The newest revision at that time; `None` if it is not kept.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn revision_at(&self, time: Timestamp) -> Result<Option<Revision>, PastError> {
        let mut newest = None;
        let nothing = |_: &ResourceKey| false;
        for run in self.0.history.runs(self.oldest()) {
            match &run {
                Run::Packed(block) if block.head.first_at > time.0 => break,
                Run::Packed(block) if block.head.last_at <= time.0 => newest = Some(block.head.last),
                Run::Recent(recent) if recent.at > time => break,
                Run::Recent(recent) => newest = Some(recent.revision),
                Run::Packed(_) => {
                    let _ = visit(&run, Wanted::Those(&nothing), false, &mut |met| {
                        if met.at <= time {
                            newest = Some(met.revision);
                        }
                        Ok(Continue(()))
                    })?;
                }
            }
        }
        // Below the floor, all that is known is that it was before.
        Ok(newest.filter(|revision| *revision > self.oldest()))
    }

    /// One resource as it was.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn get(&self, key: &ResourceKey, at: Revision) -> Result<Option<Arc<Resource>>, PastError> {
        self.check(at)?;
        let mut found = None;
        self.walk(at, self.0.revision(), Wanted::Key(key), &mut |met| match met.changes.first() {
            Some(change) => {
                found = Some(change.before()?);
                Ok(Break(()))
            }
            None => Ok(Continue(())),
        })?;
        Ok(found.unwrap_or_else(|| self.0.get(key).cloned()))
    }

    /// The resources that are wanted as they were, by key.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn those(&self, wanted: Wanted<'_>, at: Revision) -> Result<Vec<Arc<Resource>>, PastError> {
        self.check(at)?;
        let now = self.0.iter().filter(|r| wanted.has(&r.key));
        let mut all: BTreeMap<ResourceKey, Arc<Resource>> = now.map(|r| (r.key.clone(), r.clone())).collect();
        for (key, before) in self.first_changes(at, self.0.revision(), wanted)? {
            match before {
                Some(before) => all.insert(key, before),
                None => all.remove(&key),
            };
        }
        Ok(all.into_values().collect())
    }

    /// Everything as it was. The picture has no past of its own.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn view(&self, at: Revision) -> Result<View, PastError> {
        self.check(at)?;
        if let Ok(view) = self.0.at(at) {
            return Ok(view);
        }
        let mut objects = self.0.objects.clone();
        for (key, before) in self.first_changes(at, self.0.revision(), Wanted::Those(&|_| true))? {
            match before {
                Some(before) => objects.insert_mut(key, before),
                None => {
                    objects.remove_mut(&key);
                }
            }
        }
        let (mut newest, mut moved_global, mut global) = (None, false, None);
        let nothing = |_: &ResourceKey| false;
        for run in self.0.history.runs(self.oldest()).rev() {
            if let Run::Packed(block) = &run
                && block.head.first > at
            {
                moved_global |= block.head.global.is_some();
                continue;
            }
            let _ = visit(&run, Wanted::Those(&nothing), true, &mut |met| {
                if met.revision > self.0.revision() || met.revision <= self.oldest() {
                    return Ok(Continue(()));
                }
                if met.revision > at {
                    moved_global |= met.global.is_some();
                } else {
                    newest = newest.or(Some((met.revision, met.at)));
                    global = global.or(met.global);
                }
                Ok(if newest.is_some() && (global.is_some() || !moved_global) {
                    Break(())
                } else {
                    Continue(())
                })
            })?;
            if newest.is_some() && (global.is_some() || !moved_global) {
                break;
            }
        }
        let (revision, time) = newest.unwrap_or((at, Timestamp::default()));
        Ok(View {
            origin: self.0.origin.clone(),
            history_id: self.0.history_id,
            revision,
            time,
            global: if moved_global { global } else { self.0.global },
            objects,
            history: History::starting_at(revision),
        })
    }

    /// What is different at `to` from what was at `from`, by key. A key that is the same again is left out.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn diff(&self, from: Revision, to: Revision, wanted: Wanted<'_>) -> Result<Vec<Change>, PastError> {
        self.check(from)?;
        self.check(to)?;
        let mut before = self.first_changes(from, to, wanted)?;
        let of_interest = |key: &ResourceKey| wanted.has(key) && before.contains_key(key);
        let wanted_after = match wanted {
            Wanted::Key(_) => wanted,
            Wanted::Those(_) => Wanted::Those(&of_interest),
        };
        let mut after = if before.is_empty() || to == self.0.revision() {
            BTreeMap::new()
        } else {
            self.first_changes(to, self.0.revision(), wanted_after)?
        };
        let mut found = Vec::new();
        while let Some((key, before)) = before.pop_first() {
            let after = after.remove(&key).unwrap_or_else(|| self.0.get(&key).cloned());
            let same = match (&before, &after) {
                (Some(before), Some(after)) => before.same_content(after) && before.owner == after.owner,
                (before, after) => before.is_none() && after.is_none(),
            };
            if !same {
                found.push(Change { key, before, after });
            }
        }
        Ok(found)
    }

    /// What each revision after `from` up to and including `to` changed, newest first, at most `most`. Those that changed nothing that is
    /// wanted are left out if `touching` says so.
    ///
    /// # Errors
    /// See [`PastError`].
    pub fn log(&self, from: Revision, to: Revision, wanted: Wanted<'_>, touching: bool, most: usize) -> Result<Vec<LogEntry>, PastError> {
        self.check(from)?;
        self.check(to)?;
        let mut found = Vec::new();
        for run in self.0.history.runs(from).rev() {
            if found.len() >= most {
                break;
            }
            match &run {
                Run::Packed(block) if block.head.first > to || (touching && !wanted.may_be_in(block)) => continue,
                Run::Recent(recent) if recent.revision > to => continue,
                _ => {}
            }
            let _ = visit(&run, wanted, true, &mut |met| {
                if met.revision > to || met.revision <= from || (touching && met.changes.is_empty()) {
                    return Ok(Continue(()));
                }
                found.push(LogEntry {
                    revision: met.revision,
                    at: met.at,
                    actor: met.actor.to_owned(),
                    global: met.global,
                    changes: met.changes.into_iter().map(|c| (c.key, c.operation)).collect(),
                });
                Ok(if found.len() < most { Continue(()) } else { Break(()) })
            })?;
        }
        Ok(found)
    }

    /// Up to where history may be forgotten now; `None` if all of it is to be kept.
    pub fn floor_for(&self, keep: Retention, now: Timestamp) -> Option<Revision> {
        let oldest_kept = now.0.saturating_sub(u64::try_from(keep.age.as_millis()).unwrap_or(u64::MAX));
        let mut left = self.0.history.revisions();
        let mut floor = None;
        for run in self.0.history.runs(self.oldest()) {
            let (count, last, last_at) = match &run {
                Run::Packed(block) => (u64::from(block.head.revisions), block.head.last, block.head.last_at),
                Run::Recent(recent) => (1, recent.revision, recent.at.0),
            };
            left = left.saturating_sub(count);
            let too_many = left >= keep.revisions;
            let too_old = last_at < oldest_kept && left >= Retention::ALWAYS;
            if !too_many && !too_old {
                break;
            }
            floor = Some(last);
        }
        floor.filter(|floor| *floor > self.oldest())
    }

    /// Of each wanted key that changed in that range, the value before its first change.
    fn first_changes(&self, after: Revision, upto: Revision, wanted: Wanted<'_>) -> Result<Values, PastError> {
        let mut first = BTreeMap::new();
        self.walk(after, upto, wanted, &mut |met| {
            for change in met.changes {
                if let Entry::Vacant(place) = first.entry(change.key.clone()) {
                    place.insert(change.before()?);
                }
            }
            Ok(Continue(()))
        })?;
        Ok(first)
    }

    /// Every revision after `after` up to and including `upto`, oldest first, with the changes that are wanted.
    fn walk(
        &self,
        after: Revision,
        upto: Revision,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(MetRevision<'_>) -> Flow,
    ) -> Result<(), PastError> {
        for run in self.0.history.runs(after) {
            match &run {
                Run::Packed(block) if block.head.first > upto => break,
                Run::Packed(block) if !wanted.may_be_in(block) => continue,
                Run::Recent(recent) if recent.revision > upto => break,
                _ => {}
            }
            let flow = visit(&run, wanted, false, &mut |met| {
                if met.revision <= after || met.revision > upto {
                    return Ok(Continue(()));
                }
                each(met)
            })?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }
}

type Values = BTreeMap<ResourceKey, Option<Arc<Resource>>>;
