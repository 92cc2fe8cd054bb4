//! Every node's side of changes of the group: whom to listen to, and where to reach them.
//! In: the list of members in the log, and what is stored beside it. Out: the roster and the addresses of [`Peers`].
//! Invariant: it follows what this node has, at once; it decides nothing.
use std::collections::BTreeSet;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;
use ursa_state::View;

use super::ledger::Ledger;
use crate::net::Peers;
use crate::raft::ServerMetrics;

/// Until the core or the state machine ends.
pub(crate) async fn run(mut members: ServerMetrics, mut views: watch::Receiver<View>, peers: Peers) {
    let mut known = None;
    loop {
        let membership = members.borrow_watched().membership_config.clone();
        let mut effective = BTreeSet::new();
        for (id, peer) in membership.membership().nodes() {
            effective.insert(*id);
            match peer.moved {
                true => peers.moved(*id, &peer.address),
                false => peers.learn(*id, &peer.address),
            }
        }
        peers.shared.roster.set_effective(effective);
        let view = views.borrow_and_update().clone();
        match Ledger::of(&view) {
            Ok(ledger) if known.as_ref() != Some(&ledger) => {
                peers.shared.roster.set_left(ledger.left().clone(), view.history_id());
                known = Some(ledger);
            }
            Ok(_) => {}
            Err(error) => tracing::error!(error, "who has left the group cannot be read"),
        }
        for id in peers.others().into_iter().filter(|id| peers.shared.roster.has_left(*id)) {
            peers.forget(id);
        }
        peers.shared.roster.set_others(peers.others().into_iter().collect());
        tokio::select! {
            changed = members.changed() => if changed.is_err() { return },
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}
