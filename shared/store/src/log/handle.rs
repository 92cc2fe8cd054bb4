//! The log as others see it: hand in, get called back, read.
//! In: entries and marks, in order. Out: callbacks once durable; entries.
//! Invariant: the order in which calls return is the order on disk. Entries can be read when the call returns, before they are durable.
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::memory::{Found, Memory};
use super::writer::{Job, Op, Writer};
use super::{EntryId, Error, Failure, Item, Options, Refused, Vote, record, recover, rewrite, segment};
use crate::defects::{self, Defect};
use crate::disk::{self, Disk};
use crate::seal::Keys;

/// Called once the job is durable, or never will be. Runs on the writer's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// Kept until the writer has ended, such as the lock on the folder: nobody else may write before.
pub type Guard = Box<dyn std::any::Any + Send>;

/// What the log says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    pub vote: Option<Vote>,
    /// Known to be committed. May lag behind after a crash.
    pub committed: Option<EntryId>,
    /// Newest entry that was purged.
    pub purged: Option<EntryId>,
    /// Newest entry, or the purged one if none follows it.
    pub last: Option<EntryId>,
}

/// Handle to the log; clones share it. When all are dropped the writer ends; see also [`Log::close`].
pub struct Log<E> {
    disk: Arc<dyn Disk>,
    dir: Arc<Path>,
    keys: Keys,
    memory: Arc<Mutex<Memory<E>>>,
    queue: Queue<E>,
}

enum Queue<E> {
    /// A thread of its own, for disks that wait. It takes all that is queued as one batch: while one batch syncs, the next collects.
    /// Its receiver is told, by an error, when the thread has ended.
    Thread(mpsc::Sender<Job<E>>, watch::Receiver<()>),
    /// In the caller, for disks that do not.
    Inline(Arc<Mutex<Writer<E>>>),
}

impl<E> Clone for Log<E> {
    fn clone(&self) -> Self {
        let queue = match &self.queue {
            Queue::Thread(sender, ended) => Queue::Thread(sender.clone(), ended.clone()),
            Queue::Inline(writer) => Queue::Inline(writer.clone()),
        };
        Self {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            keys: self.keys.clone(),
            memory: self.memory.clone(),
            queue,
        }
    }
}

