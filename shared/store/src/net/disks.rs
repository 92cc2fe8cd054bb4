//! Whose disk takes nothing at the moment: every member says so of its own with everything it says.
//! In: what this node's log says of its disk, and what others say of theirs. Out: the reasons, by node.
//! Invariant: what is kept is bounded, whatever others say.
use std::collections::BTreeMap;

use tokio::sync::watch;

/// Longest reason that is kept, in characters.
const MAX_REASON: usize = 300;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Where the log of this node is, and why its disk takes nothing, if so.
    place: String,
    own: watch::Receiver<Option<String>>,
    others: watch::Sender<BTreeMap<u64, String>>,
}

impl Disks {
    /// `place` is what the operator knows the disk of this node by.
    pub(crate) fn new(place: String, own: watch::Receiver<Option<String>>) -> Self {
        Self {
            place,
            own,
            others: watch::Sender::default(),
        }
    }

    /// Why this node's disk takes nothing.
    pub(crate) fn own(&self) -> Option<String> {
        let own = self.own.borrow();
        own.as_ref().map(|reason| format!("{}: {reason}", self.place))
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

    /// A member says this of its disk; empty: it is well.
    pub(crate) fn note(&self, node: u64, reason: &str) {
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
        disks.note(2, "");
        assert!(disks.are_well() && !others.has_changed().unwrap());
        disks.note(2, "full");
        assert!(!disks.are_well() && others.has_changed().unwrap());
        others.mark_unchanged();
        disks.note(2, "full");
        assert!(!others.has_changed().unwrap(), "no news");
        assert_eq!(disks.of(2).as_deref(), Some("full"));
        disks.note(2, &"x".repeat(10_000));
        assert_eq!(disks.of(2).unwrap().len(), MAX_REASON);
        others.mark_unchanged();
        disks.note(2, &"x".repeat(10_000));
        assert!(!others.has_changed().unwrap(), "no news");
        disks.note(2, "");
        assert!(disks.are_well());
        own.send_replace(Some("no space".to_owned()));
        assert_eq!(disks.own().as_deref(), Some("/data: no space"));
    }
}
