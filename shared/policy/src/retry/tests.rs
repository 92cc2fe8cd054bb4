//! Envoy's words for a MeshRetry.

use serde_json::{Value, json};

use super::*;

fn policy(conf: Value, protocol: &str) -> Option<RetryPolicy> {
    let conf: Conf = serde_json::from_value(conf).unwrap();
    retry_policy(&conf, protocol).flatten()
}

fn http(conf: Value) -> RetryPolicy {
    policy(json!({"http": conf}), "http").unwrap()
}

#[test]
fn defaults() {
    let want = RetryPolicy {
        retry_on: "gateway-error,connect-failure,refused-stream".into(),
        ..RetryPolicy::default()
    };
    assert_eq!(http(json!({})), want);
    let grpc = policy(json!({"grpc": {}}), "grpc").unwrap();
    assert_eq!(
        grpc.retry_on,
        "cancelled,connect-failure,gateway-error,refused-stream,reset,resource-exhausted,unavailable"
    );
    for (conf, protocol) in [
        (json!({"http": {}}), "http2"),
        (json!({"http": {}}), "grpc"),
        (json!({}), "http"),
        (json!({"tcp": {}}), "tcp"),
    ] {
        assert_eq!(retry_policy(&serde_json::from_value(conf).unwrap(), protocol), None);
    }
}

#[test]
fn zero_switches_retries_off() {
    assert_eq!(policy(json!({"http": {"numRetries": 0, "perTryTimeout": "1s"}}), "http"), None);
    assert_eq!(policy(json!({"grpc": {"numRetries": 0}}), "grpc"), None);
    assert_eq!(
        retry_policy(&serde_json::from_value(json!({"http": {"numRetries": 0}})).unwrap(), "http"),
        Some(None)
    );
}

#[test]
fn conditions() {
    for (list, want, codes, methods) in [
        (json!(["5xx", "Reset", "Retriable4xx"]), "5xx,reset,retriable-4xx", vec![], vec![]),
        (
            json!(["503", "429"]),
            "gateway-error,connect-failure,refused-stream,retriable-status-codes",
            vec![503, 429],
            vec![],
        ),
        (json!(["5xx", "503"]), "5xx,retriable-status-codes", vec![503], vec![]),
        (
            json!(["HttpMethodGet", "HttpMethodHead"]),
            "gateway-error,connect-failure,refused-stream",
            vec![],
            vec!["GET", "HEAD"],
        ),
        (json!([]), "gateway-error,connect-failure,refused-stream", vec![], vec![]),
    ] {
        let got = http(json!({"retryOn": list}));
        assert_eq!(
            (got.retry_on.as_str(), got.retriable_status_codes, got.retriable_methods),
            (want, codes, methods.into_iter().map(String::from).collect())
        );
    }
    let grpc = policy(json!({"grpc": {"retryOn": ["Canceled", "Unavailable"]}}), "grpc").unwrap();
    assert_eq!(grpc.retry_on, "cancelled,unavailable");
}

#[test]
fn back_off_is_always_something_envoy_takes() {
    let ms = Duration::from_millis;
    for (conf, base, max) in [
        (json!({"baseInterval": "1s", "maxInterval": "2s"}), ms(1000), Some(ms(2000))),
        (json!({"baseInterval": "1s"}), ms(1000), None),
        (json!({"maxInterval": "2s"}), ms(25), Some(ms(2000))),
        (json!({"baseInterval": "3s", "maxInterval": "2s"}), ms(3000), Some(ms(3000))),
        (json!({}), ms(25), None),
    ] {
        assert_eq!(http(json!({"backOff": conf})).back_off, Some(BackOff { base, max }), "{conf}");
    }
    assert_eq!(
        http(json!({"rateLimitedBackOff": {"maxInterval": "1s"}})).rate_limited_back_off,
        None
    );
    let limited =
        http(json!({"rateLimitedBackOff": {"resetHeaders": [{"name": "retry-after", "format": "Seconds"}], "maxInterval": "1s"}}));
    assert_eq!(limited.rate_limited_back_off.unwrap().max, Some(ms(1000)));
}

#[test]
fn the_rest_is_taken_over() {
    let got = http(json!({
        "numRetries": 3, "perTryTimeout": "0s",
        "retriableRequestHeaders": [{"name": "a", "value": "b"}], "retriableResponseHeaders": [{"type": "Present", "name": "c"}],
        "hostSelection": [{"predicate": "OmitPreviousHosts"}, {"predicate": "OmitHostsWithTags", "tags": {"x": "y"}},
                          {"predicate": "OmitPreviousPriorities", "updateFrequency": 4}],
        "hostSelectionMaxAttempts": 7
    }));
    assert_eq!((got.num_retries, got.per_try_timeout), (Some(3), Some(Duration::ZERO)));
    assert_eq!((got.retriable_request_headers.len(), got.retriable_response_headers.len()), (1, 1));
    let tags = Labels::from([("x".into(), "y".into())]);
    assert_eq!(
        got.host_predicates,
        [HostPredicate::PreviousHosts, HostPredicate::OmitHostMetadata(tags)]
    );
    assert_eq!((got.previous_priorities, got.host_selection_max_attempts), (Some(4), Some(7)));
}
