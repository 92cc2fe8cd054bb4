//! dataplane.md 5.4: one rule per match, in the order of who is named how.

use serde_json::{Value, json};

use crate::{
    InboundRules, Policies,
    testing::{circuit_breaker, matched, timeout},
};

fn inbound(policies: &Policies, section: &str) -> InboundRules {
    matched(policies).inbound.remove(section).unwrap()
}

fn rule(matches: Value, request: &str) -> Value {
    json!({"matches": matches, "default": {"http": {"requestTimeout": request}}})
}

#[test]
fn rules_are_expanded_per_match_and_sorted() {
    let exact = json!({"spiffeID": {"type": "Exact", "value": "spiffe://a/b"}});
    let prefix = json!({"spiffeID": {"type": "Prefix", "value": "spiffe://a"}});
    let sni = json!({"sni": {"type": "Exact", "value": "s"}});
    let both = json!({"spiffeID": {"type": "Prefix", "value": "spiffe://a"}, "sni": {"type": "Exact", "value": "s"}});
    let policies = Policies {
        timeouts: vec![
            timeout(
                "high",
                &[],
                json!({"targetRef": {"kind": "Dataplane"}, "rules": [
                rule(json!([]), "1s"), rule(json!([sni, exact]), "2s")]}),
            ),
            timeout(
                "low",
                &[],
                json!({"rules": [
                rule(json!([]), "3s"), rule(json!([prefix]), "4s"), rule(json!([both]), "5s"), rule(json!([sni]), "6s"), rule(json!([exact]), "7s")]}),
            ),
        ],
        ..Policies::default()
    };
    let rules = inbound(&policies, "http").timeouts;
    let shown: Vec<(String, usize, Value)> = rules
        .iter()
        .map(|r| {
            (
                r.origin.policy.name.clone(),
                r.origin.rule_index,
                serde_json::to_value(&r.matching).unwrap(),
            )
        })
        .collect();
    let item = |name: &str, index: usize, m: &Value| (name.to_owned(), index, m.clone());
    assert_eq!(
        shown,
        [
            item("low", 4, &exact),
            item("high", 1, &exact),
            item("low", 2, &both),
            item("low", 1, &prefix),
            item("low", 3, &sni),
            item("high", 1, &sni),
            item("low", 0, &Value::Null),
            item("high", 0, &Value::Null),
        ]
    );
}

#[test]
fn the_rules_for_all_traffic_are_merged_in_order() {
    let limits = |v: Value| json!({"rules": [{"default": {"connectionLimits": v}}]});
    let mut on_http = limits(json!({"maxRetries": 9}));
    on_http["targetRef"] = json!({"kind": "Dataplane", "sectionName": "http"});
    let policies = Policies {
        circuit_breakers: vec![
            circuit_breaker("z", &[], on_http),
            circuit_breaker("b", &[], limits(json!({"maxRetries": 1, "maxRequests": 1, "maxConnections": 1}))),
            circuit_breaker("a", &[], limits(json!({"maxRetries": 2, "maxRequests": 2}))),
        ],
        ..Policies::default()
    };
    let of = |section: &str| {
        let limits = inbound(&policies, section).circuit_breaker().unwrap().limits;
        (limits.max_connections, limits.max_requests, limits.max_retries)
    };
    assert_eq!(of("http"), (Some(1), Some(2), Some(9)));
    assert_eq!(of("9090"), (Some(1), Some(2), Some(2)));
    assert_eq!(inbound(&Policies::default(), "http").circuit_breaker(), None);
}

#[test]
fn what_kuma_2_says_by_from_is_about_all_inbound_traffic() {
    let mesh = json!({"kind": "Mesh"});
    let limits = |n: u32| json!({"connectionLimits": {"maxConnections": n}});
    let policies = Policies {
        timeouts: vec![timeout(
            "t",
            &[],
            json!({
                "to": [{"targetRef": mesh, "default": {"idleTimeout": "1s"}}],
                "from": [{"targetRef": mesh, "default": {"idleTimeout": "7s"}}]
            }),
        )],
        circuit_breakers: vec![
            circuit_breaker("b", &[], json!({"from": [{"targetRef": mesh, "default": limits(1)}]})),
            circuit_breaker("a", &[], json!({"rules": [{"default": limits(2)}]})),
        ],
        ..Policies::default()
    };
    let rules = inbound(&policies, "http");
    assert_eq!(rules.timeouts.len(), 1);
    assert_eq!(rules.timeouts[0].conf.idle_timeout.map(|d| d.0.as_secs()), Some(7));
    assert_eq!(rules.circuit_breaker().unwrap().limits.max_connections, Some(2));
}
