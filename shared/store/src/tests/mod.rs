//! The whole store: what users of it rely on, over the simulated disk and over files.
#![allow(clippy::disallowed_methods, reason = "tests of concurrent callers and of a process that is killed")]
mod bench;
mod core_ends;
mod crash;
mod encryption;
mod files;
mod group;
mod hooked;
mod long_history;
mod serve;
mod space;

use std::time::Duration;

use serde_json::Value;
use ursa_model::ResourceKey;
use ursa_state::{Changeset, Expect, Op, Put, RevisionChanges, View};

use crate::testing::changeset;
use crate::{Error, Store};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn key(name: &str) -> ResourceKey {
    ResourceKey::mesh_itself(name).unwrap()
}

pub(crate) fn op(name: &str, n: u64) -> Op {
    put(name, n)
}

fn put(name: &str, n: u64) -> Op {
    put_expecting(name, n, Expect::Any)
}

fn put_expecting(name: &str, n: u64, expect: Expect) -> Op {
    let spec = serde_json::json!({ "n": n, "text": "x".repeat(100) });
    Op::Put(Put {
        key: key(name),
        labels: Default::default(),
        spec,
        status: None,
        owner: None,
        expect,
    })
}

fn set(name: &str, n: u64) -> Changeset {
    changeset(1_700_000_000_000 + n, vec![put(name, n)])
}

pub(crate) async fn write(store: &Store, name: &str, n: u64) -> Result<u64, Error> {
    store.propose(set(name, n)).await.map(|applied| applied.revision)
}

pub(crate) fn value(view: &View, name: &str) -> Option<u64> {
    view.get(&key(name))
        .and_then(|resource| resource.spec.get("n").and_then(Value::as_u64))
}

/// Everything that can be seen of a view.
fn picture(view: &View) -> impl PartialEq + std::fmt::Debug + use<> {
    let resources: Vec<_> = view.iter().cloned().collect();
    let history: Vec<RevisionChanges> = view
        .changes_since(view.floor())
        .unwrap()
        .map(|changes| changes.as_ref().clone())
        .collect();
    (view.history_id(), view.revision(), view.floor(), view.time(), resources, history)
}
