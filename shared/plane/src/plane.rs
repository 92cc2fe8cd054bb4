//! The state of one control plane as the REST API and KDS see it: the replicated store and the observed tier.

use ursa_model::{Kind, ResourceKey, ZoneName};
use ursa_rest::{Backend, BoxFuture, Freshness, ProposeError, Unavailable};
use ursa_state::{Applied, Catalog, Changeset, Observed, Role};
use ursa_store::{Error, Store};
use ursa_sync::{Sink, SinkError, Source};

/// See the module's text. Clones share it.
#[derive(Clone)]
pub struct Plane {
    pub role: Role,
    pub store: Store,
    pub observed: Observed,
}

impl Plane {
    pub fn new(role: Role, store: Store) -> Self {
        Self {
            role,
            store,
            observed: Observed::default(),
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
        match self.store.propose(set).await {
            Err(Error::Rejected { op, reason, revision }) => Ok(Applied {
                revision,
                results: Vec::new(),
                rejected: Some((op, reason)),
            }),
            other => other,
        }
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
                observed: self.observed.view(),
            })
        })
    }

    /// At the global: zones that have not connected since this process started, so that nobody here has seen their Dataplanes.
    fn unknown_zones(&self) -> Vec<ZoneName> {
        if self.role != Role::Global {
            return Vec::new();
        }
        let observed = self.observed.view();
        let seen = |zone: &str| ResourceKey::new(Kind::ZoneInsight, "", zone).is_ok_and(|key| observed.get(&key).is_some());
        self.store
            .view()
            .list(Kind::Zone)
            .filter(|z| !seen(z.name()))
            .filter_map(|z| z.name().parse().ok())
            .collect()
    }

    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>> {
        Box::pin(async move {
            Self::propose(self, set).await.map_err(|error| match error {
                Error::TooLarge { bytes, limit } => ProposeError::TooLarge { bytes, limit },
                Error::Unknown(_) => ProposeError::Unknown,
                other => ProposeError::Unavailable(unavailable(other)),
            })
        })
    }
}

impl Sink for Plane {
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>> {
        Box::pin(async move {
            Self::propose(self, set).await.map_err(|error| match error {
                Error::TooLarge { .. } | Error::Invalid(_) => SinkError::Refused(error.to_string()),
                other => SinkError::Unavailable(other.to_string()),
            })
        })
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(async move { self.store.read().await.map(drop).map_err(|e| SinkError::Unavailable(e.to_string())) })
    }
}
