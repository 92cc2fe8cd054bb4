//! Going through revisions, wherever they are kept, as if all were the same.
use std::{
    ops::ControlFlow::{self, Break, Continue},
    sync::Arc,
};

use ursa_model::{Resource, ResourceKey, Timestamp};

use super::{Operation, PastError, Wanted};
use crate::{
    change::{GlobalRevision, Revision, RevisionChanges},
    history::{Block, Damaged, Packed, PackedChange, Run, hash},
};

impl Wanted<'_> {
    pub(super) fn has(&self, key: &ResourceKey) -> bool {
        match self {
            Self::Key(wanted) => *wanted == key,
            Self::Those(wanted) => wanted(key),
        }
    }

    pub(super) fn may_be_in(&self, block: &Block) -> bool {
        match self {
            Self::Key(key) => block.may_touch(hash(key)),
            Self::Those(_) => true,
        }
    }
}

/// A change as it was met.
pub(super) struct Met<'a> {
    pub(super) key: ResourceKey,
    pub(super) operation: Operation,
    before: Before<'a>,
}

enum Before<'a> {
    Known(&'a Option<Arc<Resource>>),
    Packed(&'a PackedChange<'a>),
}

impl Met<'_> {
    pub(super) fn before(&self) -> Result<Option<Arc<Resource>>, Damaged> {
        match &self.before {
            Before::Known(value) => Ok((*value).clone()),
            Before::Packed(change) => change.before(),
        }
    }
}

pub(super) struct MetRevision<'a> {
    pub(super) revision: Revision,
    pub(super) at: Timestamp,
    pub(super) actor: &'a str,
    pub(super) global: Option<GlobalRevision>,
    pub(super) changes: Vec<Met<'a>>,
}

impl<'a> MetRevision<'a> {
    fn of_packed(packed: &'a Packed<'a>, wanted: Wanted<'_>) -> Result<Self, Damaged> {
        let mut changes = Vec::new();
        for change in &packed.changes {
            let key = change.key()?;
            if wanted.has(&key) {
                changes.push(Met {
                    key,
                    operation: operation(change.is_new(), change.gone),
                    before: Before::Packed(change),
                });
            }
        }
        Ok(Self {
            revision: packed.revision,
            at: Timestamp(packed.at),
            actor: packed.actor,
            global: packed.global(),
            changes,
        })
    }

    fn of_recent(recent: &'a RevisionChanges, wanted: Wanted<'_>) -> Self {
        let of_interest = recent.changes.iter().filter(|c| wanted.has(&c.key));
        Self {
            revision: recent.revision,
            at: recent.at,
            actor: &recent.actor,
            global: recent.global,
            changes: of_interest
                .map(|change| Met {
                    key: change.key.clone(),
                    operation: operation(change.before.is_none(), change.after.is_none()),
                    before: Before::Known(&change.before),
                })
                .collect(),
        }
    }
}

fn operation(is_new: bool, gone: bool) -> Operation {
    match (is_new, gone) {
        (_, true) => Operation::Delete,
        (true, false) => Operation::Create,
        (false, false) => Operation::Update,
    }
}

pub(super) type Flow = Result<ControlFlow<()>, Damaged>;

/// The revisions of one run.
pub(super) fn visit(
    run: &Run<'_>,
    wanted: Wanted<'_>,
    newest_first: bool,
    each: &mut dyn FnMut(MetRevision<'_>) -> Flow,
) -> Result<ControlFlow<()>, PastError> {
    let block = match run {
        Run::Packed(block) => block,
        Run::Recent(recent) => return each(MetRevision::of_recent(recent, wanted)).map_err(|d| at(recent.revision, recent.revision, d)),
    };
    let inside = || -> Flow {
        let unpacked = block.unpack()?;
        let mut all = Block::read(&unpacked)?;
        if newest_first {
            all.reverse();
        }
        for packed in &all {
            if each(MetRevision::of_packed(packed, wanted)?)?.is_break() {
                return Ok(Break(()));
            }
        }
        Ok(Continue(()))
    };
    let mut inside = inside;
    inside().map_err(|d| at(block.head.first, block.head.last, d))
}

fn at(first: Revision, last: Revision, damaged: Damaged) -> PastError {
    PastError::Damaged {
        first,
        last,
        reason: damaged.0,
    }
}
