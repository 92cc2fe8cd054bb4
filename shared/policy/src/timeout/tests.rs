//! Defaults, inherited values, and timeouts of single callers.

use serde_json::{Value, json};

use super::*;
use crate::{
    Policies,
    testing::{matched, timeout, west},
};

const SECOND: Duration = Duration::from_secs(1);

fn inbound(rules: Value) -> InboundTimeout {
    let policies = Policies {
        timeouts: vec![timeout("t", &[], json!({"rules": rules}))],
        ..Policies::default()
    };
    matched(&policies).inbound["http"].timeout()
}

fn caller(kind: &str, value: &str) -> Value {
    json!({"spiffeID": {"type": kind, "value": value}})
}

fn request(matches: Value, seconds: u32) -> Value {
    json!({"matches": matches, "default": {"http": {"requestTimeout": format!("{seconds}s")}}})
}

#[test]
fn without_policy_the_defaults_hold_both_ways() {
    let none = matched(&Policies::default());
    let defaults = TimeoutConf {
        connect: 5 * SECOND,
        idle: 3600 * SECOND,
        request: 15 * SECOND,
        stream_idle: 1800 * SECOND,
        max_stream: Duration::ZERO,
        max_connection: Duration::ZERO,
        request_headers: Duration::ZERO,
    };
    assert_eq!(
        none.inbound["http"].timeout(),
        InboundTimeout {
            common: defaults,
            callers: vec![]
        }
    );
    assert_eq!(none.outbound.timeout(&west(), None), defaults);
}

#[test]
fn the_default_policies_of_a_mesh() {
    let policies = Policies {
        timeouts: crate::defaults::initial_policies("default", &[])
            .into_iter()
            .filter(|(kind, ..)| *kind == ursa_model::Kind::MeshTimeout)
            .map(|(_, name, spec)| timeout(&name, &[], spec))
            .collect(),
        ..Policies::default()
    };
    let got = matched(&policies);
    let common = got.inbound["http"].timeout().common;
    assert_eq!(common, TimeoutConf::UNTOUCHED_INBOUND);
    assert_eq!(got.outbound.timeout(&west(), None), TimeoutConf::default());
}

#[test]
fn all_traffic() {
    let all = inbound(json!([
        {"default": {"connectionTimeout": "1s", "http": {"requestTimeout": "2s", "maxConnectionDuration": "3s"}}},
        {"default": {"idleTimeout": "0s", "http": {"requestTimeout": "4s", "requestHeadersTimeout": "5s", "maxStreamDuration": "6s"}}}
    ]));
    let want = TimeoutConf {
        connect: SECOND,
        idle: Duration::ZERO,
        request: 4 * SECOND,
        stream_idle: 1800 * SECOND,
        max_stream: 6 * SECOND,
        max_connection: 3 * SECOND,
        request_headers: 5 * SECOND,
    };
    assert_eq!(
        all,
        InboundTimeout {
            common: want,
            callers: vec![]
        }
    );
}

#[test]
fn callers_get_what_holds_for_them_most_specific_first() {
    let got = inbound(json!([
        request(json!([caller("Prefix", "spiffe://a")]), 1),
        {"matches": [caller("Prefix", "spiffe://a/ns")], "default": {"http": {"streamIdleTimeout": "2s"}}},
        {"matches": [caller("Exact", "spiffe://a/ns/x")], "default": {"http": {"requestTimeout": "3s"}}},
        request(json!([caller("Exact", "spiffe://b/x"), caller("Exact", "spiffe://b/x")]), 4),
    ]));
    assert_eq!(got.common, TimeoutConf::UNTOUCHED_INBOUND);
    let shown: Vec<(&str, Option<Duration>, Option<Duration>)> = got
        .callers
        .iter()
        .map(|c| (c.matching.spiffe_id.as_ref().unwrap().value.as_str(), c.request, c.stream_idle))
        .collect();
    assert_eq!(
        shown,
        [
            ("spiffe://a/ns/x", Some(3 * SECOND), Some(2 * SECOND)),
            ("spiffe://b/x", Some(4 * SECOND), None),
            ("spiffe://a/ns", Some(SECOND), Some(2 * SECOND)),
            ("spiffe://a", Some(SECOND), None),
        ]
    );
}

#[test]
fn a_caller_with_an_sni_is_more_specific_and_inherits_from_the_one_without() {
    let both = json!({"spiffeID": {"type": "Exact", "value": "spiffe://a/b"}, "sni": {"type": "Exact", "value": "s"}});
    let got = inbound(json!([
        {"matches": [both], "default": {"http": {"requestTimeout": "1s"}}},
        {"matches": [caller("Exact", "spiffe://a/b")], "default": {"http": {"requestTimeout": "2s", "streamIdleTimeout": "3s"}}},
    ]));
    let shown: Vec<(bool, Option<Duration>, Option<Duration>)> = got
        .callers
        .iter()
        .map(|c| (c.matching.sni.is_some(), c.request, c.stream_idle))
        .collect();
    assert_eq!(
        shown,
        [(true, Some(SECOND), Some(3 * SECOND)), (false, Some(2 * SECOND), Some(3 * SECOND))]
    );
}

#[test]
fn equally_specific_rules_follow_the_order_of_policies() {
    let rules = |seconds| json!({"rules": [request(json!([caller("Exact", "spiffe://a/b")]), seconds)]});
    let policies = Policies {
        timeouts: vec![timeout("a", &[], rules(1)), timeout("b", &[], rules(2))],
        ..Policies::default()
    };
    let got = matched(&policies).inbound["http"].timeout();
    assert_eq!(got.callers.iter().map(|c| c.request).collect::<Vec<_>>(), [Some(SECOND)]);
}

#[test]
fn rules_that_say_nothing_of_requests_are_no_callers() {
    let got = inbound(json!([
        {"matches": [{"sni": {"type": "Exact", "value": "s"}}], "default": {"http": {"requestTimeout": "1s"}}},
        {"matches": [caller("Exact", "spiffe://a/b")], "default": {"connectionTimeout": "1s"}},
        {"default": {"connectionTimeout": "7s"}},
    ]));
    assert_eq!(got.callers, []);
    assert_eq!(got.common.connect, 7 * SECOND);
}

#[test]
fn chains_of_zone_proxies_are_chosen_by_sni() {
    let sni = |value: &str| json!([{"sni": {"type": "Exact", "value": value}}]);
    let of = |rules: Value, name: &str| {
        let policies = Policies {
            timeouts: vec![timeout("t", &[], json!({"rules": rules}))],
            ..Policies::default()
        };
        matched(&policies).inbound["http"].chain_timeout(name)
    };
    let common = json!({"default": {"connectionTimeout": "9s", "http": {"streamIdleTimeout": "8s"}}});
    let named = json!({"matches": sni("a"), "default": {"http": {"requestTimeout": "1s"}}});
    assert_eq!(of(json!([named]), "b"), None);
    assert_eq!(
        of(json!([named]), "a"),
        Some(TimeoutConf {
            request: SECOND,
            ..TimeoutConf::default()
        })
    );
    let both = json!([common, named]);
    assert_eq!(
        of(both.clone(), "b"),
        Some(TimeoutConf {
            connect: 9 * SECOND,
            stream_idle: 8 * SECOND,
            ..TimeoutConf::default()
        })
    );
    assert_eq!(
        of(both, "a"),
        Some(TimeoutConf {
            request: SECOND,
            stream_idle: 8 * SECOND,
            ..TimeoutConf::default()
        })
    );
}
