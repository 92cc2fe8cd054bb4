//! While a disk takes nothing: finding out when it does again, and giving the lead to a member whose disk is well.
//! In: what the log and the other members say. Out: tries, hand-overs.
//! Invariant: nothing is tried or given away while all disks are well.
use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::Deadline;
use ursa_runtime::{Backoff, CancellationToken};

use crate::log::Refused;
use crate::net::Peers;
use crate::store::room::Room;
use crate::store::{Inner, Store};

/// Between tries to write to a disk that takes nothing. No file system tells that it has room again, so a timer is all there is; a try
/// takes a page and costs next to nothing.
const TRIES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Longest that one hand-over is waited for.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Tries again for as long as the disk takes nothing.
pub(super) async fn retry(inner: Weak<Inner>, mut refused: watch::Receiver<Option<Refused>>, closing: CancellationToken) {
    while refused.wait_for(Option::is_some).await.is_ok() {
        let mut backoff = Backoff::new(TRIES.0, TRIES.1);
        while refused.borrow().is_some() {
            if !backoff.wait(&closing).await {
                return;
            }
            let Some(inner) = inner.upgrade() else { return };
            if inner.log.retry().await.is_err() {
                return;
            }
        }
    }
}

/// A leader whose disk takes nothing gives the lead to the furthest member whose disk is well, if a majority's are.
pub(super) async fn hand_over(inner: Weak<Inner>, peers: Peers, mut refused: watch::Receiver<Option<Refused>>, closing: CancellationToken) {
    let (mut leads, mut others) = (peers.leader(), peers.shared.disks.others());
    let mut backoff = Backoff::new(TRIES.0, TRIES.1);
    loop {
        leads.mark_unchanged();
        others.mark_unchanged();
        let refuses = refused.borrow_and_update().is_some();
        let Some(store) = inner.upgrade().map(Store::from) else { return };
        if let Some(next) = next(&store) {
            tracing::warn!(target: "ursa_store::keeper", to = next, "the disk of this leader takes nothing: it gives the lead away");
            if let Err(error) = store.hand_over_to(Some(next), Deadline::after(HAND_OVER)).await {
                tracing::warn!(target: "ursa_store::keeper", error = %Chain(&error), "the lead was not taken over yet");
            }
        } else if !refuses {
            backoff = Backoff::new(TRIES.0, TRIES.1);
        }
        drop(store);
        let changed = async {
            tokio::select! {
                changed = leads.changed() => changed.is_ok(),
                changed = others.changed() => changed.is_ok(),
                changed = refused.changed() => changed.is_ok(),
            }
        };
        // Who answers changes without a word.
        let go_on = tokio::select! {
            biased;
            go_on = changed => go_on,
            go_on = backoff.wait(&closing), if refuses => go_on,
        };
        if !go_on {
            return;
        }
    }
}

/// Who should lead instead.
fn next(store: &Store) -> Option<u64> {
    let Room::Elsewhere(well) = store.room() else { return None };
    let mut tried = Vec::new();
    loop {
        let next = store.furthest(&tried)?;
        if well.contains(&next) {
            return Some(next);
        }
        tried.push(next);
    }
}
