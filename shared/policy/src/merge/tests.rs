//! dataplane.md 5.5, by example and by law.

use proptest::prelude::*;
use serde_json::json;
use ursa_model::kind::{mesh_retry, mesh_timeout};

use super::*;

fn merged(docs: &[Value]) -> Value {
    let mut out = docs[0].clone();
    for doc in &docs[1..] {
        merge_patch(&mut out, doc);
    }
    out
}

#[test]
fn rfc_7396_appendix_a() {
    for (target, patch, want) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"a": "foo"}), json!("bar"), json!("bar")),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        assert_eq!(merged(&[target.clone(), patch.clone()]), want, "{target} {patch}");
    }
}

#[test]
fn lists_named_append_are_concatenated() {
    let a = json!({"sidecar": {"appendProfiles": [1], "profiles": [1]}, "appendMatch": ["x"], "appendix": [1]});
    let b = json!({"sidecar": {"appendProfiles": [2], "profiles": [2]}, "appendix": [2]});
    let c = json!({"appendMatch": ["y", "x"]});
    let want = json!({"sidecar": {"appendProfiles": [1, 2], "profiles": [2]}, "appendMatch": ["x", "y", "x"], "appendix": [2]});
    assert_eq!(merged(&[a, b, c]), want);
}

#[test]
fn an_absent_field_is_left_alone_and_a_zero_is_not_absent() {
    let conf = |v| serde_json::from_value::<mesh_timeout::Conf>(v).unwrap();
    let low = conf(json!({"connectionTimeout": "10s", "idleTimeout": "1h", "http": {"requestTimeout": "5s", "maxStreamDuration": "1s"}}));
    let high = conf(json!({"idleTimeout": "0s", "http": {"requestTimeout": "0s"}}));
    let want = conf(json!({"connectionTimeout": "10s", "idleTimeout": "0s", "http": {"requestTimeout": "0s", "maxStreamDuration": "1s"}}));
    assert_eq!(merge_confs([&low, &high]).unwrap(), Some(want));
    assert_eq!(merge_confs::<mesh_timeout::Conf>([]).unwrap(), None);
    assert_eq!(merge_confs([&low]).unwrap(), Some(low));
}

#[test]
fn other_lists_replace_and_an_empty_list_too() {
    let conf = |v| serde_json::from_value::<mesh_retry::Conf>(v).unwrap();
    let low = conf(json!({"http": {"retryOn": ["5xx", "Reset"], "numRetries": 3}}));
    let high = conf(json!({"http": {"retryOn": []}}));
    assert_eq!(
        merge_confs([&low, &high]).unwrap(),
        Some(conf(json!({"http": {"retryOn": [], "numRetries": 3}})))
    );
}

fn rules(v: Value) -> Vec<Rule> {
    serde_json::from_value(v).unwrap()
}

fn rule(path: &str, backend: Option<&str>, header: Option<&str>) -> Value {
    let mut conf = json!({});
    if let Some(name) = backend {
        conf["backendRefs"] = json!([{"kind": "MeshService", "labels": {"kuma.io/display-name": name}}]);
    }
    if let Some(name) = header {
        conf["filters"] = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": [name]}}]);
    }
    json!({"matches": [{"path": {"type": "Exact", "value": path}}], "default": conf})
}

fn merge_lists(lists: &[Value]) -> Vec<Rule> {
    let lists: Vec<Vec<Rule>> = lists.iter().cloned().map(rules).collect();
    merge_rules(lists.iter().map(Vec::as_slice)).unwrap()
}

#[test]
fn route_rules_are_keyed_by_their_matches() {
    // Within one policy the first rule is the more important one, so it comes first and wins.
    let one = json!([
        rule("/a", Some("x"), None),
        rule("/b", None, None),
        rule("/a", Some("y"), Some("h"))
    ]);
    assert_eq!(
        merge_lists(&[one]),
        rules(json!([rule("/a", Some("x"), Some("h")), rule("/b", None, None)]))
    );

    // Over policies the later list is the more important one: its rules come first, and take over what they share.
    let low = json!([rule("/a", Some("x"), Some("h")), rule("/b", Some("x"), None)]);
    let high = json!([rule("/c", None, None), rule("/b", None, Some("i"))]);
    let want = json!([
        rule("/c", None, None),
        rule("/b", Some("x"), Some("i")),
        rule("/a", Some("x"), Some("h"))
    ]);
    assert_eq!(merge_lists(&[low, high]), rules(want));

    assert_eq!(merge_lists(&[]), []);
    assert_eq!(merge_lists(&[json!([]), json!([])]), []);
}

