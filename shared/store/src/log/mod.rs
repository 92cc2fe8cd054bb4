//! The replicated log on disk: entries, vote, commit, purge and truncate marks, all records of one journal.
//! In: entries in order, marks. Out: what was written, after any crash; a callback when it is durable.
//! Invariants: what was reported durable is found again; records become durable in the order they were handed in; after a write or
//! sync that failed nothing is written or reported durable any more (the page cache can no longer be trusted).
//! A disk that is full or read-only refuses before anything of a batch is synced: nothing has become doubtful, and what was handed in waits,
//! in order, until it can be written to the same place ([`room`]). Nobody hands in more meanwhile: that is for the users of the log.
//! A tail that a power loss tore is cut at open; damage anywhere else is an error with file and offset, never repaired by guessing.
//! Source: "Protocol-Aware Recovery for Consensus-Based Storage" (FAST 2018) for torn tail versus damage.
//!
//! - [`record`]: the bytes of one record. - [`segment`]: names, header and head of a file. - [`recover`]: reading it all at open.
//! - [`writer`]: the one place that writes. - [`room`]: space that is taken ahead. - [`memory`]: index and newest entries.
//! - [`part`]: entries sealed (`crate::seal`) and opened. - [`rewrite`]: a file under another key.
//!
//! Not here: what Raft makes of it (`crate::raft`).
mod error;
mod handle;
mod memory;
mod part;
pub(crate) mod record;
mod recover;
mod rewrite;
mod room;
mod segment;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use error::{Error, Failure, Refused};
pub use handle::{Done, Guard, Log, LogState};

/// Position of an entry: the term of the leader that proposed it, and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    pub term: u64,
    pub index: u64,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// The vote of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    pub term: u64,
    pub node_id: u64,
    /// A quorum has granted it.
    pub committed: bool,
}

/// What an entry must be able to do to be kept in a log.
pub trait Item: Clone + Send + Sync + 'static {
    /// Where it belongs.
    fn id(&self) -> EntryId;

    /// Its content as bytes, without the id. Never contains the byte 0xFF (JSON does not), by which records are found again.
    fn encode(&self) -> Bytes;

    /// Reverses [`Item::encode`]. The error says what is wrong with the bytes.
    fn decode(id: EntryId, bytes: &[u8]) -> Result<Self, String>;
}

/// Sizes; the defaults suit a disk that syncs in 0.1 to 10 ms.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A new file is begun once the current one is at least this long, bytes. Default 8 MiB: small enough that purging frees space
    /// soon, large enough that its extra syncs do not show.
    pub segment_bytes: u64,
    /// Newest entries kept in memory, bytes of their encoding. Default 32 MiB: followers that lag a little and the state machine
    /// never read from disk.
    pub cache_bytes: usize,
    /// Jobs that may wait for the writer; more wait in their callers. Default 1024.
    pub queue: usize,
    /// Encoded bytes after which a batch is synced although more is waiting. Default 4 MiB: bounds the delay of the first.
    pub batch_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            cache_bytes: 32 << 20,
            queue: 1024,
            batch_bytes: 4 << 20,
        }
    }
}
