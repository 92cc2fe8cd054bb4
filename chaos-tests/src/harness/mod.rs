//! Runs the programs of a scenario as real processes and watches them.
//!
//! In: [`Spec`]s. Out: running [`Fleet`] members with a log file each, and what went wrong with them.
//! Invariant: dropping the fleet kills every process that came from it, grandchildren included.
//! Source: CONVENTIONS.md C13. Not here: what a scenario does with the processes ([`crate::demo`]).
pub mod fleet;
pub mod logs;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod stages;
pub mod wait;

pub use fleet::Fleet;
pub use process::{Process, Spec};
pub use wait::{POLL, Poll, wait_through, wait_until};
