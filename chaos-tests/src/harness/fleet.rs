//! All processes of one scenario.
//!
//! In: [`Spec`]s, signals. Out: readiness, unasked ends, restarts of Envoys, logs.
//! Invariant: when the fleet is dropped, none of its processes is left, orphans included (they are found by a mark in their environment).
//! Not here: what the processes are ([`crate::demo::topology`]).
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use parking_lot::Mutex;

use super::logs;
use super::process::{MARK, Process, Spec, describe, kill_exactly};
use super::procfs::{self, Identity};
use super::wait::{POLL, Poll, wait_until};
use crate::client::{Api, Mode, Target};

/// One look at `/ready`; a process that does not answer in this time is not ready.
const READY_LOOK: Duration = Duration::from_secs(2);

/// How a process took its SIGTERM.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Its name.
    pub name: String,
    /// How it ended, in words.
    pub how: String,
    /// By itself, within the grace and with exit code 0.
    pub clean: bool,
    /// From SIGTERM to the end.
    pub took: Duration,
}

#[derive(Debug, Default)]
struct Members {
    /// In the order of starting.
    processes: Vec<Process>,
    /// The Envoys below each process when it was first looked at.
    envoys: BTreeMap<String, Vec<Identity>>,
}

impl Members {
    fn get(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.processes
            .iter_mut()
            .find(|p| p.spec.name == name)
            .with_context(|| format!("no process named {name}"))
    }
}

/// The processes of a scenario. Clones mean the same fleet; the last one dropped kills it.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    mark: String,
    members: Mutex<Members>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let members = self.members.get_mut();
        for process in members.processes.iter_mut().rev() {
            process.kill_all();
        }
        for orphan in procfs::marked(MARK, &self.mark) {
            kill_exactly(orphan);
        }
    }
}

