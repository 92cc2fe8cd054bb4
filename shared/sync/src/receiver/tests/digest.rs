//! Sums in markers: what differs is asked for again, once; what cannot be compared is left alone. And streams that go on.

use super::*;
use crate::digest;

fn sum_of(names: &[&str]) -> digest::Hash {
    let hash = |name: &&str| {
        digest::hash(
            &key(Kind::MeshZoneAddress, "default", name),
            &labels_of(&[(ORIGIN, "global")]),
            &json!({"address": "127.0.0.1", "port": 10001}),
        )
    };
    names.iter().map(hash).fold(0, digest::Hash::wrapping_add)
}

fn marker_with(revision: u64, nonce: &str, names: &[&str]) -> Event {
    let Event::Response(mut response) = marker(revision, nonce) else {
        unreachable!()
    };
    response.resources = vec![Resource {
        name: "MeshZoneAddress".into(),
        version: digest::format(sum_of(names)),
        ..Resource::default()
    }];
    Event::Response(response)
}

fn control(type_url: &str, text: &str) -> Event {
    Event::Response(DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: "7".into(),
        system_version_info: text.into(),
        ..Default::default()
    })
}

fn asks_again(actions: &[Action]) -> Vec<&str> {
    let mut again = Vec::new();
    for action in actions {
        if let Action::Send(m) = action
            && m.response_nonce.is_empty()
        {
            again.push(m.type_url.as_str());
        }
    }
    again
}

/// Sends a message and stores what comes of it.
fn step(receiver: &mut Receiver, memory: &Memory, event: Event) -> Vec<Action> {
    let mut actions = receiver.handle(event, &memory.catalog());
    if let Some(batch) = batch(&actions) {
        store(memory, &batch);
        actions.extend(receiver.handle(stored(), &memory.catalog()));
    }
    actions
}

fn synced(memory: &Memory) -> Receiver {
    let mut receiver = receiver(Site::Zone, true, None);
    step(&mut receiver, memory, Event::Start);
    let set = vec![address("a", "global"), address("b", "global")];
    step(&mut receiver, memory, response("MeshZoneAddress", "1", set, &[]));
    let actions = step(&mut receiver, memory, marker_with(5, "2", &["a", "b"]));
    assert!(asks_again(&actions).is_empty(), "{actions:?}");
    receiver
}

#[test]
fn what_differs_is_asked_for_again_once_and_repaired() {
    let memory = Memory::new(Role::Zone, 1);
    let mut receiver = synced(&memory);
    memory.delete(Kind::MeshZoneAddress, "default", "a");
    let actions = step(&mut receiver, &memory, marker_with(5, "3", &["a", "b"]));
    assert_eq!(asks_again(&actions), ["MeshZoneAddress"]);
    assert!(actions.contains(&Action::Report(Report::Differs {
        kind: Kind::MeshZoneAddress,
        repair: true
    })));
    // A change that was on its way is no complete set; then comes one. What it lacks goes, though it was spoken of just before.
    step(
        &mut receiver,
        &memory,
        response("MeshZoneAddress", "4", vec![address("gone", "global")], &[]),
    );
    step(&mut receiver, &memory, control(FULL_SET_TYPE_URL, "MeshZoneAddress"));
    let set = vec![address("a", "global"), address("b", "global")];
    step(&mut receiver, &memory, response("MeshZoneAddress", "5", set, &[]));
    let actions = step(&mut receiver, &memory, marker_with(6, "6", &["a", "b"]));
    assert!(asks_again(&actions).is_empty());
    let names: Vec<_> = memory.view().list(Kind::MeshZoneAddress).map(|r| r.name().to_owned()).collect();
    assert_eq!(names, ["a", "b"]);
    // It is cured, so another difference is repaired too.
    memory.delete(Kind::MeshZoneAddress, "default", "a");
    let actions = step(&mut receiver, &memory, marker_with(6, "7", &["a", "b"]));
    assert_eq!(asks_again(&actions), ["MeshZoneAddress"]);
    // Agreeing before the set comes does not make the set one that was not asked for.
    step(
        &mut receiver,
        &memory,
        response("MeshZoneAddress", "8", vec![address("a", "global")], &[]),
    );
    step(&mut receiver, &memory, marker_with(6, "9", &["a", "b"]));
    step(&mut receiver, &memory, control(FULL_SET_TYPE_URL, "MeshZoneAddress"));
    step(
        &mut receiver,
        &memory,
        response("MeshZoneAddress", "10", vec![address("b", "global")], &[]),
    );
    // What one repair does not cure is reported, and not tried for ever.
    let actions = step(&mut receiver, &memory, marker_with(6, "11", &["a", "b"]));
    assert!(asks_again(&actions).is_empty());
    assert!(actions.contains(&Action::Report(Report::Differs {
        kind: Kind::MeshZoneAddress,
        repair: false
    })));
}

