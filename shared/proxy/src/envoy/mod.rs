//! The Envoy binary: finding it, asking its version, running it.
//! Invariant: the ELF is started directly, in a process group of its own, and never outlives us.
mod guard;
mod log;
mod process;
mod version;

pub use guard::{GUARD_COMMAND, Guarded, run_guarded};
pub use log::LogFile;
pub use process::{Exit, KillSwitch, Launch, Process, StartError};
pub use version::{VersionError, find, version};
