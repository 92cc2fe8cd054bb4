//! Policies made of values at the edges of what is allowed, and beyond.

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use ursa_model::{Kind, labels};

#[path = "hostile/values.rs"]
mod values;

pub use values::arb_regex;
use values::{decimal, duration, flag, header_name, hostname, list, number, path, pick, regex, some_of, text};

/// The kinds generated.
pub const KINDS: [Kind; 5] = [
    Kind::MeshTrafficPermission,
    Kind::MeshHTTPRoute,
    Kind::MeshTimeout,
    Kind::MeshRetry,
    Kind::MeshCircuitBreaker,
];

#[derive(Clone, Debug)]
pub struct Policy {
    pub kind: Kind,
    /// Maybe valid.
    pub spec: Value,
}

fn header_match() -> BoxedStrategy<Value> {
    let kinds = || pick(&["Exact", "Present", "RegularExpression", "Absent", "Prefix"]);
    let value = prop_oneof![Just(String::new()), text(), regex()];
    (kinds(), header_name(), value)
        .prop_map(|(kind, name, value)| json!({"type": kind, "name": name, "value": value}))
        .boxed()
}

fn matching() -> BoxedStrategy<Value> {
    let on_path = (pick(&["Exact", "PathPrefix", "RegularExpression"]), prop_oneof![path(), regex()])
        .prop_map(|(kind, value)| json!({"type": kind, "value": value}));
    let query = (
        pick(&["Exact", "RegularExpression"]),
        prop_oneof![text(), path()],
        prop_oneof![text(), regex()],
    )
        .prop_map(|(kind, name, value)| json!({"type": kind, "name": name, "value": value}));
    some_of(vec![
        ("path", on_path.boxed()),
        ("method", pick(&["GET", "CONNECT", "TRACE"]).prop_map(|m| json!(m)).boxed()),
        ("queryParams", list(query, 1)),
        ("headers", list(header_match(), 2)),
    ])
}

fn backend() -> BoxedStrategy<Value> {
    let target = (
        pick(&["backend", "backend", "nowhere"]),
        select(&[0_u32, 1, 2, 2_147_483_648, 4_294_967_295][..]),
    );
    let section = pick(&["http", "http", "grpc", "tcp", "none"]);
    (target, section, any::<bool>())
        .prop_map(|((name, weight), section, labelled)| {
            let mut out = json!({"kind": "MeshService", "sectionName": section, "weight": weight});
            if labelled {
                out["labels"] = json!({labels::DISPLAY_NAME: name});
            } else {
                out["labels"] = json!({labels::DISPLAY_NAME: "backend", labels::ZONE: "east"});
            }
            out
        })
        .boxed()
}

fn rewrite() -> BoxedStrategy<Value> {
    let value = || path().prop_map(|p| json!(p)).boxed();
    (
        pick(&["ReplaceFullPath", "ReplacePrefixMatch"]),
        some_of(vec![("replaceFullPath", value()), ("replacePrefixMatch", value())]),
    )
        .prop_map(|(kind, mut out)| {
            out["type"] = json!(kind);
            out
        })
        .boxed()
}

fn filter() -> BoxedStrategy<Value> {
    let value = (header_name(), text()).prop_map(|(name, value)| json!({"name": name, "value": value}));
    let modifier = some_of(vec![
        ("set", list(value.clone(), 1)),
        ("add", list(value, 1)),
        ("remove", list(header_name().prop_map(|n| json!(n)), 1)),
    ]);
    let host = || hostname().prop_map(|h| json!(h)).boxed();
    let redirect = some_of(vec![
        ("scheme", pick(&["http", "https"]).prop_map(|s| json!(s)).boxed()),
        ("hostname", host()),
        ("path", rewrite()),
        ("port", number()),
        (
            "statusCode",
            select(&[301, 302, 303, 307, 308, 200, 0][..]).prop_map(|c| json!(c)).boxed(),
        ),
    ]);
    let url = some_of(vec![("hostname", host()), ("path", rewrite())]);
    let mirror = (decimal(), backend()).prop_map(|(percentage, backend)| json!({"percentage": percentage, "backendRef": backend}));
    let of = |kind: &'static str, field: &'static str, inner: BoxedStrategy<Value>| {
        inner.prop_map(move |inner| json!({"type": kind, field: inner})).boxed()
    };
    prop_oneof![
        of("RequestHeaderModifier", "requestHeaderModifier", modifier.clone()),
        of("ResponseHeaderModifier", "responseHeaderModifier", modifier),
        of("RequestRedirect", "requestRedirect", redirect),
        of("URLRewrite", "urlRewrite", url),
        of("RequestMirror", "requestMirror", mirror.boxed()),
    ]
    .boxed()
}

fn route() -> BoxedStrategy<Value> {
    let rule = (
        prop::collection::vec(matching(), 1..=1),
        prop::collection::vec(filter(), 0..=2),
        prop::collection::vec(backend(), 0..=3),
    )
        .prop_map(|(matches, filters, backends)| json!({"matches": matches, "default": {"filters": filters, "backendRefs": backends}}));
    let to = |rules: Vec<Value>| json!({"targetRef": {"kind": "MeshService", "labels": {labels::DISPLAY_NAME: "backend"}}, "rules": rules});
    prop::collection::vec(rule, 1..=1)
        .prop_map(move |rules| json!({"to": [to(rules)]}))
        .boxed()
}

