//! One running Envoy process.
//! In: what to run. Out: its end, signals to it.
//! Invariants: a signal never reaches a stranger (the pid is forgotten under a lock before it is reaped, so it cannot have been
//! given away); the process is killed when its [`Process`] is dropped; Ctrl-C in a terminal does not reach it (own process group),
//! because we drain first.
//! Not here: when to stop it, see [`crate::supervisor`].
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU32;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use ursa_runtime::{OnExit, Tasks};

use super::guard::GUARD_COMMAND;
use super::log::LogFile;

/// The running program, even when its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The Envoy binary; a bare name is looked for on PATH.
    pub envoy: PathBuf,
    /// Path of its bootstrap.
    pub bootstrap: PathBuf,
    /// Its log; also takes what it writes to standard output and error.
    pub log: LogFile,
    /// Sent on as `--drain-time-s`: how long old listeners drain after an update.
    pub drain_time: Duration,
    /// `--log-level`.
    pub log_level: String,
    /// `--component-log-level`.
    pub component_log_level: Option<String>,
    /// Worker threads; `None`: as many as the cpuset has CPUs.
    pub concurrency: Option<NonZeroU32>,
    /// Start through our own `envoy-guard` command, which ties Envoy's life to ours. The program must have that command.
    pub guarded: bool,
}

impl Launch {
    /// Envoy's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            "--config-path".into(),
            self.bootstrap.clone().into(),
            // Hot restart needs a base id of its own per Envoy of the machine; we replace processes, not binaries in place.
            "--disable-hot-restart".into(),
            // Gradual closes connections spread over the whole drain time: a second and more under the old rules after each change.
            "--drain-strategy".into(),
            "immediate".into(),
            "--drain-time-s".into(),
            self.drain_time.as_secs().max(1).to_string().into(),
            "--log-level".into(),
            self.log_level.clone().into(),
            "--log-path".into(),
            self.log.path().into(),
        ];
        if let Some(levels) = &self.component_log_level {
            arguments.extend(["--component-log-level".into(), levels.into()]);
        }
        match self.concurrency {
            Some(workers) => arguments.extend(["--concurrency".into(), workers.to_string().into()]),
            None => arguments.push("--cpuset-threads".into()),
        }
        arguments
    }

    fn command(&self) -> std::io::Result<Command> {
        let mut command = if self.guarded {
            let mut command = Command::new(SELF);
            command
                .arg0(GUARD_COMMAND)
                .arg(GUARD_COMMAND)
                .arg(std::process::id().to_string())
                .arg("--")
                .arg(&self.envoy);
            command
        } else {
            Command::new(&self.envoy)
        };
        let log = self.log.open()?;
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        Ok(command)
    }
}

/// Why Envoy does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refuses to start it.
    #[error("cannot start Envoy at {}", envoy.display())]
    Spawn { envoy: PathBuf, source: std::io::Error },
    /// The system refuses another thread.
    #[error("cannot start the thread that watches Envoy")]
    Thread(#[source] std::io::Error),
    /// The thread ended without a word: a panic, logged by its owner.
    #[error("the thread that watches Envoy ended")]
    Lost,
}

/// How Envoy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// Exit code 0.
    pub fn is_success(&self) -> bool {
        self.0.success()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal().map(Signal::try_from)) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(Ok(signal))) => write!(f, "signal {}", signal.as_str()),
            (None, _) => write!(f, "{}", self.0),
        }
    }
}

/// Sends signals to one Envoy as long as it lives. Clones are the same switch.
#[derive(Clone, Debug, Default)]
pub struct KillSwitch {
    pid: Arc<Mutex<Option<Pid>>>,
}

impl KillSwitch {
    /// Sends SIGKILL; nothing happens if it has ended.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid.lock();
        if let Some(pid) = *pid
            && let Err(error) = kill(pid, signal)
        {
            tracing::warn!(%pid, %signal, %error, "cannot signal Envoy");
        }
    }

    /// Waits for the end of `child` and reaps it.
    fn reap(&self, child: &mut Child, pid: Pid) -> std::io::Result<ExitStatus> {
        // Waits without reaping: until the lock is held, the pid must stay ours.
        loop {
            match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let mut current = self.pid.lock();
        *current = None;
        child.wait()
    }
}

