//! Faults of the network between two programs, made in the scenario's own process.
//!
//! In: where clients connect and where the real server listens. Out: a [`Link`] whose two directions can be stopped, delayed or cut.
//! Invariant: bytes are never changed, reordered or lost within a connection that lives: what TCP promises holds, as in a real network.
//! Source: issue text, "a fault proxy between nodes and between zone and global". Not here: faults of processes (signals, [`crate::harness`]).
pub mod proxy;

pub use proxy::{Link, Way, Weather};
