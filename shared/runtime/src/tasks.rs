//! Owns every task of the process: each has a name, a parent and a meaning when it ends.
//! In: futures to run, SIGTERM and SIGINT. Out: one cancellation, an orderly end, the names of tasks that did not end.
//! Invariant: this module holds the only `tokio::spawn` of the workspace, so that no task can end or panic unnoticed.
//! Source: CONVENTIONS C9 (order of shutdown). Not here: what a task does when it is cancelled.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, debug, error, info, warn};

use crate::error::Chain;

/// Exit code of a process that was asked to stop and stopped in order.
const EXIT_OK: i32 = 0;
/// Exit code when a task ended, failed or panicked on its own.
const EXIT_FAILED: i32 = 1;
/// Exit code when tasks were still running after the grace, or a second signal cut it short.
const EXIT_UNCLEAN: i32 = 2;

/// What the end of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The process cannot do its work without this task: its end, error or panic stops the process.
    Shutdown,
    /// It may end whenever it likes. A panic still stops the process: the state that it shares may be half changed.
    Ignore,
    /// It serves one peer (a connection, a stream). Its end, error or panic concerns that peer alone; the panic is logged and counted.
    Contain,
}

/// Why the process stops. The first reason wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGTERM or SIGINT, by name.
    Signal(&'static str),
    /// [`Tasks::shutdown`], or the root token was cancelled.
    Requested,
    /// A task with [`OnExit::Shutdown`] ended.
    Ended { task: String },
    /// A task with [`OnExit::Shutdown`] failed.
    Failed { task: String, error: String },
    /// A task panicked.
    Panicked { task: String, message: String },
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "{name} received"),
            Self::Requested => f.write_str("shutdown requested"),
            Self::Ended { task } => write!(f, "task {task} ended"),
            Self::Failed { task, error } => write!(f, "task {task} failed: {error}"),
            Self::Panicked { task, message } => write!(f, "task {task} panicked: {message}"),
        }
    }
}

/// How the process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Why it stopped.
    pub reason: StopReason,
    /// Names of the tasks that were still running when the grace was over; sorted.
    pub still_running: Vec<String>,
    /// A second signal cut the grace short.
    pub forced: bool,
}

impl ExitStatus {
    /// 0: asked to stop and all tasks ended; 1: a task ended, failed or panicked; 2: tasks were left behind.
    pub fn code(&self) -> i32 {
        match self.reason {
            StopReason::Signal(_) | StopReason::Requested if self.still_running.is_empty() => EXIT_OK,
            StopReason::Signal(_) | StopReason::Requested => EXIT_UNCLEAN,
            StopReason::Ended { .. } | StopReason::Failed { .. } | StopReason::Panicked { .. } => EXIT_FAILED,
        }
    }

    /// Ends the process with [`Self::code`], without waiting for blocking threads (dropping a tokio runtime would wait for them).
    pub fn exit(&self) -> ! {
        std::process::exit(self.code())
    }
}

/// State shared by all scopes of one process.
struct Root {
    stop: Mutex<Option<StopReason>>,
    /// Cancelled when the process should stop; every scope's token is below it.
    cancel: CancellationToken,
    panics: Counter,
    next_id: AtomicU64,
}

/// A group of tasks that can be ended together. The root scope is the process.
struct Scope {
    cancel: CancellationToken,
    tracker: TaskTracker,
    running: Mutex<BTreeMap<u64, Cow<'static, str>>>,
    parent: Option<Arc<Scope>>,
}

