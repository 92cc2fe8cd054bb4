//! What each revision changed: the newest as they were applied, older ones packed into blocks.
//! In: the changes of every revision, once. Out: the same, until they are forgotten ([`crate::past`] reads them).
//! Invariants: a pure function of what was pushed and forgotten, so that every replica packs the same revisions into the same blocks;
//! clones share everything; memory is bounded whatever happens ([`MAX_REVISIONS`], [`MAX_BYTES`]). Nothing that `apply` does reads a block.
//!
//! What a revision costs beside its log entry: among the newest [`RECENT`] its old values as they are in memory, 2 to 4 KiB; older, its old
//! values as JSON, packed together with its neighbours, and 4 bytes per change to find it: 90 to 250 bytes for policies of half a KiB
//! (`tests/history_cost.rs` measures it).
mod block;
#[cfg(test)]
mod tests;

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;
use ursa_model::Timestamp;

use crate::change::{GlobalRevision, Revision, RevisionChanges};

pub(crate) use block::{Block, Damaged, Packed, PackedChange, hash};

/// Revisions kept as they were applied: what watchers, resuming zones and the cache go back by.
pub const RECENT: usize = 10_000;
/// Changes in these at the most (beyond the newest revision), for one revision may change many resources.
const RECENT_CHANGES: usize = 50_000;
/// Revisions in a block: enough for neighbours to share most of their bytes, few enough to unpack in well under a millisecond.
const BLOCK: usize = 64;
/// Revisions kept at the most, whatever the retention says.
pub const MAX_REVISIONS: u64 = 1_000_000;
/// Bytes of old values in blocks at the most, before packing, whatever the retention says.
pub const MAX_BYTES: u64 = 1 << 30;

/// Sizes; other ones only in tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) recent: usize,
    pub(crate) recent_changes: usize,
    pub(crate) block: usize,
    pub(crate) revisions: u64,
    pub(crate) bytes: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            recent: RECENT,
            recent_changes: RECENT_CHANGES,
            block: BLOCK,
            revisions: MAX_REVISIONS,
            bytes: MAX_BYTES,
        }
    }
}

/// How much history is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub revisions: u64,
    /// In blocks: old values before packing, and what they take.
    pub bytes: u64,
    pub packed_bytes: u64,
    pub blocks: u64,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) window: Window,
    recent: RedBlackTreeMapSync<Revision, Arc<RevisionChanges>>,
    recent_changes: usize,
    /// By their last revision.
    blocks: RedBlackTreeMapSync<Revision, Arc<Block>>,
    packed: Kept,
    /// Changes up to and including this revision are forgotten.
    floor: Revision,
}

