//! What has to be looked after beside the running store: purging behind the older snapshot, keeping the cache up, who leads, naming a new
//! history, silencing a leader that nobody answers, a disk that takes nothing, and stopping the process when the disk or the core has failed.
//! In: the store. Out: nothing. Invariant: nothing here is on the way of a proposal; a store that was closed is left in peace.
mod level;
mod quorum;
mod space;
mod voice;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{Notify, watch};
use ursa_runtime::error::Chain;
use ursa_runtime::lease::Deadline;
use ursa_runtime::tasks::{OnExit, StopReason, Tasks};
use ursa_runtime::{Backoff, CancellationToken, heartbeat};
use ursa_state::{HistoryId, View};

use crate::cache::Cache;
use crate::disk;
use crate::error::OpenError;
use crate::log::{EntryId, Failure, Refused};
use crate::net::{Peers, Refusal, admission};
use crate::store::{Inner, Store, size};

/// Between greetings, by which mistakes of set-up are found that the traffic of Raft alone would not show to both sides.
const GREETINGS: Duration = Duration::from_secs(2);
/// The cache writes to the disk that the log syncs to, and spends more time on a change than everything else does: view by view it took
/// half of a busy node. So it waits until nothing was changed for this long, but not longer than that altogether.
const CACHE_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Before naming the history is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Starts what runs beside the store. None of it keeps the store alive.
pub(crate) fn spawn(store: &Store, tasks: &Tasks) {
    let inner = store.inner();
    let run = Runner {
        tasks,
        closing: &inner.closing,
    };
    let weak = || Arc::downgrade(inner);
    run.spawn("store-purge", purge(weak(), inner.snapshots.purgeable()));
    if inner.keys.active_id().is_some() {
        run.spawn("store-encryption", crate::store::encryption::run(weak(), inner.closing.clone()));
    }
    let disowned = inner.peers.as_ref().map(|peers| peers.shared.disowned.subscribe());
    run.spawn(
        "store-health",
        health(weak(), inner.log.failure(), inner.fatal.clone(), disowned, tasks.clone()),
    );
    let refused = || inner.refused.clone();
    run.spawn("store-size", size::count(weak(), store.subscribe()));
    run.spawn("store-space", space::retry(weak(), refused(), inner.closing.clone()));
    if let Some(cache) = inner.cache.clone() {
        run.spawn("store-cache", follow(cache, store.subscribe(), refused(), inner.closing.clone()));
    }
    let metrics = inner.raft.server_metrics();
    let first = metrics.borrow_watched().current_leader;
    inner.leader.send_replace(first);
    run.spawn("store-leader", leader(weak(), metrics, inner.leader.clone()));
    if let Some(peers) = &inner.peers {
        run.spawn(
            "store-history",
            history(weak(), store.subscribe(), tasks.clone(), inner.closing.clone()),
        );
        run.spawn(
            "store-founder",
            founder(weak(), store.subscribe(), peers.clone(), inner.closing.clone()),
        );
        if let Some(cluster) = &inner.config.cluster {
            run.spawn(
                "store-members",
                grow(weak(), peers.clone(), cluster.members.clone(), inner.closing.clone()),
            );
        }
        run.spawn("store-level", level::run(weak(), peers.clone(), inner.closing.clone()));
        run.spawn(
            "store-space-lead",
            space::hand_over(weak(), peers.clone(), refused(), inner.closing.clone()),
        );
        run.spawn("store-greetings", greetings(peers.clone(), inner.closing.clone()));
        let timings = inner.config.timings;
        run.spawn("store-quorum", quorum::run(weak(), peers.clone(), timings, inner.closing.clone()));
    }
}

struct Runner<'a> {
    tasks: &'a Tasks,
    closing: &'a CancellationToken,
}

impl Runner<'_> {
    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tasks.spawn(name, OnExit::Ignore, |cancel| until(cancel, closing, work));
    }
}

pub(crate) async fn until(cancel: CancellationToken, closing: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = closing.cancelled() => {}
        () = work => {}
    }
}

/// Whenever a snapshot became durable, the log behind the one before it goes.
async fn purge(inner: Weak<Inner>, mut purgeable: watch::Receiver<Option<EntryId>>) {
    loop {
        let upto = *purgeable.borrow_and_update();
        let Some(inner) = inner.upgrade() else { return };
        if let Some(upto) = upto
            && inner.raft.trigger().purge_log(upto.index).await.is_err()
        {
            return; // the core has stopped; `health` says so
        }
        drop(inner);
        if purgeable.changed().await.is_err() {
            return;
        }
    }
}

