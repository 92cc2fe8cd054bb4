//! Rotation of the data key, beside the running store: what is on disk is sealed anew, part by part, and the old keys go.
//! In: an operator's word; or data that was never encrypted, for which it is the same. Out: where it stands.
//! Invariants: the new key is in the ring, durably, before anything is sealed with it; an old one leaves it only after the last byte under it
//! is gone, durably; whatever ends the process in between, the next one goes on. Only this node's folder is concerned.
use std::io;
use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;
use ursa_runtime::error::Chain;
use ursa_runtime::{Backoff, CancellationToken};

use super::{Inner, Store};
use crate::seal::{self, KeyId, Keys};
use crate::{cache, disk, log, snapshot};

/// Before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// How the data of this node is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionStatus {
    /// What is written now is sealed with it. `None`: encryption is off.
    pub key: Option<KeyId>,
    /// Keys of before, under which there is still something.
    pub old_keys: Vec<KeyId>,
    /// The key-encryption key.
    pub kek: Option<String>,
    /// Files of the log that are still to be sealed anew.
    pub log_files: u64,
    /// Files of snapshots that are.
    pub snapshots: u64,
    /// Everything is sealed with the one key.
    pub settled: bool,
    /// Why it does not get on; it is tried again.
    pub problem: Option<String>,
}

/// What a pass did not get done.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error("{files} files are still under another key")]
    Left { files: usize },
    #[error("cannot make sure that what was removed stays so, or drop the old keys")]
    Io(#[from] io::Error),
}

/// What the runner and those who ask share.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Rotations asked for so far.
    asked: watch::Sender<u64>,
    told: watch::Sender<EncryptionStatus>,
}

impl Progress {
    /// Before the first look.
    pub(crate) fn new(keys: &Keys) -> Self {
        let key = keys.active_id();
        let told = EncryptionStatus {
            key,
            settled: key.is_none(),
            kek: keys.kek_id(),
            ..EncryptionStatus::default()
        };
        Self {
            asked: watch::Sender::new(0),
            told: watch::Sender::new(told),
        }
    }
}

impl Store {
    /// How the data of this node is encrypted, and how far a rotation is.
    pub fn encryption(&self) -> EncryptionStatus {
        self.inner.encryption.told.borrow().clone()
    }

    /// The same, as it changes.
    pub fn watch_encryption(&self) -> watch::Receiver<EncryptionStatus> {
        self.inner.encryption.told.subscribe()
    }

    /// Makes a new data key for this node, durably, with which everything is sealed from now on; what is there follows beside the running
    /// store, see [`Store::watch_encryption`].
    ///
    /// # Errors
    /// See [`seal::Error`]; nothing was changed.
    pub async fn rotate_key(&self) -> Result<KeyId, seal::Error> {
        let Inner { disk, keys, .. } = &*self.inner;
        let ring = keys.clone();
        let made = if disk.waits() {
            let made = tokio::task::spawn_blocking(move || ring.rotate()).await;
            made.map_err(|error| seal::Error::Io {
                action: "write",
                path: self.inner.folder.lock().part(seal::RING_FILE),
                source: io::Error::other(error),
            })?
        } else {
            ring.rotate()
        }?;
        tracing::info!(key = %made, "a new data key: what is on disk is encrypted anew");
        self.inner.encryption.told.send_modify(|told| {
            told.settled = false;
            told.old_keys.extend(told.key.replace(made));
        });
        self.inner.encryption.asked.send_modify(|asked| *asked += 1);
        Ok(made)
    }
}

/// Seals anew whatever is not sealed with the active key: once at the start, and whenever there is a new one.
pub(crate) async fn run(inner: Weak<Inner>, closing: CancellationToken) {
    let Some(mut asked) = inner.upgrade().map(|inner| inner.encryption.asked.subscribe()) else {
        return;
    };
    loop {
        asked.mark_unchanged();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let Some(inner) = inner.upgrade() else { return };
            let done = pass(&inner).await;
            let problem = done.as_ref().err().map(|error| Chain(error).to_string());
            if let Some(problem) = &problem {
                tracing::warn!(error = problem, "the data is not encrypted anew yet: it will be tried again");
            }
            inner.tell(problem).await;
            drop(inner);
            if done.is_ok() {
                break;
            }
            if !backoff.wait(&closing).await {
                return;
            }
        }
        if asked.changed().await.is_err() {
            return;
        }
    }
}

/// One time through everything.
async fn pass(inner: &Inner) -> Result<(), Unfinished> {
    let Some(key) = inner.keys.active_id() else { return Ok(()) };
    let before = inner.left().await?;
    if before > 0 {
        tracing::info!(%key, files = before, "encrypting what is not under the active key");
    }
    inner.tell(None).await;
    inner.log.reseal().await?;
    inner.tell(None).await;
    let snapshots = inner.snapshots.clone();
    disk::run(&*inner.disk, move || Ok(snapshots.reseal())).await??;
    if let Some(cache) = &inner.cache {
        match cache.reseal().await {
            // It closes with the store.
            Ok(()) | Err(cache::Error::Closed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if inner.keys.ids().len() > 1 {
        match inner.left().await? {
            0 => drop_old(inner, key).await?,
            files => return Err(Unfinished::Left { files }),
        }
    }
    Ok(())
}

/// Nothing is left under the old keys. That must stay so when the power goes: removals of files become durable first.
async fn drop_old(inner: &Inner, key: KeyId) -> io::Result<()> {
    let (disk, keys): (_, Keys) = (inner.disk.clone(), inner.keys.clone());
    let parts = ["log", "snapshots"].map(|part| inner.folder.lock().part(part));
    let dropped = disk::run(&*inner.disk, move || {
        parts.iter().try_for_each(|part| disk.sync_dir(part))?;
        keys.keep_only(key)
    });
    let dropped = dropped.await?;
    tracing::info!(%key, dropped, "nothing is left under the old data keys: they are dropped");
    Ok(())
}

impl Inner {
    /// Files that are not under the active key.
    async fn left(&self) -> Result<usize, Unfinished> {
        let snapshots = self.snapshots.clone();
        let foreign = disk::run(&*self.disk, move || Ok(snapshots.foreign())).await??;
        let cache = match &self.cache {
            Some(cache) => cache.is_foreign().await.unwrap_or(false),
            None => false,
        };
        Ok(self.log.foreign().len() + foreign.len() + usize::from(cache))
    }

    async fn tell(&self, problem: Option<String>) {
        let key = self.keys.active_id();
        let snapshots = self.snapshots.clone();
        let foreign = disk::run(&*self.disk, move || Ok(snapshots.foreign())).await;
        let foreign = foreign.ok().and_then(Result::ok).map(|foreign| foreign.len());
        let log_files = self.log.foreign().len();
        let old_keys: Vec<KeyId> = self.keys.ids().into_iter().filter(|id| Some(*id) != key).collect();
        let settled = old_keys.is_empty() && log_files == 0 && foreign == Some(0) && problem.is_none();
        self.encryption.told.send_replace(EncryptionStatus {
            settled,
            key,
            old_keys,
            kek: self.keys.kek_id(),
            log_files: log_files as u64,
            snapshots: foreign.unwrap_or(0) as u64,
            problem,
        });
    }
}
