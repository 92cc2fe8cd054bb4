//! Removals that a first set implies: held, dropped, done.

use super::*;

#[test]
fn a_first_set_of_an_unknown_peer_removes_nothing_by_itself() {
    let memory = Memory::new(Role::Zone, 1);
    memory.put(Made::Global, Kind::Mesh, "", "default", json!({}));
    for i in 0..10 {
        memory.put_with(
            key(Kind::MeshZoneAddress, "default", &format!("a{i}")),
            labels_of(&[(ORIGIN, "global")]),
            json!({"address": "127.0.0.1", "port": 1}),
        );
    }
    memory.put_with(key(Kind::MeshTimeout, "default", "own"), labels_of(&[(ORIGIN, "zone")]), json!({}));
    let all = |from: usize| {
        (from..10).map(|i| {
            resource(
                Kind::MeshZoneAddress,
                &format!("a{i}"),
                &[(ORIGIN, "global")],
                json!({"address": "127.0.0.1", "port": 1}),
            )
        })
    };
    let first = |known, revision: Option<u64>, addresses: usize| {
        let mut receiver = receiver(Site::Zone, revision.is_some(), known);
        let mut actions = receiver.handle(response("Mesh", "1", vec![], &[]), &memory.catalog());
        if revision.is_none() {
            actions.extend(receiver.handle(stored(), &memory.catalog()));
        }
        actions.extend(receiver.handle(response("MeshZoneAddress", "2", all(addresses).collect(), &[]), &memory.catalog()));
        if revision.is_none() {
            actions.extend(receiver.handle(stored(), &memory.catalog()));
        }
        actions.extend(receiver.handle(response("MeshTimeout", "3", vec![], &[]), &memory.catalog()));
        if let Some(revision) = revision {
            actions.extend(receiver.handle(marker(revision, "4"), &memory.catalog()));
        }
        let removed: usize = actions
            .iter()
            .map(|a| if let Action::Apply(b) = a { delete_keys(b).len() } else { 0 })
            .sum();
        (removed, receiver.held().values().map(|h| h.keys.len()).sum::<usize>())
    };
    assert_eq!(first(None, None, 2), (0, 3), "whoever it is that does not say so by name");
    assert_eq!(first(None, None, 3), (0, 4));
    assert_eq!(first(Some(at(5)), Some(5), 3), (4, 0), "a peer that is who it was is believed");
    assert_eq!(first(Some(at(5)), Some(4), 3), (0, 4), "one that went back is not");
    let other = GlobalRevision {
        history: HistoryId(1),
        revision: 1,
    };
    assert_eq!(first(Some(other), Some(9), 3), (0, 4), "nor one with another history");
}

#[test]
fn a_held_removal_ends_when_the_resource_returns_or_is_removed_by_name() {
    let memory = Memory::new(Role::Zone, 1);
    for name in ["a", "b"] {
        memory.put_with(
            key(Kind::MeshZoneAddress, "default", name),
            labels_of(&[(ORIGIN, "global")]),
            json!({"address": "127.0.0.1", "port": 1}),
        );
    }
    let mut receiver = receiver(Site::Zone, false, None);
    receiver.handle(response("MeshZoneAddress", "1", vec![], &[]), &memory.catalog());
    assert_eq!(receiver.held()[&Kind::MeshZoneAddress].keys.len(), 2);
    let actions = receiver.handle(
        response("MeshZoneAddress", "2", vec![address("a", "global")], &["b.default"]),
        &memory.catalog(),
    );
    assert_eq!(delete_keys(&batch(&actions).unwrap()), ["b"]);
    assert!(receiver.held()[&Kind::MeshZoneAddress].keys.is_empty());
}

fn all_held(receiver: &Receiver) -> std::collections::BTreeSet<ResourceKey> {
    receiver.held().values().flat_map(|held| held.keys.iter().cloned()).collect()
}

/// The grace of everything that is held.
fn grace_over(receiver: &mut Receiver, memory: &Memory) -> Vec<Action> {
    let keys = all_held(receiver);
    receiver.handle(Event::GraceOver(keys), &memory.catalog())
}

