//! One node of a global among the others, beside the replicated log: what is observed of the zones, and whose streams they are.
//! In: claims of zone streams, the local tier, the other nodes' frames. Out: a full copy here of what each node observes; this node's for
//! the others. Invariant: nothing of it costs an entry of the log, and nothing of it holds up a change.
//!
//! Every node follows every other one: a stream that begins with everything the other knows and goes on with what it holds. It lasts
//! until one side is gone or silent, and is made anew with everything again. A node that is away for [`GRACE`] no longer vouches
//! for what it holds: its zones are shown offline until they turn up elsewhere.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;
use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_runtime::{CancellationToken, heartbeat};
use ursa_state::{HistoryId, Observed, View};
use ursa_sync::Claims;

use crate::held::Held;

mod about;
mod authority;
mod checkpoint;
mod follow;
mod relay;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use about::About;
pub use about::NodeStatus;
pub(crate) use authority::ByClaims;
pub(crate) use checkpoint::Checkpoint;
pub use serve::NodeOf;

/// How long a node may be away before what it holds counts as unseen. A zone whose node died is elsewhere by then.
pub const GRACE: Duration = Duration::from_secs(3);
/// Signs of life of a stream without news.
const ALIVE: Duration = Duration::from_secs(1);
/// A peer that is silent for so long is gone, whatever its connection says.
const SILENCE: Duration = Duration::from_secs(4);
/// How often copies are compared with the Zones there are. Deletions are followed at once; this is for what races with one.
const SWEEP: Duration = Duration::from_secs(10);

/// A peer, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    node: u64,
}

/// What the streams between nodes count.
#[derive(Clone, Debug, Default)]
struct Metrics {
    connected: Family<PeerLabel, Gauge>,
    received: Family<PeerLabel, Counter>,
    gaps: Counter,
}

/// What is known of another node's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Its stream to this node is whole.
    pub connected: bool,
    /// When it was last heard.
    pub heard: Timestamp,
    /// Names its process.
    pub instance: String,
    /// What it last said of itself.
    pub status: Option<NodeStatus>,
    /// What is configured otherwise there.
    pub differs: Option<String>,
    /// It is heard through this node, as long as it is not heard itself.
    pub through: Option<u64>,
}

/// See the module's text. Clones are handles to the same.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    node: u64,
    claims: Claims,
    observed: Observed,
    views: watch::Receiver<View>,
    about: About,
    /// Set by the host once there is one.
    held: OnceLock<Held>,
    peers: Mutex<BTreeMap<u64, PeerState>>,
    metrics: Metrics,
}

impl Group {
    /// `claims` and `observed` are this process's; the name in `claims` tells it from its earlier lives. `about` is told to the others.
    pub(crate) fn new(node: u64, claims: Claims, observed: Observed, views: watch::Receiver<View>, about: About) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                claims,
                observed,
                views,
                about,
                held: OnceLock::new(),
                peers: Mutex::default(),
                metrics: Metrics::default(),
            }),
        }
    }

    /// Claims of zone streams, shared by all nodes.
    pub fn claims(&self) -> &Claims {
        &self.inner.claims
    }

    /// What this node answers when another one asks for the removals that it holds.
    pub(crate) fn answer_held_by(&self, held: Held) {
        let _ = self.inner.held.set(held);
    }

    /// The other nodes whose streams were there at least once.
    pub fn peers(&self) -> BTreeMap<u64, PeerState> {
        self.inner.peers.lock().clone()
    }

    /// Registers what is counted.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let metrics = &self.inner.metrics;
        registry.register(
            "observed_peers_connected",
            "Whether the stream of observed state from a node is whole",
            metrics.connected.clone(),
        );
        registry.register(
            "observed_updates_received",
            "Updates of observed state from a node",
            metrics.received.clone(),
        );
        registry.register(
            "observed_gaps",
            "Updates that did not follow on what was here",
            metrics.gaps.clone(),
        );
    }

    fn history(&self) -> HistoryId {
        self.inner.views.borrow().history_id()
    }

    /// Forgets what was observed of Zones that are deleted, until cancelled.
    pub async fn sweep(self, cancel: CancellationToken) {
        let Inner { observed, views, .. } = &*self.inner;
        let mut views = views.clone();
        let mut last = views.borrow_and_update().clone();
        let mut ticker = heartbeat::every(SWEEP, &cancel);
        let mut absent: Vec<String> = Vec::new();
        loop {
            let swept = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = views.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return cancel.cancelled().await,
                },
                tick = ticker.tick() => if tick { true } else { return },
            };
            let view = views.borrow_and_update().clone();
            let is_there = |zone: &str| ResourceKey::new(Kind::Zone, "", zone).is_ok_and(|key| view.get(&key).is_some());
            if swept {
                // Absent twice: not a Zone that is only now being made.
                let without: Vec<String> = observed
                    .view()
                    .copies()
                    .map(|(zone, _)| zone.to_owned())
                    .filter(|z| !is_there(z))
                    .collect();
                observed.forget(|zone| !is_there(zone) && absent.iter().any(|z| z == zone));
                absent = without;
            } else if let Ok(changes) = view.changes_since(last.revision()) {
                let deleted: Vec<&str> = changes
                    .flat_map(|c| &c.changes)
                    .filter(|c| c.key.kind() == Kind::Zone && c.after.is_none())
                    .map(|c| c.key.name())
                    .collect();
                if !deleted.is_empty() {
                    observed.forget(|zone| deleted.contains(&zone) && !is_there(zone));
                }
            }
            last = view;
        }
    }
}
