//! What can go wrong with the log, by what the operator can do about it.
use std::io;
use std::path::PathBuf;

use super::EntryId;

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused. Nothing is known about the file's content; the log must be opened anew.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Bytes that were durable are not what was written. Guessing could lose acknowledged entries, so the node stays down.
    #[error(
        "{} is damaged at offset {offset}: {reason}. This node must not guess what was there: restore the file, or remove this \
         node's data folder and let it rejoin from the others or from a backup",
        path.display()
    )]
    Damaged { path: PathBuf, offset: u64, reason: String },
    /// Written by a newer program.
    #[error("{} has {what} {found}, this program knows up to {known}; run the version that wrote it, or a newer one", path.display())]
    Newer {
        path: PathBuf,
        what: &'static str,
        found: u32,
        known: u32,
    },
    /// It was sealed with a key that is not there, or somewhere else. The bytes are those that were written.
    #[error("{} cannot be decrypted", path.display())]
    Key { path: PathBuf, source: crate::seal::Error },
    /// A file between others is not there.
    #[error(
        "{} is missing. Restore it, or remove this node's data folder and let it rejoin from the others or from a backup",
        path.display()
    )]
    Missing { path: PathBuf },
    /// The caller broke a rule of the log; nothing was changed.
    #[error("entry {got} does not follow {after}")]
    Hole { got: EntryId, after: String },
    /// An earlier write or sync failed, or the log was closed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why the log takes nothing more. The first reason stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A write or sync failed: what of it is on disk is unknown, and trying again would prove nothing.
    #[error("the log can no longer be written: {0}")]
    Disk(String),
    /// [`super::Log::close`] was called.
    #[error("the log is closed")]
    Closed,
}

/// The disk takes nothing at the moment. Nothing that was written has become doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In the words of the system.
    pub reason: String,
    /// The space that was taken before is used up, too, or as good as: what is handed in now waits, and what comes after it.
    pub closed: bool,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
