//! What the API needs of the control plane behind it. The programs implement it over ursa-store; tests over memory.

use std::{future::Future, pin::Pin};

use tokio::sync::watch;
use ursa_model::ZoneName;
use ursa_state::{Applied, Catalog, Changeset, ObservedView};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How new a picture must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// It contains every write that was acknowledged, by any node, before the question was asked.
    #[default]
    Linearizable,
    /// Whatever this node has.
    Stale,
}

/// The store cannot answer now; nothing was changed, and the same request may be sent again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is not available: {reason}")]
pub struct Unavailable {
    /// Shown to the client: a fixed text, such as `there is no leader`.
    pub reason: &'static str,
    /// Address or id of the leader, if another node is known to be it.
    pub leader: Option<String>,
}

/// Why a changeset was not, or may not have been, committed. A changeset that broke a precondition is committed all the same:
/// see [`Applied::rejected`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It may be committed yet. A retry with the same request id gets the first result.
    #[error("the outcome of the proposal is unknown")]
    Unknown,
    #[error("the changeset has {bytes} bytes, more than {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// There is no room to store it; nothing was changed. The text is shown to the client, and says the way out.
    #[error("{0}")]
    NoSpace(String),
}

/// Why a changeset that was decided on a provisional picture was not, or not certainly, committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEarly {
    /// The picture may not have been the newest. Nothing was changed.
    #[error("this node does not lead any more")]
    Deposed,
    /// The same, but the changeset may be committed yet.
    #[error("this node does not lead any more, and the outcome of the proposal is unknown")]
    Doubt,
    #[error(transparent)]
    Failed(#[from] ProposeError),
}

/// State as the API reads and writes it. Every method returns within a deadline of its own.
pub trait Backend: Send + Sync + 'static {
    /// A picture of both tiers.
    fn catalog(&self, freshness: Freshness) -> BoxFuture<'_, Result<Catalog, Unavailable>>;

    /// Commits a changeset and waits until this node has applied it.
    fn propose(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, ProposeError>>;

    /// A picture for a write that asks nobody else: it is the newest if the write is then committed by [`Backend::propose_in`] with
    /// the term beside it. `None` where there is no such shortcut.
    fn provisional(&self) -> Option<(Catalog, u64)> {
        None
    }

    /// As [`Backend::propose`], in the term of [`Backend::provisional`] only.
    fn propose_in(&self, _term: u64, set: Changeset) -> BoxFuture<'_, Result<Applied, NotEarly>> {
        Box::pin(async move { Ok(self.propose(set).await?) })
    }

    /// The observed tier, and a wake-up for each change of it.
    fn observed(&self) -> watch::Receiver<ObservedView> {
        watch::channel(ObservedView::default()).1
    }

    /// Global: zones whose Dataplanes are not known here since they have not connected yet. While there are any, no Mesh is
    /// deleted, since proxies may live in it (DESIGN.md 2).
    fn unknown_zones(&self) -> Vec<ZoneName> {
        Vec::new()
    }
}
