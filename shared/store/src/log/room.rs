//! Space of the log that is taken ahead of what is written: it makes syncs cheaper, and tells early that the disk is full.
//! In: what is about to be written. Out: whether there is room for it.
//! Invariant: as long as space can be taken at all, so much stays ahead of what is written that votes and marks can be written although the
//! disk is full: a full node goes on to follow, to vote and to purge, and only what its users keep back, entries, would need more.
//! On a file system that takes no space ahead, or whose space may be taken away again, the write itself is what is refused.
use std::io;
use std::sync::Arc;

use super::Item;
use super::writer::{self, Trouble, Writer, refused_or_failed};
use crate::disk;
use crate::seal::DataKey;

/// The part of a file's length that is taken at a time.
const RESERVED_PART: u64 = 4;
/// The part of a file's length that is left when the disk is said to be full: by default 1 MiB, more than 10,000 votes.
const ROOM_PART: u64 = 8;
/// Least that is taken to find out whether there is space again.
const PROBE: u64 = 4096;

impl<E: Item> Writer<E> {
    /// Takes space ahead of what is about to be written, if there is not enough. Without it the log works as well, only slower.
    ///
    /// # Errors
    /// [`Trouble::Refused`]: there is none, and what was taken before does not suffice for the buffer.
    pub(super) fn reserve(&mut self) -> Result<(), Trouble> {
        let end = self.current.written + self.buf.len() as u64;
        if end + self.room() <= self.current.reserved && self.no_room.is_none() {
            return Ok(());
        }
        match self.take_to(end + self.room() + self.part()) {
            Some(refusal) if end > self.current.reserved => Err(Trouble::Refused(refusal)),
            _ => Ok(()),
        }
    }

    /// Half of the room is left: the other half is for entries that follow what is there already, so that who is full comes level with the
    /// others as long as it can.
    pub(super) fn has_room(&self) -> bool {
        self.current.written + self.room() / 2 <= self.current.reserved
    }

    fn room(&self) -> u64 {
        self.options.segment_bytes / ROOM_PART
    }

    fn part(&self) -> u64 {
        self.options.segment_bytes / RESERVED_PART
    }

    /// Takes space up to there. Returns why the disk refused, if it did.
    fn take_to(&mut self, upto: u64) -> Option<io::Error> {
        let reserved = self.current.reserved;
        let upto = if upto > reserved { upto } else { reserved + PROBE };
        let refusal = match self.current.file.reserve(reserved, upto - reserved) {
            Ok(()) => {
                self.current.reserved = upto;
                None
            }
            Err(error) if disk::is_refusal(&error) => Some(error),
            Err(error) => {
                tracing::debug!(%error, "no space is taken ahead for the log");
                None
            }
        };
        self.no_room = refusal.as_ref().map(ToString::to_string);
        refusal
    }

    /// Gives back what was taken ahead. Durable with the next sync.
    pub(super) fn trim(&mut self) -> Result<(), Trouble> {
        if self.current.reserved > self.current.written {
            self.current.file.set_len(self.current.written).map_err(refused_or_failed)?;
            self.current.reserved = self.current.written;
        }
        Ok(())
    }

    /// Begins the next file. All of the one before is durable first, its length too: that it has a successor proves it.
    /// While there is no space for another file, the present one goes on: its room is given back only when there is more.
    pub(super) fn roll(&mut self, key: Option<Arc<DataKey>>) -> Result<(), Trouble> {
        if self.take_to(self.current.reserved + self.room() + self.part()).is_some() {
            return Ok(());
        }
        let is_trimmed = self.current.reserved == self.current.written;
        self.trim()?;
        if !is_trimmed || self.current.durable < self.current.written {
            self.sync()?;
        }
        match writer::begin(&*self.disk, &self.dir, self.current.seq + 1, key) {
            Ok(next) => {
                self.head.previous_len = Some(self.current.written);
                self.current = next;
                self.open_current();
            }
            Err(error) if disk::is_refusal(&error) => self.no_room = Some(error.to_string()),
            Err(error) => return Err(Trouble::Failed(error)),
        }
        Ok(())
    }
}