#[test]
fn sums_of_kinds_with_refusals_or_holds_mean_nothing() {
    let memory = Memory::new(Role::Zone, 1);
    let mut refusing = synced(&memory);
    let bad = resource(
        Kind::MeshZoneAddress,
        "bad",
        &[(ORIGIN, "global")],
        json!({"address": "", "port": 0}),
    );
    step(&mut refusing, &memory, response("MeshZoneAddress", "3", vec![bad], &[]));
    let actions = step(&mut refusing, &memory, marker_with(6, "4", &["a", "b", "bad"]));
    assert!(asks_again(&actions).is_empty());
    // It comes again in a form that can be stored: the sums mean something again.
    step(
        &mut refusing,
        &memory,
        response("MeshZoneAddress", "5", vec![address("bad", "global")], &[]),
    );
    let actions = step(&mut refusing, &memory, marker_with(6, "6", &["a"]));
    assert_eq!(asks_again(&actions), ["MeshZoneAddress"]);
    // Another history: removals are held, so what is here is more than what the peer has.
    let other = GlobalRevision {
        history: HistoryId(1),
        revision: 1,
    };
    let mut holding = receiver(Site::Zone, true, Some(other));
    step(&mut holding, &memory, response("MeshZoneAddress", "1", vec![], &[]));
    let actions = step(&mut holding, &memory, marker_with(5, "2", &[]));
    assert!(asks_again(&actions).is_empty());
    assert_eq!(holding.held()[&Kind::MeshZoneAddress].keys.len(), 3);
}

#[test]
fn a_resumed_stream_takes_changes_for_changes() {
    let memory = Memory::new(Role::Zone, 1);
    synced(&memory);
    let resumed = crate::revision::format(at(5));
    let mut receiver = receiver(Site::Zone, true, Some(at(5)));
    step(&mut receiver, &memory, Event::Start);
    let actions = step(&mut receiver, &memory, control(RESUMED_TYPE_URL, &resumed));
    assert_eq!(actions, [Action::Report(Report::Resumed(at(5)))]);
    step(
        &mut receiver,
        &memory,
        response("MeshZoneAddress", "1", vec![address("c", "global")], &["a.default"]),
    );
    let actions = step(&mut receiver, &memory, marker_with(6, "2", &["b", "c"]));
    assert!(asks_again(&actions).is_empty());
    let names: Vec<_> = memory.view().list(Kind::MeshZoneAddress).map(|r| r.name().to_owned()).collect();
    assert_eq!(names, ["b", "c"], "b is not missing, it did not change");
}

#[test]
fn controls_where_they_cannot_be_end_the_stream() {
    let memory = Memory::new(Role::Zone, 1);
    let resumed = crate::revision::format(at(5));
    let cases = [
        (true, Some(at(4)), vec![control(RESUMED_TYPE_URL, &resumed)]),
        (true, None, vec![control(RESUMED_TYPE_URL, &resumed)]),
        (false, Some(at(5)), vec![control(RESUMED_TYPE_URL, &resumed)]),
        (
            true,
            Some(at(5)),
            vec![response("Mesh", "1", vec![], &[]), control(RESUMED_TYPE_URL, &resumed)],
        ),
        (true, Some(at(5)), vec![control(FULL_SET_TYPE_URL, "Mesh")]),
        (true, Some(at(5)), vec![control(FULL_SET_TYPE_URL, "Nonsense")]),
    ];
    for (progress, known, events) in cases {
        let mut receiver = receiver(Site::Zone, progress, known);
        let last = events.into_iter().flat_map(|e| receiver.handle(e, &memory.catalog())).last();
        assert!(
            matches!(last, Some(Action::Close(Close::Protocol(_)))),
            "{progress} {known:?}: {last:?}"
        );
    }
}
