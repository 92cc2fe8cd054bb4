//! How much is stored, and the limit of it.
//! In: views, after they were published; what is about to be proposed. Out: bytes; a refusal of what would grow a full store.
//! Invariant: this is asked where something is proposed and never where it is applied: replicas need not agree about it. What is on its
//! way is not counted yet, so the limit may be exceeded by that.
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::sync::watch;
use ursa_model::{Labels, Resource, ResourceKey};
use ursa_state::{Changeset, HistoryId, Op, Revision, View};

use super::{Inner, Store};
use crate::disk;
use crate::error::Error;

/// Bytes of everything that is stored, without its history.
#[derive(Debug, Default)]
pub(crate) struct Size(AtomicU64);

impl Size {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Length of the value as JSON, escapes aside.
fn json(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => number.to_string().len() as u64,
        Value::String(text) => text.len() as u64 + 2,
        Value::Array(items) => items.iter().map(|item| json(item) + 1).sum::<u64>() + 2,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() as u64 + 4 + json(value)).sum::<u64>() + 2,
    }
}

fn parts(key: &ResourceKey, labels: &Labels, spec: &Value, status: Option<&Value>) -> u64 {
    let labels: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    (key.mesh().len() + key.name().len() + labels) as u64 + json(spec) + status.map_or(0, json)
}

/// What a resource counts.
fn of(resource: &Resource) -> u64 {
    parts(&resource.key, &resource.labels, &resource.spec, resource.status.as_ref())
}

/// By how much a changeset would make the store grow at the most; what follows from deletes is left out.
fn growth(view: &View, set: &Changeset) -> u64 {
    let (mut more, mut less) = (0_u64, 0_u64);
    for op in &set.ops {
        let key = op.key();
        less += view.get(key).map_or(0, |resource| of(resource));
        if let Op::Put(put) = op {
            more += parts(key, &put.labels, &put.spec, put.status.as_ref());
        }
    }
    more.saturating_sub(less)
}

impl Store {
    /// Whether the store may grow by this.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub(super) fn may_grow(&self, set: &Changeset) -> Result<(), Error> {
        let (bytes, limit) = (self.inner.size.bytes(), self.inner.config.max_bytes);
        // Far from the limit nothing is looked at.
        if bytes.saturating_add(self.inner.config.max_changeset_bytes as u64) <= limit {
            return Ok(());
        }
        let growth = growth(&self.view(), set);
        if growth > 0 && bytes.saturating_add(growth) > limit {
            return Err(Error::Full { bytes, growth, limit });
        }
        Ok(())
    }
}

/// Counts what changes, for as long as the store lives.
pub(crate) async fn count(inner: Weak<Inner>, mut views: watch::Receiver<View>) {
    let mut at = (HistoryId::default(), Revision::default());
    let mut bytes = 0;
    loop {
        let view = views.borrow_and_update().clone();
        let Some(disk) = inner.upgrade().map(|inner| inner.disk.clone()) else {
            return;
        };
        let counted = disk::run(&*disk, move || Ok(recount(&view, at, bytes))).await;
        let (Ok((now, sum)), Some(inner)) = (counted, inner.upgrade()) else {
            return;
        };
        (at, bytes) = (now, sum);
        inner.size.0.store(bytes, Ordering::Relaxed);
        drop(inner);
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// The bytes of a view, from those of an earlier one if what changed in between is at hand.
fn recount(view: &View, before: (HistoryId, Revision), bytes: u64) -> ((HistoryId, Revision), u64) {
    let now = (view.history_id(), view.revision());
    let later = (before.0 == now.0 && before.1 <= now.1)
        .then(|| view.changes_since(before.1).ok())
        .flatten();
    let sum = match later {
        Some(changes) => changes.flat_map(|revision| revision.changes.iter()).fold(bytes, |bytes, change| {
            let size = |resource: &Option<std::sync::Arc<Resource>>| resource.as_deref().map_or(0, of);
            (bytes + size(&change.after)).saturating_sub(size(&change.before))
        }),
        None => view.iter().map(|resource| of(resource)).sum(),
    };
    (now, sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use ursa_model::{ResourceKey, Timestamp};
    use ursa_state::{Command, Put, RequestId, State};

    use super::*;

    fn put(name: &str, text: usize) -> Op {
        Op::Put(Put {
            key: ResourceKey::mesh_itself(name).unwrap(),
            labels: Default::default(),
            spec: json!({ "text": "x".repeat(text), "list": [1, null, true] }),
            status: None,
            owner: None,
            expect: Default::default(),
        })
    }

    fn set(n: u64, ops: Vec<Op>) -> Changeset {
        Changeset::atomic(RequestId(u128::from(n)), Timestamp(n), ops)
    }

    #[test]
    fn what_is_counted_is_the_length_of_the_json() {
        for value in [
            json!({}),
            json!([]),
            json!({"a": 1, "b": [true, false, null, "text", {"c": -12.5}]}),
        ] {
            let (counted, real) = (json(&value), value.to_string().len() as u64);
            assert!(counted >= real && counted <= real + 8, "{counted} for {value}");
        }
    }

    #[test]
    fn counting_what_changed_comes_to_the_same_as_counting_all() {
        let mut state = State::default();
        let (mut at, mut bytes) = ((HistoryId::default(), 0), 0);
        for n in 1..200_u64 {
            let name = format!("m{}", n * 7 % 13);
            let op = if n % 5 == 0 {
                Op::delete(ResourceKey::mesh_itself(&name).unwrap())
            } else {
                put(&name, usize::try_from(n * 31 % 400).unwrap())
            };
            let view = state.view().clone();
            let grown = growth(&view, &set(n, vec![op.clone()]));
            let before = recount(&view, (HistoryId(1), 0), 0).1;
            state.apply(n, &Command::Change(set(n, vec![op])));
            if n % 3 == 0 {
                (at, bytes) = recount(state.view(), at, bytes);
                assert_eq!(bytes, recount(state.view(), (HistoryId(1), 0), 0).1);
            }
            let after = recount(state.view(), (HistoryId(1), 0), 0).1;
            assert_eq!(after.saturating_sub(before), grown, "{n}");
        }
    }
}
