//! The state machine from outside: preconditions, atomicity, ownership, history, request ids, snapshots; and, over random
//! scripts, that replicas agree and that every kept revision can be read again.

use proptest::prelude::*;
use serde_json::json;
use ursa_model::{Kind, Labels, ResourceKey, Timestamp};
use ursa_state::{
    Applied, Changeset, Command, Expect, GlobalRevision, HistoryId, Mode, Op, OpError, OpResult, Put, RequestId, State, View,
};

fn key(kind: Kind, mesh: &str, name: &str) -> ResourceKey {
    ResourceKey::new(kind, mesh, name).unwrap()
}

fn put(key: ResourceKey, value: u64, expect: Expect) -> Op {
    let owner = (!key.mesh().is_empty()).then(|| ResourceKey::mesh_itself(key.mesh()).unwrap());
    Op::Put(Put {
        key,
        labels: Labels::new(),
        spec: json!({ "value": value }),
        status: None,
        owner,
        expect,
    })
}

fn mesh(name: &str) -> Op {
    put(key(Kind::Mesh, "", name), 0, Expect::Any)
}

struct Node {
    state: State,
    index: u64,
}

impl Node {
    fn new() -> Self {
        let mut node = Self {
            state: State::default(),
            index: 0,
        };
        node.run(Command::Init { history: HistoryId(7) });
        node
    }

    fn run(&mut self, command: Command) -> Applied {
        self.index += 1;
        self.state.apply(self.index, &command)
    }

    fn atomic(&mut self, ops: Vec<Op>) -> Applied {
        let id = RequestId(u128::from(self.index) + 1_000);
        self.run(Command::Change(Changeset::atomic(id, Timestamp(self.index), ops)))
    }
}

#[test]
fn a_bad_op_rejects_an_atomic_set_whole_and_only_itself_otherwise() {
    let mut node = Node::new();
    let service = key(Kind::MeshService, "default", "a");
    let ops = || vec![mesh("default"), put(service.clone(), 1, Expect::Version(3))];
    let rejected = node.atomic(ops());
    assert_eq!(rejected.rejected, Some((1, OpError::Missing(service.clone()))));
    assert_eq!((node.state.view().len(), rejected.revision), (0, 0));

    let set = Changeset {
        mode: Mode::Each,
        ..Changeset::atomic(RequestId(1), Timestamp(1), ops())
    };
    let each = node.run(Command::Change(set));
    assert_eq!(each.results, [OpResult::Created, OpResult::Refused(OpError::Missing(service))]);
    assert_eq!((node.state.view().len(), each.revision), (1, node.index));
}

#[test]
fn a_retry_gets_the_first_result_and_changes_nothing() {
    let mut node = Node::new();
    let set = Changeset::atomic(RequestId(5), Timestamp(1), vec![put(key(Kind::Mesh, "", "m"), 1, Expect::Absent)]);
    let first = node.run(Command::Change(set.clone()));
    node.atomic(vec![mesh("other")]);
    let again = node.run(Command::Change(set));
    assert_eq!((again, node.state.view().len()), (first, 2));
}

#[test]
fn deleting_an_owner_takes_everything_below_it() {
    let mut node = Node::new();
    let address = Put {
        owner: Some(key(Kind::Dataplane, "m", "ingress")),
        ..bare(key(Kind::MeshZoneAddress, "m", "ingress"))
    };
    node.atomic(vec![
        mesh("m"),
        mesh("n"),
        put(key(Kind::Dataplane, "m", "ingress"), 1, Expect::Any),
        Op::Put(address),
    ]);
    node.atomic(vec![put(key(Kind::Dataplane, "n", "other"), 1, Expect::Any)]);
    let gone = node.atomic(vec![Op::delete(key(Kind::Mesh, "", "m"))]);
    assert_eq!(gone.results, [OpResult::Deleted(3)]);
    let left: Vec<String> = node.state.view().iter().map(|r| r.key.to_string()).collect();
    assert_eq!(left, ["Mesh/n", "Dataplane/n/other"]);
    assert_eq!(
        node.state
            .view()
            .changes_since(gone.revision - 1)
            .unwrap()
            .next()
            .unwrap()
            .changes
            .len(),
        3
    );
}

