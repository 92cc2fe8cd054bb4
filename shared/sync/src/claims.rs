//! Which stream speaks for a zone, over all nodes of a global: of two connections the newer wins, unless two processes fight over one
//! name.
//! In: claims of this node's streams; what the other nodes say they claim. Out: for each stream a signal when it lost its claim, and a
//! way to wait until its predecessors are gone; this node's claims, for the other nodes.
//! Invariants: on one node at most one stream of a kind per zone holds its claim; nodes that have heard each other's claims agree on the
//! holder, which is the newest ([`Claim::fence`]); a stream that lost reads and stores nothing new.
//! Source: DESIGN.md 4. Not here: how the claims get to the other nodes, which is the host's.
//!
//! **Between nodes.** Each node gives its whole set ([`Claims::own`]) to every other node whenever it changes, and takes theirs with
//! [`Claims::learn`]; [`Claims::node_gone`] says that a node is dead or out of reach. There is no vote: while two nodes do not hear each
//! other a zone may have a stream at both, each with its own fence; when they do again, the older ends. The observed state of a zone
//! belongs to the node that [`Claims::owner`] names, under its fence.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use ursa_model::{Timestamp, ZoneName};

/// So many times within [`SWAP_WINDOW`] may one process take a stream from another that is alive; then the incumbent stays.
const MAX_SWAPS: usize = 3;
const SWAP_WINDOW: Duration = Duration::from_secs(60);
/// Claims taken of one node; what is beyond is ignored. 1,000 zones with two streams each, ten times over.
const MAX_CLAIMS: usize = 20_000;

/// A kind of stream; each has its own holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    GlobalToZone,
    ZoneToGlobal,
}

/// A zone and a kind of stream.
pub type Slot = (ZoneName, StreamKind);

/// One stream's claim, as all nodes know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub zone: ZoneName,
    pub kind: StreamKind,
    /// The node that serves the stream.
    pub node: Arc<str>,
    /// The zone's process; empty for stock zones.
    pub instance: Arc<str>,
    /// The process's session; 0 for stock zones. A lower one of the same process is an older one that arrives late.
    pub session: u64,
    /// Grows with every claim for the slot: larger than any that the node knew, and than its clock in milliseconds since 1970, so that
    /// it is newer also than one that it did not know.
    pub epoch: u64,
}

impl Claim {
    /// What it applies to.
    pub fn slot(&self) -> Slot {
        (self.zone.clone(), self.kind)
    }

    /// Orders the claims of a slot: the largest holds it.
    pub fn fence(&self) -> (u64, u64, &str) {
        (self.epoch, self.session, &self.node)
    }
}

/// A stream may not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Two processes claim to be one zone.
    #[error(
        "another control plane of zone {zone} (instance {incumbent:?}) is connected and stays: this zone changed hands {MAX_SWAPS} times within a minute"
    )]
    Contested { zone: ZoneName, incumbent: Arc<str> },
    /// The same process has a newer session.
    #[error("zone {zone} has a newer session than {session}")]
    Late { zone: ZoneName, session: u64 },
}

/// See the module's text. Clones share it.
#[derive(Clone)]
pub struct Claims(Arc<Shared>);

struct Shared {
    node: Arc<str>,
    table: Mutex<Table>,
    own: watch::Sender<Arc<[Claim]>>,
}

#[derive(Default)]
struct Table {
    own: BTreeMap<Slot, Vec<Own>>,
    remote: BTreeMap<Arc<str>, BTreeMap<Slot, Remote>>,
    swaps: BTreeMap<Slot, VecDeque<Instant>>,
}

/// A stream of this node, until it is gone.
struct Own {
    claim: Claim,
    lost: CancellationToken,
    gone: CancellationToken,
}

struct Remote {
    claim: Claim,
    /// Cancelled when the node no longer has it.
    gone: CancellationToken,
}

