//! Who writes and reads: clients at the nodes, one operation at a time each.
//! In: the stores that run. Out: the history of each key, and what was told of each write.
//! Invariant: what a node says after its end counts for nothing: whoever waited for it knows as little as if it had said nothing.
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use ursa_model::{ResourceKey, Timestamp};
use ursa_state::{Changeset, Op, OpResult, Put, RequestId, Revision, View};
use ursa_store::Error;

use crate::oracles::linearizable::{Action, Operation, Value};
use crate::oracles::writes::Told;
use crate::world::{Changes, Running, World};
use crate::{ms, note, pause};

/// Times that a write is sent again under the same id.
const TRIES: u32 = 4;

/// Everything that clients did. Shared handle.
#[derive(Clone, Debug, Default)]
pub struct Book(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    moment: u64,
    histories: BTreeMap<String, Vec<Operation>>,
    writes: BTreeMap<String, Told>,
    /// Newest revision that anybody was told of.
    newest: Revision,
    acknowledged: u64,
    reads: u64,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub acknowledged: u64,
    pub reads: u64,
    pub unknown: u64,
    /// Changes of the members.
    #[serde(default)]
    pub members: Changes,
}

impl Book {
    fn moment(&self) -> u64 {
        let mut pages = self.0.lock();
        pages.moment += 1;
        pages.moment
    }

    fn newest(&self) -> Revision {
        self.0.lock().newest
    }

    /// An operation begins. Until its end is noted, nobody knows its outcome.
    fn begin(&self, key: &str, action: Action) -> usize {
        let called = self.moment();
        let mut pages = self.0.lock();
        let history = pages.histories.entry(key.to_owned()).or_default();
        history.push(Operation {
            action,
            called,
            returned: None,
        });
        history.len() - 1
    }

    /// It ended like this.
    fn end(&self, key: &str, nth: usize, action: Action) {
        let returned = Some(self.moment());
        if let Some(operation) = self.0.lock().histories.get_mut(key).and_then(|history| history.get_mut(nth)) {
            (operation.action, operation.returned) = (action, returned);
        }
    }

    /// It never was. The place stays, as a read that nobody answered.
    fn forget(&self, key: &str, nth: usize) {
        if let Some(operation) = self.0.lock().histories.get_mut(key).and_then(|history| history.get_mut(nth)) {
            operation.action = Action::Read(None);
        }
    }

    fn told(&self, id: &str, told: Told) {
        let mut pages = self.0.lock();
        if let Told::Done(revision) = told {
            pages.newest = pages.newest.max(revision);
        }
        pages.acknowledged += u64::from(matches!(told, Told::Done(_) | Told::Unchanged));
        pages.writes.insert(id.to_owned(), told);
    }

    fn read(&self, revision: Revision) {
        let mut pages = self.0.lock();
        pages.newest = pages.newest.max(revision);
        pages.reads += 1;
    }

    pub fn histories(&self) -> BTreeMap<String, Vec<Operation>> {
        self.0.lock().histories.clone()
    }

    pub fn writes(&self) -> BTreeMap<String, Told> {
        self.0.lock().writes.clone()
    }

    pub fn done(&self) -> Done {
        let pages = self.0.lock();
        Done {
            acknowledged: pages.acknowledged,
            reads: pages.reads,
            members: Changes::default(),
            unknown: pages.writes.values().filter(|told| **told == Told::Nothing).count() as u64,
        }
    }
}

/// How busy the clients are.
#[derive(Clone, Debug)]
pub struct Habits {
    pub keys: u64,
    /// Longest pause between two operations, milliseconds.
    pub think: u64,
    /// Bytes beside the number in each register.
    pub padding: usize,
}

/// One client.
pub struct Client {
    id: u64,
    world: World,
    book: Book,
    habits: Habits,
    rng: StdRng,
    at: u64,
    sent: u64,
}

/// The register in a view.
pub fn value(view: &View, key: &ResourceKey) -> Value {
    view.get(key)?.spec.get("n")?.as_u64()
}

fn key_of(name: &str) -> Option<ResourceKey> {
    ResourceKey::mesh_itself(name).ok()
}

impl Client {
    pub fn new(id: u64, seed: u64, world: World, book: Book, habits: Habits) -> Self {
        let at = id % world.settings.nodes + 1;
        Self {
            id,
            world,
            book,
            habits,
            rng: StdRng::seed_from_u64(seed ^ (id << 32)),
            at,
            sent: 0,
        }
    }

