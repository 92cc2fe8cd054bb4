//! Good and bad MeshHTTPRoutes, and numbers written as texts.

use serde_json::{Value, json};

use super::*;
use crate::Kind;

fn canonical(spec: Value) -> Result<Value, Vec<String>> {
    (Kind::MeshHTTPRoute.descriptor().canonical)(spec).map_err(|v| v.0.into_iter().map(|v| v.field).collect())
}

fn target() -> Value {
    json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "west"}})
}

fn rule(matches: Value, default: Value) -> Value {
    json!({"to": [{"targetRef": target(), "rules": [{"matches": [matches], "default": default}]}]})
}

fn matching(m: Value) -> Value {
    rule(m, json!({}))
}

fn filter(f: Value) -> Value {
    rule(json!({"path": {"type": "PathPrefix", "value": "/"}}), json!({"filters": [f]}))
}

fn backend(b: Value) -> Value {
    rule(json!({}), json!({"backendRefs": [b]}))
}

#[test]
fn the_demo_s_canary_is_canonical() {
    let spec = json!({
        "targetRef": {"kind": "Dataplane", "labels": {"kuma.io/workload": "frontend"}},
        "to": [{"targetRef": target(), "rules": [
            {"matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"type": "Exact", "name": "x-canary", "value": "yes"}]}],
             "default": {"backendRefs": [{"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "east"}, "port": 8080, "weight": 1}]}},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "default": {"backendRefs": [
                {"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "west"}, "port": 8080, "weight": 90},
                {"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "east"}, "port": 8080, "weight": 0}]}}
        ]}]
    });
    assert_eq!(canonical(spec.clone()), Ok(spec));
}

#[test]
fn schema_defaults_are_filled_in() {
    let spec = rule(
        json!({"headers": [{"name": "a", "value": "b"}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}], "backendRefs": [{"kind": "MeshService", "labels": {"a": "b"}}]}),
    );
    let want = rule(
        json!({"headers": [{"type": "Exact", "name": "a", "value": "b"}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302}}],
               "backendRefs": [{"kind": "MeshService", "labels": {"a": "b"}, "weight": 1}]}),
    );
    assert_eq!(canonical(spec), Ok(want));
}

#[test]
fn every_field_survives() {
    let spec = rule(
        json!({
            "path": {"type": "PathPrefix", "value": "/a/b"}, "method": "OPTIONS",
            "queryParams": [{"type": "RegularExpression", "name": "q", "value": ".*"}, {"type": "Exact", "name": "r", "value": ""}],
            "headers": [{"type": "Present", "name": "a"}, {"type": "Absent", "name": "b"}, {"type": "Prefix", "name": "c", "value": "d"},
                        {"type": "RegularExpression", "name": "e", "value": "f+"}]
        }),
        json!({
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "1"}], "add": [], "remove": ["X-B"]}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "a", "value": "1"}]}},
                {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "a.b", "port": 443, "statusCode": 308,
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}}},
                {"type": "URLRewrite", "urlRewrite": {"hostname": "a.b", "hostToBackendHostname": false,
                    "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}},
                {"type": "RequestMirror", "requestMirror": {"percentage": "0.5", "backendRef":
                    {"kind": "MeshMultiZoneService", "labels": {"a": "b"}, "port": 80, "weight": 1}}}
            ],
            "backendRefs": []
        }),
    );
    assert_eq!(canonical(spec.clone()), Ok(spec));
    assert_eq!(canonical(json!({})), Ok(json!({})));
    let empty = json!({"to": [{"targetRef": target(), "rules": []}]});
    assert_eq!(canonical(json!({"to": [{"targetRef": target(), "hostnames": []}]})), Ok(empty));
}