#[test]
fn only_what_was_held_for_its_grace_goes_and_only_the_kind_that_was_confirmed() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    memory.put(Made::Global, Kind::Mesh, "", "default", json!({}));
    let mut receiver = after_first_sets(&memory, vec![("MeshZoneAddress", addresses(2..10)), ("Mesh", vec![])]);
    let one = key(Kind::MeshZoneAddress, "default", "a1");
    let removed = batch(&receiver.handle(Event::GraceOver([one].into()), &memory.catalog())).unwrap();
    assert_eq!(delete_keys(&removed), ["a1"]);
    store(&memory, &removed);
    receiver.handle(stored(), &memory.catalog());
    let removed = batch(&receiver.handle(Event::Confirmed(Some(Kind::Mesh)), &memory.catalog())).unwrap();
    assert_eq!(delete_keys(&removed), ["default"]);
    store(&memory, &removed);
    receiver.handle(stored(), &memory.catalog());
    assert_eq!(all_held(&receiver).len(), 1, "a0 waits on");
}

fn stored_addresses(memory: &Memory, names: std::ops::Range<usize>) {
    for i in names {
        memory.put_with(
            key(Kind::MeshZoneAddress, "default", &format!("a{i}")),
            labels_of(&[(ORIGIN, "global")]),
            json!({"address": "127.0.0.1", "port": 10001}),
        );
    }
}

fn addresses(names: std::ops::Range<usize>) -> Vec<Resource> {
    names.map(|i| address(&format!("a{i}"), "global")).collect()
}

fn cluster_id(id: &str) -> Resource {
    resource(Kind::Config, "kuma-cluster-id", &[(ORIGIN, "global")], json!({ "config": id }))
}

/// A stock peer's stream, up to its first sets.
fn after_first_sets(memory: &Memory, sets: Vec<(&str, Vec<Resource>)>) -> Receiver {
    let mut receiver = receiver(Site::Zone, false, None);
    receiver.handle(Event::Start, &memory.catalog());
    for (n, (kind, set)) in sets.into_iter().enumerate() {
        let actions = receiver.handle(response(kind, &(n + 1).to_string(), set, &[]), &memory.catalog());
        if let Some(batch) = batch(&actions) {
            assert!(delete_keys(&batch).is_empty());
            store(memory, &batch);
            receiver.handle(stored(), &memory.catalog());
        }
    }
    receiver
}

#[test]
fn a_few_missing_ones_are_removed_after_the_grace_unless_they_return() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    let mut receiver = after_first_sets(&memory, vec![("MeshZoneAddress", addresses(2..10))]);
    assert_eq!(receiver.held()[&Kind::MeshZoneAddress].wait, Wait::Grace);
    // One of them returns.
    receiver.handle(response("MeshZoneAddress", "2", addresses(0..1), &[]), &memory.catalog());
    let removed = batch(&grace_over(&mut receiver, &memory)).unwrap();
    assert_eq!((delete_keys(&removed), put_keys(&removed).len()), (vec!["a1"], 0));
    store(&memory, &removed);
    let actions = receiver.handle(stored(), &memory.catalog());
    assert!(answers(&actions).is_empty(), "it answers nothing that was sent");
    assert!(receiver.held()[&Kind::MeshZoneAddress].keys.is_empty());
    assert!(batch(&grace_over(&mut receiver, &memory)).is_none());
}

#[test]
fn roots_and_many_wait_for_the_operator() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    memory.put(Made::Global, Kind::Mesh, "", "default", json!({}));
    let mut receiver = after_first_sets(&memory, vec![("MeshZoneAddress", addresses(3..10)), ("Mesh", vec![])]);
    assert!(receiver.held().values().all(|h| h.wait == Wait::Operator && !h.keys.is_empty()));
    assert!(batch(&grace_over(&mut receiver, &memory)).is_none(), "time alone is not enough");
    let removed = batch(&receiver.handle(Event::Confirmed(None), &memory.catalog())).unwrap();
    assert_eq!(
        delete_keys(&removed),
        ["a2", "a1", "a0", "default"],
        "what lives in a mesh goes first"
    );
}