/// A running Envoy. Dropping it kills Envoy.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    switch: KillSwitch,
    ended: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts it. `tasks` owns the thread that forks and waits; `switch` is armed with it.
    ///
    /// # Errors
    /// It cannot be started. An Envoy that starts and then refuses its configuration ends instead: see [`Process::ended`].
    pub async fn start(tasks: &Tasks, launch: Launch, switch: KillSwitch) -> Result<Self, StartError> {
        let (started, start) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let envoy = launch.envoy.clone();
        let of_thread = switch.clone();
        let watch = move |_| {
            let mut child = match launch.command().and_then(|mut command| command.spawn()) {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let pid = Pid::from_raw(child.id().cast_signed());
            *of_thread.pid.lock() = Some(pid);
            if started.send(Ok(pid)).is_err() {
                of_thread.kill(); // whoever wanted it is gone
            }
            match of_thread.reap(&mut child, pid) {
                Ok(status) => drop(end.send_replace(Some(Exit(status)))),
                Err(error) => tracing::error!(%pid, %error, "cannot wait for Envoy"),
            }
        };
        tasks
            .spawn_thread("envoy-parent", OnExit::Ignore, watch)
            .map_err(StartError::Thread)?;
        let pid = start.await.map_err(|_| StartError::Lost)?;
        let pid = pid.map_err(|source| StartError::Spawn { envoy, source })?;
        Ok(Self { pid, switch, ended })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Asks it to end at once (SIGTERM; it cuts its connections).
    pub fn terminate(&self) {
        self.switch.signal(Signal::SIGTERM);
    }

    /// Ends it (SIGKILL).
    pub fn kill(&self) {
        self.switch.kill();
    }

    /// Waits for its end; `None` if nobody can tell any more how it ended. Cancel-safe, and answers every time.
    pub async fn ended(&mut self) -> Option<Exit> {
        self.ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.switch.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn launch(dir: &Path) -> Launch {
        Launch {
            envoy: "/bin/sleep".into(),
            bootstrap: dir.join("b.yaml"),
            log: LogFile::new(dir.join("envoy.log")),
            drain_time: Duration::from_millis(300),
            log_level: "info".into(),
            component_log_level: Some("upstream:debug".into()),
            concurrency: NonZeroU32::new(2),
            guarded: false,
        }
    }

    /// A program that ignores its arguments and runs `script`.
    fn script(dir: &Path, script: &str) -> Launch {
        Launch {
            envoy: crate::testing::script(dir, "fake-envoy", script),
            ..launch(dir)
        }
    }

    #[test]
    fn arguments_are_those_that_carried_traffic() {
        let arguments: Vec<String> = launch(Path::new("/w"))
            .arguments()
            .iter()
            .map(|a| a.to_string_lossy().into())
            .collect();
        assert_eq!(
            arguments.join(" "),
            "--config-path /w/b.yaml --disable-hot-restart --drain-strategy immediate --drain-time-s 1 --log-level info \
             --log-path /w/envoy.log --component-log-level upstream:debug --concurrency 2"
        );
        let launch = Launch {
            concurrency: None,
            component_log_level: None,
            ..launch(Path::new("/w"))
        };
        assert_eq!(launch.arguments().last().unwrap(), "--cpuset-threads");
    }

    #[tokio::test]
    async fn its_end_is_told_and_what_it_said_is_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let launch = script(dir.path(), "echo out; echo err >&2; exit 3");
        let log = launch.log.clone();
        let mut process = Process::start(&tasks, launch, KillSwitch::default()).await.unwrap();
        let exit = process.ended().await.unwrap();
        assert_eq!((exit.to_string().as_str(), exit.is_success()), ("exit code 3", false));
        assert_eq!(process.ended().await, Some(exit), "asked again");
        assert_eq!(log.tail(&[]), "out | err");
        process.terminate(); // the pid may belong to somebody else by now: nothing may happen
        tasks.idle().await;
    }

    #[tokio::test]
    async fn signals_reach_it() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let mut process = Process::start(&tasks, script(dir.path(), "exec sleep 600"), KillSwitch::default())
            .await
            .unwrap();
        process.terminate();
        assert_eq!(process.ended().await.unwrap().to_string(), "signal SIGTERM");
        let switch = KillSwitch::default();
        let process = Process::start(&tasks, script(dir.path(), "exec sleep 600"), switch.clone())
            .await
            .unwrap();
        let pid = process.pid;
        drop(process);
        tasks.idle().await;
        assert!(switch.pid.lock().is_none());
        assert!(kill(pid, None).is_err(), "it was reaped");
    }

    #[tokio::test]
    async fn a_missing_binary_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            envoy: "/nonexistent/envoy".into(),
            ..launch(dir.path())
        };
        let error = Process::start(&Tasks::new(), launch, KillSwitch::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot start Envoy at /nonexistent/envoy");
    }
}
