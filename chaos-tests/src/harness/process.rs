//! One program of a scenario as a real process: started in a process group of its own, with its own folder and log file.
//!
//! In: a [`Spec`]. Out: a [`Process`] that can be signalled and asked whether it still runs.
//! Invariant: dropping it kills the group and every descendant that it had. Not here: the set of them ([`super::fleet`]).
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::procfs::{self, Identity};

/// Carried in the environment of every process of a fleet, so that none can get lost.
pub(super) const MARK: &str = "CHAOS_FLEET";

/// How a process is started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Unique within the fleet; names the log file.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment beside `PATH`, `HOME` and the harness's own.
    pub env: Vec<(String, String)>,
    /// Where `GET /ready` (or the given path) answers 200 once it is ready; none if it is ready when it runs.
    pub ready: Option<(SocketAddr, String)>,
}

impl Spec {
    /// A program without arguments.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            ready: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an option and its value.
    #[must_use]
    pub fn opt(self, name: &str, value: impl ToString) -> Self {
        self.arg(name).arg(value.to_string())
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Ready when this answers 200.
    #[must_use]
    pub fn ready_at(mut self, address: SocketAddr, path: &str) -> Self {
        self.ready = Some((address, path.to_owned()));
        self
    }
}

/// A started process. See the module's header.
#[derive(Debug)]
pub struct Process {
    /// How it was started.
    pub spec: Spec,
    child: Child,
    id: Identity,
    exit: Option<ExitStatus>,
    /// Whether the scenario wants it gone: its end is no fault then.
    asked_to_end: bool,
}

impl Process {
    /// Starts it; output goes to the end of `log`.
    ///
    /// # Errors
    /// If the program or the log file cannot be opened.
    pub(super) fn start(spec: Spec, dir: &Path, log: &Path, mark: &str) -> io::Result<Self> {
        let out: File = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        // A clean environment: a variable of the developer's shell must not change what a scenario tests.
        command.env_clear().envs(
            ["PATH", "HOME", "LANG", "TMPDIR"]
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command
            .env("RUST_BACKTRACE", "1")
            .env("NO_COLOR", "1")
            .env(MARK, mark)
            .envs(spec.env.iter().cloned());
        // Its own group: Ctrl-C in the terminal reaches only the scenario, which then ends its processes in order.
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", spec.program.display())))?;
        let pid = i32::try_from(child.id()).map_err(|_| io::Error::other("process id out of range"))?;
        let id = procfs::identity(pid).unwrap_or(Identity { pid, started: 0 });
        Ok(Self {
            spec,
            child,
            id,
            exit: None,
            asked_to_end: false,
        })
    }

    /// Which process it is.
    #[must_use]
    pub fn id(&self) -> Identity {
        self.id
    }

    /// How it ended; none while it runs.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            // An error here means that somebody else reaped it, which nobody does: treat it as running.
            self.exit = self.child.try_wait().unwrap_or_default();
        }
        self.exit
    }

    /// Its end if nobody asked for it.
    pub fn unasked_exit(&mut self) -> Option<ExitStatus> {
        if self.asked_to_end { None } else { self.exit() }
    }

    /// Its end is no fault from now on.
    pub fn may_end(&mut self) {
        self.asked_to_end = true;
    }

    /// Sends a signal to the process (not to its children). SIGTERM, SIGINT and SIGKILL make its end an asked one.
    pub fn signal(&mut self, signal: Signal) {
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGKILL) {
            self.asked_to_end = true;
        }
        if self.exit().is_none() {
            // It may have ended this instant; that is what the next look at `exit` says.
            let _gone = kill(Pid::from_raw(self.id.pid), signal);
        }
    }

    /// The Envoys that run below it.
    #[must_use]
    pub fn envoys(&self) -> Vec<Identity> {
        let mut envoys: Vec<Identity> = procfs::descendants(self.id.pid)
            .into_iter()
            .filter(|(_, command)| command.contains("envoy"))
            .map(|(id, _)| id)
            .collect();
        envoys.sort_unstable();
        envoys
    }

    /// Kills the process, its group and all descendants, and waits until it is gone.
    pub fn kill_all(&mut self) {
        self.asked_to_end = true;
        let below = procfs::descendants(self.id.pid);
        let _gone = killpg(Pid::from_raw(self.id.pid), Signal::SIGKILL);
        for (id, _) in below {
            kill_exactly(id);
        }
        if self.exit.is_none() {
            self.exit = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// SIGKILL, only if the number still means this process.
pub(super) fn kill_exactly(id: Identity) {
    if procfs::identity(id.pid) == Some(id) {
        let _gone = kill(Pid::from_raw(id.pid), Signal::SIGKILL);
    }
}

/// An exit in words: "exit code 3" or "signal 9".
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}