impl Fleet {
    /// An empty fleet whose processes run in `dir` and log to `dir/logs`. The folder must exist.
    ///
    /// # Errors
    /// If `dir/logs` cannot be made.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot use the folder {}", dir.display()))?;
        std::fs::create_dir_all(dir.join("logs")).context("cannot make the folder of the logs")?;
        let mark = uuid::Uuid::new_v4().to_string();
        Ok(Self(Arc::new(Inner {
            dir,
            mark,
            members: Mutex::default(),
        })))
    }

    /// The folder that all of it lives in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The log file of a process; its restarts write to the same.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a process.
    ///
    /// # Errors
    /// If the name is taken by a running process, or the program cannot be started.
    pub fn start(&self, spec: Spec) -> anyhow::Result<()> {
        let mut members = self.0.members.lock();
        if let Ok(earlier) = members.get(&spec.name) {
            if earlier.exit().is_none() {
                bail!("{} runs already", spec.name);
            }
            members.processes.retain(|p| p.spec.name != spec.name);
        }
        members.envoys.remove(&spec.name);
        let log = self.log(&spec.name);
        members.processes.push(Process::start(spec, &self.0.dir, &log, &self.0.mark)?);
        Ok(())
    }

    /// Starts an ended process again, exactly as before.
    ///
    /// # Errors
    /// As [`Fleet::start`].
    pub fn restart(&self, name: &str) -> anyhow::Result<()> {
        let spec = self.0.members.lock().get(name)?.spec.clone();
        self.start(spec)
    }

    /// Waits until the process says that it is ready. Returns how long that took from this call.
    ///
    /// # Errors
    /// If it ended, with the end of its log; or at the deadline.
    pub async fn wait_ready(&self, name: &str, deadline: Duration) -> anyhow::Result<Duration> {
        let ready = self.0.members.lock().get(name)?.spec.ready.clone();
        let look = ready.map(|(address, path)| {
            (
                Api::new(Target::Tcp(address))
                    .with_mode(Mode::NewConnection)
                    .with_deadline(READY_LOOK),
                path,
            )
        });
        let what = format!("{name} is ready");
        let waited = wait_until(&what, deadline, POLL, async || {
            if let Some(status) = self.0.members.lock().get(name)?.exit() {
                bail!(
                    "{name} ended with {}; the end of its log:\n{}",
                    describe(status),
                    logs::tail(&self.log(name), 30)
                );
            }
            let Some((api, path)) = &look else { return Ok(Poll::Ready(())) };
            Ok(match api.get(path).await {
                Ok(answer) => Poll::when(answer.status.is_success(), (), || format!("{path} answers {}", answer.status)),
                Err(error) => Poll::NotYet(error.to_string()),
            })
        })
        .await;
        match waited {
            Ok(((), took)) => Ok(took),
            Err(error) => Err(error.context(format!("log: {}", self.log(name).display()))),
        }
    }

    /// Sends a signal to one process (not to the Envoy below it): SIGKILL, SIGSTOP, SIGCONT, SIGTERM.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.0.members.lock().get(name)?.signal(signal);
        Ok(())
    }

    /// From now on the end of this process is no fault, until it is started again.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn may_end(&self, name: &str) -> anyhow::Result<()> {
        self.0.members.lock().get(name)?.may_end();
        Ok(())
    }

    /// How a process ended; none while it runs.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn ended(&self, name: &str) -> anyhow::Result<Option<String>> {
        Ok(self.0.members.lock().get(name)?.exit().map(describe))
    }

    /// Waits until a process has ended, however.
    ///
    /// # Errors
    /// If there is no such process, or at the deadline.
    pub async fn wait_gone(&self, name: &str, deadline: Duration) -> anyhow::Result<Duration> {
        let (_, took) = wait_until(&format!("{name} is gone"), deadline, POLL, async || {
            let gone = self.0.members.lock().get(name)?.exit().is_some();
            Ok(Poll::when(gone, (), || "still running".into()))
        })
        .await?;
        Ok(took)
    }

    /// Sends SIGTERM and waits for the end; after `grace` the process and all below it are killed.
    ///
    /// # Errors
    /// If there is no such process.
    pub async fn terminate(&self, name: &str, grace: Duration) -> anyhow::Result<Ending> {
        self.signal(name, Signal::SIGTERM)?;
        Ok(self.await_end(name, grace).await)
    }

    async fn await_end(&self, name: &str, grace: Duration) -> Ending {
        let ended = wait_until("the end", grace, POLL, async || {
            Ok(match self.0.members.lock().get(name)?.exit() {
                Some(status) => Poll::Ready(status),
                None => Poll::NotYet("still running".into()),
            })
        })
        .await;
        let name = name.to_owned();
        match ended {
            Ok((status, took)) => Ending {
                name,
                how: describe(status),
                clean: status.success(),
                took,
            },
            Err(_too_long) => {
                if let Ok(process) = self.0.members.lock().get(&name) {
                    process.kill_all();
                }
                Ending {
                    name,
                    how: format!("did not end within {grace:?} of SIGTERM and was killed"),
                    clean: false,
                    took: grace,
                }
            }
        }
    }

    /// Ends all of these at the same time, each as [`Fleet::terminate`] does.
    pub async fn terminate_together(&self, names: &[String], grace: Duration) -> Vec<Ending> {
        for name in names {
            // A name that is not there shows below, as an end that did not come.
            let _unknown = self.signal(name, Signal::SIGTERM);
        }
        futures::future::join_all(names.iter().map(|name| self.await_end(name, grace))).await
    }

    /// Resolves when a process ends that nobody asked to, with its name, its end and the end of its log.
    pub async fn unasked_exit(&self) -> String {
        let year = Duration::from_secs(365 * 24 * 3600);
        let found = wait_until("an unasked end", year, 2 * POLL, async || {
            let found = self.unasked_exits();
            Ok(Poll::when(!found.is_empty(), found, || "all run".into()))
        })
        .await;
        match found {
            Ok((ends, _)) => ends
                .iter()
                .map(|(name, how)| {
                    format!(
                        "{name} ended unasked: {how}; the end of its log:\n{}",
                        logs::tail(&self.log(name), 30)
                    )
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => error.to_string(),
        }
    }

    /// All processes that have ended without being asked, and how.
    #[must_use]
    pub fn unasked_exits(&self) -> Vec<(String, String)> {
        let mut members = self.0.members.lock();
        members
            .processes
            .iter_mut()
            .filter_map(|p| Some((p.spec.name.clone(), describe(p.unasked_exit()?))))
            .collect()
    }

    /// The names of all processes, in the order of starting.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.members.lock().processes.iter().map(|p| p.spec.name.clone()).collect()
    }

    /// Process ids by name, for messages.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, i32)> {
        self.0
            .members
            .lock()
            .processes
            .iter()
            .map(|p| (p.spec.name.clone(), p.id().pid))
            .collect()
    }

    /// Remembers which Envoys run now; [`Fleet::changed_envoys`] compares with it.
    pub fn remember_envoys(&self) {
        let mut members = self.0.members.lock();
        let now = members.processes.iter().map(|p| (p.spec.name.clone(), p.envoys())).collect();
        members.envoys = now;
    }

    /// Remembers the Envoys of processes that were started since: for those that a scenario starts again, or lets join.
    pub fn remember_new_envoys(&self) {
        let mut members = self.0.members.lock();
        let new: Vec<_> = members
            .processes
            .iter()
            .filter(|p| !members.envoys.contains_key(&p.spec.name))
            .map(|p| (p.spec.name.clone(), p.envoys()))
            .collect();
        members.envoys.extend(new);
    }

    /// Processes whose Envoys are not the remembered ones: one was restarted, died or was added. With both sets of pids in words.
    #[must_use]
    pub fn changed_envoys(&self) -> Vec<String> {
        let members = self.0.members.lock();
        let pids = |ids: &[Identity]| ids.iter().map(|id| id.pid.to_string()).collect::<Vec<_>>().join(",");
        members
            .processes
            .iter()
            .filter_map(|p| {
                let (then, now) = (members.envoys.get(&p.spec.name)?, p.envoys());
                (*then != now).then(|| format!("{}: Envoy was [{}], is [{}]", p.spec.name, pids(then), pids(&now)))
            })
            .collect()
    }

    /// How many Envoys run below this process.
    #[must_use]
    pub fn envoy_count(&self, name: &str) -> usize {
        self.0.members.lock().get(name).map_or(0, |p| p.envoys().len())
    }

    /// The present length of each log, for [`logs::scan_until`].
    #[must_use]
    pub fn log_lengths(&self) -> BTreeMap<String, u64> {
        self.names()
            .into_iter()
            .map(|name| (name.clone(), self.log_length(&name)))
            .collect()
    }

    /// The present length of one log, for [`logs::since`].
    #[must_use]
    pub fn log_length(&self, name: &str) -> u64 {
        std::fs::metadata(self.log(name)).map_or(0, |m| m.len())
    }

    /// Processes of this fleet that are alive, grandchildren and orphans included.
    #[must_use]
    pub fn alive(&self) -> Vec<Identity> {
        procfs::marked(MARK, &self.0.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Spec {
        Spec::new(name, "/bin/sh").arg("-c").arg(script)
    }

    async fn settled(what: &str, mut holds: impl FnMut() -> bool) {
        wait_until(what, Duration::from_secs(60), POLL, async || {
            Ok(Poll::when(holds(), (), || "not yet".into()))
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn dropping_the_fleet_kills_grandchildren_and_orphans() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        // One grandchild in another session, one whose parent is gone already.
        fleet.start(shell("a", "setsid sleep 1000 & (sleep 1000 &) ; wait")).unwrap();
        settled("three processes", || fleet.alive().len() == 3).await;
        let seen = fleet.alive();
        drop(fleet);
        settled("none is left", || seen.iter().all(|id| procfs::identity(id.pid) != Some(*id))).await;
    }

    #[tokio::test]
    async fn an_unasked_end_is_told_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        fleet.start(shell("a", "echo something broke; exit 3")).unwrap();
        let told = fleet.unasked_exit().await;
        assert!(
            told.contains("a ended unasked: exit code 3") && told.contains("something broke"),
            "{told}"
        );
        let error = format!("{:#}", fleet.wait_ready("a", Duration::from_secs(5)).await.unwrap_err());
        assert!(error.contains("exit code 3") && error.contains("something broke"), "{error}");
    }

    #[tokio::test]
    async fn an_asked_end_is_no_fault_and_a_deaf_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        fleet
            .start(shell("good", "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done"))
            .unwrap();
        fleet
            .start(shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.01; done"))
            .unwrap();
        settled("both are up", || {
            ["good", "deaf"].iter().all(|n| logs::tail(&fleet.log(n), 1) == "up")
        })
        .await;
        let ends = fleet
            .terminate_together(&["good".into(), "deaf".into()], Duration::from_secs(3))
            .await;
        assert!(ends[0].clean && !ends[1].clean, "{ends:?}");
        assert!(fleet.unasked_exits().is_empty());
        fleet.restart("good").unwrap();
        assert!(fleet.start(shell("good", "")).is_err(), "a running process is not started twice");
    }

    #[tokio::test]
    async fn an_envoy_that_was_restarted_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let envoy = dir.path().join("envoy");
        std::fs::copy("/bin/sleep", &envoy).unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        fleet
            .start(shell("proxy", &format!("while :; do {} 1000; done", envoy.display())))
            .unwrap();
        settled("it runs", || fleet.envoy_count("proxy") == 1).await;
        fleet.remember_envoys();
        fleet.start(shell("later", &format!("{} 1000; true", envoy.display()))).unwrap();
        settled("the later one runs", || fleet.envoy_count("later") == 1).await;
        fleet.remember_new_envoys();
        assert!(fleet.changed_envoys().is_empty());
        for process in fleet.alive() {
            if fleet.0.members.lock().processes.iter().any(|p| p.envoys().contains(&process)) {
                kill_exactly(process);
            }
        }
        settled("both restarts are noticed", || fleet.changed_envoys().len() == 2).await;
    }

    #[tokio::test]
    async fn the_environment_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Fleet::new(dir.path()).unwrap();
        fleet.start(shell("env", "env | cut -d= -f1 | sort").env("ADDED", "1")).unwrap();
        settled("it ended", || !fleet.unasked_exits().is_empty()).await;
        let names = logs::tail(&fleet.log("env"), 50);
        assert!(
            names.contains("ADDED") && names.contains(MARK) && !names.contains("CARGO"),
            "{names}"
        );
    }
}
