//! Fault `clock`: the time of day of one process jumps; its monotonic clock does not, as when somebody sets the time of a machine.
use super::shim::{Effect, Shim};

/// From now on the process's clock is off by so many seconds.
///
/// # Errors
/// If the process runs without the shim.
pub fn begin(shim: &Shim, process: &str, seconds: i64) -> anyhow::Result<()> {
    shim.set(process, Effect::ClockOffset, seconds.saturating_mul(1000))
}

/// It jumps back.
///
/// # Errors
/// As [`begin`].
pub fn end(shim: &Shim, process: &str) -> anyhow::Result<()> {
    shim.set(process, Effect::ClockOffset, 0)
}
