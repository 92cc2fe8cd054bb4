//! The real store, several nodes of it in one process, on simulated time, network and disks.
//! In: a seed. Out: the verdict of each oracle, and a trace.
//! Invariant: the same seed gives the same trace, on any machine: everything here runs on one thread with one source of randomness, and
//! nothing asks a clock. A seed that failed fails again.
//!
//! - [`entropy`]: the one source. - [`network`]: what carries the calls between the stores. - [`world`]: nodes, their lives and deaths.
//! - [`clients`], [`watchers`]: who uses the stores. - [`faults`]: what happens to them. - [`oracles`]: who judges. - [`run`]: one seed.
//! - [`children`]: many seeds.
//!
//! Not here: TLS, HTTP/2, sled and real files, which the tests of the store and the scenarios of `chaos-tests` cover.
pub mod changes;
pub mod children;
pub mod clients;
pub mod entropy;
pub mod faults;
pub mod judge;
pub mod network;
pub mod oracles;
pub mod run;
pub mod trace;
pub mod watchers;
pub mod world;

use std::time::Duration;

use ursa_runtime::lease::Deadline;

/// Lets simulated time pass.
pub async fn pause(time: Duration) {
    Deadline::after(time).passed().await;
}

/// Short for what stands in every fault.
pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
