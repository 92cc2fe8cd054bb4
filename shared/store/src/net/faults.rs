//! Links that a test cuts.
//! In: which way to which member. Out: calls that never arrive, or whose answers never do.
//! Invariant: a call that is held ends at its own deadline, as on a network that swallows packets.
use std::collections::BTreeMap;

use tokio::sync::watch;

/// What is lost on the way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Requests, and so everything.
    Requests,
    /// The answers alone.
    Answers,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Faults(watch::Sender<BTreeMap<u64, Cut>>);

impl Default for Faults {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Faults {
    pub(crate) fn set(&self, node: u64, cut: Option<Cut>) {
        self.0.send_modify(|cuts| {
            match cut {
                Some(cut) => cuts.insert(node, cut),
                None => cuts.remove(&node),
            };
        });
    }

    /// Returns when a request to `node` may go.
    pub(crate) async fn request(&self, node: u64) {
        self.hold(node, |cut| cut == Cut::Requests).await;
    }

    /// Returns when an answer of `node` may be heard. One that was lost stays lost.
    pub(crate) async fn answer(&self, node: u64) {
        if self.0.borrow().get(&node).is_some() {
            std::future::pending::<()>().await;
        }
    }

    async fn hold(&self, node: u64, lost: impl Fn(Cut) -> bool) {
        if self.0.borrow().get(&node).is_some_and(|cut| lost(*cut)) {
            std::future::pending::<()>().await;
        }
    }
}