/// Owner of tasks. Clones are handles to the same owner; [`Tasks::child`] makes a group below it.
#[derive(Clone)]
pub struct Tasks {
    root: Arc<Root>,
    scope: Arc<Scope>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Tasks {
    /// The owner of all tasks of a process (or of one test).
    pub fn new() -> Self {
        let cancel = CancellationToken::new();
        Self {
            root: Arc::new(Root {
                stop: Mutex::new(None),
                cancel: cancel.clone(),
                panics: Counter::default(),
                next_id: AtomicU64::new(0),
            }),
            scope: Scope::new(cancel, None),
        }
    }

    /// A group below this one: it is cancelled with its parent, can be cancelled and awaited alone ([`Tasks::shutdown`]),
    /// and its parent waits for its tasks too.
    pub fn child(&self) -> Self {
        Self {
            root: self.root.clone(),
            scope: Scope::new(self.scope.cancel.child_token(), Some(self.scope.clone())),
        }
    }

    /// Cancelled when the tasks of this group should end. Cancelling it ends the group (for the root: the process).
    pub fn cancel_token(&self) -> CancellationToken {
        self.scope.cancel.clone()
    }

    /// Runs `f`'s future as a task. It gets a token that is cancelled when it should end. Must be called inside a tokio runtime.
    pub fn spawn<F, Fut>(&self, name: impl Into<Cow<'static, str>>, on_exit: OnExit, f: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let future = f(self.scope.cancel.child_token());
        self.start(name.into(), on_exit, future.map(|()| Ended::Plain));
    }

    /// As [`Tasks::spawn`] for a task that can fail. An error is logged here with its chain; after the cancellation, at DEBUG only.
    pub fn spawn_fallible<F, Fut, E>(&self, name: impl Into<Cow<'static, str>>, on_exit: OnExit, f: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Error + 'static,
    {
        let future = f(self.scope.cancel.child_token());
        let future = future.map(|result| match result {
            Ok(()) => Ended::Plain,
            Err(error) => Ended::Failed(Chain(&error).to_string()),
        });
        self.start(name.into(), on_exit, future);
    }

    /// Runs `f` on a thread of its own, for work that blocks for long (a disk loop). The thread is waited for like a task.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn spawn_thread<F>(&self, name: impl Into<Cow<'static, str>>, on_exit: OnExit, f: F) -> std::io::Result<()>
    where
        F: FnOnce(CancellationToken) + Send + 'static,
    {
        let registration = self.register_task(name.into());
        let owner = self.clone();
        let token = self.scope.cancel.child_token();
        let label: String = registration.name.chars().take(15).collect(); // Linux shows 15 bytes
        std::thread::Builder::new().name(label).spawn(move || {
            let ended = match std::panic::catch_unwind(AssertUnwindSafe(|| f(token))) {
                Ok(()) => Ended::Plain,
                Err(payload) => Ended::Panicked(panic_message(payload.as_ref())),
            };
            owner.on_end(&registration.name, on_exit, ended);
        })?;
        Ok(())
    }

    /// Number of panics caught so far in the process.
    pub fn panics(&self) -> u64 {
        self.root.panics.get()
    }

    /// Names of the tasks of this group (and of groups below it) that run now; sorted.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.scope.running.lock().values().map(ToString::to_string).collect();
        names.sort();
        names
    }

    /// Registers `task_panics`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "task_panics",
            "Panics caught in tasks; every one is a defect",
            self.root.panics.clone(),
        );
    }

    /// Why the process stops, once it does.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.root.stop.lock().clone()
    }

    /// Stops the process for `reason`; a later reason is ignored.
    pub fn stop(&self, reason: StopReason) {
        self.root.stop.lock().get_or_insert(reason);
        self.root.cancel.cancel();
    }

    /// Counts and logs a panic that the caller caught itself, such as in a request handler.
    pub(crate) fn count_panic(&self, name: &str, message: &str) {
        self.root.panics.inc();
        error!(task = name, panic = message, "panicked");
    }

    /// Runs until SIGTERM, SIGINT, or a task that may not end ended; then cancels all tasks and waits at most `grace` for them.
    /// A second signal ends the wait at once. The caller then closes what must be closed last and calls [`ExitStatus::exit`].
    pub async fn run(self, grace: Duration) -> ExitStatus {
        self.run_with(grace, Signals::new()).await
    }

    async fn run_with(self, grace: Duration, mut signals: impl SignalSource) -> ExitStatus {
        tokio::select! {
            biased;
            () = self.root.cancel.cancelled() => {}
            name = signals.next() => self.stop(StopReason::Signal(name)),
        }
        let reason = self.stop_reason().unwrap_or(StopReason::Requested);
        info!(%reason, "stopping");
        let forced = tokio::select! {
            biased;
            name = signals.next() => { warn!(signal = name, "second signal: not waiting any longer"); true }
            () = self.shutdown(grace) => false,
        };
        let status = ExitStatus {
            reason,
            still_running: self.running(),
            forced,
        };
        info!(code = status.code(), "stopped");
        status
    }

    /// Cancels the tasks of this group and waits at most `grace` until they have ended. Those that have not are named in the log.
    pub async fn shutdown(&self, grace: Duration) {
        self.scope.cancel.cancel();
        self.scope.tracker.close();
        if tokio::time::timeout(grace, self.scope.tracker.wait()).await.is_err() {
            warn!(tasks = ?self.running(), ?grace, "tasks still running after the grace");
        }
    }

    /// Waits until this group has no task. Does not cancel anything.
    pub async fn idle(&self) {
        self.scope.tracker.close();
        self.scope.tracker.wait().await;
    }

    fn start<Fut>(&self, name: Cow<'static, str>, on_exit: OnExit, future: Fut)
    where
        Fut: Future<Output = Ended> + Send + 'static,
    {
        let registration = self.register_task(name);
        let owner = self.clone();
        let span = tracing::debug_span!("task", name = %registration.name);
        let run = async move {
            let ended = AssertUnwindSafe(future).catch_unwind().await;
            let ended = ended.unwrap_or_else(|payload| Ended::Panicked(panic_message(payload.as_ref())));
            owner.on_end(&registration.name, on_exit, ended);
            drop(registration);
        };
        #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
        tokio::spawn(run.instrument(span));
    }

    fn on_end(&self, name: &str, on_exit: OnExit, ended: Ended) {
        let expected = self.scope.cancel.is_cancelled();
        let task = || name.to_owned();
        match (ended, on_exit) {
            (Ended::Panicked(message), OnExit::Contain) => self.count_panic(name, &message),
            (Ended::Panicked(message), OnExit::Shutdown | OnExit::Ignore) => {
                self.count_panic(name, &message);
                self.stop(StopReason::Panicked { task: task(), message });
            }
            (Ended::Failed(error), _) if expected => {
                debug!(task = name, error, "failed while stopping")
            }
            (Ended::Failed(error), OnExit::Shutdown) => {
                error!(task = name, error, "failed");
                self.stop(StopReason::Failed { task: task(), error });
            }
            (Ended::Failed(error), OnExit::Ignore | OnExit::Contain) => {
                warn!(task = name, error, "failed")
            }
            (Ended::Plain, OnExit::Shutdown) if !expected => {
                error!(task = name, "ended although nobody asked it to");
                self.stop(StopReason::Ended { task: task() });
            }
            (Ended::Plain, _) => {}
        }
    }

    /// Enters the task in this group and in all groups above it, until the registration is dropped.
    fn register_task(&self, name: Cow<'static, str>) -> Registration {
        let id = self.root.next_id.fetch_add(1, Ordering::Relaxed);
        let mut tokens = Vec::with_capacity(2);
        let mut scope = Some(&self.scope);
        while let Some(current) = scope {
            tokens.push(current.tracker.token());
            current.running.lock().insert(id, name.clone());
            scope = current.parent.as_ref();
        }
        Registration {
            id,
            name,
            scope: self.scope.clone(),
            _tokens: tokens,
        }
    }
}