fn caller() -> BoxedStrategy<Value> {
    let id = prop_oneof![
        pick(&[
            "spiffe://a",
            "spiffe://a/b",
            "spiffe://a_b.c-d/e/F.g",
            "spiffe://",
            "spiffe://a/",
            "x",
            ""
        ]),
        Just(format!("spiffe://a/{}", "b".repeat(2037)))
    ];
    some_of(vec![
        (
            "spiffeID",
            (pick(&["Exact", "Prefix"]), id)
                .prop_map(|(kind, value)| json!({"type": kind, "value": value}))
                .boxed(),
        ),
        ("sni", hostname().prop_map(|value| json!({"type": "Exact", "value": value})).boxed()),
    ])
}

fn permission() -> BoxedStrategy<Value> {
    some_of(vec![
        ("deny", list(caller(), 2)),
        ("allowWithShadowDeny", list(caller(), 2)),
        ("allow", list(caller(), 2)),
    ])
    .prop_map(|conf| json!({"rules": [{"default": conf}]}))
    .boxed()
}

fn timeout() -> BoxedStrategy<Value> {
    let http = some_of(vec![
        ("requestTimeout", duration()),
        ("streamIdleTimeout", duration()),
        ("maxStreamDuration", duration()),
        ("maxConnectionDuration", duration()),
        ("requestHeadersTimeout", duration()),
    ]);
    let conf = some_of(vec![("connectionTimeout", duration()), ("idleTimeout", duration()), ("http", http)]);
    (conf, any::<bool>(), list(caller(), 1))
        .prop_map(|(conf, outbound, matches)| {
            if outbound {
                json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]})
            } else {
                json!({"rules": [{"matches": matches, "default": conf}]})
            }
        })
        .boxed()
}

fn retry() -> BoxedStrategy<Value> {
    let back_off = || some_of(vec![("baseInterval", duration()), ("maxInterval", duration())]);
    let reset = (header_name(), pick(&["Seconds", "UnixTimestamp"])).prop_map(|(name, format)| json!({"name": name, "format": format}));
    let limited = move || some_of(vec![("resetHeaders", list(reset.clone(), 2)), ("maxInterval", duration())]);
    let predicate = (
        pick(&["OmitPreviousHosts", "OmitHostsWithTags", "OmitPreviousPriorities"]),
        -1..4_i32,
    )
        .prop_map(|(kind, often)| json!({"predicate": kind, "tags": {"a": "b"}, "updateFrequency": often}));
    let on = |of: &'static [&'static str]| list(pick(of).prop_map(|c| json!(c)), 3);
    let http = some_of(vec![
        ("numRetries", number()),
        ("perTryTimeout", duration()),
        ("backOff", back_off()),
        ("rateLimitedBackOff", limited()),
        ("retryOn", on(&["5xx", "GatewayError", "HttpMethodGet", "503", "100", "511"])),
        ("retriableResponseHeaders", list(header_match(), 1)),
        ("retriableRequestHeaders", list(header_match(), 1)),
        ("hostSelection", list(predicate, 2)),
        (
            "hostSelectionMaxAttempts",
            select(&[0_i64, 1, i64::MAX][..]).prop_map(|n| json!(n)).boxed(),
        ),
    ]);
    let grpc = some_of(vec![
        ("numRetries", number()),
        ("perTryTimeout", duration()),
        ("backOff", back_off()),
        ("rateLimitedBackOff", limited()),
        ("retryOn", on(&["Canceled", "Unavailable"])),
    ]);
    let tcp = some_of(vec![("maxConnectAttempt", number())]);
    some_of(vec![("tcp", tcp), ("http", http), ("grpc", grpc)])
        .prop_map(|conf| json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]}))
        .boxed()
}

fn breaker() -> BoxedStrategy<Value> {
    let limits = some_of(vec![
        ("maxConnections", number()),
        ("maxConnectionPools", number()),
        ("maxPendingRequests", number()),
        ("maxRetries", number()),
        ("maxRequests", number()),
    ]);
    let consecutive = || some_of(vec![("consecutive", number())]);
    let detectors = some_of(vec![
        ("totalFailures", consecutive()),
        ("gatewayFailures", consecutive()),
        ("localOriginFailures", consecutive()),
        (
            "successRate",
            some_of(vec![
                ("minimumHosts", number()),
                ("requestVolume", number()),
                ("standardDeviationFactor", decimal()),
            ]),
        ),
        (
            "failurePercentage",
            some_of(vec![
                ("minimumHosts", number()),
                ("requestVolume", number()),
                ("threshold", number()),
            ]),
        ),
    ]);
    let outliers = (
        some_of(vec![
            ("disabled", flag()),
            ("interval", duration()),
            ("baseEjectionTime", duration()),
            ("maxEjectionPercent", number()),
            ("splitExternalAndLocalErrors", flag()),
            ("healthyPanicThreshold", decimal()),
        ]),
        detectors,
    )
        .prop_map(|(mut out, detectors)| {
            out["detectors"] = detectors;
            out
        });
    (
        some_of(vec![("connectionLimits", limits), ("outlierDetection", outliers.boxed())]),
        any::<bool>(),
    )
        .prop_map(|(conf, outbound)| {
            if outbound {
                json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]})
            } else {
                json!({"rules": [{"default": conf}]})
            }
        })
        .boxed()
}

pub fn arb_policy() -> BoxedStrategy<Policy> {
    let of = |kind: Kind, spec: BoxedStrategy<Value>| spec.prop_map(move |spec| Policy { kind, spec }).boxed();
    prop_oneof![
        4 => of(Kind::MeshTrafficPermission, permission()),
        8 => of(Kind::MeshHTTPRoute, route()),
        3 => of(Kind::MeshTimeout, timeout()),
        4 => of(Kind::MeshRetry, retry()),
        4 => of(Kind::MeshCircuitBreaker, breaker()),
    ]
    .boxed()
}
