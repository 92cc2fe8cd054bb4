//! The one place that writes the log: jobs in order become records, one write and at most one sync per batch.
//! In: batches of jobs. Out: their callbacks, after the sync.
//! Invariants: one batch is synced before the next is written; a job that must be durable is answered only after the sync that
//! covers it; after a failure every job is answered with it, and nothing is written.
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{Done, Guard};
use super::memory::{Memory, Place};
use super::record::{self, Content};
use super::segment::{self, Head};
use super::{EntryId, Failure, Item, Options, Vote};
use crate::defects::{self, Defect};
use crate::disk::{Disk, DiskFile};

/// The part of a file's length that is reserved at a time.
const RESERVED_PART: u64 = 4;

/// What a job asks for.
pub(super) enum Op<E> {
    Append(Vec<E>),
    Vote(Vote),
    /// Not worth a sync of its own: what is committed can be learnt again.
    Committed(EntryId),
    Truncate(Option<EntryId>),
    Purge(EntryId),
    Close,
}

pub(super) struct Job<E> {
    pub op: Op<E>,
    pub done: Option<Done>,
}

impl<E> Job<E> {
    /// Says that it is durable.
    pub(super) fn acknowledge(&mut self) {
        if let Some(done) = self.done.take() {
            done(Ok(()));
        }
    }

    fn finish(self, result: Result<(), Failure>) {
        if let Some(done) = self.done {
            done(result);
        }
    }
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct Current {
    pub seq: u64,
    pub file: Arc<dyn DiskFile>,
    /// Length, synced or not.
    pub written: u64,
    /// Synced up to here.
    pub durable: u64,
    /// Length of the file: what follows `written` is zeros.
    pub reserved: u64,
    /// Its name is durable too.
    pub named: bool,
}

/// See the module's text.
pub(super) struct Writer<E> {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub options: Options,
    pub memory: Arc<Mutex<Memory<E>>>,
    pub current: Current,
    /// What the records so far say; becomes the head of the next file.
    pub head: Head,
    /// Greatest index of an entry in each file, `None` if it has none.
    pub newest_in: BTreeMap<u64, Option<u64>>,
    pub buf: Vec<u8>,
    /// Held for as long as anything may be written.
    pub guard: Option<Guard>,
}

impl<E: Item> Writer<E> {
    /// Carries out a batch. Callbacks run on this thread.
    pub(super) fn process(&mut self, jobs: Vec<Job<E>>) {
        let failed = self.memory.lock().failed();
        let result = match failed {
            Some(failure) => Err(failure),
            None => self.write(&jobs).map_err(|error| {
                let failure = self.memory.lock().fail(Failure::Disk(error.to_string()));
                tracing::error!(segment = self.current.seq, %error, "the log can no longer be written: this node stops");
                failure
            }),
        };
        let purges = jobs.iter().any(|job| matches!(job.op, Op::Purge(_)));
        let closes = jobs.iter().any(|job| matches!(job.op, Op::Close));
        if closes {
            // Before the answer: whoever got it finds the log closed.
            self.memory.lock().fail(Failure::Closed);
        }
        for job in jobs {
            job.finish(result.clone());
        }
        if result.is_ok() && purges {
            self.remove_old();
        }
    }

    fn write(&mut self, jobs: &[Job<E>]) -> io::Result<()> {
        self.buf.clear();
        if self.current.written >= self.options.segment_bytes {
            self.roll()?;
        }
        let mut placed = Vec::new();
        let mut committed = None;
        let mut sync = false;
        for job in jobs {
            match &job.op {
                // The newest is enough, and it comes last so that it never runs ahead of its entry.
                Op::Committed(id) => committed = committed.max(Some(*id)),
                Op::Append(entries) => {
                    for entry in entries {
                        placed.push((entry.id(), self.append(entry)));
                    }
                    sync = true;
                }
                Op::Vote(vote) => {
                    self.head.vote = Some(*vote);
                    self.put(&Content::Vote(*vote));
                    sync |= !defects::on(Defect::VoteNotSynced);
                }
                Op::Truncate(to) => {
                    self.head.last = (*to).max(self.head.purged);
                    if !defects::on(Defect::TruncateNotWritten) {
                        self.put(&Content::Truncate(*to));
                    }
                    sync = true;
                }
                Op::Purge(upto) => {
                    self.purge(*upto);
                    sync = true;
                }
                Op::Close => {
                    self.put(&Content::Close);
                    sync = true;
                }
            }
        }
        if let Some(id) = committed
            && self.head.committed < Some(id)
        {
            self.head.committed = Some(id);
            self.put(&Content::Committed(id));
        }
        if self.buf.is_empty() {
            return Ok(());
        }
        self.reserve();
        self.current.file.write_at(self.current.written, &self.buf)?;
        self.current.written += self.buf.len() as u64;
        self.current.reserved = self.current.reserved.max(self.current.written);
        if jobs.iter().any(|job| matches!(job.op, Op::Close)) {
            self.trim()?;
        }
        if !placed.is_empty() {
            let mut memory = self.memory.lock();
            for (id, place) in placed {
                memory.written(id, place);
            }
        }
        if sync { self.sync() } else { Ok(()) }
    }

