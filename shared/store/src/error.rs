//! What the store answers instead of a result, by what the caller can do about it.
use std::path::PathBuf;

use ursa_state::{OpError, Revision};

use crate::{Levels, log, seal, snapshot};

/// Answer to a call on a running store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another node leads (or none, if `leader` is missing): ask there, or again in a moment. Nothing was changed.
    #[error("this node is not the leader{}", leader.map(|id| format!(", node {id} is")).unwrap_or_default())]
    NotLeader {
        leader: Option<u64>,
        /// Where that node listens for the others; empty if unknown.
        address: String,
    },
    /// It may or may not have been committed. Retry with the same request id: a repeat gets the first result.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// A precondition did not hold; the whole changeset was refused and changed nothing.
    #[error("change {op} of the set was refused: {reason}")]
    Rejected {
        /// Index of the op in the set.
        op: usize,
        reason: OpError,
        /// The store's revision at which it did not hold.
        revision: Revision,
    },
    /// Larger than one entry of the log may be. Split it.
    #[error("the changeset takes {bytes} bytes, at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    /// The changeset could not be stored in a form that can be read again.
    #[error("the changeset cannot be stored: {0}")]
    Invalid(String),
    /// Not now: no quorum, or not within the deadline. Nothing is known to have changed; reads may be repeated.
    #[error("not available: {0}")]
    Unavailable(String),
    /// The store is as large as it may become. Deletes, and writes that do not make it larger, are taken.
    #[error(
        "the store holds {bytes} bytes, and this would add {growth}: at most {limit} (store.max_bytes) are allowed; delete what is not needed, \
         or raise the limit on all nodes"
    )]
    Full { bytes: u64, growth: u64, limit: u64 },
    /// The disk takes nothing, of this node or of so many that no majority is left that could store it. Nothing was changed; reads go on.
    #[error(
        "nothing can be stored, for a disk takes nothing ({0}): make room in that file system, or make it writable again; writes are taken \
         again as soon as it is, without a restart, and meanwhile by any node whose disk is well, if a majority's are"
    )]
    NoSpace(String),
    /// This node's store has stopped, on request or because its disk failed. Only a restart helps.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

impl Error {
    /// Whether the same call may succeed later, here or at another node.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::Unknown(_) | Self::Unavailable(_) | Self::NoSpace(_) | Self::Full { .. } => true,
            Self::Rejected { .. } | Self::TooLarge { .. } | Self::Invalid(_) | Self::Stopped(_) => false,
        }
    }
}

/// Why the store does not open. Each text says the way out.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works in the folder.
    #[error(transparent)]
    Locked(#[from] ursa_runtime::lock::Error),
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// Written by a newer program.
    #[error(
        "the data folder {} has version {found}, this program knows up to {known}: run the version that wrote it, or a newer one, \
         or give this node an empty folder",
        dir.display()
    )]
    Newer { dir: PathBuf, found: u32, known: u32 },
    /// Its group is at a feature level that this program does not know.
    #[error(
        "the data folder {} was written by {} version, at feature level {level}; this one knows levels {known}: install {}, or remove this \
         node from the group and add a new one with an empty folder under an id that was never used",
        dir.display(),
        if *level > known.max { "a newer" } else { "an older" },
        if *level > known.max { "the version that wrote it, or a newer one" } else { "a version in between first, on all nodes" }
    )]
    Level { dir: PathBuf, level: u32, known: Levels },
    /// The folder of another node.
    #[error(
        "the data folder {} belongs to node {found}, this is node {given}: configure node id {found}, or give node {given} a folder of its own",
        dir.display()
    )]
    OtherNode { dir: PathBuf, found: u64, given: u64 },
    /// A file that says what the folder is cannot be understood.
    #[error("{} cannot be understood ({reason}): restore it, or give this node an empty folder", path.display())]
    Folder { path: PathBuf, reason: String },
    /// The folder was in use, but its log is gone. Starting anew would lose what was acknowledged.
    #[error(
        "the log in {} is gone, but this node has written one: restore the folder, or remove all of {} and let the node rejoin from the \
         others or from a backup",
        log.display(), dir.display()
    )]
    LogLost { dir: PathBuf, log: PathBuf },
    /// The log was cut short since it was last written. What is missing was confirmed, and may be known to nobody else.
    #[error(
        "the log in {}/ is not all of it: {lacking}, so entries or votes that this node has confirmed were taken from it; put back the files of \
         {} as they were (a backup from before will not do), or remove this node from the group and add a new one with an empty folder under \
         an id that was never used; a node without others is restored from a backup",
        log.display(), dir.display()
    )]
    Shortened {
        dir: PathBuf,
        log: PathBuf,
        /// What is missing.
        lacking: String,
    },
    /// The folder has its place in a group, but who the others are is gone.
    #[error(
        "{} is gone, but this node has taken its place in a group: without it, it would listen to a member that has lost its folder; restore \
         that file, or remove this node from the group and add a new one with an empty folder under an id that was never used",
        path.display()
    )]
    PeersLost { path: PathBuf },
    /// A restore into the folder was cut short.
    #[error("a restore into {} was cut short: remove everything in it, and restore again", dir.display())]
    Unfinished { dir: PathBuf },
    /// The log no longer reaches back to the newest snapshot that can be read.
    #[error(
        "the log begins after entry {purged}, and no snapshot that can be read reaches that far: restore the snapshots from a copy, or remove this node's data folder and let it rejoin"
    )]
    Gap {
        purged: u64,
        #[source]
        damaged: Option<snapshot::Error>,
    },
    /// This node's certificate cannot be used between nodes.
    #[error("the node certificate cannot be used: {reason}; `global-cp pki node` makes one from the cluster's CA")]
    Certificate { reason: String },
    /// The list of members does not fit this node.
    #[error("the list of members cannot be used: {reason}")]
    Members { reason: String },
    /// The data cannot be decrypted.
    #[error(transparent)]
    Encryption(#[from] seal::Error),
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// Recovery failed in a way that has no name; the text has the library's words.
    #[error("the store cannot start: {0}")]
    Start(String),
}
