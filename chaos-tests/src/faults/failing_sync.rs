//! Fault `failing sync`: fsync and fdatasync answer EIO. What was written before may or may not be on the disk.
use nix::errno::Errno;

use super::shim::{Effect, Shim};

/// From now on.
///
/// # Errors
/// If the process runs without the shim.
pub fn begin(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::SyncError, Errno::EIO as i64)
}

/// The disk is well again.
///
/// # Errors
/// As [`begin`].
pub fn end(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::SyncError, 0)
}