/// A run of revisions, oldest first.
pub(crate) enum Run<'a> {
    Packed(&'a Block),
    Recent(&'a RevisionChanges),
}

impl History {
    pub(crate) fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Takes in a recent revision as it was, without packing any.
    pub(crate) fn restore(&mut self, entry: Arc<RevisionChanges>) {
        self.recent_changes += entry.changes.len();
        self.recent.insert_mut(entry.revision, entry);
    }

    /// Takes in the newest revision.
    pub(crate) fn push(&mut self, entry: Arc<RevisionChanges>) {
        self.restore(entry);
        while self.recent.size() >= self.window.recent + self.window.block
            || (self.recent_changes > self.window.recent_changes && self.recent.size() > 1)
        {
            self.pack();
        }
        while self.revisions() > self.window.revisions || self.packed.bytes > self.window.bytes {
            match self.blocks.first().map(|(last, _)| *last) {
                Some(last) => self.forget(last),
                None => break,
            }
        }
    }

    /// Moves the oldest recent revisions, but never the newest, into a block.
    fn pack(&mut self) {
        let most = self.window.block.min(self.recent.size().saturating_sub(1));
        let oldest: Vec<Arc<RevisionChanges>> = self.recent.values().take(most).cloned().collect();
        let Some(last) = oldest.last().map(|c| c.revision) else { return };
        for changes in &oldest {
            self.drop_recent(changes.revision);
        }
        match Block::of(&oldest) {
            Some(block) => self.insert_block(Arc::new(block)),
            // What has no encoding cannot be kept. A resource always has one.
            None => self.forget(last),
        }
    }

    pub(crate) fn insert_block(&mut self, block: Arc<Block>) {
        self.packed.revisions += u64::from(block.head.revisions);
        self.packed.bytes += u64::from(block.head.bytes);
        self.packed.packed_bytes += block.packed_len();
        self.packed.blocks += 1;
        self.blocks.insert_mut(block.head.last, block);
    }

    fn drop_recent(&mut self, revision: Revision) {
        if let Some(changes) = self.recent.get(&revision) {
            self.recent_changes = self.recent_changes.saturating_sub(changes.changes.len());
            self.recent.remove_mut(&revision);
        }
    }

    /// Forgets what changed up to and including `floor`.
    pub(crate) fn forget(&mut self, floor: Revision) {
        self.floor = self.floor.max(floor);
        while let Some(block) = self.blocks.first().map(|(_, b)| b.clone()).filter(|b| b.head.last <= floor) {
            self.packed.revisions -= u64::from(block.head.revisions);
            self.packed.bytes -= u64::from(block.head.bytes);
            self.packed.packed_bytes -= block.packed_len();
            self.packed.blocks -= 1;
            self.blocks.remove_mut(&block.head.last);
        }
        while let Some(oldest) = self.recent.first().map(|(r, _)| *r).filter(|r| *r <= floor) {
            self.drop_recent(oldest);
        }
    }

    /// Forgets the newest revision, for an earlier picture.
    pub(crate) fn take_back(&mut self, newest: Revision) {
        self.drop_recent(newest);
    }

    /// The newest revision that is kept, and when it was.
    pub(crate) fn newest(&self) -> Option<(Revision, Timestamp)> {
        let recent = self.recent.last().map(|(r, c)| (*r, c.at));
        recent.or_else(|| self.blocks.last().map(|(r, b)| (*r, Timestamp(b.head.last_at))))
    }

    /// The newest global revision that is kept.
    pub(crate) fn newest_global(&self) -> Option<GlobalRevision> {
        let recent = self.recent.values().rev().find_map(|c| c.global);
        recent.or_else(|| self.blocks.values().rev().find_map(|b| b.head.global))
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// Changes after this revision are here as they were applied.
    pub(crate) fn recent_floor(&self) -> Revision {
        self.floor.max(self.blocks.last().map_or(0, |(last, _)| *last))
    }

    pub(crate) fn recent_after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Arc<RevisionChanges>> {
        self.recent.range((Bound::Excluded(revision), Bound::Unbounded)).map(|(_, c)| c)
    }

    pub(crate) fn recent(&self) -> impl DoubleEndedIterator<Item = &Arc<RevisionChanges>> {
        self.recent.values()
    }

    pub(crate) fn blocks(&self) -> impl DoubleEndedIterator<Item = &Arc<Block>> {
        self.blocks.values()
    }

    /// Runs with revisions after `after` (and, in the first block, some before), oldest first.
    pub(crate) fn runs(&self, after: Revision) -> impl DoubleEndedIterator<Item = Run<'_>> {
        let after = after.max(self.floor);
        let blocks = self.blocks.range((Bound::Excluded(after), Bound::Unbounded));
        blocks
            .map(|(_, block)| Run::Packed(block))
            .chain(self.recent_after(after).map(|changes| Run::Recent(changes)))
    }

    /// Revisions kept; up to a block of those at the floor counts although it cannot be read.
    pub(crate) fn revisions(&self) -> u64 {
        self.packed.revisions + self.recent.size() as u64
    }

    pub(crate) fn kept(&self) -> Kept {
        Kept {
            revisions: self.revisions(),
            ..self.packed
        }
    }
}
