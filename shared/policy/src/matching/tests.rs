//! Laws of matching as a whole: the order of listing does not matter, and what is not about a proxy does not touch it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{MESH, circuit_breaker, dataplane, destinations, frontend, http_route, matched, permission, retry, timeout, west};

#[test]
fn every_inbound_and_listener_has_an_entry() {
    let sections = |dp: &Parsed<Dataplane>| -> Vec<String> {
        match_proxy(&Policies::default(), &destinations(), dp, MESH)
            .inbound
            .into_keys()
            .collect()
    };
    assert_eq!(sections(&frontend()), ["9090", "http"]);
    assert_eq!(
        sections(&dataplane(
            &[],
            json!({"listeners": [{"type": "ZoneEgress", "port": 1, "name": "e"}]})
        )),
        ["e"]
    );
    assert!(sections(&dataplane(&[], json!({}))).is_empty());
}

#[test]
fn shadow_policies_count_only_when_asked_for() {
    let conf = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]});
    let policies = Policies {
        timeouts: vec![timeout("t", &[("kuma.io/effect", "shadow")], conf)],
        ..Policies::default()
    };
    assert_eq!(matched(&policies), matched(&Policies::default()));
    let shown = match_proxy_with(&policies, &destinations(), &frontend(), MESH, Shadow::Included);
    assert_eq!(shown.outbound.timeout(&west(), None).connect.as_secs(), 1);
}

#[test]
fn a_gateway_gets_outbound_policies_and_a_bare_proxy_none() {
    let conf = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]});
    let policies = Policies {
        timeouts: vec![timeout("t", &[], conf)],
        ..Policies::default()
    };
    let connect = |networking: Value| {
        let dp = dataplane(&[], networking);
        match_proxy(&policies, &destinations(), &dp, MESH)
            .outbound
            .timeout(&west(), None)
            .connect
            .as_secs()
    };
    assert_eq!(connect(json!({"gateway": {}})), 1);
    assert_eq!(connect(json!({"inbound": [{"port": 1}]})), 1);
    assert_eq!(connect(json!({})), 5);
}

