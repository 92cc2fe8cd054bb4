//! Snapshots of the state: files, written beside the running store, in two generations.
//! In: a state and what it covers. Out: the newest intact one.
//! Invariants: a file has its final name only once its content is durable; the generation before the newest stays until the next one
//! is durable, and the log is purged only behind it ([`Snapshots::purgeable`]), so that one damaged file costs nothing. A snapshot from
//! elsewhere stands for a log that this node never had: it is kept twice, until the next one. What is being sent to another node stays until
//! it has arrived, and the log after it a while longer ([`held`]). With keys, every file is sealed as a whole (`crate::seal::file`); what is
//! inside is the same.
mod file;
mod held;
mod reseal;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use ursa_state::{SnapshotError, State};

use file::Intact;
pub use file::Meta;
use held::Held;

use crate::defects::{self, Defect};
use crate::disk::{Disk, DiskFile};
use crate::log::EntryId;
use crate::seal::{self, DataKey, Keys};

const SUFFIX: &str = ".snap";
/// The second file of one that came from elsewhere. Sorts before the first one.
const AGAIN: &str = "-again.snap";
/// Being written.
const NEW: &str = ".new";
/// Found damaged; kept for whoever wants to find out why, never read.
const DAMAGED: &str = ".damaged";
/// Intact files that are kept.
const GENERATIONS: usize = 2;

/// What can go wrong with a snapshot, by what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Not whole or not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Written by a newer program.
    #[error("{} has format {found}, this program knows up to {known}; run the version that wrote it, or a newer one", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// It was sealed with a key that is not there.
    #[error("{} cannot be decrypted", path.display())]
    Key { path: PathBuf, source: seal::Error },
    /// The document in it cannot be written or read.
    #[error("{}", path.display())]
    State { path: PathBuf, source: SnapshotError },
}

impl Error {
    /// Whether another snapshot may do instead: this one is broken, rather than unreadable now or too new.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::State {
                source: SnapshotError::Json(_) | SnapshotError::History(_),
                ..
            } => true,
            Self::Io { .. }
            | Self::Key { .. }
            | Self::Newer { .. }
            | Self::State {
                source: SnapshotError::Format { .. } | SnapshotError::Io(_),
                ..
            } => false,
        }
    }
}

impl Error {
    /// The disk takes nothing at the moment. Whatever step it refused, a sync too: a file that is not whole is removed, and made anew.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Io { source, .. }
            | Self::State {
                source: SnapshotError::Io(source),
                ..
            } => crate::disk::is_refusal(source),
            Self::State { .. } | Self::Damaged { .. } | Self::Newer { .. } | Self::Key { .. } => false,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// A snapshot file, wherever it is.
#[derive(Clone, Debug)]
pub struct RaftSnapshot {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    keys: Keys,
    /// The content of a file that has no end yet.
    content: Option<Arc<dyn DiskFile>>,
    /// Set for a file that is needed no longer than this and its clones.
    _aside: Option<Arc<Aside>>,
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct Aside {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Drop for Aside {
    fn drop(&mut self) {
        // One left behind is removed at the next start.
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove a received snapshot");
        }
    }
}

impl RaftSnapshot {
    /// One of [`Snapshots::receiving`]: removed with its last clone.
    pub fn aside(disk: Arc<dyn Disk>, path: PathBuf, content: Arc<dyn DiskFile>) -> Self {
        let aside = Aside {
            disk: disk.clone(),
            path: path.clone(),
        };
        Self {
            disk,
            path,
            keys: Keys::default(),
            content: Some(content),
            _aside: Some(Arc::new(aside)),
        }
    }

    /// What the file says about itself, once all of it was found intact. Blocks on the disk.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn check(&self) -> Result<Meta, Error> {
        Ok(Intact::check(self.open()?, &self.path)?.meta)
    }

    /// Its content, decrypted as it is read. Blocks on the disk.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn open(&self) -> Result<Arc<dyn DiskFile>, Error> {
        match &self.content {
            Some(content) => Ok(content.clone()),
            None => file::open(&*self.disk, &self.path, &self.keys),
        }
    }
}

/// A snapshot in memory.
#[derive(Debug)]
pub struct Loaded {
    pub meta: Meta,
    pub state: State,
    pub path: PathBuf,
}

/// The folder of snapshots. Its calls block on the disk.
#[derive(Debug)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: Keys,
    /// Held while files change.
    files: Mutex<()>,
    /// Files begun by [`Snapshots::receiving`].
    received: AtomicU64,
    /// Newest first.
    known: Mutex<Vec<(Meta, PathBuf)>>,
    held: Mutex<Held>,
    purgeable: watch::Sender<Option<EntryId>>,
}