/// The right to speak for a zone: until dropped, or lost to a newer stream.
pub struct Held {
    claims: Claims,
    claim: Claim,
    /// Cancelled when a newer stream took over, here or at another node.
    pub lost: CancellationToken,
    gone: CancellationToken,
    /// Earlier streams of this node: cancelled when they have stored what they had begun and are gone.
    pub predecessors: Vec<CancellationToken>,
    /// The same of other nodes. One may never be: its node may be dead without anybody knowing yet.
    pub remote_predecessors: Vec<CancellationToken>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claims").field(&self.0.node).finish()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.claim).finish()
    }
}

impl Table {
    /// The newest claim of a slot that is known to be alive.
    fn holder(&self, slot: &Slot) -> Option<&Claim> {
        let own = self
            .own
            .get(slot)
            .into_iter()
            .flatten()
            .filter(|o| !o.lost.is_cancelled())
            .map(|o| &o.claim);
        let remote = self.remote.values().filter_map(|claims| claims.get(slot)).map(|r| &r.claim);
        own.chain(remote).max_by(|a, b| a.fence().cmp(&b.fence()))
    }

    /// Counts that a process took a slot from another; `false` when that happened too often.
    fn swap(&mut self, slot: &Slot, now: Instant) -> bool {
        let swaps = self.swaps.entry(slot.clone()).or_default();
        swaps.retain(|at| now.duration_since(*at) < SWAP_WINDOW);
        if swaps.len() >= MAX_SWAPS {
            return false;
        }
        swaps.push_back(now);
        true
    }

    /// Ends own streams that somebody is newer than.
    fn end_older(&mut self, slot: &Slot) {
        let Some(newest) = self.holder(slot).cloned() else { return };
        for own in self.own.get(slot).into_iter().flatten() {
            if own.claim.fence() < newest.fence() {
                own.lost.cancel();
            }
        }
    }

    fn forget_old_swaps(&mut self, now: Instant) {
        self.swaps.retain(|_, swaps| {
            swaps.retain(|at| now.duration_since(*at) < SWAP_WINDOW);
            !swaps.is_empty()
        });
    }
}

fn is_other(claim: &Claim, instance: &str) -> bool {
    instance.is_empty() || claim.instance.as_ref() != instance
}

