//! dataplane.md 5.1, rule by rule.

use serde_json::{Value, json};
use ursa_model::Kind;

use super::*;
use crate::testing::{dataplane, frontend, resource};

fn select(policy: &[(&str, &str)], target: Value, proxy: &Parsed<Dataplane>) -> Result<Vec<String>, UnsupportedTarget> {
    let target: Option<TargetRef> = serde_json::from_value(target).unwrap();
    let policy = resource(Kind::MeshTimeout, "p", policy, json!({}));
    selects(&policy, target.as_ref(), proxy).map(|s| s.sections.into_iter().collect())
}

#[test]
fn the_target() {
    let all = ["9090", "http"];
    for (target, want) in [
        (Value::Null, &all[..]),
        (json!({"kind": "Mesh"}), &all),
        (json!({"kind": "Dataplane"}), &all),
        (json!({"kind": "Dataplane", "labels": {}}), &all),
        (json!({"kind": "Dataplane", "labels": {"kuma.io/workload": "frontend"}}), &all),
        (
            json!({"kind": "Dataplane", "labels": {"kuma.io/workload": "frontend", "a": "b"}}),
            &[],
        ),
        (json!({"kind": "Dataplane", "labels": {"kuma.io/workload": "backend"}}), &[]),
        (json!({"kind": "Dataplane", "labels": {"kuma.io/display-name": "frontend-1"}}), &all),
        (json!({"kind": "Dataplane", "labels": {"absent": ""}}), &all),
        (json!({"kind": "Dataplane", "sectionName": "http"}), &["http"]),
        (json!({"kind": "Dataplane", "sectionName": "9090"}), &["9090"]),
        (json!({"kind": "Dataplane", "sectionName": ""}), &all),
        // A port number names an inbound only if it has no name.
        (json!({"kind": "Dataplane", "sectionName": "8080"}), &[]),
        (
            json!({"kind": "Dataplane", "sectionName": "http", "labels": {"kuma.io/workload": "backend"}}),
            &[],
        ),
    ] {
        assert_eq!(select(&[], target.clone(), &frontend()).unwrap(), want, "{target}");
    }
    for kind in ["MeshService", "MeshHTTPRoute", "MeshExternalService", "MeshMultiZoneService"] {
        assert!(
            select(&[], json!({"kind": kind, "labels": {"a": "b"}}), &frontend()).is_err(),
            "{kind}"
        );
    }
}

#[test]
fn listeners_gateways_and_proxies_without_either() {
    let ingress = dataplane(
        &[],
        json!({"listeners": [{"type": "ZoneIngress", "port": 10001, "name": "ingress"}, {"type": "ZoneEgress", "port": 10002}]}),
    );
    assert_eq!(select(&[], json!({"kind": "Mesh"}), &ingress).unwrap(), ["10002", "ingress"]);
    assert_eq!(
        select(&[], json!({"kind": "Dataplane", "sectionName": "ingress"}), &ingress).unwrap(),
        ["ingress"]
    );

    let policy = resource(Kind::MeshTimeout, "p", &[], json!({}));
    let gateway = dataplane(&[], json!({"gateway": {"type": "DELEGATED"}}));
    assert_eq!(
        selects(&policy, None, &gateway),
        Ok(Selected {
            sections: BTreeSet::new(),
            gateway: true
        })
    );
    assert!(!selects(&policy, None, &gateway).unwrap().is_empty());

    let bare = dataplane(&[], json!({"address": "127.0.0.1"}));
    assert!(selects(&policy, None, &bare).unwrap().is_empty());
}

#[test]
fn zones() {
    let (east, west, global) = (("kuma.io/zone", "east"), ("kuma.io/zone", "west"), ("kuma.io/origin", "global"));
    let zone = ("kuma.io/origin", "zone");
    let proxy = |of: &[(&str, &str)]| dataplane(of, json!({"inbound": [{"port": 1}]}));
    for (policy, of, want) in [
        (vec![global], vec![zone, east], true),
        (vec![], vec![zone, east], true),
        (vec![zone, east], vec![zone, east], true),
        (vec![zone, west], vec![zone, east], false),
        (vec![zone, west, ("kuma.io/policy-role", "producer")], vec![zone, east], true),
        (vec![zone, west, ("kuma.io/policy-role", "system")], vec![zone, east], false),
        // No zone said on either side: it is about all.
        (vec![zone], vec![zone, east], true),
        (vec![zone, west], vec![zone], true),
        // A proxy that is not of a zone (or synced to the global) is seen by all.
        (vec![zone, west], vec![east], true),
        (vec![zone, west], vec![global, east], true),
        (vec![global, west], vec![zone, east], true),
    ] {
        assert_eq!(
            !select(&policy, Value::Null, &proxy(&of)).unwrap().is_empty(),
            want,
            "{policy:?} {of:?}"
        );
    }
}

#[test]
fn namespaces() {
    let ns = |n| ("k8s.kuma.io/namespace", n);
    let role = |r| ("kuma.io/policy-role", r);
    let proxy = |of: &[(&str, &str)]| dataplane(of, json!({"inbound": [{"port": 1}]}));
    for (policy, of, want) in [
        (vec![role("consumer"), ns("a")], vec![ns("a")], true),
        (vec![role("consumer"), ns("a")], vec![ns("b")], false),
        (vec![role("consumer"), ns("a")], vec![], false),
        (vec![role("consumer")], vec![ns("a")], false),
        (vec![role("consumer")], vec![], false),
        (vec![role("workload-owner"), ns("a")], vec![ns("a")], true),
        (vec![role("workload-owner"), ns("a")], vec![ns("b")], false),
        (vec![role("producer"), ns("a")], vec![ns("b")], true),
        (vec![role("system"), ns("a")], vec![ns("b")], true),
        (vec![ns("a")], vec![ns("b")], true),
        (vec![role("other"), ns("a")], vec![ns("b")], true),
    ] {
        assert_eq!(
            !select(&policy, Value::Null, &proxy(&of)).unwrap().is_empty(),
            want,
            "{policy:?} {of:?}"
        );
    }
}

#[test]
fn shadow() {
    assert!(is_shadow(&resource(
        Kind::MeshTimeout,
        "p",
        &[("kuma.io/effect", "shadow")],
        json!({})
    )));
    assert!(!is_shadow(&resource(
        Kind::MeshTimeout,
        "p",
        &[("kuma.io/effect", "other")],
        json!({})
    )));
    assert!(!is_shadow(&resource(Kind::MeshTimeout, "p", &[], json!({}))));
}