#[test]
fn bad_matches_name_their_field() {
    let at = |rest: &str| format!("to[0].rules[0].matches{rest}");
    let no_matches = json!({"to": [{"targetRef": target(), "rules": [{"default": {}}]}]});
    for (spec, want) in [
        (no_matches, at("")),
        (
            matching(json!({"path": {"type": "PathPrefix", "value": "/a/"}})),
            at("[0].path.value"),
        ),
        (
            matching(json!({"path": {"type": "PathPrefix", "value": "a"}})),
            at("[0].path.value"),
        ),
        (matching(json!({"path": {"type": "Exact", "value": ""}})), at("[0].path.value")),
        (
            matching(json!({"path": {"type": "RegularExpression", "value": ""}})),
            at("[0].path.value"),
        ),
        (
            matching(json!({"path": {"type": "RegularExpression", "value": "a".repeat(1025)}})),
            at("[0].path.value"),
        ),
        (
            matching(json!({"queryParams": [{"type": "Exact", "name": "", "value": ""}]})),
            at("[0].queryParams[0].name"),
        ),
        (
            matching(json!({"queryParams": [{"type": "Exact", "name": "a", "value": ""}, {"type": "Exact", "name": "a", "value": "b"}]})),
            at("[0].queryParams[1].name"),
        ),
        (
            matching(json!({"headers": [{"name": "X-Upper", "value": "a"}]})),
            at("[0].headers[0].name"),
        ),
        (
            matching(json!({"headers": [{"name": ":path", "value": "a"}]})),
            at("[0].headers[0].name"),
        ),
        (
            matching(json!({"headers": [{"name": "a", "type": "Present", "value": "a"}]})),
            at("[0].headers[0].value"),
        ),
        (
            matching(json!({"headers": [{"name": "a", "type": "Absent", "value": "a"}]})),
            at("[0].headers[0].value"),
        ),
        (
            matching(json!({"headers": [{"name": "a", "type": "RegularExpression", "value": "a".repeat(1025)}]})),
            at("[0].headers[0].value"),
        ),
        (matching(json!({"headers": vec![json!({"name": "a"}); 65]})), at("[0].headers")),
        (matching(json!({"method": "get"})), at("[0].method")),
        (matching(json!({"path": {"type": "Glob", "value": "/"}})), at("[0].path.type")),
        (
            matching(json!({"path": {"type": "RegularExpression", "value": "/a**"}})),
            at("[0].path.value"),
        ),
        (
            matching(json!({"queryParams": [{"type": "RegularExpression", "name": "a", "value": "(?=b)"}]})),
            at("[0].queryParams[0].value"),
        ),
        (
            matching(json!({"headers": [{"name": "a", "type": "RegularExpression", "value": ""}]})),
            at("[0].headers[0].value"),
        ),
    ] {
        assert_eq!(canonical(spec.clone()).unwrap_err(), [want], "{spec}");
    }
}

#[test]
fn bad_filters_name_their_field() {
    let at = |rest: &str| format!("to[0].rules[0].default.filters[0].{rest}");
    let rewrite = |path: Value| json!({"type": "URLRewrite", "urlRewrite": {"path": path}});
    let set = |name: &str, value: &str| json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": name, "value": value}]}});
    for (spec, want) in [
        (filter(json!({"type": "RequestHeaderModifier"})), at("requestHeaderModifier")),
        (
            filter(json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {}})),
            at("responseHeaderModifier"),
        ),
        (filter(set("host", "a")), at("requestHeaderModifier.set[0].name")),
        (filter(set("Upper", "a")), at("requestHeaderModifier.set[0].name")),
        (filter(set("a", "b\r\nc: d")), at("requestHeaderModifier.set[0].value")),
        (
            filter(
                json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "1"}], "remove": ["A"]}}),
            ),
            at("requestHeaderModifier.remove[0]"),
        ),
        (
            filter(
                json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": (0..17).map(|i| format!("h{i}")).collect::<Vec<_>>()}}),
            ),
            at("requestHeaderModifier.remove"),
        ),
        (filter(json!({"type": "RequestRedirect"})), at("requestRedirect")),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 304}})),
            at("requestRedirect.statusCode"),
        ),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"port": 0}})),
            at("requestRedirect.port"),
        ),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "1.2.3.4"}})),
            at("requestRedirect.hostname"),
        ),
        (
            filter(json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "ftp"}})),
            at("requestRedirect.scheme"),
        ),
        (filter(json!({"type": "URLRewrite"})), at("urlRewrite")),
        (
            filter(json!({"type": "URLRewrite", "urlRewrite": {"hostname": "*.a"}})),
            at("urlRewrite.hostname"),
        ),
        (
            filter(json!({"type": "URLRewrite", "urlRewrite": {"hostToBackendHostname": true}})),
            at("urlRewrite.hostToBackendHostname"),
        ),
        (
            filter(rewrite(json!({"type": "ReplaceFullPath"}))),
            at("urlRewrite.path.replaceFullPath"),
        ),
        (
            filter(rewrite(json!({"type": "ReplacePrefixMatch"}))),
            at("urlRewrite.path.replacePrefixMatch"),
        ),
        (
            rule(
                json!({"path": {"type": "Exact", "value": "/a"}}),
                json!({"filters": [rewrite(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}))]}),
            ),
            at("urlRewrite.path.replacePrefixMatch"),
        ),
        (filter(json!({"type": "RequestMirror"})), at("requestMirror")),
        (
            filter(
                json!({"type": "RequestMirror", "requestMirror": {"percentage": 101, "backendRef": {"kind": "MeshService", "labels": {"a": "b"}}}}),
            ),
            at("requestMirror.percentage"),
        ),
        (
            filter(json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"kind": "MeshService"}}})),
            at("requestMirror.backendRef.labels"),
        ),
    ] {
        assert_eq!(canonical(spec.clone()).unwrap_err(), [want], "{spec}");
    }
}

