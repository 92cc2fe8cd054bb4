//! Forgets history that is no longer wanted: the leader proposes a floor, and all nodes forget what is below it.
//! In: views, the retention. Out: compactions. Invariant: at most what the retention lets go; a follower proposes nothing.

use std::time::Duration;

use tracing::{debug, info};
use ursa_model::Timestamp;
use ursa_runtime::{CancellationToken, error::Chain, heartbeat};
use ursa_state::Retention;
use ursa_store::Store;

/// Between looks at the age of history; too many revisions are noticed at once.
const PERIOD: Duration = Duration::from_secs(60);
/// Revisions beyond the retention before they are dropped, so that not every write brings a compaction: at least that many, or a hundredth.
const MIN_SLACK: u64 = 65;

/// Runs until cancelled.
pub(crate) async fn run(store: Store, keep: Retention, cancel: CancellationToken) {
    let slack = MIN_SLACK.max(keep.revisions / 100);
    let mut views = store.subscribe();
    let mut ticker = heartbeat::every_spread(PERIOD, &cancel);
    loop {
        let by_age = tokio::select! {
            biased;
            goes_on = ticker.tick() => match goes_on {
                true => true,
                false => return,
            },
            changed = views.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let view = views.borrow_and_update().clone();
        let past = view.past();
        if !store.is_leader() || (!by_age && past.kept().revisions < keep.revisions.saturating_add(slack)) {
            continue;
        }
        let Some(floor) = past.floor_for(keep, Timestamp::now()) else {
            continue;
        };
        let compacted = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            compacted = store.compact(floor) => compacted,
        };
        match compacted {
            Ok(_) if by_age => info!(floor, "history up to this revision is forgotten: it is too old, or too much"),
            Ok(_) => debug!(floor, "history up to this revision is forgotten: it is too much"),
            // The next tick, or the next leader, does it.
            Err(error) => debug!(error = %Chain(&error), floor, "history is not forgotten yet"),
        }
    }
}