    /// Adds a record to the batch. Returns where it will be.
    fn put(&mut self, content: &Content<'_>) -> (u64, usize) {
        record::encode(&mut self.buf, self.current.seq, self.current.written, self.current.durable, content)
    }

    fn append(&mut self, entry: &E) -> Place {
        let id = entry.id();
        let (offset, size) = self.put(&Content::Entry(id, &entry.encode()));
        self.head.last = Some(id);
        let newest = self.newest_in.entry(self.current.seq).or_default();
        *newest = (*newest).max(Some(id.index));
        Place {
            segment: self.current.seq,
            offset,
            size,
        }
    }

    fn purge(&mut self, upto: EntryId) {
        self.head.purged = self.head.purged.max(Some(upto));
        self.head.last = self.head.last.max(self.head.purged);
        let current = self.current.seq;
        let needed = self
            .newest_in
            .iter()
            .find(|(seq, newest)| **seq == current || **newest > Some(upto.index));
        self.head.first_segment = needed.map_or(current, |(seq, _)| *seq);
        self.put(&Content::Purge {
            upto,
            first_segment: self.head.first_segment,
        });
    }

    fn sync(&mut self) -> io::Result<()> {
        let synced = self.current.file.sync_data();
        if !defects::on(Defect::FailedSyncIgnored) {
            synced?;
        }
        if !self.current.named {
            if !defects::on(Defect::FolderOfLogNotSynced) {
                self.disk.sync_dir(&self.dir)?;
            }
            self.current.named = true;
        }
        self.current.durable = self.current.written;
        Ok(())
    }

    /// Takes space ahead of what is written. Without it the log works as well, only slower.
    fn reserve(&mut self) {
        let Current {
            file, written, reserved, ..
        } = &mut self.current;
        let end = *written + self.buf.len() as u64;
        if end <= *reserved {
            return;
        }
        let upto = end + self.options.segment_bytes / RESERVED_PART;
        match file.reserve(*reserved, upto - *reserved) {
            Ok(()) => *reserved = upto,
            Err(error) => tracing::debug!(%error, "no space is taken ahead for the log"),
        }
    }

    /// Gives back what was taken ahead. Durable with the next sync.
    fn trim(&mut self) -> io::Result<()> {
        if self.current.reserved > self.current.written {
            self.current.file.set_len(self.current.written)?;
            self.current.reserved = self.current.written;
        }
        Ok(())
    }

    /// Begins the next file. All of the one before is durable first, its length too: that it has a successor proves it.
    fn roll(&mut self) -> io::Result<()> {
        let is_trimmed = self.current.reserved == self.current.written;
        self.trim()?;
        if !is_trimmed || self.current.durable < self.current.written {
            self.sync()?;
        }
        self.head.previous_len = Some(self.current.written);
        self.current = begin(&*self.disk, &self.dir, self.current.seq + 1)?;
        self.open_current();
        Ok(())
    }

    /// Registers the current file and puts its header and head into the batch.
    pub(super) fn open_current(&mut self) {
        let seq = self.current.seq;
        self.memory.lock().files.insert(seq, self.current.file.clone());
        self.newest_in.insert(seq, None);
        self.buf.extend_from_slice(&segment::header(seq));
        let head = self.head.encode();
        self.put(&Content::Head(&head));
    }

    /// Writes and syncs header and head of a file that was just begun.
    pub(super) fn flush_head(&mut self) -> io::Result<()> {
        self.current.file.write_at(0, &self.buf)?;
        self.current.written = self.buf.len() as u64;
        self.current.reserved = self.current.written;
        self.buf.clear();
        self.sync()
    }

    /// Removes files that the synced purge mark no longer needs. A failure is no harm: the next open removes them.
    fn remove_old(&mut self) {
        let old: Vec<u64> = self.newest_in.range(..self.head.first_segment).map(|(seq, _)| *seq).collect();
        for seq in old {
            let path = segment::path(&self.dir, seq);
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove an old part of the log");
                return;
            }
            self.newest_in.remove(&seq);
            self.memory.lock().files.remove(&seq);
        }
    }
}

/// A new, empty file with this number.
pub(super) fn begin(disk: &dyn Disk, dir: &std::path::Path, seq: u64) -> io::Result<Current> {
    let file = disk.create(&segment::path(dir, seq))?;
    Ok(Current {
        seq,
        file,
        written: 0,
        durable: 0,
        reserved: 0,
        named: false,
    })
}