fn bare(key: ResourceKey) -> Put {
    Put {
        key,
        labels: Labels::new(),
        spec: json!({}),
        status: None,
        owner: None,
        expect: Expect::Any,
    }
}

#[test]
fn an_owner_must_exist_also_within_the_set() {
    let mut node = Node::new();
    let orphan = node.atomic(vec![put(key(Kind::Secret, "none", "s"), 1, Expect::Any)]);
    assert!(matches!(orphan.rejected, Some((0, OpError::OwnerMissing(_)))));
}

#[test]
fn versions_count_and_status_stays_unless_given() {
    let mut node = Node::new();
    let k = key(Kind::Mesh, "", "m");
    node.atomic(vec![Op::Put(Put {
        status: Some(json!({"s": 1})),
        ..bare(k.clone())
    })]);
    node.atomic(vec![put(k.clone(), 2, Expect::Version(1))]);
    let r = node.state.view().get(&k).unwrap();
    assert_eq!(
        (r.version, r.status.clone(), r.create_revision < r.mod_revision),
        (2, Some(json!({"s": 1})), true)
    );
    let conflict = node.atomic(vec![put(k.clone(), 3, Expect::Version(1))]);
    assert_eq!(conflict.rejected, Some((0, OpError::Conflict { key: k, have: 2, want: 1 })));
}

#[test]
fn the_same_content_again_is_no_revision() {
    let mut node = Node::new();
    let first = node.atomic(vec![mesh("m")]);
    let again = node.atomic(vec![mesh("m")]);
    assert_eq!((again.results, again.revision), (vec![OpResult::Unchanged], first.revision));
}

#[test]
fn time_never_goes_back() {
    let mut node = Node::new();
    node.run(Command::Change(Changeset::atomic(RequestId(1), Timestamp(500), vec![mesh("a")])));
    node.run(Command::Change(Changeset::atomic(RequestId(2), Timestamp(100), vec![mesh("b")])));
    assert_eq!(node.state.view().get(&key(Kind::Mesh, "", "b")).unwrap().created, Timestamp(500));
}

#[test]
fn a_global_revision_moves_even_without_ops() {
    let mut node = Node::new();
    let mark = GlobalRevision {
        history: HistoryId(9),
        revision: 40,
    };
    let set = Changeset {
        global: Some(mark),
        ..Changeset::each(RequestId(3), Timestamp(1), vec![])
    };
    node.run(Command::Change(set));
    assert_eq!(node.state.view().global(), Some(mark));
}

#[test]
fn an_earlier_picture_knows_its_global_revision() {
    let mut node = Node::new();
    let mark = |revision| GlobalRevision {
        history: HistoryId(9),
        revision,
    };
    let mut views = Vec::new();
    for step in 0..4u128 {
        let global = (step % 2 == 0).then(|| mark(40 + step as u64));
        let ops = vec![mesh(&format!("m{step}"))];
        node.run(Command::Change(Changeset {
            global,
            ..Changeset::each(RequestId(50 + step), Timestamp(1), ops)
        }));
        views.push(node.state.view().clone());
    }
    for then in &views {
        assert_eq!(node.state.view().at(then.revision()).unwrap().global(), then.global());
    }
    // History that carries no mark says nothing against the one that is held.
    node.run(Command::Compact {
        floor: views[2].revision(),
    });
    assert_eq!(node.state.view().at(views[2].revision()).unwrap().global(), Some(mark(42)));
}