/// A mesh that Kuma 2.14.3 made has a MeshTimeout with a stream idle timeout of 5 s for gateways alone.
#[test]
fn kuma_2_policies_for_gateways_are_not_about_sidecars() {
    let only = |types: Value| json!({"targetRef": {"kind": "Mesh", "proxyTypes": types}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionTimeout": "1s"}}]});
    let connect = |types: Value, networking: Value| {
        let policies = Policies {
            timeouts: vec![timeout("t", &[], only(types))],
            ..Policies::default()
        };
        let dp = dataplane(&[], networking);
        match_proxy(&policies, &destinations(), &dp, MESH)
            .outbound
            .timeout(&west(), None)
            .connect
            .as_secs()
    };
    let (sidecar, gateway) = (json!({"inbound": [{"port": 1}]}), json!({"gateway": {}}));
    assert_eq!(connect(json!(["Gateway"]), sidecar.clone()), 5);
    assert_eq!(connect(json!(["Gateway"]), gateway.clone()), 1);
    assert_eq!(connect(json!(["Sidecar"]), sidecar.clone()), 1);
    assert_eq!(connect(json!(["Sidecar"]), gateway), 5);
    assert_eq!(connect(json!([]), sidecar), 1);
}

#[test]
fn a_target_that_may_not_stand_there_is_a_warning() {
    let spec = json!({"targetRef": {"kind": "MeshHTTPRoute", "labels": {"a": "b"}}, "to": []});
    let got = matched(&Policies {
        retries: vec![retry("odd", &[], spec)],
        ..Policies::default()
    });
    assert_eq!(got.warnings, ["MeshRetry/default/odd: unsupported targetRef kind 'MeshHTTPRoute'"]);
    assert_eq!(Matched { warnings: vec![], ..got }, matched(&Policies::default()));
}

#[test]
fn the_defaults_of_a_new_mesh() {
    let mut policies = Policies::default();
    for (kind, name, spec) in crate::defaults::initial_policies(MESH, &[]) {
        match kind {
            ursa_model::Kind::MeshTimeout => policies.timeouts.push(timeout(&name, &[], spec)),
            ursa_model::Kind::MeshRetry => policies.retries.push(retry(&name, &[], spec)),
            _ => policies.circuit_breakers.push(circuit_breaker(&name, &[], spec)),
        }
    }
    let got = matched(&policies);
    let retries = got.outbound.retry(&west(), None, "http").unwrap();
    assert_eq!(
        (retries.num_retries, retries.per_try_timeout.map(|d| d.as_secs())),
        (Some(5), Some(16))
    );
    assert_eq!(got.outbound.connect_attempts(&west()), Some(5));
    let limits = got.outbound.circuit_breaker(&west()).unwrap().limits;
    assert_eq!(
        (
            limits.max_connections,
            limits.max_pending_requests,
            limits.max_requests,
            limits.max_retries
        ),
        (Some(1024), Some(1024), Some(1024), Some(3))
    );
    assert_eq!(got.inbound["http"].circuit_breaker(), None);
    assert!(got.inbound["http"].permissions().allow.is_empty());
}

/// A policy's name, labels and top-level target; some of them are about [`frontend`], some are not.
fn head() -> impl Strategy<Value = (String, Vec<(&'static str, &'static str)>, Value)> {
    let labels = prop_oneof![
        Just(vec![]),
        Just(vec![("kuma.io/origin", "global")]),
        Just(vec![("kuma.io/origin", "zone"), ("kuma.io/zone", "east")]),
        Just(vec![("kuma.io/origin", "zone"), ("kuma.io/zone", "west")]),
        Just(vec![("kuma.io/policy-role", "producer")]),
        Just(vec![("kuma.io/effect", "shadow")]),
        Just(vec![("kuma.io/display-name", "same")]),
    ];
    let target = prop_oneof![
        Just(Value::Null),
        Just(json!({"kind": "Mesh"})),
        Just(json!({"kind": "Dataplane"})),
        Just(json!({"kind": "Dataplane", "labels": {"kuma.io/workload": "frontend"}})),
        Just(json!({"kind": "Dataplane", "labels": {"kuma.io/workload": "backend"}})),
        Just(json!({"kind": "Dataplane", "sectionName": "http"})),
    ];
    ("[a-e]", labels, target)
}

fn to_target() -> impl Strategy<Value = Value> {
    let labels = json!({"kuma.io/display-name": "backend"});
    prop_oneof![
        Just(json!({"kind": "Mesh"})),
        Just(json!({"kind": "MeshService", "labels": labels})),
        Just(json!({"kind": "MeshService", "labels": labels, "sectionName": "http"})),
        Just(json!({"kind": "MeshService", "labels": {"kuma.io/zone": "west"}})),
        Just(json!({"kind": "MeshHTTPRoute", "labels": {"kuma.io/display-name": "same"}})),
    ]
}

/// One policy of some kind, as a set of policies that holds only it.
fn policy() -> impl Strategy<Value = Policies> {
    let seconds = || (1_u32..4).prop_map(|n| format!("{n}s"));
    let body = prop_oneof![
        (to_target(), seconds()).prop_map(|(to, d)| ("to", json!([{"targetRef": to, "default": {"connectionTimeout": d}}]))),
        (to_target(), seconds()).prop_map(|(to, d)| ("to", json!([{"targetRef": to, "default": {"http": {"requestTimeout": d}}}]))),
        seconds().prop_map(|d| ("rules", json!([{"default": {"idleTimeout": d}}]))),
        (to_target(), 1_u32..4).prop_map(|(to, n)| ("retry", json!([{"targetRef": to, "default": {"http": {"numRetries": n}}}]))),
        (to_target(), 1_u32..4).prop_map(|(to, n)| (
            "limits",
            json!([{"targetRef": to, "default": {"connectionLimits": {"maxRetries": n}}}])
        )),
        "[a-c]".prop_map(|id| (
            "permission",
            json!([{"default": {"allow": [{"spiffeID": {"type": "Exact", "value": format!("spiffe://{id}/w")}}]}}])
        )),
        ("/[ab]", 1_u32..4).prop_map(|(path, weight)| {
            let backend = json!({"kind": "MeshService", "labels": {"kuma.io/zone": "east"}, "port": 8080, "weight": weight});
            let rule = json!({"matches": [{"path": {"type": "Exact", "value": path}}], "default": {"backendRefs": [backend]}});
            (
                "route",
                json!([{"targetRef": {"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}}, "rules": [rule]}]),
            )
        }),
    ];
    (head(), body).prop_map(|((name, labels, target), (kind, items))| {
        let field = if matches!(kind, "rules" | "permission") { "rules" } else { "to" };
        let mut spec = json!({field: items});
        if !target.is_null() {
            spec["targetRef"] = target;
        }
        let mut out = Policies::default();
        match kind {
            "retry" => out.retries.push(retry(&name, &labels, spec)),
            "limits" => out.circuit_breakers.push(circuit_breaker(&name, &labels, spec)),
            "permission" => out.permissions.push(permission(&name, &labels, spec)),
            "route" => out.http_routes.push(http_route(&name, &labels, spec)),
            _ => out.timeouts.push(timeout(&name, &labels, spec)),
        }
        out
    })
}

/// A mesh's policies: names are unique per kind, as they are in a store.
fn mesh() -> impl Strategy<Value = Vec<Policies>> {
    proptest::collection::vec(policy(), 0..10).prop_map(|mut all| {
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|p| seen.insert(keys(p)));
        all
    })
}

fn keys(p: &Policies) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    keys.extend(p.permissions.iter().map(|p| p.resource.key.to_string()));
    keys.extend(p.http_routes.iter().map(|p| p.resource.key.to_string()));
    keys.extend(p.timeouts.iter().map(|p| p.resource.key.to_string()));
    keys.extend(p.retries.iter().map(|p| p.resource.key.to_string()));
    keys.extend(p.circuit_breakers.iter().map(|p| p.resource.key.to_string()));
    keys
}

fn together<'a>(parts: impl IntoIterator<Item = &'a Policies>) -> Policies {
    let mut out = Policies::default();
    for part in parts {
        out.permissions.extend(part.permissions.iter().cloned());
        out.http_routes.extend(part.http_routes.iter().cloned());
        out.timeouts.extend(part.timeouts.iter().cloned());
        out.retries.extend(part.retries.iter().cloned());
        out.circuit_breakers.extend(part.circuit_breakers.iter().cloned());
    }
    out
}

/// Whether a set of one policy is about [`frontend`].
fn is_about(p: &Policies) -> bool {
    fn any<T>(list: &[Arc<Parsed<T>>], top: impl Fn(&T) -> Option<&TargetRef>) -> bool {
        list.iter()
            .any(|p| !is_shadow(&p.resource) && !selects(&p.resource, top(&p.spec), &frontend()).unwrap().is_empty())
    }
    any(&p.permissions, |p| p.target_ref.as_ref())
        || any(&p.timeouts, |p| p.target_ref.as_ref())
        || any(&p.retries, |p| p.target_ref.as_ref())
        || any(&p.circuit_breakers, |p| p.target_ref.as_ref())
        // A route may be named by other policies without being about the proxy.
        || !p.http_routes.is_empty()
}

proptest! {
    #[test]
    fn the_order_of_listing_does_not_matter((listed, shuffled) in mesh().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle()))) {
        prop_assert_eq!(matched(&together(&listed)), matched(&together(&shuffled)));
    }

    #[test]
    fn a_policy_that_selects_nothing_changes_nothing(all in mesh()) {
        let about = together(all.iter().filter(|p| is_about(p)));
        prop_assert_eq!(matched(&together(&all)), matched(&about));
    }

    #[test]
    fn equal_input_gives_equal_bytes(all in mesh()) {
        let bytes = || serde_json::to_vec(&matched(&together(&all))).unwrap();
        prop_assert_eq!(bytes(), bytes());
    }

    #[test]
    fn a_rule_s_conf_is_the_merge_of_its_origins(all in mesh()) {
        let policies = together(&all);
        for (_, rule) in matched(&policies).outbound.timeouts.iter() {
            let confs = rule.origins.iter().map(|o| {
                let policy = policies.timeouts.iter().find(|p| p.kri() == o.policy && p.spec.to.len() > o.rule_index);
                policy.map(|p| &p.spec.to[o.rule_index].default)
            });
            // Two policies may share a display name, and so a KRI: then the origin does not tell which it was.
            let unique = rule.origins.iter().all(|o| policies.timeouts.iter().filter(|p| p.kri() == o.policy).count() == 1);
            if unique {
                let confs: Vec<_> = confs.collect::<Option<_>>().unwrap();
                prop_assert_eq!(crate::merge::merge_confs(confs).unwrap().unwrap(), rule.conf.clone());
            }
        }
    }
}
