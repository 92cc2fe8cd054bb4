//! dataplane.md 5.2, step by step: each line of a table has greater precedence than the one above it.

use serde_json::{Value, json};
use ursa_model::Kind;

use super::*;
use crate::testing::resource;

struct Item {
    policy: Resource,
    top: Option<TargetRef>,
    to: TargetRef,
    index: usize,
}

fn item(name: &str, of: &[(&str, &str)], top: Value, to: Value, index: usize) -> Item {
    Item {
        policy: resource(Kind::MeshTimeout, name, of, json!({})),
        top: serde_json::from_value(top).unwrap(),
        to: serde_json::from_value(to).unwrap(),
        index,
    }
}

fn assert_rising(items: &[Item]) {
    let ranks: Vec<Rank<'_>> = items
        .iter()
        .map(|i| Rank::of_to(&i.policy, i.top.as_ref(), &i.to, i.index))
        .collect();
    for (i, a) in ranks.iter().enumerate() {
        for (j, b) in ranks.iter().enumerate() {
            assert_eq!(a.cmp(b), i.cmp(&j), "{i} {j}");
        }
    }
}

#[test]
fn all_steps_of_to_items() {
    let mesh = || json!({"kind": "Mesh"});
    let dp = || json!({"kind": "Dataplane"});
    let section = || json!({"kind": "Dataplane", "sectionName": "http"});
    let to = |kind: &str| json!({"kind": kind, "labels": {"a": "b"}});
    let origin = |o| ("kuma.io/origin", o);
    let role = |r| ("kuma.io/policy-role", r);
    assert_rising(&[
        item("z", &[origin("global")], Value::Null, mesh(), 0),
        item("a", &[origin("global")], mesh(), mesh(), 0),
        item("a", &[], mesh(), mesh(), 0),
        item("b", &[origin("zone")], mesh(), mesh(), 1),
        item("a", &[origin("zone")], mesh(), mesh(), 0),
        item("a", &[origin("zone")], mesh(), mesh(), 1),
        item("z", &[origin("zone"), role("system")], mesh(), to("MeshService"), 0),
        item(
            "z",
            &[origin("zone")],
            mesh(),
            json!({"kind": "MeshService", "labels": {"a": "b"}, "sectionName": "http"}),
            0,
        ),
        item("z", &[origin("zone")], mesh(), to("MeshExternalService"), 0),
        item("z", &[origin("zone")], mesh(), to("MeshMultiZoneService"), 0),
        item("z", &[origin("zone")], mesh(), to("MeshHTTPRoute"), 0),
        item("z", &[origin("zone"), role("producer")], mesh(), mesh(), 0),
        item("z", &[origin("zone"), role("consumer")], mesh(), mesh(), 0),
        item("z", &[origin("zone"), role("workload-owner")], mesh(), mesh(), 0),
        item("z", &[origin("global")], dp(), mesh(), 0),
        item("z", &[origin("zone")], dp(), mesh(), 0),
        item("z", &[origin("global")], section(), mesh(), 0),
        item("z", &[origin("global"), role("workload-owner")], section(), to("MeshHTTPRoute"), 0),
    ]);
}

#[test]
fn labels_do_not_count_and_the_display_name_is_what_is_compared() {
    let one = json!({"kind": "Dataplane", "labels": {"a": "b"}});
    let three = json!({"kind": "Dataplane", "labels": {"a": "b", "c": "d", "e": "f"}});
    let mesh = || json!({"kind": "Mesh"});
    assert_rising(&[
        item("a-hash", &[("kuma.io/display-name", "beta")], three.clone(), mesh(), 0),
        item("b-hash", &[("kuma.io/display-name", "beta")], three, mesh(), 0),
        item("z-hash", &[("kuma.io/display-name", "alpha")], one, mesh(), 0),
    ]);
}

#[test]
fn rules_and_whole_policies_do_not_look_at_to() {
    let policy = resource(Kind::MeshTimeout, "a", &[], json!({}));
    let to: TargetRef = serde_json::from_value(json!({"kind": "MeshService"})).unwrap();
    assert!(Rank::of_rule(&policy, None, 0) < Rank::of_rule(&policy, None, 1));
    assert!(Rank::of_rule(&policy, None, 9) < Rank::of_to(&policy, None, &to, 0));
}