#[test]
fn matches_are_compared_as_whole_lists_in_order() {
    let a = json!({"path": {"type": "Exact", "value": "/a"}});
    let b = json!({"method": "GET"});
    let list = json!([{"matches": [a, b], "default": {}}, {"matches": [b, a], "default": {}}, {"matches": [a], "default": {}}]);
    assert_eq!(merge_lists(&[list]).len(), 3);
}

fn duration() -> impl Strategy<Value = Option<Value>> {
    proptest::option::of((0_u32..5).prop_map(|n| json!(format!("{n}s"))))
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    Value::Object(fields.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect())
}

fn timeout_conf() -> impl Strategy<Value = mesh_timeout::Conf> {
    let http = (duration(), duration(), duration())
        .prop_map(|(a, b, c)| object(vec![("requestTimeout", a), ("streamIdleTimeout", b), ("maxStreamDuration", c)]));
    (duration(), duration(), proptest::option::of(http)).prop_map(|(a, b, http)| {
        serde_json::from_value(object(vec![("connectionTimeout", a), ("idleTimeout", b), ("http", http)])).unwrap()
    })
}

fn route_rules() -> impl Strategy<Value = Vec<Rule>> {
    let one = (0_u8..3, proptest::option::of(0_u8..3), proptest::option::of(0_u8..3)).prop_map(|(path, backend, header)| {
        rule(
            &format!("/{path}"),
            backend.map(|b| b.to_string()).as_deref(),
            header.map(|h| h.to_string()).as_deref(),
        )
    });
    proptest::collection::vec(one, 0..5).prop_map(|list| rules(Value::Array(list)))
}

proptest! {
    #[test]
    fn merging_confs_is_associative(a in timeout_conf(), b in timeout_conf(), c in timeout_conf()) {
        let two = |x: &mesh_timeout::Conf, y: &mesh_timeout::Conf| merge_confs([x, y]).unwrap().unwrap();
        let all = merge_confs([&a, &b, &c]).unwrap().unwrap();
        prop_assert_eq!(&two(&two(&a, &b), &c), &all);
        prop_assert_eq!(&two(&a, &two(&b, &c)), &all);
    }

    #[test]
    fn an_empty_conf_changes_nothing_and_twice_is_once(a in timeout_conf()) {
        let empty = mesh_timeout::Conf::default();
        prop_assert_eq!(merge_confs([&empty, &a]).unwrap().unwrap(), a.clone());
        prop_assert_eq!(merge_confs([&a, &empty]).unwrap().unwrap(), a.clone());
        prop_assert_eq!(merge_confs([&a, &a]).unwrap().unwrap(), a);
    }

    #[test]
    fn what_the_later_conf_says_holds(a in timeout_conf(), b in timeout_conf()) {
        let both = merge_confs([&a, &b]).unwrap().unwrap();
        prop_assert_eq!(both.connection_timeout, b.connection_timeout.or(a.connection_timeout));
        prop_assert_eq!(both.idle_timeout, b.idle_timeout.or(a.idle_timeout));
        let request = |c: &mesh_timeout::Conf| c.http.as_ref().and_then(|h| h.request_timeout);
        prop_assert_eq!(request(&both), request(&b).or(request(&a)));
    }

    #[test]
    fn merging_rules_is_associative_and_leaves_each_match_once(a in route_rules(), b in route_rules(), c in route_rules()) {
        let all = merge_rules([a.as_slice(), &b, &c]).unwrap();
        let ab = merge_rules([a.as_slice(), &b]).unwrap();
        let bc = merge_rules([b.as_slice(), &c]).unwrap();
        prop_assert_eq!(&merge_rules([ab.as_slice(), &c]).unwrap(), &all);
        prop_assert_eq!(&merge_rules([a.as_slice(), &bc]).unwrap(), &all);
        prop_assert_eq!(&merge_rules([all.as_slice()]).unwrap(), &all);
        for (i, rule) in all.iter().enumerate() {
            prop_assert!(!all[i + 1..].iter().any(|other| other.matches == rule.matches));
        }
        for rule in a.iter().chain(&b).chain(&c) {
            prop_assert!(all.iter().any(|have| have.matches == rule.matches));
        }
    }
}