impl<E> std::fmt::Debug for Log<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl<E: Item> Log<E> {
    /// Opens the log in `dir`, making it if it is not there; entries are sealed with `keys`. Blocks on the disk. `guard` is dropped when nothing can be written any
    /// more: with [`Log::close`], or some time after the last handle is gone.
    ///
    /// # Errors
    /// See [`Error`]; a torn tail is none.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, keys: &Keys, guard: Option<Guard>) -> Result<Self, Error> {
        let mut writer = recover::open(&disk, dir, options, keys)?;
        writer.guard = guard;
        let memory = writer.memory.clone();
        let dir_name: Arc<Path> = dir.into();
        let queue = if disk.waits() {
            let (sender, receiver) = mpsc::channel(options.queue.max(1));
            let (running, ended) = watch::channel(());
            let spawned = std::thread::Builder::new()
                .name("log-writer".to_owned())
                .spawn(move || run(writer, receiver, running));
            spawned.map_err(|source| Error::Io {
                action: "start the writer of",
                path: dir.to_owned(),
                source,
            })?;
            Queue::Thread(sender, ended)
        } else {
            aside(writer)
        };
        Ok(Self {
            disk,
            dir: dir_name,
            keys: keys.clone(),
            memory,
            queue,
        })
    }

    /// The state as handed in, durable or not.
    pub fn state(&self) -> LogState {
        let memory = self.memory.lock();
        LogState {
            vote: memory.vote,
            committed: memory.committed,
            purged: memory.purged,
            last: memory.last(),
        }
    }

    /// How often the log was synced since it was opened, and how long all of that took.
    pub fn syncs(&self) -> (u64, Duration) {
        self.memory.lock().syncs
    }

    /// Becomes `Some` when the log takes nothing more.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.memory.lock().watch_failed()
    }

    /// `Some`, with the reason, while the disk takes nothing although nothing is lost. What is handed in all the same is written as long as
    /// there is room that was taken before, and waits then; see [`Log::retry`].
    pub fn refused(&self) -> watch::Receiver<Option<Refused>> {
        self.memory.lock().watch_refused()
    }

    /// Has the writer find out whether the disk takes writes again, and write what waits. Whatever else is handed in does so, too.
    ///
    /// # Errors
    /// The log takes nothing more.
    pub async fn retry(&self) -> Result<(), Error> {
        self.submit(Op::Retry, None).await
    }

    /// Appends entries that follow the last. They can be read on return; `done` is called when they are durable.
    /// Waits only for room in the queue. Cancel-safe: dropped before it returns, nothing was appended.
    ///
    /// # Errors
    /// [`Error::Hole`], or the log takes nothing more; `done` is not called then.
    pub async fn append(&self, entries: Vec<E>, done: Done) -> Result<(), Error> {
        self.submit(Op::Append(entries), Some(done)).await
    }

    /// Saves the vote; durable on return.
    ///
    /// # Errors
    /// It may or may not be durable.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), Error> {
        self.submit_and_wait(Op::Vote(vote)).await
    }

    /// Notes that everything up to `id` is committed. Becomes durable with what is written next, or never.
    ///
    /// # Errors
    /// The log takes nothing more.
    pub async fn save_committed(&self, id: EntryId) -> Result<(), Error> {
        self.submit(Op::Committed(id), None).await
    }

    /// Removes the entries after `to` (all, if `None`); durable on return.
    ///
    /// # Errors
    /// It may or may not be durable.
    pub async fn truncate_after(&self, to: Option<EntryId>) -> Result<(), Error> {
        self.submit_and_wait(Op::Truncate(to)).await
    }

    /// Removes the entries up to `upto`. They are gone on return; files go once that is durable.
    ///
    /// # Errors
    /// The log takes nothing more.
    pub async fn purge(&self, upto: EntryId) -> Result<(), Error> {
        self.submit(Op::Purge(upto), None).await
    }

    /// Writes a mark that everything is in order and takes nothing more. Reads go on working.
    ///
    /// # Errors
    /// It was not in order.
    pub async fn close(&self) -> Result<(), Error> {
        self.submit_and_wait(Op::Close).await?;
        if let Queue::Thread(_, ended) = &self.queue {
            // Nothing is ever sent: this returns when the thread has ended, and with it what it guarded.
            let _ = ended.clone().changed().await;
        }
        Ok(())
    }

    /// The entries of `range` that exist, oldest first: at least one, then as many as fit in `limit` bytes.
    ///
    /// # Errors
    /// The file system, or damage that came after the log was opened.
    pub async fn read(&self, range: Range<u64>, limit: usize) -> Result<Vec<E>, Error> {
        let found = self.memory.lock().find(range, limit)?;
        if found.iter().all(|found| matches!(found, Found::Here(_))) || !self.disk.waits() {
            return resolve(found, &self.dir);
        }
        let dir = self.dir.clone();
        let path = dir.to_path_buf();
        let read = disk::run(&*self.disk, move || Ok(resolve(found, &dir))).await;
        read.map_err(|source| Error::Io {
            action: "read entries of",
            path,
            source,
        })?
    }

    /// Files that are not sealed with the active key.
    pub(crate) fn foreign(&self) -> Vec<u64> {
        let (active, memory) = (self.keys.active_id(), self.memory.lock());
        let parts = memory.files.iter();
        parts.filter(|(_, part)| part.key_id() != active).map(|(seq, _)| *seq).collect()
    }

    /// Seals with the active key whatever is not: new entries from now on, and every file of before.
    ///
    /// # Errors
    /// Some of it may be left; nothing is lost.
    pub(crate) async fn reseal(&self) -> Result<(), Error> {
        if self.foreign().is_empty() {
            return Ok(());
        }
        self.submit_and_wait(Op::Roll).await?;
        let current = self.memory.lock().files.keys().next_back().copied();
        for seq in self.foreign().into_iter().filter(|seq| Some(*seq) != current) {
            let key = self.keys.active();
            let part = self.memory.lock().files.get(&seq).cloned();
            let (Some(part), Some(key)) = (part, key) else { continue };
            let (disk, dir) = (self.disk.clone(), self.dir.clone());
            let path = segment::path(&dir, seq);
            let failed = |source| Error::Io {
                action: "encrypt anew",
                path,
                source,
            };
            let work = move || Ok::<_, io::Error>(rewrite::rewrite(&*disk, &dir, seq, &part, key)?);
            let replaced = async {
                let mut new = disk::run(&*self.disk, work).await?;
                let (told, done) = oneshot::channel();
                new.done = Some(told);
                self.submit(Op::Replace(Box::new(new)), None).await?;
                done.await.map_err(io::Error::other)?
            };
            replaced.await.map_err(failed)?;
        }
        match self.foreign().is_empty() {
            true => Ok(()),
            // While the disk is full the present file goes on.
            false => Err(Error::Io {
                action: "encrypt anew all of",
                path: self.dir.to_path_buf(),
                source: io::ErrorKind::StorageFull.into(),
            }),
        }
    }

    async fn submit_and_wait(&self, op: Op<E>) -> Result<(), Error> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            // Whoever waited may be gone.
            let _ = sender.send(result);
        });
        self.submit(op, Some(done)).await?;
        match receiver.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::Disk("its writer ended".to_owned()).into()),
        }
    }

    async fn submit(&self, op: Op<E>, done: Option<Done>) -> Result<(), Error> {
        match &self.queue {
            Queue::Thread(sender, _) => {
                let closed = |_| self.memory.lock().failed().unwrap_or(Failure::Disk("its writer ended".to_owned()));
                let permit = sender.reserve().await.map_err(closed)?;
                // Under one lock, so that memory and queue have the same order.
                let mut memory = self.memory.lock();
                admit(&mut memory, &op)?;
                let early = defects::on(Defect::AnswerBeforeSync) && matches!(op, Op::Append(_));
                let mut job = Job { op, done };
                if early {
                    job.acknowledge();
                }
                permit.send(job);
                Ok(())
            }
            Queue::Inline(_) => self.submit_batch(vec![Job { op, done }]),
        }
    }

    /// Hands in a batch that is synced as one. Only for disks that do not wait.
    pub(super) fn submit_batch(&self, jobs: Vec<Job<E>>) -> Result<(), Error> {
        let Queue::Inline(writer) = &self.queue else { return Ok(()) };
        let mut writer = writer.lock();
        for job in &jobs {
            admit(&mut self.memory.lock(), &job.op)?;
        }
        writer.process(jobs);
        Ok(())
    }
}

