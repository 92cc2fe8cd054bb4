//! The past against a model that keeps every state it ever was in.
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use ursa_model::{Kind, Labels, Resource, ResourceKey, Timestamp};

use super::*;
use crate::{
    Changeset, Command, Expect, HistoryId, Mode, Op, Operation, PastError, Put, RequestId, Retention, State, Wanted, change::GlobalRevision,
};

/// Small enough for a script to run through all of it.
const SMALL: Window = Window {
    recent: 4,
    recent_changes: 9,
    block: 3,
    revisions: 17,
    bytes: 1 << 20,
};

type Content = BTreeMap<ResourceKey, Arc<Resource>>;

/// Every state, by revision.
#[derive(Default)]
struct Model {
    states: Vec<(Revision, Timestamp, Option<GlobalRevision>, Content)>,
    /// The newest floor that was asked for.
    compacted: Revision,
}

impl Model {
    fn note(&mut self, state: &State) {
        let view = state.view();
        if self.states.last().is_none_or(|(revision, ..)| *revision < view.revision()) {
            let content = view.iter().map(|r| (r.key.clone(), r.clone())).collect();
            self.states.push((view.revision(), view.time(), view.global(), content));
        }
    }

    /// The state at a revision: that of the newest changeset up to it.
    fn at(&self, revision: Revision) -> (Revision, Timestamp, Option<GlobalRevision>, Content) {
        let found = self.states.iter().rev().find(|(r, ..)| *r <= revision);
        found.cloned().unwrap_or_default()
    }
}

fn key(kind: Kind, mesh: &str, name: &str) -> ResourceKey {
    ResourceKey::new(kind, mesh, name).unwrap()
}

fn all_keys() -> Vec<ResourceKey> {
    let meshes = (0..3).map(|n| key(Kind::Mesh, "", &format!("m{n}")));
    let services = (0..3).flat_map(|n| (0..2).map(move |s| key(Kind::MeshService, &format!("m{n}"), &format!("s{s}"))));
    meshes.chain(services).collect()
}

fn arb_op() -> impl Strategy<Value = Op> {
    let any_key = || prop::sample::select(all_keys());
    let put = (any_key(), 0..5u64).prop_map(|(key, value)| {
        let owner = (!key.mesh().is_empty()).then(|| ResourceKey::mesh_itself(key.mesh()).unwrap());
        Op::Put(Put {
            key,
            labels: Labels::from([("n".to_owned(), (value / 2).to_string())]),
            spec: json!({ "value": value, "text": "x".repeat(40) }),
            status: None,
            owner,
            expect: Expect::Any,
        })
    });
    prop_oneof![4 => put, 1 => any_key().prop_map(Op::delete)]
}

fn arb_command() -> impl Strategy<Value = Command> {
    let set = (1..20u64, prop::collection::vec(arb_op(), 0..4), any::<bool>()).prop_map(|(at, ops, global)| {
        Command::Change(Changeset {
            mode: Mode::Each,
            global: global.then_some(GlobalRevision {
                history: HistoryId(3),
                revision: at,
            }),
            actor: format!("user-{at}"),
            ..Changeset::each(RequestId::default(), Timestamp(at), ops)
        })
    });
    prop_oneof![15 => set, 1 => (0..30u64).prop_map(|floor| Command::Compact { floor })]
}

fn small() -> State {
    let mut state = State::default();
    state.view.history.window = SMALL;
    state.apply(1, &Command::Init { history: HistoryId(7) });
    state
}

fn play(script: &[Command], each: &mut dyn FnMut(&Model, &mut State)) -> (Model, State) {
    let (mut model, mut state) = (Model::default(), small());
    for (index, command) in (2..).zip(script) {
        state.apply(index, command);
        if let Command::Compact { floor } = command {
            model.compacted = model.compacted.max((*floor).min(state.view().revision()));
        }
        model.note(&state);
        each(&model, &mut state);
    }
    (model, state)
}

fn bytes(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    state.write_snapshot(&mut out).unwrap();
    out
}

fn operation(before: Option<&Arc<Resource>>, after: Option<&Arc<Resource>>) -> Operation {
    match (before, after) {
        (None, _) => Operation::Create,
        (_, None) => Operation::Delete,
        _ => Operation::Update,
    }
}

