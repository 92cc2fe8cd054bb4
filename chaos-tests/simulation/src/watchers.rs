//! Who follows the changes at a node, as a consumer does that keeps its place over restarts: fast, or so slow that compaction overtakes it.
//! In: views of a store. Out: findings, where what it was told does not add up to what it sees.
//! Invariant (the oracle of watch streams): no revision is told twice, left out or out of order; what was told makes exactly the view;
//! a consumer may be told to begin anew only if what it lacks is forgotten; a recovered node never shows less than it showed before.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ursa_model::{Resource, ResourceKey};
use ursa_runtime::lease::Deadline;
use ursa_state::{Revision, RevisionChanges, View};

use crate::oracles::agreement::Agreement;
use crate::pause;
use crate::world::{Running, World};

/// A consumer at one node.
pub struct Watcher {
    node: u64,
    world: World,
    agreement: Agreement,
    mirror: Mirror,
    /// Longest pause between two looks.
    slow: Duration,
    rng: StdRng,
}

/// What a consumer has put together from what it was told.
#[derive(Debug, Default)]
pub struct Mirror {
    at: Revision,
    resources: BTreeMap<ResourceKey, Arc<Resource>>,
}

impl Mirror {
    /// Takes in a view; says what does not add up. `told` gets every revision that is new.
    ///
    /// # Errors
    /// What is wrong.
    pub fn follow(&mut self, view: &View, mut told: impl FnMut(&RevisionChanges)) -> Result<(), String> {
        if view.revision() < self.at {
            return Err(format!("the view went back from revision {} to {}", self.at, view.revision()));
        }
        match view.changes_since(self.at) {
            Ok(changes) => {
                for changes in changes {
                    told(changes);
                    self.take(changes)?;
                }
            }
            Err(compacted) if self.at < view.floor() => {
                if compacted.oldest != view.floor() {
                    return Err(format!("told to begin at {}, the floor is {}", compacted.oldest, view.floor()));
                }
                self.resources = view.iter().map(|resource| (resource.key.clone(), resource.clone())).collect();
            }
            Err(compacted) => return Err(format!("at {}, not below the floor {}: {compacted}", self.at, view.floor())),
        }
        // The newest revisions may be forgotten themselves.
        self.at = self.at.max(view.revision());
        if !view.iter().eq(self.resources.values()) {
            return Err(format!("what was told up to revision {} is not what the view shows", self.at));
        }
        Ok(())
    }

    fn take(&mut self, changes: &RevisionChanges) -> Result<(), String> {
        if changes.revision <= self.at {
            return Err(format!("revision {} was told after {}", changes.revision, self.at));
        }
        self.at = changes.revision;
        for change in &changes.changes {
            let before = match &change.after {
                Some(after) => self.resources.insert(change.key.clone(), after.clone()),
                None => self.resources.remove(&change.key),
            };
            if before != change.before {
                return Err(format!(
                    "revision {} changes {} from something that it was not",
                    self.at, change.key
                ));
            }
        }
        Ok(())
    }
}

impl Watcher {
    pub fn new(node: u64, seed: u64, slow: Duration, world: World, agreement: Agreement) -> Self {
        Self {
            node,
            world,
            agreement,
            mirror: Mirror::default(),
            slow,
            rng: StdRng::seed_from_u64(seed ^ (node << 40)),
        }
    }

    /// Follows all lives of the node.
    pub async fn work(mut self) {
        let Some(mut lives) = self.world.lives(self.node) else { return };
        loop {
            let running = lives.borrow_and_update().clone();
            if let Some(running) = running {
                let ended = running.life.ended.clone();
                tokio::select! {
                    biased;
                    () = ended.cancelled() => {}
                    () = self.live(running) => {}
                }
            }
            if lives.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows one life, until it ends.
    async fn live(&mut self, running: Running) {
        // Before that it may show an older picture than in its life before.
        let far = Deadline::after(Duration::from_secs(3600));
        if running.store.wait_recovered(far).await.is_err() {
            return;
        }
        let mut views = running.store.subscribe();
        drop(running.store);
        let life = running.life;
        loop {
            let view = views.borrow_and_update().clone();
            if life.is_over() {
                return;
            }
            self.agreement.showed(self.node, &view);
            let agreement = self.agreement.clone();
            if let Err(wrong) = self.mirror.follow(&view, |changes| agreement.told(self.node, changes)) {
                self.world.judge.report("watches", format!("node {}: {wrong}", self.node));
                return;
            }
            if views.changed().await.is_err() {
                return;
            }
            if self.slow > Duration::ZERO {
                pause(self.slow.mul_f64(self.rng.random())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ursa_model::Timestamp;
    use ursa_state::{Changeset, Command, Op, Put, RequestId, State};
    use ursa_store::testing::edited;

    use super::*;

    fn put(name: &str, n: u64) -> Op {
        Op::Put(Put {
            key: ResourceKey::mesh_itself(name).unwrap(),
            labels: Default::default(),
            spec: serde_json::json!({ "n": n }),
            status: None,
            owner: None,
            expect: Default::default(),
        })
    }

    fn apply(state: &mut State, index: u64, op: Op) {
        let set = Changeset::atomic(RequestId(u128::from(index)), Timestamp(index), vec![op]);
        state.apply(index, &Command::Change(set));
    }

    fn delete(name: &str) -> Op {
        Op::delete(ResourceKey::mesh_itself(name).unwrap())
    }

    #[test]
    fn it_follows_through_changes_and_compaction() {
        let (mut state, mut copy, mut told) = (State::default(), Mirror::default(), Vec::new());
        for index in 1..=9 {
            apply(&mut state, index, if index % 3 == 0 { delete("a") } else { put("a", index) });
            if index % 2 == 0 {
                copy.follow(state.view(), |changes| told.push(changes.revision)).unwrap();
            }
        }
        assert_eq!(told, [1, 2, 3, 4, 5, 6, 7, 8]);
        state.apply(10, &Command::Compact { floor: 9 });
        copy.follow(state.view(), |_| panic!("it is forgotten")).unwrap();
        assert_eq!(copy.at, 9);
    }

    /// A state whose history lacks what `lose` takes from its snapshot.
    fn damaged(state: &State, lose: impl Fn(&mut Vec<serde_json::Value>)) -> State {
        edited(state, |document| lose(document["changes"].as_array_mut().unwrap())).unwrap()
    }

    #[test]
    fn a_gap_a_repeat_and_a_lost_delete_are_seen() {
        let mut state = State::default();
        let ops = [put("a", 1), put("b", 1), delete("a"), put("b", 2)];
        ops.into_iter().zip(1..).for_each(|(op, index)| apply(&mut state, index, op));
        Mirror::default().follow(state.view(), |_| {}).unwrap();
        for nth in 0..4 {
            let lacking = damaged(&state, |changes| drop(changes.remove(nth)));
            Mirror::default().follow(lacking.view(), |_| {}).unwrap_err();
        }
        let silent = damaged(&state, |changes| changes[2]["changes"] = serde_json::json!([]));
        Mirror::default().follow(silent.view(), |_| {}).unwrap_err();
        let mut ahead = Mirror::default();
        ahead.follow(state.view(), |_| {}).unwrap();
        let older = state.view().at(2).unwrap();
        let error = ahead.follow(&older, |_| {}).unwrap_err();
        assert!(error.contains("went back"), "{error}");
        ahead.at = 3;
        ahead.follow(state.view(), |_| {}).unwrap_err();
    }
}