/// Takes a job into memory, or refuses it.
fn admit<E: Item>(memory: &mut Memory<E>, op: &Op<E>) -> Result<(), Error> {
    if let Some(failure) = memory.failed() {
        return Err(failure.into());
    }
    match op {
        Op::Append(entries) => {
            let ids: Vec<EntryId> = entries.iter().map(Item::id).collect();
            memory.check_run(&ids)?;
            for entry in entries {
                memory.push(entry.id(), entry.encode().len(), Some(entry.clone()), None)?;
            }
        }
        Op::Vote(vote) => memory.vote = Some(*vote),
        Op::Committed(id) => memory.committed = memory.committed.max(Some(*id)),
        Op::Truncate(to) => memory.truncate_after(*to),
        Op::Purge(upto) => memory.purge(*upto),
        Op::Roll | Op::Replace(_) | Op::Retry | Op::Close => {}
    }
    Ok(())
}

/// The writer's thread.
fn run<E: Item>(mut writer: Writer<E>, mut queue: mpsc::Receiver<Job<E>>, running: watch::Sender<()>) {
    let memory = writer.memory.clone();
    let limit = writer.options.batch_bytes;
    let work = std::panic::AssertUnwindSafe(|| {
        while let Some(first) = queue.blocking_recv() {
            let jobs = gather(first, &mut queue, limit);
            let closes = jobs.iter().any(|job| matches!(job.op, Op::Close));
            writer.process(jobs);
            if closes {
                return;
            }
        }
    });
    if std::panic::catch_unwind(work).is_err() {
        memory.lock().fail(Failure::Disk("its writer panicked".to_owned()));
    }
    drop(writer.guard.take());
    drop(running);
}

/// The next batch: `first` and what else is waiting.
pub(super) fn gather<E: Item>(first: Job<E>, queue: &mut mpsc::Receiver<Job<E>>, limit: usize) -> Vec<Job<E>> {
    let mut bytes = weight(&first.op);
    let mut jobs = vec![first];
    while bytes < limit
        && let Ok(job) = queue.try_recv()
    {
        bytes += weight(&job.op);
        jobs.push(job);
    }
    jobs
}

/// The writer of a disk that does not wait: in the caller, or, where syncs take simulated time, as a task.
fn aside<E: Item>(writer: Writer<E>) -> Queue<E> {
    #[cfg(any(test, feature = "testing"))]
    if writer.disk.sync_time().is_some() {
        let (sender, receiver) = mpsc::channel(writer.options.queue.max(1));
        let (running, ended) = watch::channel(());
        super::testing::spawn(writer, receiver, running);
        return Queue::Thread(sender, ended);
    }
    Queue::Inline(Arc::new(Mutex::new(writer)))
}

fn weight<E: Item>(op: &Op<E>) -> usize {
    match op {
        Op::Append(entries) => entries.iter().map(|entry| entry.encode().len() + record::HEADER).sum(),
        _ => record::HEADER,
    }
}

fn resolve<E: Item>(found: Vec<Found<E>>, dir: &Path) -> Result<Vec<E>, Error> {
    found
        .into_iter()
        .map(|found| match found {
            Found::Here(entry) => Ok(entry),
            Found::On { id, place, part } => part.read(id, place, &segment::path(dir, place.segment)),
        })
        .collect()
}
