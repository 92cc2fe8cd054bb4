//! Raising the feature level of the group, once all of its members know the next one.
//! In: what the members say they know. Out: one entry, by the leader.
//! Invariants: a member that does not answer at the moment keeps the level where it is; no member is let in while it is raised.
use std::sync::Weak;
use std::time::Duration;

use ursa_runtime::error::Chain;
use ursa_runtime::{CancellationToken, heartbeat};
use ursa_state::Command;

use crate::Error;
use crate::level;
use crate::net::Peers;
use crate::raft::members;
use crate::store::{Inner, Store};

/// Between two looks, beside every news: whether all members answer makes no noise.
const LOOK: Duration = Duration::from_secs(2);
/// A member that was not heard for so long may be another one when it is heard again.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Until the store ends.
pub(super) async fn run(inner: Weak<Inner>, peers: Peers, closing: CancellationToken) {
    let (mut leads, mut announced) = (peers.leader(), peers.shared.announced.subscribe());
    let mut ticker = heartbeat::every(LOOK, &closing);
    loop {
        if *leads.borrow_and_update() == Some(peers.node_id()) {
            let Some(store) = inner.upgrade().map(Store::from) else { return };
            if let Err(error) = store.raise_level().await {
                tracing::debug!(error = %Chain(&error), "the feature level is not raised now");
            }
        }
        tokio::select! {
            biased;
            changed = leads.changed() => if changed.is_err() { return },
            changed = announced.changed() => if changed.is_err() { return },
            ticked = ticker.tick() => if !ticked { return },
        }
    }
}

impl Store {
    /// Raises the level if this node leads and all members know a higher one. The level that holds then.
    ///
    /// # Errors
    /// As of a proposal.
    pub(crate) async fn raise_level(&self) -> Result<u32, Error> {
        let inner = self.inner();
        let _turn = inner.changing.lock().await;
        let now = self.feature_level();
        let mine = inner.config.levels();
        let picture = members::picture(&inner.raft, SILENT_AFTER);
        let said = match &inner.peers {
            None => vec![Some(mine)],
            Some(peers) => {
                let announced = peers.shared.announced.borrow();
                let of = |node: &u64| match *node == peers.node_id() {
                    true => Some(mine),
                    false => announced.get(node).copied().filter(|_| picture.answering.contains(node)),
                };
                picture.nodes.keys().map(of).collect()
            }
        };
        let Some(next) = level::next(now, &said) else { return Ok(now) };
        self.submit(&Command::RaiseFeatureLevel { level: next }).await?;
        tracing::info!(from = now, to = next, "the group has gone to the next feature level");
        Ok(self.feature_level())
    }
}
