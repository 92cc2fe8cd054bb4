//! Who belongs to the group, as far as this node knows: whose calls are looked at.
//! In: the configured members, those of the log, those that other members tell of. Out: whether a node is one of them.
//! Invariant: a certificate of the cluster alone opens nothing.
//!
//! The log of a node that was away may lack a member that was added meanwhile, and that may be the one that leads now. So what other
//! members say in their greetings counts as well, and what the operator has configured here.
use std::collections::{BTreeMap, BTreeSet};

use parking_lot::RwLock;
use tokio::sync::watch;
use ursa_state::HistoryId;

use super::{Peers, Refusal};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Roster {
    node: u64,
    configured: BTreeSet<u64>,
    state: RwLock<State>,
    /// The members without this node.
    others: watch::Sender<BTreeSet<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the newest list in the log, committed or not.
    effective: BTreeSet<u64>,
    /// Of the group, and its history. Counts once the list in the log has them no more.
    left: BTreeSet<u64>,
    history: HistoryId,
    /// By each member that told.
    told: BTreeMap<u64, BTreeSet<u64>>,
    /// They do not know this node as what it is.
    disowned_by: BTreeSet<u64>,
}

impl Roster {
    pub(crate) fn new(node: u64, configured: BTreeSet<u64>) -> Self {
        let others = configured.iter().copied().filter(|id| *id != node).collect();
        Self {
            node,
            configured,
            state: RwLock::default(),
            others: watch::Sender::new(others),
        }
    }

    /// These are the others now.
    pub(crate) fn set_others(&self, now: BTreeSet<u64>) {
        self.others.send_if_modified(|others| {
            let changed = *others != now;
            *others = now;
            changed
        });
    }

    /// Whether to look at what `node` says.
    ///
    /// # Errors
    /// [`Refusal::NotMember`], [`Refusal::HasLeft`].
    pub(crate) fn check(&self, node: u64) -> Result<(), Refusal> {
        let state = self.state.read();
        if state.left.contains(&node) && !state.effective.contains(&node) {
            let history = state.history;
            return Err(Refusal::HasLeft { node, history });
        }
        let told = || state.told.values().any(|told| told.contains(&node));
        if self.configured.contains(&node) || state.effective.contains(&node) || told() {
            Ok(())
        } else {
            Err(Refusal::NotMember { node, here: self.node })
        }
    }

    /// The log has these members.
    pub(crate) fn set_effective(&self, members: BTreeSet<u64>) {
        self.state.write().effective = members;
    }

    /// Those who have left the group of this history.
    pub(crate) fn set_left(&self, left: BTreeSet<u64>, history: HistoryId) {
        let mut state = self.state.write();
        (state.left, state.history) = (left, history);
    }

    /// Whether it has left: neither greeted nor added again.
    pub(crate) fn has_left(&self, node: u64) -> bool {
        let state = self.state.read();
        state.left.contains(&node) && !state.effective.contains(&node)
    }

    /// `by` tells of these.
    pub(crate) fn tell(&self, by: u64, members: BTreeSet<u64>) {
        self.state.write().told.insert(by, members);
    }

    /// `by` knows this node as what it is.
    pub(crate) fn knows_me(&self, by: u64) {
        let stale = self.state.read().disowned_by.contains(&by);
        if stale {
            self.state.write().disowned_by.remove(&by);
        }
    }

    /// `by` does not; whether most of the others say so by now.
    pub(crate) fn disowned_by(&self, by: u64) -> bool {
        let mut state = self.state.write();
        state.disowned_by.insert(by);
        let members = if state.effective.is_empty() {
            &self.configured
        } else {
            &state.effective
        };
        let others = members.iter().filter(|id| **id != self.node);
        let say = others.clone().filter(|id| state.disowned_by.contains(id)).count();
        say * 2 > others.count()
    }
}

impl Peers {
    /// The other members, as they change.
    pub fn watch_others(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.shared.roster.others.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn who_is_configured_stored_or_told_of_belongs_and_nobody_else() {
        let roster = Roster::new(1, set(&[1, 2]));
        assert_eq!(roster.check(2), Ok(()));
        let stranger = Err(Refusal::NotMember { node: 4, here: 1 });
        assert_eq!(roster.check(4), stranger);
        roster.set_effective(set(&[1, 2, 4]));
        assert_eq!(roster.check(4), Ok(()));
        roster.set_effective(set(&[1, 2]));
        assert_eq!(roster.check(4), stranger);
        roster.tell(2, set(&[1, 2, 4]));
        assert_eq!(roster.check(4), Ok(()));
        roster.tell(2, set(&[1, 2]));
        assert_eq!(roster.check(4), stranger);
    }

    #[test]
    fn who_has_left_is_out_whoever_else_still_names_it() {
        let roster = Roster::new(1, set(&[1, 2, 3]));
        roster.set_effective(set(&[1, 2, 3]));
        roster.tell(2, set(&[1, 2, 3]));
        roster.set_left(set(&[3]), HistoryId(7));
        assert_eq!((roster.check(3), roster.has_left(3)), (Ok(()), false), "said, but not done yet");
        roster.set_effective(set(&[1, 2]));
        let left = Refusal::HasLeft {
            node: 3,
            history: HistoryId(7),
        };
        assert_eq!((roster.check(3), roster.has_left(3)), (Err(left), true));
    }

    #[test]
    fn one_of_several_is_not_believed() {
        let roster = Roster::new(1, set(&[1, 2, 3]));
        assert!(!roster.disowned_by(2) && !roster.disowned_by(2) && !roster.disowned_by(9));
        assert!(roster.disowned_by(3));
        roster.knows_me(2);
        assert!(!roster.disowned_by(3));
        assert!(Roster::new(1, set(&[1, 2])).disowned_by(2));
        roster.set_effective(set(&[1, 2, 3, 4, 5]));
        assert!(!roster.disowned_by(2) && roster.disowned_by(4));
    }
}