/// Stops the process once the store cannot go on.
async fn health(
    inner: Weak<Inner>,
    mut failure: watch::Receiver<Option<Failure>>,
    fatal: Arc<Notify>,
    mut disowned: Option<watch::Receiver<Option<Refusal>>>,
    tasks: Tasks,
) {
    loop {
        let told = async {
            match &mut disowned {
                Some(disowned) => drop(disowned.wait_for(Option::is_some).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            failed = failure.wait_for(Option::is_some) => if failed.is_err() { return },
            () = told => {}
            () = fatal.notified() => {}
        }
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        if store.inner().closing.is_cancelled() {
            return;
        }
        if let Some(error) = store.why_stopped() {
            tracing::error!(error, "the store has failed: this process stops");
            tasks.stop(StopReason::Failed {
                task: "store".to_owned(),
                error,
            });
            return;
        }
    }
}

/// Tells the cache that there is a newer view, when there is time for it, and room.
async fn follow(cache: Cache, mut views: watch::Receiver<View>, mut refused: watch::Receiver<Option<Refused>>, closing: CancellationToken) {
    let (quiet, longest) = CACHE_WAITS;
    while views.changed().await.is_ok() {
        let latest = Deadline::after(longest);
        let mut pause = heartbeat::every(quiet, &closing);
        loop {
            tokio::select! {
                biased;
                changed = views.changed() => match changed {
                    Ok(()) if latest.has_passed() => break,
                    Ok(()) => pause.reset(),
                    Err(_) => return,
                },
                ticked = pause.tick() => if ticked { break } else { return },
            }
        }
        if refused.wait_for(Option::is_none).await.is_err() {
            return;
        }
        cache.wake();
    }
}

/// Tells who leads, and when the core has ended: whether by a fatal error or, by a defect, without a word.
async fn leader(inner: Weak<Inner>, mut metrics: crate::raft::ServerMetrics, leader: watch::Sender<Option<u64>>) {
    loop {
        let now = metrics.borrow_watched().current_leader;
        let changed = leader.send_if_modified(|known| std::mem::replace(known, now) != now);
        if changed {
            tracing::info!(leader = now, "who leads has changed");
        }
        if metrics.changed().await.is_err() {
            leader.send_replace(None);
            if let Some(inner) = inner.upgrade() {
                inner.core_ended.store(true, Ordering::Release);
                inner.fatal.notify_one();
            }
            return;
        }
    }
}

/// Notes the history as soon as it is known.
async fn history(inner: Weak<Inner>, mut views: watch::Receiver<View>, tasks: Tasks, closing: CancellationToken) {
    if views.wait_for(|view| view.history_id() != HistoryId::default()).await.is_err() {
        return;
    }
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let error = loop {
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        match store.note_history().await {
            Ok(()) => return,
            Err(OpenError::Io { source, .. }) if disk::is_refusal(&source) => {
                tracing::warn!(error = %source, "the history is not noted yet")
            }
            Err(error) => break error,
        }
        drop(store);
        if !backoff.wait(&closing).await {
            return;
        }
    };
    let error = Chain(&error).to_string();
    tracing::error!(error, "cannot note the history");
    tasks.stop(StopReason::Failed {
        task: "store".to_owned(),
        error,
    });
}

/// Whoever leads first gives what is stored its name.
async fn founder(inner: Weak<Inner>, views: watch::Receiver<View>, peers: Peers, closing: CancellationToken) {
    let mut leads = peers.leader();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    while views.borrow().history_id() == HistoryId::default() {
        if leads.wait_for(|leader| *leader == Some(peers.node_id())).await.is_err() {
            return;
        }
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        // A new leader applies what was committed before it writes: nothing that was named is named anew.
        if store.read().await.is_ok_and(|view| view.history_id() != HistoryId::default()) {
            return;
        }
        let begun = store.begin_history().await;
        drop(store);
        match begun {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "the history has no name yet"),
        }
        if !backoff.wait(&closing).await {
            return;
        }
    }
}

/// A group of one that is given more members grows into them, each as soon as it has caught up. Any other difference between the configured
/// members and those of the group is left as it is.
async fn grow(inner: Weak<Inner>, peers: Peers, members: BTreeMap<u64, String>, closing: CancellationToken) {
    let me = peers.node_id();
    let mut leads = peers.leader();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    while leads.wait_for(|leader| *leader == Some(me)).await.is_ok() {
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        let (raft, stay) = (store.inner().raft.clone(), store.without_left(&members).await);
        drop(store);
        let Some(members) = stay else {
            if !backoff.wait(&closing).await {
                return;
            }
            continue;
        };
        if members.len() < 2 || !raft.voter_ids().eq([me]) {
            return;
        }
        // Whoever is away would be a voter all the same, and the majority would be lost with the first of them.
        let others = members.keys().copied().filter(|id| *id != me);
        let greeted = join_all(others.map(|id| admission::greet(&peers, id))).await;
        if greeted.iter().any(Result::is_err) {
            drop(raft);
            if !backoff.wait(&closing).await {
                return;
            }
            continue;
        }
        let grown = crate::raft::grow(&raft, &closing, &members).await;
        drop(raft);
        match grown {
            Ok(()) => tracing::info!(members = ?members.keys().collect::<Vec<_>>(), "the group has grown"),
            Err(error) => tracing::warn!(error, "the group cannot grow into the configured members yet"),
        }
        if !backoff.wait(&closing).await {
            return;
        }
    }
}

/// Asks the others now and then whether they know this node for what it is.
async fn greetings(peers: Peers, closing: CancellationToken) {
    let mut ticker = heartbeat::every_spread(GREETINGS, &closing);
    while ticker.tick().await {
        join_all(peers.others().into_iter().map(|id| admission::greet(&peers, id))).await;
    }
}
