//! The state once more, in sled: what can be rebuilt at any time from snapshot and log, readable key by key without holding it in memory.
//! In: views, after they were published. Out: resources and changes by revision.
//! Invariants: nothing waits for it; it is never the source of the state. It is used again only after a clean close or under the same
//! boot of the machine, and only if every byte is what was written: sled's `flush` is no fsync, a power loss can take all of it, silently.
//! Anything wrong with it, at open or later, costs a rebuild and nothing else.
mod db;
mod marks;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use ursa_model::{Resource, ResourceKey};
use ursa_runtime::error::Chain;
use ursa_runtime::lease;
use ursa_state::{HistoryId, Revision, RevisionChanges, View};

use crate::disk::Disk;
use crate::seal::{KeyId, Keys};
use db::Db;

/// Why the cache gives nothing; a rebuild is under way or it is switched off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("sled")]
    Sled(#[from] sled::Error),
    #[error("the cache holds something else than was written: {0}")]
    Damaged(String),
    #[error("the cache is closed")]
    Closed,
    #[error("the cache did not answer in time")]
    Slow,
}

/// Which picture the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    pub history: HistoryId,
    pub revision: Revision,
    /// Resources in it.
    pub objects: u64,
    /// What was found at open was used again.
    pub reused: bool,
    /// Times that it was filled from nothing since open.
    pub rebuilt: u32,
    /// The data key with which it is sealed.
    pub key: Option<KeyId>,
}

/// Longest wait for an answer of the cache's thread. sled has been seen to hang on damaged files; nobody may hang with it.
const ANSWER: Duration = Duration::from_secs(10);
/// Jobs that may wait: reads. Views are not queued, the newest one is fetched.
const QUEUE: usize = 64;

/// Handle to the cache, which lives on a thread of its own. See the module's text.
#[derive(Clone, Debug)]
pub struct Cache {
    jobs: mpsc::Sender<Job>,
    status: watch::Receiver<CacheStatus>,
}

/// Runs on the cache's thread.
type Job = Box<dyn FnOnce(&mut Inner) + Send>;

struct Inner {
    dir: PathBuf,
    keys: Keys,
    db: Option<Db>,
    views: watch::Receiver<View>,
    status: watch::Sender<CacheStatus>,
    closed: bool,
}

impl Cache {
    /// Opens the cache in `dir`, sealed with `keys`, on its thread: empty unless what is there may be used again. It follows `views`. `None` where sled has
    /// no files to work on.
    pub fn open(disk: &dyn Disk, dir: &Path, keys: &Keys, views: watch::Receiver<View>) -> Option<Self> {
        let dir = disk.real_path(dir)?;
        Self::start(dir, marks::boot_id(), keys.clone(), views)
            .inspect_err(|error| tracing::warn!(%error, "no cache: it has no thread"))
            .ok()
    }

    fn start(dir: PathBuf, boot_id: String, keys: Keys, views: watch::Receiver<View>) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let (sender, status) = watch::channel(CacheStatus::default());
        std::thread::Builder::new().name("store-cache".to_owned()).spawn(move || {
            let mut inner = Inner {
                dir,
                keys,
                db: None,
                views,
                status: sender,
                closed: false,
            };
            inner.begin(&boot_id);
            inner.catch_up();
            while !inner.closed
                && let Some(job) = queue.blocking_recv()
            {
                job(&mut inner);
                if inner.views.has_changed().unwrap_or(false) {
                    inner.catch_up();
                }
            }
        })?;
        Ok(Self { jobs, status })
    }

    /// What it holds.
    pub fn status(&self) -> CacheStatus {
        *self.status.borrow()
    }

    /// The same, as it changes.
    pub fn watch_status(&self) -> watch::Receiver<CacheStatus> {
        self.status.clone()
    }

    /// A resource as of [`CacheStatus::revision`].
    ///
    /// # Errors
    /// See [`Error`]; ask the view instead.
    pub async fn get(&self, key: ResourceKey) -> Result<Option<Resource>, Error> {
        self.ask(move |inner| inner.db.as_ref().ok_or(Error::Closed)?.get(&key)).await?
    }

    /// What one revision changed, if it is kept.
    ///
    /// # Errors
    /// See [`Error`]; ask the view instead.
    pub async fn changes(&self, revision: Revision) -> Result<Option<RevisionChanges>, Error> {
        self.ask(move |inner| inner.db.as_ref().ok_or(Error::Closed)?.changes(revision))
            .await?
    }

    /// A hint that there is a newer view. Never waits: if the queue is full, what is in it is followed by a look at the newest view.
    pub(crate) fn wake(&self) {
        let _ = self.jobs.try_send(Box::new(Inner::catch_up));
    }

    /// Whether what it holds is sealed with another key than the active one, or not at all.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn is_foreign(&self) -> Result<bool, Error> {
        self.ask(|inner| inner.is_foreign()).await
    }

    /// Fills it anew, if it is not sealed with the active key. A cache that is closed is as good.
    ///
    /// # Errors
    /// It is not known to be gone.
    pub(crate) async fn reseal(&self) -> Result<(), Error> {
        self.ask(Inner::reseal).await?
    }

    /// Brings it up to the newest view, makes all of it durable and notes that it was closed in order.
    pub(crate) async fn close(&self) {
        if let Err(error) = self.ask(Inner::close).await {
            tracing::warn!(error = %Chain(&error), "the cache was not closed in order, the next start rebuilds it");
        }
    }

    async fn ask<T: Send + 'static>(&self, work: impl FnOnce(&mut Inner) -> T + Send + 'static) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |inner| {
            // Whoever asked may be gone.
            let _ = sender.send(work(inner));
        });
        let answer = async {
            self.jobs.send(job).await.map_err(|_| Error::Closed)?;
            receiver.await.map_err(|_| Error::Closed)
        };
        lease::within(ANSWER, answer).await.map_err(|_| Error::Slow)?
    }
}