#[test]
fn a_stock_global_with_the_cluster_id_we_know_needs_no_operator() {
    for (before, now, removes) in [(Some("one"), "one", true), (Some("one"), "two", false), (None, "one", false)] {
        let memory = Memory::new(Role::Zone, 1);
        memory.put(Made::Global, Kind::Mesh, "", "default", json!({}));
        if let Some(id) = before {
            let key = key(Kind::Config, "", "kuma-cluster-id");
            memory.put_with(key, labels_of(&[(ORIGIN, "global")]), json!({ "config": id }));
        }
        let mut receiver = after_first_sets(&memory, vec![("Mesh", vec![]), ("Config", vec![cluster_id(now)])]);
        let removed = batch(&grace_over(&mut receiver, &memory));
        assert_eq!(
            removed.is_some_and(|b| delete_keys(&b) == ["default"]),
            removes,
            "{before:?} then {now}"
        );
    }
}

#[test]
fn what_is_held_is_not_removed_while_its_return_is_on_its_way() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    let other = GlobalRevision {
        history: HistoryId(1),
        revision: 1,
    };
    let mut receiver = receiver(Site::Zone, true, Some(other));
    receiver.handle(Event::Start, &memory.catalog());
    receiver.handle(response("MeshZoneAddress", "1", addresses(2..10), &[]), &memory.catalog());
    let actions = receiver.handle(marker(5, "2"), &memory.catalog());
    assert!(batch(&actions).is_none(), "not even its revision is stored");
    assert_eq!(
        receiver.held()[&Kind::MeshZoneAddress].keys.len(),
        2,
        "another history: the peer is not believed"
    );
    // The round that brings a0 back is not complete yet.
    receiver.handle(response("MeshZoneAddress", "3", addresses(0..1), &[]), &memory.catalog());
    assert!(
        batch(&grace_over(&mut receiver, &memory)).is_none(),
        "time removes nothing for another history"
    );
    let removed = batch(&receiver.handle(Event::Confirmed(None), &memory.catalog())).unwrap();
    assert_eq!(delete_keys(&removed), ["a1"]);
    assert_eq!(removed.global, None, "no revision is claimed by it");
}

/// A new stream of a peer that reports progress, up to the first marker: its addresses, at a revision.
fn stream(memory: &Memory, known: Option<GlobalRevision>, names: std::ops::Range<usize>, revision: u64) -> (Receiver, Batch) {
    let mut receiver = receiver(Site::Zone, true, known);
    receiver.handle(Event::Start, &memory.catalog());
    receiver.handle(response("MeshZoneAddress", "1", addresses(names), &[]), &memory.catalog());
    let actions = receiver.handle(marker(revision, "2"), &memory.catalog());
    let batch = batch(&actions).unwrap_or_default();
    store(memory, &batch);
    receiver.handle(stored(), &memory.catalog());
    (receiver, batch)
}

fn next_marker(receiver: &mut Receiver, memory: &Memory, revision: u64) -> Batch {
    let batch = batch(&receiver.handle(marker(revision, "9"), &memory.catalog())).unwrap_or_default();
    store(memory, &batch);
    receiver.handle(stored(), &memory.catalog());
    batch
}

