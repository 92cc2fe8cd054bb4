//! A control plane's store in memory, for tests: `ursa_state` without log and Raft. Also compiled into the tests in `tests/`.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{RwLock, watch};
use ursa_model::{Kind, Labels, Resource, ResourceKey, Timestamp, labels};
use ursa_state::{Applied, Catalog, Changeset, Command, GlobalRevision, HistoryId, Mode, Observed, Op, Put, RequestId, Role, State, View};

/// Both tiers of one control plane.
#[derive(Clone)]
pub struct Memory {
    pub role: Role,
    state: Arc<Mutex<(State, u64)>>,
    views: watch::Sender<View>,
    pub observed: Observed,
    /// While somebody holds it for writing, nothing is stored.
    pub gate: Arc<RwLock<()>>,
    pub failing: Arc<AtomicBool>,
}

pub fn key(kind: Kind, mesh: &str, name: &str) -> ResourceKey {
    ResourceKey::new(kind, mesh, name).unwrap()
}

pub fn labels_of(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Labels as a write at the global, or in a zone, computes them.
pub fn made_at(site: labels::Site<'_>, key: &ResourceKey) -> Labels {
    labels::computed(site, key.kind(), key.mesh(), key.name(), Labels::new(), None)
}

pub fn put_op(key: ResourceKey, labels: Labels, spec: Value) -> Op {
    Op::Put(Put {
        key,
        labels,
        spec,
        status: None,
        owner: None,
        expect: Default::default(),
    })
}

/// A changeset as sync makes them.
pub fn each(ops: Vec<Op>, global: Option<GlobalRevision>) -> Changeset {
    Changeset {
        mode: Mode::Each,
        ops,
        global,
        at: Timestamp(1),
        ..Changeset::default()
    }
}

impl Memory {
    pub fn new(role: Role, history: u128) -> Self {
        let mut state = State::default();
        state.apply(
            1,
            &Command::Init {
                history: HistoryId(history),
            },
        );
        let views = watch::Sender::new(state.view().clone());
        Self {
            role,
            state: Arc::new(Mutex::new((state, 1))),
            views,
            observed: Observed::default(),
            gate: Arc::default(),
            failing: Arc::default(),
        }
    }

    pub fn change(&self, set: Changeset) -> Applied {
        let mut guard = self.state.lock().unwrap();
        let (state, index) = &mut *guard;
        *index += 1;
        let applied = state.apply(*index, &Command::Change(set));
        self.views.send_replace(state.view().clone());
        applied
    }

    pub fn ops(&self, ops: Vec<Op>) -> Applied {
        let id = RequestId(0);
        self.change(Changeset::atomic(id, Timestamp(1), ops))
    }

    /// Puts a resource as if written here.
    pub fn put(&self, site: labels::Site<'_>, kind: Kind, mesh: &str, name: &str, spec: Value) {
        let key = key(kind, mesh, name);
        let labels = made_at(site, &key);
        self.put_with(key, labels, spec);
    }

    pub fn put_with(&self, key: ResourceKey, labels: Labels, spec: Value) {
        let applied = self.ops(vec![put_op(key, labels, spec)]);
        assert!(applied.rejected.is_none(), "{applied:?}");
    }

    pub fn delete(&self, kind: Kind, mesh: &str, name: &str) {
        self.ops(vec![Op::delete(key(kind, mesh, name))]);
    }

    pub fn view(&self) -> View {
        self.views.borrow().clone()
    }

    pub fn views(&self) -> watch::Receiver<View> {
        self.views.subscribe()
    }

    pub fn catalog(&self) -> Catalog {
        Catalog {
            role: self.role,
            durable: self.view(),
            observed: self.observed.view(),
        }
    }

    pub fn get(&self, kind: Kind, mesh: &str, name: &str) -> Option<Arc<Resource>> {
        self.catalog().get(&key(kind, mesh, name)).cloned()
    }

    /// Stores as a [`crate::ports::Sink`] does, after the gate.
    pub fn store(&self, set: Changeset) -> BoxFuture<'_, Result<Applied, String>> {
        Box::pin(async move {
            let _open = self.gate.read().await;
            if self.failing.load(Ordering::SeqCst) {
                return Err("the store fails, as the test wants".to_owned());
            }
            Ok(self.change(set))
        })
    }
}