    /// Works until it is dropped.
    pub async fn work(mut self) {
        loop {
            pause(ms(self.rng.random_range(0..self.habits.think.max(1)))).await;
            if self.rng.random_range(0..10_u8) == 0 {
                self.move_on();
            }
            let Some(running) = self.world.running(self.at) else {
                self.move_on();
                continue;
            };
            let name = format!("r{}", self.rng.random_range(0..self.habits.keys));
            match self.rng.random_range(0..20_u8) {
                0 => self.compact(&running).await,
                1..10 => self.write(running, &name, false).await,
                10..12 => self.write(running, &name, true).await,
                _ => self.read(&running, &name).await,
            }
        }
    }

    fn move_on(&mut self) {
        let ids = self.world.ids();
        self.at = ids.choose(&mut self.rng).copied().unwrap_or(self.at);
    }

    /// What the node says, unless it ends first.
    async fn ask<T>(running: &Running, call: impl Future<Output = Result<T, Error>>) -> Option<Result<T, Error>> {
        let answer = tokio::select! {
            biased;
            () = running.life.ended.cancelled() => return None,
            answer = call => answer,
        };
        (!running.life.is_over()).then_some(answer)
    }

    /// Forgets all but the newest revisions, now and then nearly all.
    async fn compact(&mut self, running: &Running) {
        let keep = self.rng.random_range(0..200_u64);
        let floor = running.store.view().revision().saturating_sub(keep);
        if let Some(Ok(_)) = Self::ask(running, Box::pin(running.store.compact(floor))).await {
            note!(self.world.trace, "c{} compacted to {floor}", self.id);
        }
    }

    async fn read(&mut self, running: &Running, name: &str) {
        let Some(key) = key_of(name) else { return };
        let newest = self.book.newest();
        let nth = self.book.begin(name, Action::Read(None));
        let Some(Ok(view)) = Self::ask(running, Box::pin(running.store.read())).await else {
            return;
        };
        if view.revision() < newest {
            self.world.judge.report(
                "linearizable",
                format!(
                    "a read at node {} shows revision {}, {newest} had been shown before it began",
                    running.life.node,
                    view.revision()
                ),
            );
        }
        let found = value(&view, &key);
        self.book.end(name, nth, Action::Read(found));
        note!(
            self.world.trace,
            "c{} read {name} = {found:?} at {} of n{}",
            self.id,
            view.revision(),
            running.life.node
        );
        self.book.read(view.revision());
    }

    async fn write(&mut self, mut running: Running, name: &str, delete: bool) {
        let Some(key) = key_of(name) else { return };
        self.sent += 1;
        let number = self.id * 1_000_000 + self.sent;
        let id = format!("c{}-{}", self.id, self.sent);
        let op = if delete {
            Op::delete(key)
        } else {
            Op::Put(Put {
                key,
                labels: Default::default(),
                spec: serde_json::json!({ "n": number, "text": "x".repeat(self.rng.random_range(0..=self.habits.padding)) }),
                status: None,
                owner: None,
                expect: Default::default(),
            })
        };
        let at = Timestamp(u64::try_from(self.world.trace.now().as_millis()).unwrap_or_default());
        let mut set = Changeset::atomic(RequestId(u128::from(number)), at, vec![op]);
        set.actor.clone_from(&id);
        let action = Action::Write((!delete).then_some(number));
        let nth = self.book.begin(name, action);
        self.book.told(&id, Told::Nothing);
        let patience = self.rng.random_range(1..=TRIES);
        note!(
            self.world.trace,
            "c{} asks n{} for {id}: {name} = {action:?}",
            self.id,
            running.life.node
        );
        let mut doubt = false;
        for _ in 0..patience {
            let answer = Self::ask(&running, Box::pin(running.store.propose(set.clone()))).await;
            let refused = match &answer {
                Some(Ok(applied)) => {
                    let unchanged = applied.results.iter().all(|result| *result == OpResult::Unchanged);
                    let told = if unchanged { Told::Unchanged } else { Told::Done(applied.revision) };
                    note!(self.world.trace, "c{} has {id}: {told:?}", self.id);
                    self.book.told(&id, told);
                    self.book.end(name, nth, action);
                    return;
                }
                None | Some(Err(Error::Unknown(_))) => false,
                Some(Err(_)) => true,
            };
            doubt |= !refused;
            note!(self.world.trace, "c{} has no {id}: refused {refused}", self.id);
            if refused && !doubt {
                break;
            }
            self.move_on();
            pause(ms(self.rng.random_range(0..100))).await;
            match self.world.running(self.at) {
                Some(next) => running = next,
                None => continue,
            }
        }
        if !doubt {
            self.book.told(&id, Told::Refused);
            self.book.forget(name, nth);
        }
    }
}