/// A busy store commits more in the seconds of a retry than it would remember by number.
#[test]
fn a_request_that_is_sent_again_is_known_after_many_others_and_after_a_restart() {
    let mut node = Node::new();
    let first = node.atomic(vec![mesh("m")]);
    let repeat = Changeset::atomic(RequestId(1_001), Timestamp(1), vec![mesh("m")]);
    for n in 0..ursa_state::MIN_REQUESTS as u128 + 10 {
        node.run(Command::Change(Changeset::atomic(RequestId(1 << 64 | n), Timestamp(5_000), vec![])));
    }
    assert_eq!(node.run(Command::Change(repeat.clone())), first);
    let bytes = snapshot(&node.state);
    let mut again = State::read_snapshot(bytes.as_slice()).unwrap();
    assert_eq!(again.apply(node.index + 1, &Command::Change(repeat)), first);
    // Each replica forgets at the same entry, wherever it has its state from.
    for index in node.index + 2..node.index + 60 {
        let late = Changeset::atomic(
            RequestId(u128::from(index)),
            Timestamp(index * 2_000),
            vec![mesh(&format!("m{index}"))],
        );
        node.state.apply(index, &Command::Change(late.clone()));
        again.apply(index, &Command::Change(late));
        node.state.skip(index);
    }
    again.skip(node.index + 60);
    node.state.skip(node.index + 60);
    assert_eq!(snapshot(&again), snapshot(&node.state));
}

#[test]
fn below_the_floor_the_oldest_revision_is_named() {
    let mut node = Node::new();
    for i in 0..5 {
        node.atomic(vec![mesh(&format!("m{i}"))]);
    }
    let floor = node.state.view().revision() - 1;
    node.run(Command::Compact { floor });
    let err = node.state.view().at(1).unwrap_err();
    assert_eq!((err.asked, err.oldest), (1, floor));
    assert_eq!(node.state.view().changes_since(floor).unwrap().count(), 1);
}

#[test]
fn a_snapshot_of_another_format_is_refused() {
    let mut bytes = Vec::new();
    State::default().write_snapshot(&mut bytes).unwrap();
    bytes[8] = 99;
    let newer = State::read_snapshot(bytes.as_slice()).unwrap_err().to_string();
    assert!(newer.contains("format 99") && newer.contains("newer"), "{newer}");
    let text = r#"{"format":3,"history":"00000000000000000000000000000000","revision_base":0,"applied_index":0,"revision":0,"floor":0,
        "time":0,"global":null,"feature_level":0,"objects":[],"changes":[],"requests":[]}"#;
    assert!(State::read_snapshot(text.as_bytes()).unwrap_err().to_string().contains("format 3"));
    assert!(State::read_snapshot(&b"{}"[..]).is_err());
}

/// What the first version wrote: a promise to read it for ever.
#[test]
fn a_snapshot_of_the_first_format_is_read() {
    let object = r#"{"key":{"kind":"Mesh","name":"m"},"spec":{"value":2},"created":5,"modified":6,"version":2,"create_revision":2,"mod_revision":3}"#;
    let before = object
        .replace("\"value\":2", "\"value\":1")
        .replace("\"version\":2", "\"version\":1");
    let text = format!(
        r#"{{"format":1,"history":"00000000000000000000000000000007","revision_base":0,"applied_index":3,"revision":3,"floor":2,
        "time":6,"global":null,"feature_level":1,"objects":[{object}],
        "changes":[{{"revision":3,"at":6,"actor":"me","changes":[{{"key":{{"kind":"Mesh","name":"m"}},"before":{before},"after":{object}}}]}}],
        "requests":[[3,"00000000000000000000000000000009",{{"revision":3,"results":["updated"]}}]]}}"#
    );
    let state = State::read_snapshot(text.as_bytes()).unwrap();
    let (view, mesh) = (state.view(), key(Kind::Mesh, "", "m"));
    assert_eq!((view.revision(), view.past().oldest(), state.feature_level()), (3, 2, 1));
    assert_eq!(view.past().get(&mesh, 2).unwrap().unwrap().spec, json!({"value": 1}));
    assert_eq!(view.get(&mesh).unwrap().spec, json!({"value": 2}));
    // What is written from then on is the newest format, with the same content.
    let again = State::read_snapshot(snapshot(&state).as_slice()).unwrap();
    assert_eq!((snapshot(&again), again.applied_index()), (snapshot(&state), 3));
}

