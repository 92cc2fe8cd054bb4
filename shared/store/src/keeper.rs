//! What has to be looked after beside the running store: purging behind the older snapshot, keeping the cache up, and stopping the
//! process when the disk or the core has failed.
//! In: the store. Out: nothing. Invariant: nothing here is on the way of a proposal; a store that was closed is left in peace.
use std::sync::{Arc, Weak};

use tokio::sync::{Notify, watch};
use ursa_runtime::CancellationToken;
use ursa_runtime::tasks::{OnExit, StopReason, Tasks};
use ursa_state::View;

use crate::cache::Cache;
use crate::log::{EntryId, Failure};
use crate::store::{Inner, Store};

/// Starts what runs beside the store. None of it keeps the store alive.
pub(crate) fn spawn(store: &Store, tasks: &Tasks) {
    let inner = store.inner();
    let (weak, purgeable, closing) = (Arc::downgrade(inner), inner.snapshots.purgeable(), inner.closing.clone());
    tasks.spawn("store-purge", OnExit::Ignore, |cancel| {
        until(cancel, closing, purge(weak, purgeable))
    });
    let (weak, failure, fatal) = (Arc::downgrade(inner), inner.log.failure(), inner.fatal.clone());
    let (owner, closing) = (tasks.clone(), inner.closing.clone());
    tasks.spawn("store-health", OnExit::Ignore, |cancel| {
        until(cancel, closing, health(weak, failure, fatal, owner))
    });
    if let Some(cache) = inner.cache.clone() {
        let (views, closing) = (store.subscribe(), inner.closing.clone());
        tasks.spawn("store-cache", OnExit::Ignore, |cancel| until(cancel, closing, follow(cache, views)));
    }
}

async fn until(cancel: CancellationToken, closing: CancellationToken, work: impl Future<Output = ()>) {
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
async fn health(inner: Weak<Inner>, mut failure: watch::Receiver<Option<Failure>>, fatal: Arc<Notify>, tasks: Tasks) {
    loop {
        tokio::select! {
            biased;
            failed = failure.wait_for(Option::is_some) => if failed.is_err() { return },
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

/// Tells the cache that there is a newer view.
async fn follow(cache: Cache, mut views: watch::Receiver<View>) {
    while views.changed().await.is_ok() {
        views.mark_unchanged();
        cache.wake();
    }
}