/// Every question about every pair of revisions.
fn compare(model: &Model, state: &State) -> Result<(), TestCaseError> {
    let view = state.view();
    let (past, newest) = (view.past(), view.revision());
    let anything = |_: &ResourceKey| true;
    let all = Wanted::Those(&anything);
    // Nothing is forgotten early.
    let kept = model.states.iter().filter(|(r, ..)| *r > past.oldest()).count() as u64;
    let asked = model.states.iter().filter(|(r, ..)| *r > model.compacted).count() as u64;
    prop_assert!(
        kept >= asked.min(SMALL.revisions - SMALL.block as u64) && kept <= SMALL.revisions,
        "{kept} of {asked}"
    );
    for at in 0..=newest + 1 {
        if at < past.oldest() || at > newest {
            let expected = if at > newest {
                PastError::Newer { asked: at, newest }
            } else {
                PastError::Compacted {
                    asked: at,
                    oldest: past.oldest(),
                }
            };
            prop_assert_eq!(past.view(at).unwrap_err(), expected.clone());
            prop_assert_eq!(past.get(&all_keys()[0], at).unwrap_err(), expected.clone());
            prop_assert_eq!(past.diff(at, newest, all).unwrap_err(), expected.clone());
            prop_assert_eq!(past.log(at, newest, all, false, 9).unwrap_err(), expected);
            continue;
        }
        let (revision, time, global, content) = model.at(at);
        let then = past.view(at).unwrap();
        let got: Content = then.iter().map(|r| (r.key.clone(), r.clone())).collect();
        prop_assert_eq!(&got, &content, "at {}", at);
        let of_one_mesh = |key: &ResourceKey| key.mesh() == "m1";
        let some: Vec<Arc<Resource>> = content.values().filter(|r| of_one_mesh(&r.key)).cloned().collect();
        prop_assert_eq!(past.those(Wanted::Those(&of_one_mesh), at).unwrap(), some);
        if revision > past.oldest() {
            prop_assert_eq!((then.revision(), then.time()), (revision, time));
        }
        // The mark of what is below the floor is forgotten.
        prop_assert!(then.global() == global || then.global().is_none() && revision <= newest);
        for key in all_keys() {
            prop_assert_eq!(past.get(&key, at).unwrap(), content.get(&key).cloned());
        }
        let (_, _, _, now) = model.at(newest);
        for to in [at, (at + newest) / 2, newest] {
            let (_, _, _, later) = if to == newest { (0, time, None, now.clone()) } else { model.at(to) };
            let found = past.diff(at, to, all).unwrap();
            let keys: Vec<ResourceKey> = all_keys()
                .into_iter()
                .filter(|k| {
                    let same = |a: &Arc<Resource>, b: &Arc<Resource>| a.same_content(b) && a.owner == b.owner;
                    match (content.get(k), later.get(k)) {
                        (Some(a), Some(b)) => !same(a, b),
                        (a, b) => a.is_some() || b.is_some(),
                    }
                })
                .collect();
            let mut sorted = keys.clone();
            sorted.sort();
            prop_assert_eq!(found.iter().map(|c| c.key.clone()).collect::<Vec<_>>(), sorted);
            for change in &found {
                prop_assert_eq!(change.before.as_ref(), content.get(&change.key));
                prop_assert_eq!(change.after.as_ref(), later.get(&change.key));
                prop_assert_eq!(&past.diff(at, to, Wanted::Key(&change.key)).unwrap(), std::slice::from_ref(change));
            }
        }
        compare_log(model, state, at)?;
    }
    Ok(())
}

