//! Fault `pause`: a process stands still and goes on later as if nothing had been, its connections open all the while.
//!
//! In: the name of a process. Out: SIGSTOP; SIGCONT. Invariant: what others sent in the meantime is there when it goes on.
//! Like it in the field: a virtual machine that is moved, a machine that swaps.
use nix::sys::signal::Signal;

use crate::harness::Fleet;

/// It stands still from now on.
///
/// # Errors
/// If there is no such process.
pub fn begin(fleet: &Fleet, process: &str) -> anyhow::Result<()> {
    fleet.signal(process, Signal::SIGSTOP)
}

/// It goes on.
///
/// # Errors
/// If there is no such process.
pub fn end(fleet: &Fleet, process: &str) -> anyhow::Result<()> {
    fleet.signal(process, Signal::SIGCONT)
}
