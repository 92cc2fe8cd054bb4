//! What one other node has been told, and so what it must be told next.
//! In: views, each newer than the last. Out: updates, in the order to send them.
//! Invariant: however many views were skipped between, the other node ends with what the newest one holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use ursa_model::{ResourceKey, Timestamp};

use super::{CopyAt, Holder, ObservedView, Update, Zone};

/// One stream to another node. A new stream has a new one.
#[derive(Debug)]
pub struct Follower {
    node: u64,
    sent: BTreeMap<Zone, CopyAt>,
    /// What the last view held.
    sequence: Option<u64>,
}

impl Follower {
    /// Follows for `node`, from the beginning.
    pub fn new(node: u64) -> Self {
        Self {
            node,
            sent: BTreeMap::new(),
            sequence: None,
        }
    }

    /// What is to be sent so that the node has what `view` holds. At first everything; later what is held here, and what nobody holds
    /// any more: other holders send their own.
    pub fn updates(&mut self, view: &ObservedView, now: Timestamp) -> Vec<Update> {
        let mut updates = Vec::new();
        let last = self.sequence.replace(view.sequence);
        let gone: Vec<Zone> = self.sent.keys().filter(|zone| !view.copies.contains_key(*zone)).cloned().collect();
        for zone in gone {
            if let Some(at) = self.sent.remove(&zone) {
                updates.push(Update::Drop { zone, up_to: at.fence });
            }
        }
        let changed = last.map(|last| view.changed_after(last));
        for (zone, copy) in view.copies.iter() {
            let sent = self.sent.get(zone).copied();
            let send = match copy.holder {
                Holder::Node(node) => node != self.node && last.is_none(),
                Holder::Here | Holder::Nobody => true,
            };
            if !send || sent == Some(copy.at) {
                continue;
            }
            let delta = match (sent, last, &changed) {
                (Some(sent), Some(last), Some(Some(changed))) if copy.holder == Holder::Here && last >= copy.since => {
                    let keys = changed.get(zone);
                    Some(view.delta(zone, sent, copy.at, keys.into_iter().flatten()))
                }
                _ => None,
            };
            self.sent.insert(zone.clone(), copy.at);
            updates.extend(delta.or_else(|| view.full(zone, now)));
        }
        updates
    }
}

impl ObservedView {
    /// Keys of copies held here that changed after batch `last`; `None` when that is forgotten.
    fn changed_after(&self, last: u64) -> Option<BTreeMap<&Zone, BTreeSet<&ResourceKey>>> {
        if last < self.journal_floor {
            return None;
        }
        let mut changed: BTreeMap<&Zone, BTreeSet<&ResourceKey>> = BTreeMap::new();
        for (_, keys) in self.journal.range((Bound::Excluded(last), Bound::Unbounded)) {
            for (zone, key) in keys.iter() {
                changed.entry(zone).or_default().insert(key);
            }
        }
        Some(changed)
    }

    fn delta<'a>(&self, zone: &Zone, from: CopyAt, to: CopyAt, keys: impl Iterator<Item = &'a &'a ResourceKey>) -> Update {
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for key in keys {
            let member = self.members.contains_key(&(zone.clone(), (*key).clone()));
            match self.objects.get(*key).filter(|_| member) {
                Some(resource) => puts.push(resource.clone()),
                None => deletes.push((*key).clone()),
            }
        }
        Update::Delta {
            zone: zone.clone(),
            from,
            to,
            puts,
            deletes,
        }
    }
}