fn compare_log(model: &Model, state: &State, from: Revision) -> Result<(), TestCaseError> {
    let view = state.view();
    let (past, newest) = (view.past(), view.revision());
    let anything = |_: &ResourceKey| true;
    let log = past.log(from, newest, Wanted::Those(&anything), false, usize::MAX).unwrap();
    let expected: Vec<Revision> = model.states.iter().rev().map(|(r, ..)| *r).filter(|r| *r > from).collect();
    prop_assert_eq!(log.iter().map(|e| e.revision).collect::<Vec<_>>(), expected);
    for entry in &log {
        let ((_, _, _, before), (_, at, _, after)) = (model.at(entry.revision - 1), model.at(entry.revision));
        let changed: Vec<(ResourceKey, Operation)> = all_keys()
            .into_iter()
            .filter(|k| before.get(k) != after.get(k))
            .map(|k| (k.clone(), operation(before.get(&k), after.get(&k))))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect();
        prop_assert_eq!((&entry.changes, entry.at), (&changed, at), "revision {}", entry.revision);
        prop_assert!(entry.actor.starts_with("user-"));
    }
    let one = &all_keys()[3];
    let of_one = past.log(from, newest, Wanted::Key(one), true, 2).unwrap();
    let touching = log.iter().filter(|e| e.changes.iter().any(|(k, _)| k == one)).take(2);
    prop_assert_eq!(
        of_one.iter().map(|e| e.revision).collect::<Vec<_>>(),
        touching.map(|e| e.revision).collect::<Vec<_>>()
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_past_is_what_it_was(script in prop::collection::vec(arb_command(), 1..50)) {
        let (model, state) = play(&script, &mut |_, _| ());
        compare(&model, &state)?;
    }

    /// A replica that starts from a snapshot at any point ends with the same bytes, and the same past.
    #[test]
    fn history_survives_snapshots(script in prop::collection::vec(arb_command(), 1..50), every in 1..20usize) {
        let (_, plain) = play(&script, &mut |_, _| ());
        let mut count = 0;
        let (model, restarted) = play(&script, &mut |_, state| {
            count += 1;
            if count % every == 0 {
                *state = State::read_snapshot(bytes(state).as_slice()).unwrap();
                state.view.history.window = SMALL;
            }
        });
        prop_assert_eq!(bytes(&plain), bytes(&restarted));
        prop_assert_eq!(plain.view().past().kept(), restarted.view().past().kept());
        compare(&model, &restarted)?;
    }

    /// Whatever is wrong with the bytes of a snapshot's history is an error, never a panic, and never another past.
    #[test]
    fn damaged_snapshots_are_refused(script in prop::collection::vec(arb_command(), 30..50), at in any::<prop::sample::Index>(), cut in any::<bool>()) {
        let (_, state) = play(&script, &mut |_, _| ());
        let mut damaged = bytes(&state);
        let at = at.index(damaged.len());
        if cut { damaged.truncate(at) } else { damaged[at] ^= 0x55 }
        if let Ok(state) = State::read_snapshot(damaged.as_slice()) {
            prop_assert!(!cut);
            // The caller's checksum is what finds this; reading it must end in an answer all the same.
            let anything = |_: &ResourceKey| true;
            let past = state.view().past();
            let _ = past.log(past.oldest(), state.view().revision(), Wanted::Those(&anything), false, 99);
        }
    }

    /// Retention by count and age: what it takes is the oldest, and no more than asked for.
    #[test]
    fn retention(script in prop::collection::vec(arb_command(), 1..50), revisions in 1..20u64, age in 0..30u64) {
        let (model, state) = play(&script, &mut |_, _| ());
        let past = state.view().past();
        let kept = |floor: Revision| model.states.iter().filter(|(r, ..)| *r > floor).count() as u64;
        let long = std::time::Duration::MAX;
        let floor = past.floor_for(Retention { revisions, age: long }, Timestamp(u64::MAX));
        let left = kept(floor.unwrap_or(past.oldest()));
        prop_assert!(left >= revisions.min(kept(past.oldest())) && left < revisions + SMALL.block as u64, "{left}");
        // So few are never taken by age alone.
        let age = std::time::Duration::from_millis(age);
        prop_assert_eq!(past.floor_for(Retention { revisions: 99, age }, Timestamp(1_000_000)), None);
    }

    #[test]
    fn the_revision_at_a_time(script in prop::collection::vec(arb_command(), 1..50), time in 0..25u64) {
        let (model, state) = play(&script, &mut |_, _| ());
        let past = state.view().past();
        let known = model.states.iter().filter(|(r, ..)| *r > past.oldest());
        let expected = known.filter(|(_, at, ..)| at.0 <= time).map(|(r, ..)| *r).next_back();
        prop_assert_eq!(past.revision_at(Timestamp(time)).unwrap(), expected);
    }
}

#[test]
fn age_takes_what_is_old_but_never_the_newest_thousand() {
    let mut state = State::default();
    for index in 1..=3_000 {
        let put = Put {
            key: key(Kind::Mesh, "", "m"),
            labels: Labels::new(),
            spec: json!({ "value": index }),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        state.apply(
            index,
            &Command::Change(Changeset::atomic(RequestId::default(), Timestamp(index), vec![Op::Put(put)])),
        );
    }
    let floor = |age, now| {
        let age = std::time::Duration::from_millis(age);
        state.view().past().floor_for(Retention { revisions: 10_000, age }, Timestamp(now))
    };
    assert_eq!(floor(2_500, 3_000), Some(499));
    assert_eq!(floor(5_000, 3_000), None);
    assert_eq!(floor(1, u64::MAX), Some(2_000), "a clock that is years ahead");
}

#[test]
fn too_many_bytes_are_forgotten_whatever_the_retention() {
    let mut state = small();
    state.view.history.window.bytes = 4_000;
    for index in 2..200 {
        let put = Put {
            key: key(Kind::Mesh, "", "m"),
            labels: Labels::new(),
            spec: json!({ "value": index, "text": "y".repeat(200) }),
            status: None,
            owner: None,
            expect: Expect::Any,
        };
        state.apply(
            index,
            &Command::Change(Changeset::atomic(RequestId::default(), Timestamp(index), vec![Op::Put(put)])),
        );
    }
    let kept = state.view().past().kept();
    assert!(kept.bytes <= 4_000 && kept.bytes > 2_000, "{kept:?}");
    assert!(kept.packed_bytes < kept.bytes);
}