#[test]
fn what_is_held_stays_held_over_streams() {
    let before = |history, revision| {
        let memory = Memory::new(Role::Zone, 1);
        stored_addresses(&memory, 0..10);
        let history = HistoryId(history);
        memory.change(each(vec![], Some(GlobalRevision { history, revision })));
        memory
    };
    // Another history, and one that stepped back and then comes to where it was and beyond.
    for (history, revisions) in [(1, [5, 6, 7]), (9, [5, 6, 30])] {
        for ending in 0..4 {
            let memory = before(history, 10);
            for revision in revisions {
                let (mut receiver, batch) = stream(&memory, memory.view().global(), 4..10, revision);
                assert!(delete_keys(&batch).is_empty(), "{history} at {revision}");
                assert_eq!(receiver.held()[&Kind::MeshZoneAddress].keys.len(), 4, "{history} at {revision}");
                assert_eq!(batch.peer, None, "no history is remembered");
                // Nor does the stream believe it later on: of a complete set that is asked for.
                assert!(delete_keys(&next_marker(&mut receiver, &memory, 40)).is_empty());
                assert_ne!(memory.view().global().map(|g| g.history), Some(at(0).history));
            }
            let (mut receiver, _) = stream(&memory, memory.view().global(), 4..10, 41);
            match ending {
                // All of it returns.
                0 => {
                    receiver.handle(response("MeshZoneAddress", "3", addresses(0..4), &[]), &memory.catalog());
                }
                // The operator confirms.
                1 => {
                    let removed = batch(&receiver.handle(Event::Confirmed(None), &memory.catalog())).unwrap();
                    assert_eq!(delete_keys(&removed).len(), 4);
                    store(&memory, &removed);
                    receiver.handle(stored(), &memory.catalog());
                }
                // The grace passes, which is not enough for so many.
                2 => {
                    assert!(batch(&grace_over(&mut receiver, &memory)).is_none());
                    next_marker(&mut receiver, &memory, 42);
                    assert_ne!(memory.view().global(), Some(at(42)));
                    continue;
                }
                // What is held is gone without us.
                _ => (0..4).for_each(|i| memory.delete(Kind::MeshZoneAddress, "default", &format!("a{i}"))),
            }
            next_marker(&mut receiver, &memory, 42);
            assert!(receiver.held()[&Kind::MeshZoneAddress].keys.is_empty(), "ending {ending}");
            assert_eq!(memory.view().global(), Some(at(42)), "ending {ending}: now it is known");
            let (_, batch) = stream(&memory, memory.view().global(), 9..10, 43);
            assert!(!delete_keys(&batch).is_empty(), "ending {ending}: and believed");
        }
    }
}

#[test]
fn a_few_that_are_held_over_streams_go_after_the_grace() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    for revision in [5, 6] {
        let (_, batch) = stream(&memory, memory.view().global(), 1..10, revision);
        assert!(delete_keys(&batch).is_empty());
        assert_eq!(memory.view().global(), None);
    }
    let (mut receiver, _) = stream(&memory, memory.view().global(), 1..10, 7);
    let removed = batch(&grace_over(&mut receiver, &memory)).unwrap();
    assert_eq!(delete_keys(&removed), ["a0"]);
    store(&memory, &removed);
    receiver.handle(stored(), &memory.catalog());
    next_marker(&mut receiver, &memory, 7);
    assert_eq!(memory.view().global(), Some(at(7)));
}

