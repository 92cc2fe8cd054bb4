//! The orderly end of a process, and the end it comes to when a part of it fails.
//! In: a signal, or a task that ended on its own. Out: exit status. Order (CONVENTIONS C9): not ready; the lead goes to another node;
//! no streams are taken any more, and those there are end; requests end; last words to the other nodes; the store is closed.
//! Invariant: the store is open until nothing needs it any more; a write that was answered is never given up to be quicker.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tracing::{info, warn};
use ursa_runtime::{
    error::Chain,
    lease::{Deadline, within},
    tasks::{ExitStatus, OnExit, StopReason, Tasks},
};
use ursa_store::Store;

/// Longest wait for another node to take over the lead; it takes some 10 ms.
const HAND_OVER: Duration = Duration::from_secs(3);
/// For the streams between the nodes and the checkpoint.
const LAST: Duration = Duration::from_secs(3);
/// For the store: its log is flushed and its threads end.
const CLOSE: Duration = Duration::from_secs(5);

type Hook = Box<dyn FnOnce() + Send>;

/// The tasks of a process by when they end.
pub(crate) struct Lives {
    /// Waits for signals; its end is the process's.
    pub(crate) process: Tasks,
    /// Servers and whatever serves clients, zones and proxies: ends first.
    pub(crate) front: Tasks,
    /// The store and what is between the nodes: ends last.
    pub(crate) back: Tasks,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

impl Lives {
    /// From now on the end of a part, for whatever reason, is the end of the process.
    pub(crate) fn new() -> Self {
        let (process, front, back) = (Tasks::new(), Tasks::new(), Tasks::new());
        for part in [front.clone(), back.clone()] {
            let stopping = process.clone();
            process.spawn("part-ended", OnExit::Ignore, move |cancel| async move {
                let ended = part.cancel_token();
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = ended.cancelled() => stopping.stop(part.stop_reason().unwrap_or(StopReason::Requested)),
                }
            });
        }
        Self {
            process,
            front,
            back,
            hooks: Arc::default(),
        }
    }

    /// Called when the end begins, after the lead was given away and before anything is cancelled.
    pub(crate) fn on_stop(&self, hook: Hook) {
        self.hooks.lock().push(hook);
    }

    /// Runs until a signal or a failure, and through the end. `grace` is for running requests.
    pub(crate) async fn run(&self, store: Store, grace: Duration) -> ExitStatus {
        let Self {
            process,
            front,
            back,
            hooks,
        } = self;
        let (front_now, back_now) = (front.clone(), back.clone());
        let (front, back, hooks) = (front.clone(), back.clone(), hooks.clone());
        process.spawn("orderly-end", OnExit::Ignore, move |cancel| async move {
            cancel.cancelled().await;
            if !back.cancel_token().is_cancelled() && store.peers().is_some() {
                match store.hand_over(Deadline::after(HAND_OVER)).await {
                    Ok(leader) => info!(leader, "this node does not lead"),
                    Err(error) => warn!(error = %Chain(&error), "no other node has taken over the lead; they elect one"),
                }
            }
            let hooks = std::mem::take(&mut *hooks.lock());
            hooks.into_iter().for_each(|hook| hook());
            front.shutdown(grace).await;
            back.shutdown(LAST).await;
            match within(CLOSE, store.shutdown()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(error = %Chain(&error), "the store was not closed cleanly; its next start rebuilds what it must"),
                Err(late) => warn!(error = %late, "the store was not closed cleanly; its next start rebuilds what it must"),
            }
        });
        let mut status = process.clone().run(HAND_OVER + grace + LAST + CLOSE).await;
        status.still_running.extend(front_now.running());
        status.still_running.extend(back_now.running());
        status
    }
}