impl Inner {
    /// Takes what is there if it may be used again, or makes an empty one.
    fn begin(&mut self, boot_id: &str) {
        let usable = marks::begin(&self.dir, boot_id);
        let found = usable.and_then(|usable| {
            if usable {
                Db::open(&marks::db_path(&self.dir), self.keys.active()).map(Some)
            } else {
                Ok(None)
            }
        });
        let reused = found.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "the cache cannot be used again, it is rebuilt");
            None
        });
        match reused.filter(|db| !db.is_empty()) {
            Some(db) => {
                self.db = Some(db);
                self.status.send_modify(|status| status.reused = true);
            }
            None => {
                if let Err(error) = self.start_anew(boot_id) {
                    tracing::warn!(error = %Chain(&error), "no cache: it cannot be made");
                }
            }
        }
        self.note();
    }

    fn catch_up(&mut self) {
        let view = self.views.borrow_and_update().clone();
        let done = self.db.as_mut().map(|db| db.catch_up(&view));
        if let Some(Err(error)) = &done {
            tracing::warn!(error = %Chain(error), "the cache has failed, it is rebuilt");
        }
        // One that could not be rebuilt is tried again with the next view: a disk may have room again.
        if !matches!(done, Some(Ok(()))) {
            let again = self
                .start_anew(&marks::boot_id())
                .and_then(|()| self.db.as_mut().map_or(Ok(()), |db| db.catch_up(&view)));
            if let Err(error) = again {
                if done.is_some() {
                    tracing::warn!(error = %Chain(&error), "no cache for now: it cannot be rebuilt");
                }
                self.let_go();
            }
        }
        self.note();
    }

    fn is_foreign(&self) -> bool {
        match &self.db {
            Some(db) => db.meta().key != self.keys.active_id(),
            // One that could not be removed.
            None => self.keys.active_id().is_some() && marks::db_path(&self.dir).exists(),
        }
    }

    fn reseal(&mut self) -> Result<(), Error> {
        if self.is_foreign() {
            self.start_anew(&marks::boot_id())?;
            self.catch_up();
        }
        Ok(())
    }

    fn close(&mut self) {
        if self.db.is_some() {
            self.catch_up();
        }
        self.closed = true;
        let Some(db) = self.db.take() else { return };
        if let Err(error) = db.close().and_then(|()| marks::end(&self.dir)) {
            tracing::warn!(error = %Chain(&error), "the cache was not closed in order, the next start rebuilds it");
        }
    }

    fn start_anew(&mut self, boot_id: &str) -> Result<(), Error> {
        self.let_go();
        marks::wipe(&self.dir, boot_id)?;
        self.db = Some(Db::open(&marks::db_path(&self.dir), self.keys.active())?);
        self.status.send_modify(|status| status.rebuilt += 1);
        Ok(())
    }

    /// Lets go of what is open.
    fn let_go(&mut self) {
        if let Some(db) = self.db.take() {
            db.let_go();
        }
    }

    fn note(&mut self) {
        let meta = self.db.as_ref().map(Db::meta).unwrap_or_default();
        self.status.send_modify(|status| {
            *status = CacheStatus {
                history: meta.history,
                revision: meta.revision,
                objects: meta.objects,
                key: meta.key,
                ..*status
            };
        });
    }
}
