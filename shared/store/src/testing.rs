//! Ready-made stores for tests of this and other crates.
//! In: nothing, or a disk. Out: a leading store of one node.
//! Invariant: over the simulated disk nothing waits for a device or a thread, so a paused clock stands still while the store works.
use std::sync::Arc;

use ursa_model::Timestamp;
use ursa_runtime::tasks::Tasks;
use ursa_state::{Changeset, Op, RequestId};

pub use crate::disk::SimDisk;
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
