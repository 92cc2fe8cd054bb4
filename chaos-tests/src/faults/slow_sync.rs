//! Fault `slow sync`: every fsync and fdatasync takes longer by a time, as on a disk that others keep busy.
use std::time::Duration;

use super::shim::{Effect, Shim};

/// From now on.
///
/// # Errors
/// If the process runs without the shim.
pub fn begin(shim: &Shim, process: &str, each: Duration) -> anyhow::Result<()> {
    shim.set(process, Effect::SyncDelay, i64::try_from(each.as_micros())?)
}

/// The disk is as fast as it is.
///
/// # Errors
/// As [`begin`].
pub fn end(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::SyncDelay, 0)
}
