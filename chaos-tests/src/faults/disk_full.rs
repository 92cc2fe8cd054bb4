//! Fault `disk full`: what needs more space in a file fails with ENOSPC; what has its space already can be written, and reading goes on.
use nix::errno::Errno;

use super::shim::{Effect, Shim};

/// From now on.
///
/// # Errors
/// If the process runs without the shim.
pub fn begin(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::WriteError, Errno::ENOSPC as i64)
}

/// There is room again.
///
/// # Errors
/// As [`begin`].
pub fn end(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::WriteError, 0)
}
