//! Which stream speaks for a zone: of two connections the newer wins, unless two processes fight over one name.
//! In: claims. Out: a fence per claim, and for the newcomer a way to wait until its predecessor is gone.
//! Invariant: at most one stream of each kind per zone stores or sends anything.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ursa_model::ZoneName;

/// So many times within [`SWAP_WINDOW`] may one process take a stream from another that is alive; then the incumbent stays.
const MAX_SWAPS: usize = 3;
const SWAP_WINDOW: Duration = Duration::from_secs(60);

/// A kind of stream; each has its own holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StreamKind {
    GlobalToZone,
    ZoneToGlobal,
}

/// Two processes claim to be one zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another control plane of zone {zone} (instance {incumbent:?}) is connected and stays: this zone changed hands {MAX_SWAPS} times within a minute"
)]
pub(super) struct Contested {
    zone: ZoneName,
    incumbent: String,
}

#[derive(Default)]
pub(super) struct Registry {
    zones: Arc<Mutex<BTreeMap<ZoneName, Slots>>>,
}

#[derive(Default)]
struct Slots {
    holders: BTreeMap<StreamKind, Holder>,
    swaps: VecDeque<Instant>,
    fence: u64,
}

struct Holder {
    fence: u64,
    instance: String,
    replaced: CancellationToken,
    gone: CancellationToken,
}

/// The right to speak for a zone, until dropped or replaced.
pub(super) struct Claim {
    zones: Arc<Mutex<BTreeMap<ZoneName, Slots>>>,
    zone: ZoneName,
    kind: StreamKind,
    fence: u64,
    /// Cancelled when a newer stream takes over.
    pub(super) replaced: CancellationToken,
    gone: CancellationToken,
    /// Cancelled when the predecessor has stored what it had begun and is gone; `None` without one.
    pub(super) predecessor: Option<CancellationToken>,
}

impl Registry {
    /// Takes the stream over. `instance` is empty for stock zones, which then always count as another process.
    pub(super) fn claim(&self, zone: &ZoneName, kind: StreamKind, instance: &str) -> Result<Claim, Contested> {
        let mut zones = self.zones.lock();
        let slots = zones.entry(zone.clone()).or_default();
        let now = Instant::now();
        if let Some(holder) = slots.holders.get(&kind)
            && (instance.is_empty() || holder.instance != instance)
        {
            slots.swaps.retain(|at| now.duration_since(*at) < SWAP_WINDOW);
            if slots.swaps.len() >= MAX_SWAPS {
                return Err(Contested {
                    zone: zone.clone(),
                    incumbent: holder.instance.clone(),
                });
            }
            slots.swaps.push_back(now);
        }
        slots.fence += 1;
        let holder = Holder {
            fence: slots.fence,
            instance: instance.to_owned(),
            replaced: CancellationToken::new(),
            gone: CancellationToken::new(),
        };
        let (replaced, gone) = (holder.replaced.clone(), holder.gone.clone());
        let fence = slots.fence;
        let predecessor = slots.holders.insert(kind, holder).map(|old| {
            old.replaced.cancel();
            old.gone
        });
        Ok(Claim {
            zones: self.zones.clone(),
            zone: zone.clone(),
            kind,
            fence,
            replaced,
            gone,
            predecessor,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut zones = self.zones.lock();
        if let Some(slots) = zones.get_mut(&self.zone) {
            if slots.holders.get(&self.kind).is_some_and(|h| h.fence == self.fence) {
                slots.holders.remove(&self.kind);
            }
            // The swaps are kept while they count.
            slots.swaps.retain(|at| at.elapsed() < SWAP_WINDOW);
            if slots.holders.is_empty() && slots.swaps.is_empty() {
                zones.remove(&self.zone);
            }
        }
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newer_wins_until_two_processes_fight() {
        let registry = Registry::default();
        let zone: ZoneName = "east".parse().unwrap();
        let first = registry.claim(&zone, StreamKind::ZoneToGlobal, "a").unwrap();
        let again = registry.claim(&zone, StreamKind::ZoneToGlobal, "a").unwrap();
        assert!(first.replaced.is_cancelled() && !again.replaced.is_cancelled());
        let predecessor = again.predecessor.clone().unwrap();
        assert!(!predecessor.is_cancelled());
        drop(first);
        assert!(predecessor.is_cancelled(), "the newcomer hears that its predecessor is gone");
        let mut holder = again;
        for instance in ["b", "a", "b"] {
            holder = registry.claim(&zone, StreamKind::ZoneToGlobal, instance).unwrap();
        }
        let refused = registry.claim(&zone, StreamKind::ZoneToGlobal, "a").err().unwrap();
        assert!(refused.to_string().contains("instance \"b\""), "{refused}");
        assert!(!holder.replaced.is_cancelled(), "the incumbent stays");
        assert!(
            registry.claim(&zone, StreamKind::GlobalToZone, "a").is_ok(),
            "other streams have their own holder"
        );
        tokio::time::advance(SWAP_WINDOW).await;
        assert!(registry.claim(&zone, StreamKind::ZoneToGlobal, "a").is_ok());
    }
}
