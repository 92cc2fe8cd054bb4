//! Fault `read-only disk`: every write to a file fails with EROFS, as when the system has remounted it after an error; reading goes on.
use nix::errno::Errno;

use super::shim::{Effect, Shim};

/// From now on.
///
/// # Errors
/// If the process runs without the shim.
pub fn begin(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::WriteError, Errno::EROFS as i64)
}

/// It can be written again.
///
/// # Errors
/// As [`begin`].
pub fn end(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::WriteError, 0)
}
