//! Whose disk takes nothing at the moment: every member says so of its own with everything it says.
//! In: what this node's log says of its disk, and what others say of theirs. Out: the reasons, by node.
//! Invariant: what is kept is bounded, whatever others say.
use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::log::Refused;

/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 300;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Where the log of this node is, and why its disk takes nothing, if so.
    place: String,
    own: watch::Receiver<Option<Refused>>,
    others: watch::Sender<BTreeMap<u64, String>>,
    /// The others that take no entries at all.
    closed: Mutex<BTreeSet<u64>>,
}

impl Disks {
    /// `place` is what the operator knows the disk of this node by.
    pub(crate) fn new(place: String, own: watch::Receiver<Option<Refused>>) -> Self {
        Self {
            place,
            own,
            others: watch::Sender::default(),
            closed: Mutex::default(),
        }
    }

    /// Why this node's disk takes nothing.
    pub(crate) fn own(&self) -> Option<String> {
        let own = self.own.borrow();
        own.as_ref().map(|own| format!("{}: {}", self.place, own.reason))
    }

    /// Why this node takes no entries: they would wait for the disk, and votes behind them.
    pub(crate) fn closed(&self) -> Option<String> {
        let closed = self.own.borrow().as_ref().is_some_and(|own| own.closed);
        if closed { self.own() } else { None }
    }

    /// Why another member takes none.
    pub(crate) fn closed_of(&self, node: u64) -> Option<String> {
        let closed = self.closed.lock().contains(&node);
        if closed { self.of(node) } else { None }
    }

    /// Why that of another member does not.
    pub(crate) fn of(&self, node: u64) -> Option<String> {
        self.others.borrow().get(&node).cloned()
    }

    /// All disks are well, as far as is known.
    pub(crate) fn are_well(&self) -> bool {
        self.own.borrow().is_none() && self.others.borrow().is_empty()
    }

    /// The others whose disk takes nothing.
    pub(crate) fn others(&self) -> watch::Receiver<BTreeMap<u64, String>> {
        self.others.subscribe()
    }

    /// A member says this of its disk; empty: it is well. And whether it takes no entries.
    pub(crate) fn note(&self, node: u64, reason: &str, closed: bool) {
        {
            let mut all = self.closed.lock();
            if closed && !reason.is_empty() {
                all.insert(node);
            } else {
                all.remove(&node);
            }
        }
        self.others.send_if_modified(|known| match (known.get(&node), reason) {
            (None, "") => false,
            (Some(_), "") => known.remove(&node).is_some(),
            (Some(had), _) if had.chars().eq(reason.chars().take(MAX_REASON)) => false,
            _ => {
                known.insert(node, reason.chars().take(MAX_REASON).collect());
                true
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_kept_as_long_as_they_say_it() {
        let own = watch::Sender::new(None);
        let disks = Disks::new("/data".to_owned(), own.subscribe());
        let mut others = disks.others();
        disks.note(2, "", false);
        assert!(disks.are_well() && !others.has_changed().unwrap());
        disks.note(2, "full", false);
        assert!(!disks.are_well() && others.has_changed().unwrap());
        others.mark_unchanged();
        disks.note(2, "full", false);
        assert!(!others.has_changed().unwrap(), "no news");
        assert_eq!(disks.of(2).as_deref(), Some("full"));
        disks.note(2, &"x".repeat(10_000), false);
        assert_eq!(disks.of(2).unwrap().len(), MAX_REASON);
        others.mark_unchanged();
        disks.note(2, &"x".repeat(10_000), false);
        assert!(!others.has_changed().unwrap(), "no news");
        disks.note(2, "", false);
        assert!(disks.are_well());
        disks.note(2, "full", true);
        assert_eq!(disks.closed_of(2).as_deref(), Some("full"));
        disks.note(2, "full", false);
        assert_eq!((disks.closed_of(2), disks.of(2).as_deref()), (None, Some("full")));
        let refused = |closed| {
            Some(Refused {
                reason: "no space".to_owned(),
                closed,
            })
        };
        own.send_replace(refused(false));
        assert_eq!((disks.own().as_deref(), disks.closed()), (Some("/data: no space"), None));
        own.send_replace(refused(true));
        assert_eq!(disks.closed().as_deref(), Some("/data: no space"));
    }
}
