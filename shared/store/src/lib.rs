//! The replicated store: Raft, log, snapshots and cache around the pure state of `ursa-state`.
//! In: changesets, proposed on any node. Out: views, everywhere.
//! Invariants: an acknowledged changeset survives kill -9 and the loss of power of all nodes at once; damage is named and never
//! guessed over; only this crate knows openraft and sled.
//!
//! - [`store`]: opening, proposing, reading. - [`log`]: the journal on disk. - [`snapshot`]: files of the whole state.
//! - [`backup`]: all of it as one encrypted file, and what is made of one. - [`net`]: the other nodes of the group, over gRPC and mutual TLS.
//! - [`seal`]: encryption of log, snapshots and cache at rest.
//! - [`cache`]: what can be rebuilt, in sled. - [`disk`]: the I/O underneath, real and simulated. - [`codec`]: what bytes mean.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ursa_store::{Store, StoreConfig, disk::RealDisk};
//! # async fn example(tasks: ursa_runtime::Tasks, set: ursa_state::Changeset) -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open(StoreConfig::new("/var/lib/ursa/store", 1), Arc::new(RealDisk), &tasks).await?;
//! let applied = store.propose(set).await?;
//! assert!(store.view().revision() >= applied.revision);
//! store.shutdown().await?;
//! # Ok(()) }
//! ```
pub mod backup;
pub mod cache;
pub mod codec;
pub mod defects;
pub mod disk;
mod error;
mod folder;
mod keeper;
mod level;
pub mod log;
pub mod net;
mod raft;
pub mod seal;
pub mod snapshot;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use error::{Error, OpenError};
pub use level::Levels;
pub use net::{ClusterConfig, NodeTls, PeerNode, PeerStatus, Peers, QuorumContact, Refusal};
pub use raft::Timings;
pub use seal::{Encryption, Kek, KeyId};
pub use store::early::NotEarly;
pub use store::members::{MemberChange, MemberDone, MemberError, Objection};
pub use store::{EncryptionStatus, FirstStart, Role, Store, StoreConfig, StoreStatus};
