//! All replicas hold the same at the same revision, in one history.
//! In: the views that nodes publish, and the changes that they tell. Out: two that differ.
//! Invariant: what one node has ever said of a revision, every node says of it ever after, itself included.
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use ursa_state::{HistoryId, Revision, RevisionChanges, View};

use crate::judge::Judge;

/// What is known of one revision.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who asked for it: the id of the operation.
    pub actor: String,
    hash: u64,
    first: u64,
}

/// Shared handle.
#[derive(Clone, Debug)]
pub struct Agreement {
    judge: Judge,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    history: Option<HistoryId>,
    /// Hash of the whole state, and who first showed it.
    states: BTreeMap<Revision, (u64, u64)>,
    changes: BTreeMap<Revision, Entry>,
}

fn hash_of(value: &impl serde::Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Plain data has a JSON form.
    hasher.write(&serde_json::to_vec(value).unwrap_or_default());
    hasher.finish()
}

/// Hash of everything that a view shows of its resources.
pub fn state_hash(view: &View) -> u64 {
    let resources: Vec<_> = view.iter().map(|resource| resource.as_ref()).collect();
    hash_of(&(view.revision(), view.time(), resources))
}

impl Agreement {
    pub fn new(judge: Judge) -> Self {
        Self {
            judge,
            seen: Arc::default(),
        }
    }

    /// Node `node` shows this view.
    pub fn showed(&self, node: u64, view: &View) {
        if view.revision() == 0 {
            return;
        }
        let hash = state_hash(view);
        let mut seen = self.seen.lock();
        // The first writes may be committed before the history has its name.
        let named = Some(view.history_id()).filter(|history| *history != HistoryId::default());
        let history = named.map(|named| *seen.history.get_or_insert(named));
        if let Some(history) = history.filter(|history| Some(*history) != named) {
            let other = view.history_id();
            self.judge
                .report("agreement", format!("node {node} has history {other}, others have {history}"));
        }
        let (first, by) = *seen.states.entry(view.revision()).or_insert((hash, node));
        if first != hash {
            let text = format!("nodes {by} and {node} hold different states at revision {}", view.revision());
            self.judge.report("agreement", text);
        }
    }

    /// Node `node` says that this is what a revision changed.
    pub fn told(&self, node: u64, changes: &RevisionChanges) {
        let hash = hash_of(changes);
        let mut seen = self.seen.lock();
        let entry = seen.changes.entry(changes.revision).or_insert_with(|| Entry {
            actor: changes.actor.clone(),
            hash,
            first: node,
        });
        if entry.hash != hash {
            let text = format!(
                "nodes {} and {node} tell different changes of revision {}",
                entry.first, changes.revision
            );
            self.judge.report("agreement", text);
        }
    }

    /// Everything that was told.
    pub fn changes(&self) -> BTreeMap<Revision, Entry> {
        self.seen.lock().changes.clone()
    }
}

#[cfg(test)]
mod tests {
    use ursa_model::{ResourceKey, Timestamp};
    use ursa_state::{Changeset, Command, Op, Put, RequestId, State};

    use super::*;
    use crate::trace::Trace;

    fn state(values: &[u64]) -> State {
        let mut state = State::default();
        for (n, value) in values.iter().enumerate() {
            let put = Put {
                key: ResourceKey::mesh_itself("a").unwrap(),
                labels: Default::default(),
                spec: serde_json::json!({ "n": value }),
                status: None,
                owner: None,
                expect: Default::default(),
            };
            let set = Changeset::atomic(RequestId(n as u128 + 1), Timestamp(1), vec![Op::Put(put)]);
            state.apply(n as u64 + 1, &Command::Change(set));
        }
        state
    }

    #[tokio::test]
    async fn two_states_at_one_revision_are_seen() {
        let judge = Judge::new(Trace::new(9));
        let agreement = Agreement::new(judge.clone());
        let (one, other) = (state(&[1, 2]), state(&[1, 3]));
        for (node, state) in [(1, &one), (2, &one)] {
            agreement.showed(node, state.view());
            state.view().changes_since(0).unwrap().for_each(|c| agreement.told(node, c));
        }
        assert_eq!(judge.findings(), []);
        agreement.showed(3, other.view());
        other.view().changes_since(0).unwrap().for_each(|c| agreement.told(3, c));
        let found: Vec<String> = judge.findings().into_iter().map(|finding| finding.what).collect();
        assert_eq!(
            found,
            [
                "nodes 1 and 3 hold different states at revision 2",
                "nodes 1 and 3 tell different changes of revision 2"
            ]
        );
    }
}
