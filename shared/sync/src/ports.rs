//! What the host gives to this crate: content to send, a place to store, who may be a zone.
//! In: nothing. Out: traits and one struct. Invariant: this crate owns no store and no keys.

use std::{fmt, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::watch;
use ursa_model::ZoneName;
use ursa_state::{Applied, Catalog, Changeset, Observed, Role, View};

/// Both tiers of the control plane, with a wake-up for each change. Clones wake independently.
#[derive(Clone, Debug)]
pub struct Source {
    role: Role,
    durable: watch::Receiver<View>,
    observed: Observed,
    observed_changes: watch::Receiver<ursa_state::ObservedView>,
}

impl Source {
    /// `durable` must show a revision before the write that made it is answered ([`Sink::apply`]).
    pub fn new(role: Role, durable: watch::Receiver<View>, observed: Observed) -> Self {
        let observed_changes = observed.subscribe();
        Self {
            role,
            durable,
            observed,
            observed_changes,
        }
    }

    /// The newest picture; marks it as seen by [`Source::changed`].
    pub fn catalog(&mut self) -> Catalog {
        Catalog {
            role: self.role,
            durable: self.durable.borrow_and_update().clone(),
            observed: self.observed_changes.borrow_and_update().clone(),
        }
    }

    /// The newest picture, without marking anything as seen.
    pub fn peek(&self) -> Catalog {
        Catalog {
            role: self.role,
            durable: self.durable.borrow().clone(),
            observed: self.observed_changes.borrow().clone(),
        }
    }

    /// The observed tier, to write to.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Waits until either tier differs from the last [`Source::catalog`]. `false` when the store is gone: nothing changes any
    /// more. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            durable = self.durable.changed() => durable.is_ok(),
            observed = self.observed_changes.changed() => observed.is_ok(),
        }
    }
}

/// Why a changeset was not stored, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Not stored, or unknown: the same changeset (same request id) may be proposed again.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Not stored, for a disk takes nothing: the same changeset may be proposed again, and is taken once there is room.
    #[error("the store has no room: {0}")]
    NoSpace(String),
    /// The store will never take it.
    #[error("the store refused it: {0}")]
    Refused(String),
}

/// A place to store what a peer sent.
pub trait Sink: Send + Sync + 'static {
    /// Stores a changeset durably. When it returns, the views given to [`Source`] contain it.
    fn apply(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, SinkError>>;

    /// Returns when the views given to [`Source`] contain every write that was answered before this call (a linearizable read
    /// barrier). A fresh stream is not answered before it.
    fn barrier(&self) -> BoxFuture<'_, Result<(), SinkError>>;
}

/// Why somebody may not be the zone it says it is. The texts never hold any part of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token, and one is required.
    Missing,
    /// The token is not accepted; why.
    Invalid(String),
    /// The token is good, for another zone.
    OtherZone { token_zone: String },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("a zone token is required in metadata authorization"),
            Self::Invalid(why) => write!(f, "the zone token is not accepted: {why}"),
            Self::OtherZone { token_zone } => write!(f, "the token is for zone {token_zone:?}"),
        }
    }
}

/// Decides who may be which zone. Called once per stream and per health check, so it must be quick: no I/O.
pub trait ZoneAuth: Send + Sync + 'static {
    /// `token` is what came in metadata `authorization`, without `Bearer `.
    ///
    /// # Errors
    /// [`Denied`], which the peer is told.
    fn check(&self, zone: &ZoneName, token: Option<&str>) -> Result<(), Denied>;
}

/// How this node stands in its group. A node that heard of no quorum for long does not know what is true any more.
pub trait Quorum: Send + Sync + 'static {
    /// How long ago this node last had contact with a quorum: as leader, since a majority answered it; otherwise since a leader that it
    /// follows was heard. Zero where the node alone is the quorum. After a start: since the start, until there was contact. On a
    /// monotonic clock. Must be quick: no I/O.
    fn since_contact(&self) -> Duration;
}

/// A group of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Quorum for Alone {
    fn since_contact(&self) -> Duration {
        Duration::ZERO
    }
}