impl Scope {
    fn new(cancel: CancellationToken, parent: Option<Arc<Scope>>) -> Arc<Self> {
        Arc::new(Self {
            cancel,
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            parent,
        })
    }
}

enum Ended {
    Plain,
    Failed(String),
    Panicked(String),
}

/// Presence of a task in the lists of its groups.
struct Registration {
    id: u64,
    name: Cow<'static, str>,
    scope: Arc<Scope>,
    _tokens: Vec<TaskTrackerToken>,
}

impl Drop for Registration {
    // Runs before the tokens are dropped: whoever has waited for the group no longer finds the name.
    fn drop(&mut self) {
        let mut scope = Some(&self.scope);
        while let Some(current) = scope {
            current.running.lock().remove(&self.id);
            scope = current.parent.as_ref();
        }
    }
}

/// Text of a panic, as far as it has one.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&'static str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// SIGTERM and SIGINT. A signal whose handler cannot be installed is logged and never fires.
struct Signals {
    term: Option<Signal>,
    int: Option<Signal>,
}

/// Where signals come from: the process, or a test.
trait SignalSource: Send {
    /// Name of the next signal. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = &'static str> + Send;
}

impl Signals {
    fn new() -> Self {
        let install = |kind: SignalKind, name: &str| {
            signal(kind)
                .inspect_err(|error| error!(%error, name, "cannot handle this signal"))
                .ok()
        };
        Self {
            term: install(SignalKind::terminate(), "SIGTERM"),
            int: install(SignalKind::interrupt(), "SIGINT"),
        }
    }
}

impl SignalSource for Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            () = received(&mut self.term) => "SIGTERM",
            () = received(&mut self.int) => "SIGINT",
        }
    }
}

/// One signal; never, if its handler could not be installed.
async fn received(signal: &mut Option<Signal>) {
    let received = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
