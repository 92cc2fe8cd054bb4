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
use std::sync::Arc;

use parking_lot::Mutex;
use ursa_model::{Resource, ResourceKey};
use ursa_runtime::error::Chain;
use ursa_state::{HistoryId, Revision, RevisionChanges, View};

use crate::disk::Disk;
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
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    db: Option<Db>,
    status: CacheStatus,
}

impl Cache {
    /// Opens the cache in `dir`; empty unless what is there may be used again. `None` where sled has no files to work on, or if even an
    /// empty one cannot be made.
    pub async fn open(disk: &dyn Disk, dir: &Path) -> Option<Self> {
        let dir = disk.real_path(dir)?;
        tokio::task::spawn_blocking(move || Self::open_in(&dir, &marks::boot_id()))
            .await
            .ok()?
    }

    fn open_in(dir: &Path, boot_id: &str) -> Option<Self> {
        let found = marks::begin(dir, boot_id).and_then(|usable| {
            if usable {
                Db::open(&marks::db_path(dir)).map(Some)
            } else {
                Ok(None)
            }
        });
        let reused = match found {
            Ok(Some(db)) if db.is_empty() => None,
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the cache cannot be used again, it is rebuilt");
                None
            }
        };
        let mut inner = Inner {
            dir: dir.to_owned(),
            db: None,
            status: CacheStatus::default(),
        };
        match reused {
            Some(db) => {
                inner.status.reused = true;
                inner.db = Some(db);
            }
            None => inner
                .start_anew(boot_id)
                .inspect_err(|error| tracing::warn!(error = %Chain(error), "no cache: it cannot be made"))
                .ok()?,
        }
        inner.note();
        Some(Self {
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// What it holds.
    pub fn status(&self) -> CacheStatus {
        self.inner.lock().status
    }

    /// A resource as of [`CacheStatus::revision`]. Blocks on the disk.
    ///
    /// # Errors
    /// See [`Error`]; ask the view instead.
    pub fn get(&self, key: &ResourceKey) -> Result<Option<Resource>, Error> {
        self.inner.lock().db.as_ref().ok_or(Error::Closed)?.get(key)
    }

    /// What one revision changed, if it is kept. Blocks on the disk.
    ///
    /// # Errors
    /// See [`Error`]; ask the view instead.
    pub fn changes(&self, revision: Revision) -> Result<Option<RevisionChanges>, Error> {
        self.inner.lock().db.as_ref().ok_or(Error::Closed)?.changes(revision)
    }

    /// Brings it up to `view`, on a thread for such work.
    pub async fn catch_up(&self, view: View) {
        self.blocking(move |inner| inner.catch_up(&view)).await;
    }

    /// Brings it up to `view`, makes all of it durable and notes that it was closed in order.
    pub async fn close(&self, view: View) {
        self.blocking(move |inner| {
            inner.catch_up(&view);
            let Some(db) = inner.db.take() else { return };
            if let Err(error) = db.close().and_then(|()| marks::end(&inner.dir)) {
                tracing::warn!(error = %Chain(&error), "the cache was not closed in order, the next start rebuilds it");
            }
        })
        .await;
    }

    async fn blocking(&self, work: impl FnOnce(&mut Inner) + Send + 'static) {
        let inner = self.inner.clone();
        if tokio::task::spawn_blocking(move || work(&mut inner.lock())).await.is_err() {
            tracing::warn!("the cache was left behind: its thread ended");
        }
    }
}

impl Inner {
    fn catch_up(&mut self, view: &View) {
        let Some(db) = &mut self.db else { return };
        let Err(error) = db.catch_up(view) else { return self.note() };
        tracing::warn!(error = %Chain(&error), "the cache has failed, it is rebuilt");
        let again = self
            .start_anew(&marks::boot_id())
            .and_then(|()| self.db.as_mut().map_or(Ok(()), |db| db.catch_up(view)));
        if let Err(error) = again {
            tracing::warn!(error = %Chain(&error), "no cache from here on: it cannot be rebuilt");
            self.db = None;
        }
        self.note();
    }

    fn start_anew(&mut self, boot_id: &str) -> Result<(), Error> {
        self.db = None;
        marks::wipe(&self.dir, boot_id)?;
        self.db = Some(Db::open(&marks::db_path(&self.dir))?);
        self.status.rebuilt += 1;
        Ok(())
    }

    fn note(&mut self) {
        let meta = self.db.as_ref().map(Db::meta).unwrap_or_default();
        self.status = CacheStatus {
            history: meta.history,
            revision: meta.revision,
            objects: meta.objects,
            ..self.status
        };
    }
}