fn arb_key() -> impl Strategy<Value = ResourceKey> {
    (0..2u8, 0..3u8).prop_map(|(kind, n)| match kind {
        0 => key(Kind::Mesh, "", &format!("m{n}")),
        _ => key(Kind::MeshService, &format!("m{n}"), "svc"),
    })
}

fn arb_expect() -> impl Strategy<Value = Expect> {
    prop_oneof![5 => Just(Expect::Any), 1 => Just(Expect::Absent), 1 => Just(Expect::Present), 1 => (1..4u64).prop_map(Expect::Version)]
}

fn arb_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (arb_key(), 0..4u64, arb_expect()).prop_map(|(k, v, e)| put(k, v, e)),
        1 => (arb_key(), arb_expect()).prop_map(|(key, expect)| Op::Delete { key, expect }),
    ]
}

fn arb_command() -> impl Strategy<Value = Command> {
    let set = (0..40u128, 0..100u64, any::<bool>(), prop::collection::vec(arb_op(), 0..5)).prop_map(|(id, at, atomic, ops)| {
        let mode = if atomic { Mode::Atomic } else { Mode::Each };
        Command::Change(Changeset {
            mode,
            ..Changeset::atomic(RequestId(id), Timestamp(at), ops)
        })
    });
    prop_oneof![20 => set, 1 => (0..30u64).prop_map(|floor| Command::Compact { floor })]
}

fn content(view: &View) -> Vec<(String, serde_json::Value, u64)> {
    view.iter().map(|r| (r.key.to_string(), r.spec.clone(), r.version)).collect()
}

fn snapshot(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    state.write_snapshot(&mut out).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Replay from any snapshot gives the same state, byte for byte, and every kept revision reads as it was.
    #[test]
    fn replicas_agree_and_history_is_true(script in prop::collection::vec(arb_command(), 1..40), cut in 0..40usize) {
        let mut node = Node::new();
        let mut pictures: Vec<View> = Vec::new();
        let mut replica = None;
        for (i, command) in script.iter().enumerate() {
            if i == cut.min(script.len() - 1) {
                replica = Some((State::read_snapshot(snapshot(&node.state).as_slice()).unwrap(), node.index));
            }
            let before = node.state.clone();
            let applied = node.run(command.clone());
            if applied.rejected.is_some() {
                prop_assert_eq!(content(before.view()), content(node.state.view()));
            }
            prop_assert!(node.state.view().revision() >= before.view().revision());
            pictures.push(node.state.view().clone());
        }
        let (mut replica, from) = replica.unwrap();
        for (i, command) in script.iter().enumerate() {
            // Entries at or below the snapshot come again after a restart and must change nothing.
            replica.apply(2 + i as u64, command);
            let _ = from;
        }
        prop_assert_eq!(snapshot(&replica), snapshot(&node.state));

        let newest = node.state.view();
        for picture in pictures {
            match newest.at(picture.revision()) {
                Ok(then) => prop_assert_eq!(content(&then), content(&picture)),
                Err(compacted) => prop_assert!(picture.revision() < compacted.oldest),
            }
        }
    }

    /// The changes between two pictures, applied to the older one, give the newer one.
    #[test]
    fn a_watcher_sees_everything(script in prop::collection::vec(arb_command(), 1..30)) {
        let mut node = Node::new();
        let mut seen = std::collections::BTreeMap::new();
        let mut at = 0;
        for command in script {
            node.run(command);
            let view = node.state.view();
            if let Ok(all) = view.changes_since(at) {
                for change in all.flat_map(|c| c.changes.clone()) {
                    match change.after {
                        Some(r) => seen.insert(change.key.to_string(), r.version),
                        None => seen.remove(&change.key.to_string()),
                    };
                }
            } else {
                seen = view.iter().map(|r| (r.key.to_string(), r.version)).collect();
            }
            at = view.revision();
            let now: std::collections::BTreeMap<_, _> = view.iter().map(|r| (r.key.to_string(), r.version)).collect();
            prop_assert_eq!(&seen, &now);
        }
    }
}
