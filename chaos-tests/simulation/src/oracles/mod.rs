//! Who judges a run, one file each. In: what clients, watchers and the network saw. Out: findings.
//! Invariant: an oracle knows nothing of the faults, except where its rule is about them (`progress`).
pub mod agreement;
pub mod linearizable;
pub mod panics;
pub mod progress;
pub mod promises;
pub mod writes;
