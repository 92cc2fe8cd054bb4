//! What has to be looked after beside the running store: purging behind the older snapshot, keeping the cache up, and stopping the
//! process when the disk or the core has failed.
//! In: the store. Out: nothing. Invariant: nothing here is on the way of a proposal; a store that was closed is left in peace.
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::{Notify, watch};
use ursa_runtime::CancellationToken;
use ursa_runtime::tasks::{OnExit, StopReason, Tasks};
use ursa_state::View;

use crate::log::{EntryId, Failure};
use crate::store::{Inner, Store};

/// Starts what runs beside the store. None of it keeps the store alive.
pub(crate) fn spawn(store: &Store, tasks: &Tasks) {
    let inner = store.inner();
    let purgeable = inner.snapshots.purgeable();
    let weak = Arc::downgrade(inner);
    tasks.spawn("store-purge", OnExit::Ignore, |cancel| purge(weak, purgeable, cancel));
    let (weak, failure, fatal, owner) = (Arc::downgrade(inner), inner.log.failure(), inner.fatal.clone(), tasks.clone());
    tasks.spawn("store-health", OnExit::Ignore, |cancel| health(weak, failure, fatal, owner, cancel));
    if inner.cache.is_some() {
        let (weak, views) = (Arc::downgrade(inner), store.subscribe());
        tasks.spawn("store-cache", OnExit::Ignore, |cancel| cache(weak, views, cancel));
    }
}

/// Whenever a snapshot became durable, the log behind the one before it goes.
async fn purge(inner: Weak<Inner>, mut purgeable: watch::Receiver<Option<EntryId>>, cancel: CancellationToken) {
    loop {
        let upto = *purgeable.borrow_and_update();
        let Some(inner) = inner.upgrade() else { return };
        if let Some(upto) = upto
            && inner.raft.trigger().purge_log(upto.index).await.is_err()
        {
            return; // the core has stopped; `health` says so
        }
        drop(inner);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = purgeable.changed() => if changed.is_err() { return },
        }
    }
}

/// Stops the process once the store cannot go on.
async fn health(
    inner: Weak<Inner>,
    mut failure: watch::Receiver<Option<Failure>>,
    fatal: Arc<Notify>,
    tasks: Tasks,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            failed = failure.wait_for(Option::is_some) => if failed.is_err() { return },
            () = fatal.notified() => {}
        }
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        if store.inner().closing.load(Ordering::Acquire) {
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

/// Brings the cache up to the newest view, again and again.
async fn cache(inner: Weak<Inner>, mut views: watch::Receiver<View>, cancel: CancellationToken) {
    loop {
        let view = views.borrow_and_update().clone();
        let Some(cache) = inner.upgrade().and_then(|inner| inner.cache.clone()) else {
            return;
        };
        cache.catch_up(view).await;
        drop(cache);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}
