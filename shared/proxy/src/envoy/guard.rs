//! Ties Envoy's life to ours: when this process dies, even by SIGKILL, the kernel kills Envoy.
//! In: `<program> envoy-guard <our pid> <envoy> <arguments…>`. Out: the process has become Envoy.
//! Invariant: the kernel's tie is to the *thread* that forked, so that thread lives as long as Envoy ([`super::Process`] sees to it).
//!
//! Why: an Envoy left behind would go on serving with nobody to drain it or to renew its bootstrap, and would share its ports
//! (SO_REUSEPORT) with the next one. The tie (PR_SET_PDEATHSIG) has to be made by the child itself between fork and exec; doing it
//! in a hidden command of our own binary needs no `unsafe` code. Source: kuma-dp ties its Envoy in the same way.
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Name of the hidden command.
pub const GUARD_COMMAND: &str = "envoy-guard";

/// Arguments of the hidden command.
#[derive(Clone, Debug, clap::Args)]
pub struct Guarded {
    /// Process that Envoy belongs to.
    parent: i32,
    /// Envoy and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes Envoy. Returns only the reason why that failed. To be called from `main` before any thread is started.
pub fn run_guarded(guarded: &Guarded) -> std::io::Error {
    let Some((envoy, arguments)) = guarded.command.split_first() else {
        return std::io::Error::other("no command");
    };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return error.into();
    }
    // If it died before the tie was made, nobody will tell us any more.
    if getppid() != Pid::from_raw(guarded.parent) {
        return std::io::Error::other("the process that Envoy belongs to is gone");
    }
    Command::new(envoy).args(arguments).exec()
}