impl Claims {
    /// `node` names this node among the others: unique, at best another with every start.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Shared {
            node: node.into(),
            table: Mutex::default(),
            own: watch::Sender::new([].into()),
        }))
    }

    pub fn node(&self) -> &Arc<str> {
        &self.0.node
    }

    /// All claims of this node, for the others: whole, and again whenever they change. A stream that lost its claim stays in the set
    /// until it has stored what it had begun.
    pub fn own(&self) -> watch::Receiver<Arc<[Claim]>> {
        self.0.own.subscribe()
    }

    /// Who receives what the zone sends, of all nodes known here: the owner of its observed state.
    pub fn owner(&self, zone: &ZoneName) -> Option<Claim> {
        self.0.table.lock().holder(&(zone.clone(), StreamKind::ZoneToGlobal)).cloned()
    }

    /// A stream begins here. `instance` and `session` are what the zone said; empty and 0 for stock zones, whose streams then always
    /// count as another process's.
    ///
    /// # Errors
    /// [`Refused`]; the incumbent is not disturbed.
    pub fn claim(&self, zone: &ZoneName, kind: StreamKind, instance: &str, session: u64) -> Result<Held, Refused> {
        let mut table = self.0.table.lock();
        let slot = (zone.clone(), kind);
        let holder = table.holder(&slot).cloned();
        if let Some(holder) = &holder {
            if is_other(holder, instance) {
                if !table.swap(&slot, Instant::now()) {
                    return Err(Refused::Contested {
                        zone: zone.clone(),
                        incumbent: holder.instance.clone(),
                    });
                }
            } else if session < holder.session {
                return Err(Refused::Late {
                    zone: zone.clone(),
                    session,
                });
            }
        }
        let known = table.own.get(&slot).into_iter().flatten().map(|o| o.claim.epoch);
        let known = known
            .chain(table.remote.values().filter_map(|r| r.get(&slot)).map(|r| r.claim.epoch))
            .max()
            .unwrap_or(0);
        let clock = Timestamp::now().0;
        let claim = Claim {
            zone: zone.clone(),
            kind,
            node: self.0.node.clone(),
            instance: instance.into(),
            session,
            epoch: known.saturating_add(1).max(clock),
        };
        let (lost, gone) = (CancellationToken::new(), CancellationToken::new());
        let streams = table.own.entry(slot.clone()).or_default();
        let predecessors = streams.iter().map(|o| o.gone.clone()).collect();
        streams.push(Own {
            claim: claim.clone(),
            lost: lost.clone(),
            gone: gone.clone(),
        });
        let remote_predecessors = table.remote.values().filter_map(|r| r.get(&slot)).map(|r| r.gone.clone()).collect();
        table.end_older(&slot);
        self.publish(&table);
        Ok(Held {
            claims: self.clone(),
            claim,
            lost,
            gone,
            predecessors,
            remote_predecessors,
        })
    }

    /// Takes the whole set of another node's claims, in place of what it said before.
    pub fn learn(&self, node: &str, claims: impl IntoIterator<Item = Claim>) {
        if node == self.0.node.as_ref() {
            return;
        }
        let mut table = self.0.table.lock();
        let now = Instant::now();
        let node: Arc<str> = node.into();
        let mut old = table.remote.remove(&node).unwrap_or_default();
        let mut new: BTreeMap<Slot, Remote> = BTreeMap::new();
        for claim in claims.into_iter().take(MAX_CLAIMS).filter(|c| c.node == node) {
            let slot = claim.slot();
            // Of several of one slot the newest counts; the others are on their way out.
            if new.get(&slot).is_some_and(|known| known.claim.epoch >= claim.epoch) {
                continue;
            }
            let gone = match old.get(&slot) {
                Some(known) if known.claim.epoch == claim.epoch => known.gone.clone(),
                _ => CancellationToken::new(),
            };
            new.insert(slot, Remote { claim, gone });
        }
        for (slot, remote) in &new {
            let news = old.get(slot).is_none_or(|known| known.claim.epoch != remote.claim.epoch);
            let takes_over = table
                .holder(slot)
                .is_some_and(|h| h.fence() < remote.claim.fence() && is_other(h, &remote.claim.instance));
            if news && takes_over {
                table.swap(slot, now);
            }
        }
        old.retain(|slot, known| new.get(slot).is_none_or(|n| n.claim.epoch != known.claim.epoch));
        for known in old.values() {
            known.gone.cancel();
        }
        let slots: BTreeSet<Slot> = new.keys().cloned().collect();
        if !new.is_empty() {
            table.remote.insert(node, new);
        }
        for slot in &slots {
            table.end_older(slot);
        }
        table.forget_old_swaps(now);
    }

    /// A node is dead or out of reach: nobody waits for its streams, and its zones may be claimed without counting as a fight.
    pub fn node_gone(&self, node: &str) {
        self.learn(node, []);
    }

    fn publish(&self, table: &Table) {
        self.0
            .own
            .send_replace(table.own.values().flatten().map(|o| o.claim.clone()).collect());
    }
}

impl Held {
    pub fn claim(&self) -> &Claim {
        &self.claim
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let slot = self.claim.slot();
        let mut table = self.claims.0.table.lock();
        if let Some(streams) = table.own.get_mut(&slot) {
            streams.retain(|o| o.claim.epoch != self.claim.epoch);
            if streams.is_empty() {
                table.own.remove(&slot);
            }
        }
        table.forget_old_swaps(Instant::now());
        self.claims.publish(&table);
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests;
