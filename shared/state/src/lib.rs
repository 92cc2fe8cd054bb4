//! What a committed changeset does: revisions, preconditions, ownership, history, request ids. Pure and deterministic: no
//! Raft, no disk, no clock, no randomness, no floats, no hash-map order, because every replica runs it and runs it again at replay.
//!
//! - [`change`]: the vocabulary: [`Command`], [`Changeset`], [`Op`] and what comes of them.
//! - [`state`]: [`State::apply`], the one function that changes anything; [`snapshot`]: all of it as bytes.
//! - [`view`]: [`View`], an immutable picture at one revision; all consumers work on views.
//! - [`history`]: what earlier revisions changed; [`past`]: reading it.
//! - [`origin`]: a history that goes on from another one, after a restore or the loss of a majority.
//! - `requests`: which requests were answered already.
//! - [`observed`]: the observed tier, kept in memory and never a Raft entry.
//! - [`catalog`]: both tiers behind one set of reads.

pub mod catalog;
pub mod change;
pub mod history;
pub mod observed;
pub mod origin;
pub mod past;
mod requests;
pub mod snapshot;
pub mod state;
pub mod view;

pub use catalog::{Catalog, Role};
pub use change::{
    Applied, Change, Changeset, Command, Expect, GlobalRevision, HistoryId, Mode, Op, OpError, OpResult, Put, RequestId, Revision,
    RevisionChanges,
};
pub use history::{Kept, MAX_BYTES, MAX_REVISIONS, RECENT};
pub use observed::{Authority, Observed, ObservedView};
pub use origin::{Anew, By, GAP, Origin};
pub use past::{LogEntry, Operation, Past, PastError, Retention, Wanted};
pub use requests::{MAX_REQUESTS, MIN_REQUESTS, REQUEST_MILLIS};
pub use snapshot::SnapshotError;
pub use state::State;
pub use view::{Compacted, View};