impl Snapshots {
    /// Opens the folder, making it if it is not there, and loads the newest intact snapshot. Damaged ones are named in the log,
    /// renamed, and returned; whether the log reaches far enough back without them is for the caller to find out.
    ///
    /// # Errors
    /// See [`Error`]; damage is none.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, keys: &Keys) -> Result<(Self, Option<Loaded>, Vec<Error>), Error> {
        let io = |action| {
            move |source| Error::Io {
                action,
                path: dir.to_owned(),
                source,
            }
        };
        disk.create_dir(dir).map_err(io("make"))?;
        let names = disk.list(dir).map_err(io("list"))?;
        for name in names.iter().filter(|name| name.ends_with(NEW)) {
            disk.remove(&dir.join(name)).map_err(io("clean up"))?;
        }
        let mut paths: Vec<PathBuf> = names
            .iter()
            .filter(|name| name.ends_with(SUFFIX))
            .map(|name| dir.join(name))
            .collect();
        paths.sort();
        paths.reverse();
        let (mut known, mut loaded, mut damaged) = (Vec::new(), None, Vec::new());
        for path in paths {
            match check_one(&*disk, &path, keys, loaded.is_none()) {
                Ok((meta, state)) => {
                    if let Some(state) = state {
                        loaded = Some(Loaded {
                            meta: meta.clone(),
                            state,
                            path: path.clone(),
                        });
                    }
                    known.push((meta, path));
                }
                Err(error) if error.is_damage() => {
                    tracing::error!(error = %ursa_runtime::error::Chain(&error), "damaged snapshot set aside, an older one and the log take its place");
                    let mut aside = path.clone().into_os_string();
                    aside.push(DAMAGED);
                    disk.rename(&path, Path::new(&aside))
                        .and_then(|()| disk.sync_dir(dir))
                        .map_err(io("set aside a file in"))?;
                    damaged.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        let snapshots = Self {
            disk,
            dir: dir.to_owned(),
            keys: keys.clone(),
            files: Mutex::new(()),
            received: AtomicU64::new(0),
            known: Mutex::new(known),
            held: Mutex::default(),
            purgeable: watch::Sender::new(None),
        };
        snapshots.drop_old();
        Ok((snapshots, loaded, damaged))
    }

    /// Up to where the log may be purged: what the older of the two generations covers. `None` before there are two.
    pub fn purgeable(&self) -> watch::Receiver<Option<EntryId>> {
        self.purgeable.subscribe()
    }

    /// The newest snapshot.
    pub fn newest(&self) -> Option<(Meta, RaftSnapshot)> {
        let known = self.known.lock();
        let (meta, path) = known.first()?;
        Some((meta.clone(), self.at(path.clone())))
    }

    fn at(&self, path: PathBuf) -> RaftSnapshot {
        RaftSnapshot {
            disk: self.disk.clone(),
            path,
            keys: self.keys.clone(),
            content: None,
            _aside: None,
        }
    }

    /// What to send to a node that needs a snapshot: one whose transfer is not over, so that it goes on; else the newest.
    pub(crate) fn to_send(&self) -> Option<(Meta, RaftSnapshot)> {
        let under_way = self.held.lock().under_way().map(Path::to_owned);
        let known = under_way.and_then(|path| self.known.lock().iter().find(|(_, have)| *have == path).cloned());
        match known {
            Some((meta, path)) => Some((meta, self.at(path))),
            None => self.newest(),
        }
    }

    /// This one is on its way to `node`.
    pub(crate) fn begin_sending(&self, node: u64, snapshot: &RaftSnapshot) {
        let known = self.known.lock();
        let meta = known.iter().find(|(_, path)| *path == snapshot.path);
        if let Some(last) = meta.and_then(|(meta, _)| meta.last) {
            self.held.lock().begin(node, &snapshot.path, last);
        }
        drop(known);
        self.tell_purgeable();
    }

    /// It is there, or the transfer broke off.
    pub(crate) fn end_sending(&self, node: u64, arrived: bool) {
        self.held.lock().end(node, arrived);
        self.drop_old();
    }

    /// Saves a snapshot, durably, and removes generations that are no longer needed.
    ///
    /// # Errors
    /// It is not there then; those before it still are.
    pub fn save(&self, meta: &Meta, state: &State) -> Result<RaftSnapshot, Error> {
        self.place(meta, SUFFIX, |file, path| file::write(file, path, meta, state))
    }

    /// Takes in a snapshot from elsewhere, durably, twice, and loads it. One of our own is only loaded.
    ///
    /// # Errors
    /// It is damaged, or cannot be copied.
    pub fn adopt(&self, from: &RaftSnapshot) -> Result<Loaded, Error> {
        let intact = Intact::check(from.open()?, &from.path)?;
        let state = intact.state(&from.path)?;
        let ours = self.known.lock().iter().any(|(_, path)| *path == from.path) && Arc::ptr_eq(&self.disk, &from.disk);
        let path = if ours {
            from.path.clone()
        } else {
            let copy = |file: &dyn crate::disk::DiskFile, path: &Path| {
                intact.copy_to(file).map_err(|source| Error::Io {
                    action: "copy to",
                    path: path.to_owned(),
                    source,
                })
            };
            let path = self.place(&intact.meta, SUFFIX, copy)?.path;
            self.place(&intact.meta, AGAIN, copy)?;
            path
        };
        Ok(Loaded {
            meta: intact.meta,
            state,
            path,
        })
    }

    /// A new, empty file for a snapshot that comes from elsewhere, to be written from front to back. What is left of such files is removed at
    /// open; nobody can read it then, for its key is in this process alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn receiving(&self) -> Result<(Arc<dyn crate::disk::DiskFile>, PathBuf), Error> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("received-{number}{NEW}"));
        let made = self.disk.create(&path).and_then(|file| match self.keys.active_id() {
            None => Ok(file),
            Some(_) => Ok(Arc::new(seal::file::Writer::new(file, Arc::new(DataKey::for_now()?))?) as Arc<dyn DiskFile>),
        });
        match made {
            Ok(file) => Ok((file, path)),
            Err(source) => Err(Error::Io {
                action: "make",
                path,
                source,
            }),
        }
    }

    fn place(
        &self,
        meta: &Meta,
        suffix: &str,
        fill: impl FnOnce(&dyn crate::disk::DiskFile, &Path) -> Result<(), Error>,
    ) -> Result<RaftSnapshot, Error> {
        let _files = self.files.lock();
        let path = self.dir.join(name(meta.last, suffix));
        self.put(&path, fill)?;
        self.register(meta.clone(), path.clone());
        Ok(self.at(path))
    }

    /// Gives `path` a content, sealed, durably: it is what it was or the new one.
    fn put(&self, path: &Path, fill: impl FnOnce(&dyn crate::disk::DiskFile, &Path) -> Result<(), Error>) -> Result<(), Error> {
        let mut aside = path.to_owned().into_os_string();
        aside.push(NEW);
        let aside = PathBuf::from(aside);
        let io = |action| {
            let path = aside.clone();
            move |source| Error::Io { action, path, source }
        };
        match self.disk.remove(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove")(error)),
            _ => {}
        }
        let file = self.disk.create(&aside).map_err(io("make"))?;
        let filled = match self.keys.active() {
            None => fill(&*file, &aside),
            Some(key) => seal::file::Writer::new(file.clone(), key)
                .map_err(io("write"))
                .and_then(|sealed| fill(&sealed, &aside).map(|()| sealed))
                .and_then(|sealed| sealed.finish().map_err(io("write"))),
        };
        let synced = filled.and_then(|()| match defects::on(Defect::SnapshotNotSynced) {
            true => Ok(()),
            false => file.sync_data().map_err(io("sync")),
        });
        if let Err(error) = synced {
            // It takes room that may be what is wanting. One that stays is removed at the next try.
            let _ = self.disk.remove(&aside);
            return Err(error);
        }
        self.disk.rename(&aside, path).map_err(io("give its final name to"))?;
        self.disk.sync_dir(&self.dir).map_err(io("sync the folder of"))
    }

    /// Enters a durable snapshot and drops what it makes superfluous.
    fn register(&self, meta: Meta, path: PathBuf) {
        let mut known = self.known.lock();
        known.retain(|(_, have)| *have != path);
        known.push((meta, path));
        known.sort_by(|(_, a), (_, b)| b.cmp(a));
        drop(known);
        self.drop_old();
    }

    /// Keeps the two newest and what is being sent. A file whose removal a power loss undoes is removed at the next start.
    fn drop_old(&self) {
        let old: Vec<(Meta, PathBuf)> = {
            let (mut known, mut held) = (self.known.lock(), self.held.lock());
            held.forget();
            let keep = known.len().min(GENERATIONS);
            let (stay, old) = known.split_off(keep).into_iter().partition(|(_, path)| held.needs(path));
            known.extend::<Vec<_>>(stay);
            old
        };
        for (_, path) in old {
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove an old snapshot");
            }
        }
        self.tell_purgeable();
    }

    fn tell_purgeable(&self) {
        let (known, held) = (self.known.lock(), self.held.lock());
        let behind = behind_oldest(&known);
        self.purgeable.send_replace(match held.floor() {
            Some(floor) => behind.map(|behind| behind.min(floor)),
            None => behind,
        });
    }
}

/// Where the older of two generations ends.
fn behind_oldest(known: &[(Meta, PathBuf)]) -> Option<EntryId> {
    let newest = defects::on(Defect::PurgedBehindNewest);
    known.get(if newest { 0 } else { GENERATIONS - 1 })?.0.last
}

/// Sorts as the entries do: by index, then term.
fn name(last: Option<EntryId>, suffix: &str) -> String {
    let last = last.unwrap_or(EntryId { term: 0, index: 0 });
    format!("{:020}-{:020}{suffix}", last.index, last.term)
}

fn check_one(disk: &dyn Disk, path: &Path, keys: &Keys, load: bool) -> Result<(Meta, Option<State>), Error> {
    let intact = Intact::check(file::open(disk, path, keys)?, path)?;
    let state = if load { Some(intact.state(path)?) } else { None };
    Ok((intact.meta, state))
}