#[test]
fn bad_targets_and_backends_name_their_field() {
    let at = |rest: &str| format!("to[0].rules[0].default.backendRefs[0].{rest}");
    for (spec, want) in [
        (backend(json!({"kind": "Mesh"})), at("kind")),
        (backend(json!({"kind": "MeshService"})), at("labels")),
        (backend(json!({"kind": "MeshMultiZoneService", "labels": {"a": "b"}})), at("port")),
        (backend(json!({"kind": "MeshService", "labels": {"a": "b"}, "port": 0})), at("port")),
        (
            backend(json!({"kind": "MeshService", "labels": {"a": "b"}, "port": 65536})),
            at("port"),
        ),
        (
            backend(json!({"kind": "MeshExternalService", "labels": {"a": "b"}, "sectionName": "a"})),
            at("sectionName"),
        ),
        (
            backend(json!({"kind": "MeshService", "labels": {"a": "b"}, "weight": -1})),
            at("weight"),
        ),
        (
            backend(json!({"kind": "MeshService", "labels": {"a": "b"}, "weight": 4_294_967_296_u64})),
            at("weight"),
        ),
        (
            json!({"to": [{"targetRef": {"kind": "Mesh"}, "rules": []}]}),
            "to[0].targetRef.kind".into(),
        ),
        (
            json!({"to": [{"targetRef": target(), "rules": [], "hostnames": ["a"]}]}),
            "to[0].hostnames".into(),
        ),
        (
            json!({"targetRef": {"kind": "Dataplane", "sectionName": "a"}}),
            "targetRef.sectionName".into(),
        ),
        (json!({"targetRef": {"kind": "MeshSubset"}}), "targetRef.kind".into()),
    ] {
        assert_eq!(canonical(spec.clone()).unwrap_err(), [want], "{spec}");
    }
}

#[test]
fn the_sum_of_weights_is_bounded() {
    let backend = json!({"kind": "MeshService", "labels": {"a": "b"}, "weight": u32::MAX});
    let with = |backends: Value| canonical(rule(json!({}), json!({"backendRefs": backends})));
    assert!(with(json!([backend])).is_ok());
    assert_eq!(with(json!([backend, backend])).unwrap_err(), ["to[0].rules[0].default.backendRefs"]);
}

#[test]
fn numbers() {
    let text = |t: &str| IntOrString::String(t.into()).millionths();
    for (t, want) in [
        ("10.5", 10_500_000),
        ("0", 0),
        (".5", 500_000),
        ("5.", 5_000_000),
        ("-1.25", -1_250_000),
        ("+3", 3_000_000),
        ("0.0000019", 1),
    ] {
        assert_eq!(text(t), Some(want), "{t}");
    }
    for bad in [
        "",
        "-",
        ".",
        "1e3",
        "1,5",
        "0x10",
        " 1",
        "1.2.3",
        "--1",
        "99999999999999999999",
        "9223372036854775807",
        "٣",
    ] {
        assert_eq!(text(bad), None, "{bad}");
    }
    assert_eq!(text(&"1".repeat(33)), None);
    assert_eq!(IntOrString::Int(-7).millionths(), Some(-7_000_000));
    assert!(serde_json::from_value::<IntOrString>(json!(1.5)).is_err());
}

#[test]
fn a_backend_s_section() {
    let section = |b: Value| serde_json::from_value::<BackendRef>(b).unwrap().section();
    assert_eq!(
        section(json!({"kind": "MeshService", "sectionName": "http", "port": 80})),
        Some("http".into())
    );
    assert_eq!(
        section(json!({"kind": "MeshService", "sectionName": "", "port": 80})),
        Some("80".into())
    );
    assert_eq!(section(json!({"kind": "MeshService"})), None);
}
