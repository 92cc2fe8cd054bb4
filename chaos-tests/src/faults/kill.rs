//! Fault `kill`: a process ends at once, by SIGKILL, with whatever it was about to do undone.
//!
//! In: the name of a process. Out: it is gone; its kernel buffers are not: what it wrote is there, synced or not.
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::Fleet;

/// Ends it and waits until it is gone.
///
/// # Errors
/// If there is no such process, or it does not end.
pub async fn begin(fleet: &Fleet, process: &str, deadline: Duration) -> anyhow::Result<()> {
    fleet.signal(process, Signal::SIGKILL)?;
    fleet.wait_gone(process, deadline).await?;
    Ok(())
}

/// Starts it again as before.
///
/// # Errors
/// If it runs, or cannot be started.
pub fn end(fleet: &Fleet, process: &str) -> anyhow::Result<()> {
    fleet.restart(process)
}
