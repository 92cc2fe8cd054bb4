//! Ready-made stores for tests of this and other crates.
//! In: nothing, or a disk. Out: a leading store of one node.
//! Invariant: over the simulated disk nothing waits for a device or a thread, so a paused clock stands still while the store works.
use std::sync::Arc;

use ursa_model::Timestamp;
use ursa_runtime::tasks::Tasks;
use ursa_state::{Changeset, Op, RequestId, SnapshotError, State};

pub use crate::disk::SimDisk;
pub use crate::net::carrier::{Carrier, Listener, Lost};
use crate::{OpenError, Store, StoreConfig};

/// A store in memory that leads a group of one.
///
/// # Panics
/// It does not open.
pub async fn in_memory(tasks: &Tasks) -> Store {
    on_disk(&SimDisk::new(0), tasks)
        .await
        .expect("an empty disk in memory can always be used")
}

/// The store on this simulated disk. After [`SimDisk::power_loss`] open it again on the disk that that returned.
///
/// # Errors
/// See [`OpenError`].
pub async fn on_disk(disk: &SimDisk, tasks: &Tasks) -> Result<Store, OpenError> {
    Store::open(StoreConfig::new("/node", 1), Arc::new(disk.clone()), tasks).await
}

/// An atomic changeset with an id of its own, at the given time (milliseconds since 1970).
pub fn changeset(at: u64, ops: Vec<Op>) -> Changeset {
    Changeset::atomic(RequestId(uuid::Uuid::new_v4().as_u128()), Timestamp(at), ops)
}

/// The state as its snapshot would be if the document in it were changed like this: for tests of what notices.
///
/// # Errors
/// It is no state any more.
pub fn edited(state: &State, edit: impl FnOnce(&mut serde_json::Value)) -> Result<State, SnapshotError> {
    /// Magic and format; then the length of the document, the document, and packed history.
    const HEAD: usize = 12;
    let mut bytes = Vec::new();
    state.write_snapshot(&mut bytes)?;
    let cut = || SnapshotError::History("the document is cut short".to_owned());
    let (head, rest) = bytes.split_at_checked(HEAD).ok_or_else(cut)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (document, packed) = rest.split_at_checked(length).ok_or_else(cut)?;
    let mut document = serde_json::from_slice(document).map_err(SnapshotError::Json)?;
    edit(&mut document);
    let document = serde_json::to_vec(&document).map_err(SnapshotError::Json)?;
    let length = (document.len() as u64).to_le_bytes();
    State::read_snapshot(&[head, &length, &document, packed].concat()[..])
}
