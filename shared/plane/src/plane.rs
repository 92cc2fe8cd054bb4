//! The state of one control plane as the REST API and KDS see it: the replicated store and the observed tier.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use ursa_model::{Kind, ZoneName};
use ursa_rest::{Backend, BoxFuture, Freshness, NotEarly, ProposeError, Unavailable};
use ursa_runtime::CancellationToken;
use ursa_state::{Applied, Catalog, Changeset, Observed, ObservedView, Role, observed::Holder};
use ursa_store::{Error, Store};
use ursa_sync::{Sink, SinkError, Source};

/// See the module's text. Clones share it.
#[derive(Clone)]
pub struct Plane {
    pub role: Role,
    pub store: Store,
    pub observed: Observed,
    /// What readers are shown of the newest view of the observed tier.
    shown: Arc<Mutex<ObservedView>>,
    shown_changes: Arc<watch::Sender<ObservedView>>,
}

impl Plane {
    pub fn new(role: Role, store: Store, observed: Observed) -> Self {
        Self {
            role,
            store,
            observed,
            shown: Arc::default(),
            shown_changes: Arc::new(watch::Sender::new(ObservedView::default())),
        }
    }

    /// The observed tier as readers see it: zones that nobody sees are offline. Computed once per change.
    fn shown(&self) -> ObservedView {
        let newest = self.observed.view();
        let mut shown = self.shown.lock();
        if shown.sequence() < newest.sequence() {
            *shown = newest.shown();
        }
        shown.clone()
    }

    /// Tells those who wait for changes of what is shown, until cancelled.
    pub async fn run_shown(self, cancel: CancellationToken) {
        let mut changes = self.observed.subscribe();
        loop {
            changes.mark_unchanged();
            self.shown_changes.send_replace(self.shown());
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = changes.changed() => {}
            }
        }
    }

    /// Both tiers as KDS reads them.
    pub fn source(&self) -> Source {
        Source::new(self.role, self.store.subscribe(), self.observed.clone())
    }

    /// Proposes a changeset. One that broke a precondition is an answer, not an error: see [`Applied::rejected`].
    ///
    /// # Errors
    /// The store's, but never [`Error::Rejected`].
    pub async fn propose(&self, set: Changeset) -> Result<Applied, Error> {
        self.store.propose(set).await.or_else(rejected)
    }
}

fn unavailable(error: Error) -> Unavailable {
    match error {
        Error::NotLeader { leader, .. } => Unavailable {
            reason: "this node is not the leader",
            leader: leader.map(|id| id.to_string()),
        },
        Error::Stopped(_) => Unavailable {
            reason: "the store has stopped",
            leader: None,
        },
        Error::Full { .. } | Error::NoSpace(_) => Unavailable {
            reason: "a disk takes nothing: make room in its file system, or make it writable again",
            leader: None,
        },
        Error::Unavailable(_) | Error::Unknown(_) | Error::Rejected { .. } | Error::TooLarge { .. } | Error::Invalid(_) => Unavailable {
            reason: "the store has no quorum or did not answer in time",
            leader: None,
        },
    }
}

impl Backend for Plane {
    fn catalog(&self, freshness: Freshness) -> BoxFuture<'_, Result<Catalog, Unavailable>> {
        Box::pin(async move {
            let durable = match freshness {
                Freshness::Linearizable => self.store.read().await.map_err(unavailable)?,
                Freshness::Stale => self.store.view(),
            };
            Ok(Catalog {
                role: self.role,
                durable,
                observed: self.shown(),
            })
        })
    }

    /// What [`Plane::run_shown`] tells. In a zone nothing is ever shown in another way.
    fn observed(&self) -> watch::Receiver<ObservedView> {
        match self.role {
            Role::Global => self.shown_changes.subscribe(),
            Role::Zone => self.observed.subscribe(),
        }
    }

    /// At the global: zones whose copy nobody vouches for, so that their Dataplanes may be others by now.
    fn unknown_zones(&self) -> Vec<ZoneName> {
        if self.role != Role::Global {
            return Vec::new();
        }
        let observed = self.observed.view();
        let known = |zone: &str| observed.copy_of(zone).is_some_and(|copy| copy.holder != Holder::Nobody);
        self.store
            .view()
            .list(Kind::Zone)
            .filter(|z| !known(z.name()))
            .filter_map(|z| z.name().parse().ok())
            .collect()
    }

    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        Box::pin(async move { Self::propose(self, set).await.map_err(not_proposed) })
    }

    fn provisional(&self) -> Option<(Catalog, u64)> {
        let (term, durable) = self.store.lead()?;
        let catalog = Catalog {
            role: self.role,
            durable,
            observed: self.shown(),
        };
        Some((catalog, term))
    }

    fn propose_in(&self, term: u64, set: Changeset) -> BoxFuture<'_, Result<Applied, NotEarly>> {
        Box::pin(async move {
            match self.store.propose_in(term, set).await {
                Ok(applied) => Ok(applied),
                Err(ursa_store::NotEarly::Deposed) => Err(NotEarly::Deposed),
                Err(ursa_store::NotEarly::Doubt(_)) => Err(NotEarly::Doubt),
                Err(ursa_store::NotEarly::Failed(error)) => rejected(error).map_err(|error| NotEarly::Failed(not_proposed(error))),
            }
        })
    }
}

/// A changeset that broke a precondition is an answer.
fn rejected(error: Error) -> Result<Applied, Error> {
    match error {
        Error::Rejected { op, reason, revision } => Ok(Applied {
            revision,
            results: Vec::new(),
            rejected: Some((op, reason)),
        }),
        other => Err(other),
    }
}

fn not_proposed(error: Error) -> ProposeError {
    match error {
        Error::TooLarge { bytes, limit } => ProposeError::TooLarge { bytes, limit },
        Error::Unknown(_) => ProposeError::Unknown,
        full @ (Error::NoSpace(_) | Error::Full { .. }) => ProposeError::NoSpace(full.to_string()),
        other => ProposeError::Unavailable(unavailable(other)),
    }
}

impl Sink for Plane {
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
        Box::pin(async move {
            Self::propose(self, set).await.map_err(|error| match error {
                Error::TooLarge { .. } | Error::Invalid(_) => SinkError::Refused(error.to_string()),
                Error::Full { .. } => SinkError::NoSpace(error.to_string()),
                // Of several nodes another one may have room: the peer goes there, as from a node that is away.
                Error::NoSpace(_) if self.store.peers().is_none() || self.store.refusing().is_none() => {
                    SinkError::NoSpace(error.to_string())
                }
                other => SinkError::Unavailable(other.to_string()),
            })
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async move { self.store.read().await.map(drop).map_err(|e| SinkError::Unavailable(e.to_string())) })
    }
}
