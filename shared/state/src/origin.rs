//! A history that goes on from another one: after a backup was restored, or the majority of a group was given up for lost.
//! In: a state of the old history. Out: the same resources under a new name, at a revision far above.
//! Invariants: no pair of history and revision ever means two things, and no revision number of the new history was given out by the
//! old one, unless that wrote [`GAP`] more; what was kept of the past is kept.

use serde::{Deserialize, Serialize};
use ursa_model::{ResourceKey, Timestamp};

use crate::{
    change::{Change, Changeset, HistoryId, Revision},
    state::State,
};

/// How far the revisions of the new history begin above those that are known of the old one: more than anybody writes between a backup
/// and a disaster, and easy to see in a number.
pub const GAP: u64 = 1_000_000_000;

/// What made the new history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// From a backup.
    Restore,
    /// From what one node had, when the majority was lost.
    Recover,
}

impl By {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Recover => "recover",
        }
    }
}

/// Where a history comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub by: By,
    /// The old one, and how far it was taken over.
    pub history: HistoryId,
    pub revision: Revision,
    /// The first of the new one.
    pub begins: Revision,
    pub at: Timestamp,
}

/// How to go on.
#[derive(Clone, Debug)]
pub struct Anew {
    pub by: By,
    /// The new history.
    pub history: HistoryId,
    /// Index of the log that the new history goes on from; larger than any that the state has applied.
    pub index: u64,
    /// Added to every revision from now on.
    pub gap: u64,
    pub at: Timestamp,
    /// What belongs to the old group alone.
    pub forget: Vec<ResourceKey>,
}

impl State {
    /// The same resources in a new history, whose first revision tells so. Answers to requests are kept: who asked for something that is
    /// in this state and asks again gets them, and what is not in it is done anew.
    #[must_use]
    pub fn begin_anew(&self, anew: &Anew) -> Self {
        let mut next = self.clone();
        let old = self.view.at_global();
        next.applied_index = next.applied_index.max(anew.index);
        next.revision_base = next.revision_base.saturating_add(anew.gap);
        next.view.history_id = anew.history;
        // Whatever else, it goes up: the base of a state that is not of our making might be anything.
        let revision = next
            .revision_base
            .saturating_add(next.applied_index)
            .max(old.revision.saturating_add(1));
        next.revision_base = revision - next.applied_index.min(revision);
        let mut changes = Vec::new();
        for key in &anew.forget {
            if let Some(before) = next.view.objects.get(key).cloned() {
                next.view.objects.remove_mut(key);
                if let Some(owner) = &before.owner {
                    next.owned.remove_mut(&(owner.clone(), key.clone()));
                }
                changes.push(Change {
                    key: key.clone(),
                    before: Some(before),
                    after: None,
                });
            }
        }
        let at = anew.at.max(next.view.time);
        let set = Changeset {
            at,
            actor: anew.by.as_str().to_owned(),
            ..Changeset::default()
        };
        next.record(revision, at, &set, changes);
        next.view.origin = Some(std::sync::Arc::new(Origin {
            by: anew.by,
            history: old.history,
            revision: old.revision,
            begins: revision,
            at,
        }));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Expect, Op, Put, RequestId};

    fn put(name: &str, id: u128, at: u64) -> Command {
        let put = Put {
            key: ResourceKey::mesh_itself(name).unwrap(),
            labels: Default::default(),
            spec: serde_json::json!({}),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        Command::Change(Changeset::atomic(RequestId(id), Timestamp(at), vec![Op::Put(put)]))
    }

    fn old() -> State {
        let mut state = State::default();
        state.apply(1, &Command::Init { history: HistoryId(7) });
        state.apply(2, &put("a", 2, 100));
        state.apply(3, &put("b", 3, 200));
        state
    }

    fn anew(index: u64) -> Anew {
        Anew {
            by: By::Restore,
            history: HistoryId(8),
            index,
            gap: GAP,
            at: Timestamp(150),
            forget: vec![ResourceKey::mesh_itself("b").unwrap()],
        }
    }

    fn reread(state: &State) -> State {
        let mut bytes = Vec::new();
        state.write_snapshot(&mut bytes).unwrap();
        State::read_snapshot(bytes.as_slice()).unwrap()
    }

    #[test]
    fn everything_goes_on_under_a_new_name_and_far_above() {
        let state = reread(&old().begin_anew(&anew(10)));
        let view = state.view();
        assert_eq!((view.history_id(), view.revision(), view.len()), (HistoryId(8), GAP + 10, 1));
        assert_eq!(view.time(), Timestamp(200), "time does not go back");
        let origin = view.origin().unwrap();
        assert_eq!((origin.history, origin.revision, origin.begins), (HistoryId(7), 3, GAP + 10));
        assert_eq!(view.past().oldest(), old().view().past().oldest());
        // The past is that of the old one, and what was forgotten is in it.
        let past = view.past();
        assert_eq!(past.view(3).unwrap().len(), 2);
        let mut state = state;
        assert_eq!(state.apply(11, &put("c", 4, 300)).revision, GAP + 11);
        assert_eq!(state.apply(12, &Command::Init { history: HistoryId(9) }).revision, GAP + 11);
        assert_eq!(state.history_id(), HistoryId(8), "a history is named once");
    }

    #[test]
    fn a_request_that_is_in_it_gets_its_answer() {
        let mut state = old().begin_anew(&anew(10));
        assert_eq!(state.apply(11, &put("a", 2, 300)).revision, 2);
        assert_eq!(state.applied_index(), 11);
    }

    #[test]
    fn an_odd_base_does_not_take_revisions_back() {
        let mut state = old();
        state.view.revision = 5_000_000_000;
        let state = state.begin_anew(&anew(10));
        assert_eq!(state.view().revision(), 5_000_000_001);
        let mut state = reread(&state);
        assert_eq!(state.apply(11, &put("c", 4, 300)).revision, 5_000_000_002);
    }
}