#[test]
fn the_global_remembers_a_zones_history_only_when_nothing_is_held() {
    let memory = Memory::new(Role::Global, 1);
    for name in ["a", "b"] {
        let labels = labels_of(&[(ORIGIN, "zone"), (ZONE, "east")]);
        memory.put_with(
            key(Kind::MeshZoneAddress, "default", name),
            labels,
            json!({"address": "127.0.0.1", "port": 10001}),
        );
    }
    let other = GlobalRevision {
        history: HistoryId(1),
        revision: 0,
    };
    let mut receiver = receiver(global_site(), true, Some(other));
    receiver.handle(Event::Start, &memory.catalog());
    receiver.handle(response("MeshZoneAddress", "1", vec![], &[]), &memory.catalog());
    let actions = receiver.handle(marker(5, "2"), &memory.catalog());
    assert!(batch(&actions).is_none(), "nothing to store, and nothing to remember");
    assert_eq!(receiver.held()[&Kind::MeshZoneAddress].keys.len(), 2);
    let removed = batch(&receiver.handle(Event::Confirmed(None), &memory.catalog())).unwrap();
    assert_eq!(removed.peer, None);
    store(&memory, &removed);
    receiver.handle(stored(), &memory.catalog());
    let remembered = batch(&receiver.handle(marker(5, "3"), &memory.catalog())).unwrap();
    assert_eq!((remembered.peer, remembered.ops.len()), (Some(at(5)), 0));
    receiver.handle(stored(), &memory.catalog());
    assert!(batch(&receiver.handle(marker(6, "4"), &memory.catalog())).is_none(), "once");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(usize),
        Remove(usize),
        Grace,
        Confirm,
        Stored,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever comes after a first set that lacks things: nothing goes before the grace or the operator, what returned never goes.
        #[test]
        fn nothing_goes_early_and_nothing_that_returned_goes(lacking in 1..11_usize, steps in proptest::collection::vec(prop_oneof![
            3 => (0..10_usize).prop_map(Step::Put),
            1 => (0..10_usize).prop_map(Step::Remove),
            1 => Just(Step::Grace),
            1 => Just(Step::Confirm),
            3 => Just(Step::Stored),
        ], 0..30)) {
            let memory = Memory::new(Role::Zone, 1);
            stored_addresses(&memory, 0..10);
            let mut receiver = after_first_sets(&memory, vec![("MeshZoneAddress", addresses(lacking..10))]);
            let (mut nonce, mut storing) = (1, None::<Batch>);
            // What the peer says of each: missing, named, or removed by name; and whether holds may have ended.
            let mut named: BTreeMap<usize, bool> = (lacking..10).map(|i| (i, true)).collect();
            let (mut grace, mut confirmed) = (false, false);
            for step in steps.into_iter().chain([Step::Stored, Step::Stored, Step::Stored]) {
                nonce += 1;
                let event = match step {
                    Step::Put(i) => { named.insert(i, true); response("MeshZoneAddress", &nonce.to_string(), addresses(i..i + 1), &[]) }
                    Step::Remove(i) => {
                        named.insert(i, false);
                        response("MeshZoneAddress", &nonce.to_string(), vec![], &[&format!("a{i}.default")])
                    }
                    Step::Grace => { grace = true; Event::GraceOver(all_held(&receiver)) }
                    Step::Confirm => { confirmed = true; Event::Confirmed(None) }
                    Step::Stored => {
                        let Some(batch) = storing.take() else { continue };
                        store(&memory, &batch);
                        stored()
                    }
                };
                let actions = receiver.handle(event, &memory.catalog());
                if let Some(batch) = batch(&actions) {
                    prop_assert!(storing.replace(batch).is_none());
                }
                for i in 0..10 {
                    let there = memory.get(Kind::MeshZoneAddress, "default", &format!("a{i}")).is_some();
                    let may_go = confirmed || (grace && lacking <= 2);
                    prop_assert!(there || may_go || named.contains_key(&i), "a{i} went early");
                }
            }
            for (i, there) in named {
                prop_assert_eq!(memory.get(Kind::MeshZoneAddress, "default", &format!("a{i}")).is_some(), there, "a{}", i);
            }
        }
    }
}

/// A global that was restored from a backup, or recovered from one node, has the cluster id that it had, and lacks what was made since.
#[test]
fn time_removes_nothing_for_a_global_with_another_history_however_little_it_lacks() {
    let memory = Memory::new(Role::Zone, 1);
    stored_addresses(&memory, 0..10);
    let id = key(Kind::Config, "", "kuma-cluster-id");
    memory.put_with(id, labels_of(&[(ORIGIN, "global")]), json!({ "config": "one" }));
    let history = HistoryId(1);
    memory.change(each(vec![], Some(GlobalRevision { history, revision: 10 })));
    let mut receiver = receiver(Site::Zone, true, memory.view().global());
    receiver.handle(Event::Start, &memory.catalog());
    receiver.handle(response("Config", "1", vec![cluster_id("one")], &[]), &memory.catalog());
    receiver.handle(response("MeshZoneAddress", "2", addresses(1..10), &[]), &memory.catalog());
    receiver.handle(marker(5, "3"), &memory.catalog());
    assert_eq!(all_held(&receiver).len(), 1);
    assert_eq!(receiver.held()[&Kind::MeshZoneAddress].wait, Wait::OtherHistory);
    assert!(batch(&grace_over(&mut receiver, &memory)).is_none());
    let removed = batch(&receiver.handle(Event::Confirmed(None), &memory.catalog())).unwrap();
    assert_eq!(delete_keys(&removed), ["a0"]);
}
