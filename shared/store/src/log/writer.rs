//! The one place that writes the log: jobs in order become records, one write and at most one sync per batch.
//! In: batches of jobs. Out: their callbacks, after the sync.
//! Invariants: one batch is synced before the next is written; a job that must be durable is answered only after the sync that
//! covers it; after a failure every job is answered with it, and nothing is written. A batch that the disk refused keeps its bytes and its
//! place, and nothing is written before it.
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::handle::{Done, Guard};
use super::memory::{Memory, Place};
use super::part::{self, Part};
use super::record::{self, Content};
use super::rewrite::Rewritten;
use super::segment::{self, Head, Sealing};
use super::{EntryId, Failure, Item, Options, Refused, Vote};
use crate::defects::{self, Defect};
use crate::disk::{self, Disk, DiskFile};
use crate::seal::{DataKey, Keys};

/// What a job asks for.
pub(super) enum Op<E> {
    Append(Vec<E>),
    Vote(Vote),
    /// Not worth a sync of its own: what is committed can be learnt again.
    Committed(EntryId),
    Truncate(Option<EntryId>),
    Purge(EntryId),
    /// Nothing but another try to write what the disk refused.
    Retry,
    /// What follows is written with the active key.
    Roll,
    /// Puts a file that was written anew in its place.
    Replace(Box<Rewritten>),
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

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The disk took nothing, and nothing was synced yet: the same bytes can be written to the same place later.
    Refused(io::Error),
    Failed(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// For what takes space or changes names, but never for a sync.
pub(super) fn refused_or_failed(error: io::Error) -> Trouble {
    if disk::is_refusal(&error) {
        Trouble::Refused(error)
    } else {
        Trouble::Failed(error)
    }
}

/// What the bytes in the buffer are.
pub(super) struct Batch {
    /// The first so many of the jobs that wait.
    jobs: usize,
    placed: Vec<(EntryId, Place)>,
    sync: bool,
    closes: bool,
    purges: bool,
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct Current {
    pub seq: u64,
    pub file: Arc<dyn DiskFile>,
    /// The key of its entries; `None`: they are in the clear.
    pub key: Option<Arc<DataKey>>,
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
    pub keys: Keys,
    pub memory: Arc<Mutex<Memory<E>>>,
    pub current: Current,
    /// What the records so far say; becomes the head of the next file.
    pub head: Head,
    /// Greatest index of an entry in each file, `None` if it has none.
    pub newest_in: BTreeMap<u64, Option<u64>>,
    pub buf: Vec<u8>,
    /// Handed in and not answered yet.
    pub waiting: Vec<Job<E>>,
    /// In the buffer, but not written.
    pub batch: Option<Batch>,
    /// Why no space could be taken ahead the last time, if the disk refused.
    pub no_room: Option<String>,
    /// Held for as long as anything may be written.
    pub guard: Option<Guard>,
}

impl<E: Item> Writer<E> {
    /// Carries out jobs, after those that wait. Callbacks run on this thread.
    pub(super) fn process(&mut self, jobs: Vec<Job<E>>) {
        let retries = jobs.iter().any(|job| matches!(job.op, Op::Retry));
        self.waiting.extend(jobs.into_iter().filter(|job| !matches!(job.op, Op::Retry)));
        if retries && self.waiting.is_empty() {
            self.look_for_room();
        }
        while !self.waiting.is_empty() {
            let failed = self.memory.lock().failed();
            if let Some(failure) = failed {
                return self.give_up(failure);
            }
            let (what, error) = match self.write() {
                Ok(batch) => {
                    self.finish(&batch);
                    continue;
                }
                Err(Trouble::Refused(error)) if !self.waiting.iter().any(|job| matches!(job.op, Op::Close)) => {
                    return self.tell(Some(error.to_string()));
                }
                // Nobody will try again.
                Err(Trouble::Refused(error)) => (
                    "the log is closed while the disk takes nothing: what it did not take is lost, and was not acknowledged",
                    error,
                ),
                Err(Trouble::Failed(error)) => ("the log can no longer be written: this node stops", error),
            };
            tracing::error!(segment = self.current.seq, %error, "{what}");
            let failure = self.memory.lock().fail(Failure::Disk(error.to_string()));
            self.give_up(failure);
        }
    }

    /// Says whether the disk takes writes.
    fn tell(&self, reason: Option<String>) {
        let closed = self.batch.is_some() || !self.has_room();
        let refused = reason.clone().map(|reason| Refused { reason, closed });
        if !self.memory.lock().refuse(refused) {
            return;
        }
        match reason {
            Some(reason) => tracing::error!(
                segment = self.current.seq,
                reason,
                "the disk takes nothing: this node refuses writes until it does"
            ),
            None => tracing::info!("the disk takes writes again"),
        }
    }

    /// Answers the jobs of a batch that is written.
    fn finish(&mut self, batch: &Batch) {
        if batch.closes {
            // Before the answer: whoever got it finds the log closed.
            self.memory.lock().fail(Failure::Closed);
        }
        self.tell(self.no_room.clone());
        let mut rewritten = Vec::new();
        for job in self.waiting.drain(..batch.jobs) {
            match job.op {
                Op::Replace(new) => rewritten.push(new),
                _ => job.finish(Ok(())),
            }
        }
        for new in rewritten {
            let is_there = new.seq < self.current.seq && self.newest_in.contains_key(&new.seq);
            new.take_place(&*self.disk, &self.dir, is_there, &self.memory);
        }
        if batch.purges {
            self.remove_old();
        }
    }

    /// Answers all jobs: nothing is written any more.
    fn give_up(&mut self, failure: Failure) {
        if self.waiting.iter().any(|job| matches!(job.op, Op::Close)) {
            self.memory.lock().fail(Failure::Closed);
        }
        for job in self.waiting.drain(..) {
            job.finish(Err(failure.clone()));
        }
    }

    /// While the disk refused and nothing waits: whether there is room again.
    fn look_for_room(&mut self) {
        let refused = self.memory.lock().is_refused();
        if refused {
            self.buf.clear();
            // There is nothing to write for which the room would be needed now.
            let _ = self.reserve();
            self.tell(self.no_room.clone());
        }
    }

    /// Encodes what waits, if that is not done yet, and writes it, with at most one sync.
    fn write(&mut self) -> Result<Batch, Trouble> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => {
                self.buf.clear();
                let key = self.keys.active();
                let is_other = key.as_ref().map(|key| key.id()) != self.current.key.as_ref().map(|key| key.id());
                if is_other || self.current.written >= self.options.segment_bytes {
                    self.roll(key)?;
                }
                let jobs = std::mem::take(&mut self.waiting);
                let encoded = self.encode(&jobs);
                self.waiting = jobs;
                encoded?
            }
        };
        if self.buf.is_empty() {
            if batch.sync && self.current.durable < self.current.written {
                self.sync()?;
            }
            return Ok(batch);
        }
        let written = self.reserve().and_then(|()| {
            let file = &self.current.file;
            file.write_at(self.current.written, &self.buf).map_err(refused_or_failed)
        });
        if let Err(trouble) = written
            && !(matches!(trouble, Trouble::Refused(_)) && defects::on(Defect::RefusedCountsAsWritten))
        {
            self.batch = Some(batch);
            return Err(trouble);
        }
        self.current.written += self.buf.len() as u64;
        self.current.reserved = self.current.reserved.max(self.current.written);
        if batch.closes {
            self.trim()?;
        }
        if !batch.placed.is_empty() {
            let mut memory = self.memory.lock();
            for (id, place) in &batch.placed {
                memory.written(*id, *place);
            }
        }
        if batch.sync {
            self.sync()?;
        }
        Ok(batch)
    }

    /// Puts the records of all that waits into the buffer.
    fn encode(&mut self, jobs: &[Job<E>]) -> io::Result<Batch> {
        let mut batch = Batch {
            jobs: jobs.len(),
            placed: Vec::new(),
            sync: false,
            closes: false,
            purges: false,
        };
        let mut committed = None;
        for job in jobs {
            match &job.op {
                // The newest is enough, and it comes last so that it never runs ahead of its entry.
                Op::Committed(id) => committed = committed.max(Some(*id)),
                Op::Append(entries) => {
                    for entry in entries {
                        batch.placed.push((entry.id(), self.append(entry)?));
                    }
                    batch.sync = true;
                }
                Op::Vote(vote) => {
                    self.head.vote = Some(*vote);
                    self.put(&Content::Vote(*vote));
                    batch.sync |= !defects::on(Defect::VoteNotSynced);
                }
                Op::Truncate(to) => {
                    self.head.last = (*to).max(self.head.purged);
                    if !defects::on(Defect::TruncateNotWritten) {
                        self.put(&Content::Truncate(*to));
                    }
                    batch.sync = true;
                }
                Op::Purge(upto) => {
                    self.purge(*upto);
                    batch.purges = true;
                    batch.sync = true;
                }
                // That of the folder is durable with the next sync of the file.
                Op::Roll => batch.sync = true,
                Op::Retry | Op::Replace(_) => {}
                Op::Close => {
                    self.put(&Content::Close);
                    batch.closes = true;
                    batch.sync = true;
                }
            }
        }
        if let Some(id) = committed
            && self.head.committed < Some(id)
        {
            self.head.committed = Some(id);
            self.put(&Content::Committed(id));
        }
        Ok(batch)
    }

    /// Adds a record to the batch. Returns where it will be.
    fn put(&mut self, content: &Content<'_>) -> (u64, usize) {
        record::encode(&mut self.buf, self.current.seq, self.current.written, self.current.durable, content)
    }

    fn append(&mut self, entry: &E) -> io::Result<Place> {
        let (id, begin) = (entry.id(), self.current.written + self.buf.len() as u64);
        let payload = part::seal(self.current.key.as_deref(), id, self.current.seq, begin, entry.encode())?;
        let (offset, size) = self.put(&Content::Entry(id, &payload));
        self.head.last = Some(id);
        let newest = self.newest_in.entry(self.current.seq).or_default();
        *newest = (*newest).max(Some(id.index));
        Ok(Place {
            segment: self.current.seq,
            offset,
            size,
        })
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

    pub(super) fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let synced = self.current.file.sync_data();
        let took = begun.elapsed();
        {
            let mut memory = self.memory.lock();
            let (count, time) = memory.syncs;
            memory.syncs = (count + 1, time + took);
        }
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

    /// Registers the current file and puts its header and head into the batch.
    pub(super) fn open_current(&mut self) {
        let seq = self.current.seq;
        let part = Part {
            file: self.current.file.clone(),
            key: self.current.key.clone(),
        };
        let sealing = part.key_id().map(|key| Sealing { key, instead: None });
        self.memory.lock().files.insert(seq, part);
        self.newest_in.insert(seq, None);
        self.buf.extend_from_slice(&segment::header(seq, sealing.is_some()));
        let mut head = self.head.encode();
        head.extend(sealing.iter().flat_map(Sealing::encode));
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
pub(super) fn begin(disk: &dyn Disk, dir: &std::path::Path, seq: u64, key: Option<Arc<DataKey>>) -> io::Result<Current> {
    let file = disk.create(&segment::path(dir, seq))?;
    Ok(Current {
        seq,
        file,
        key,
        written: 0,
        durable: 0,
        reserved: 0,
        named: false,
    })
}
