//! What both control planes are made of: one process with a data folder, a store, the observed tier, TLS, diagnostics and the REST
//! API. The programs add what differs: KDS server or client, and everything about proxies.
//! Invariant: this crate decides nothing about resources; it connects the crates that do.

mod backup;
mod cluster;
pub mod config;
mod encryption;
mod end;
pub mod group;
mod held;
mod host;
mod members;
mod metrics;
pub mod offline;
mod plane;
mod retention;
mod status;

// Seeded defects are for the simulation alone.
const _: () = assert!(
    !ursa_store::defects::COMPILED,
    "no program is built with the feature `defects` of ursa-store"
);

pub use host::{Host, HostConfig};
pub use plane::Plane;
