//! The input and output that log and snapshots need, as a trait, so that a test can stand in for the disk and lose power.
//! In: paths and bytes. Out: files whose content and names are durable only after the matching sync.
//! Invariant: no caller relies on more than this: bytes survive a power loss after `sync_data`, a name (created, renamed,
//! removed) after `sync_dir` of its folder, in whatever order the machine likes before that.
//! Source: fsync(2), rename(2); "All File Systems Are Not Created Equal" (OSDI 2014) for what may be reordered.
mod real;
#[cfg(any(test, feature = "testing"))]
mod sim;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::defects::{self, Defect};

pub use real::RealDisk;
#[cfg(any(test, feature = "testing"))]
pub use sim::SimDisk;

/// A place for files. Calls block; callers that run on a runtime's thread go through [`run`].
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes `dir` and its missing parents. Durable on return.
    ///
    /// # Errors
    /// It cannot be made, or is a file.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names of the files in `dir`, sorted. Folders are left out.
    ///
    /// # Errors
    /// `dir` does not exist or cannot be read.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a new, empty file for reading and writing, readable by its owner only.
    ///
    /// # Errors
    /// `AlreadyExists`, or it cannot be made.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, or it cannot be opened.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives `from` the name `to`, replacing what had it. Both are in the same folder.
    ///
    /// # Errors
    /// `from` does not exist, or the name cannot be given.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Open handles to it go on working.
    ///
    /// # Errors
    /// `NotFound`, or it cannot be removed.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    ///
    /// # Errors
    /// Nothing is known then about what is durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether calls may wait for a device. `false` lets callers skip threads, which keeps simulated time still.
    fn waits(&self) -> bool {
        true
    }

    /// How long the next sync of the log takes in simulated time. `None`: none at all.
    #[cfg(any(test, feature = "testing"))]
    fn sync_time(&self) -> Option<std::time::Duration> {
        None
    }

    /// Bytes that are free in the file system of `path`, if that can be known. Does not wait for the device.
    fn free(&self, _path: &Path) -> Option<u64> {
        None
    }

    /// Where `path` is in the file system of the machine, for what cannot work on this trait (sled, locks).
    /// `None`: nowhere; such parts are then left out.
    fn real_path(&self, path: &Path) -> Option<PathBuf>;
}

/// An open file. Offsets and lengths in bytes.
#[allow(clippy::len_without_is_empty, reason = "a file is asked for its length only to read it")]
pub trait DiskFile: Debug + Send + Sync {
    /// Current length, synced or not.
    ///
    /// # Errors
    /// The file cannot be asked.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset` on; fewer bytes than asked only at the end of the file.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, growing the file as needed.
    ///
    /// # Errors
    /// Any part of it may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or zero-extends the file.
    ///
    /// # Errors
    /// The length is as before or as asked.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Takes space for `len` bytes from `from` on, the end of the file, which read as zeros until they are written. Syncs of what is
    /// written there need not make a new length durable too, which on a journaling file system costs as much again. Only a hint; by
    /// default nothing is taken.
    ///
    /// # Errors
    /// No space, or the file system cannot; the length may be as before or as asked.
    fn reserve(&self, _from: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Makes content and length durable (`fdatasync`).
    ///
    /// # Errors
    /// Nothing is known then about what is durable, and a second try proves nothing: the system may have dropped the pages.
    /// Source: "Can Applications Recover from fsync Failures?" (USENIX ATC 2020).
    fn sync_data(&self) -> io::Result<()>;
}

/// Whether the disk took nothing, for a reason that passes when somebody makes room or makes it writable. Said of a write, of a file that
/// was to be made or of space that was to be taken, nothing that is on the disk has become doubtful by it. Said of a sync, it means what
/// every failed sync means.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// The whole content of `path`.
///
/// # Errors
/// It cannot be read, or is longer than `limit` bytes.
pub fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_all(&*disk.open(path)?, limit)
}

/// The whole content of an open file.
///
/// # Errors
/// It cannot be read, or is longer than `limit` bytes.
pub fn read_all(file: &dyn DiskFile, limit: u64) -> io::Result<Vec<u8>> {
    let len = file.size()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{len} bytes, more than {limit}"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Gives `path` the content `bytes`, durably: written aside, synced, renamed, folder synced. After a crash it is the old or the new.
///
/// # Errors
/// A step failed; `path` is the old or the new.
pub fn write_atomic(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    if let Err(error) = disk.remove(&aside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let file = disk.create(&aside)?;
    let written = file
        .write_at(0, bytes)
        .and_then(|()| match defects::on(Defect::SmallFilesNotSynced) {
            true => Ok(()),
            false => file.sync_data(),
        });
    if let Err(error) = written.and_then(|()| disk.rename(&aside, path)) {
        // It takes room that may be what is wanting.
        let _ = disk.remove(&aside);
        return Err(error);
    }
    disk.sync_dir(dir)
}

/// Runs `work`, which blocks on `disk`, without blocking the runtime.
///
/// # Errors
/// Those of `work`; or the runtime ends, which drops work that has not begun.
pub async fn run<T, F>(disk: &dyn Disk, work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    if disk.waits() {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    } else {
        work()
    }
}
