//! MeshRetry: when and how often a proxy tries a request or connection again. Every field of a conf is optional, so that
//! merging policies sees what is absent. Source: Kuma, `pkg/plugins/policies/meshretry`; dataplane.md 4.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{TargetKind, TargetRef, validate_len, validate_target_ref},
    mesh_http_route::{HeaderMatch, validate::validate_header_name},
};
use crate::{duration::GoDuration, labels::Labels, validate::Violations};

/// Most items of `to`.
const MAX_ITEMS: usize = 1024;
/// Most items of any list of a conf.
const MAX_LIST: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshRetry {
    /// Proxies whose outbound traffic it is about; absent means the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conf {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tcp {
    /// Attempts before giving up, the first included; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connect_attempt: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// 0 switches retries off; absent means Envoy's 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// 0 means none; absent means the route's timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Texts of [`HttpRetryOn`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriable_response_headers: Option<Vec<HeaderMatch>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriable_request_headers: Option<Vec<HeaderMatch>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selection: Option<Vec<Predicate>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selection_max_attempts: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grpc {
    /// 0 switches retries off; absent means Envoy's 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// 0 means none; absent means the route's timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Texts that [`grpc_retry_on`] knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
}

/// Exponential back-off between tries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackOff {
    /// Default 25 ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<GoDuration>,
    /// Default ten times the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

/// Back-off that the answer's headers ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitedBackOff {
    /// At least one; the first that can be read counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_headers: Option<Vec<ResetHeader>>,
    /// Default 300 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetHeader {
    pub name: String,
    pub format: ResetFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetFormat {
    /// Seconds to wait.
    Seconds,
    /// When to retry, in seconds since the Unix epoch.
    UnixTimestamp,
}

/// How the host of a retry is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    #[serde(rename = "predicate")]
    pub kind: PredicateType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Labels>,
    /// Used by `OmitPreviousPriorities`, where it must be greater than 0.
    #[serde(default = "two")]
    pub update_frequency: i32,
}

fn two() -> i32 {
    2
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredicateType {
    OmitPreviousHosts,
    OmitHostsWithTags,
    OmitPreviousPriorities,
}

/// One condition of `http.retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpRetryOn {
    /// Envoy's name of the condition.
    Condition(&'static str),
    /// Requests of this method.
    Method(&'static str),
    /// Answers with this status.
    Status(u32),
}

impl HttpRetryOn {
    /// Reads a condition as Kuma writes it: `5xx`, `GatewayError`, …, `HttpMethodGet`, …, or a known status code.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "5xx" => Self::Condition("5xx"),
            "GatewayError" => Self::Condition("gateway-error"),
            "Reset" => Self::Condition("reset"),
            "Retriable4xx" => Self::Condition("retriable-4xx"),
            "ConnectFailure" => Self::Condition("connect-failure"),
            "EnvoyRatelimited" => Self::Condition("envoy-ratelimited"),
            "RefusedStream" => Self::Condition("refused-stream"),
            "Http3PostConnectFailure" => Self::Condition("http3-post-connect-failure"),
            "HttpMethodConnect" => Self::Method("CONNECT"),
            "HttpMethodDelete" => Self::Method("DELETE"),
            "HttpMethodGet" => Self::Method("GET"),
            "HttpMethodHead" => Self::Method("HEAD"),
            "HttpMethodOptions" => Self::Method("OPTIONS"),
            "HttpMethodPatch" => Self::Method("PATCH"),
            "HttpMethodPost" => Self::Method("POST"),
            "HttpMethodPut" => Self::Method("PUT"),
            "HttpMethodTrace" => Self::Method("TRACE"),
            _ if text.len() == 3 => Self::Status(text.parse().ok().filter(|code| is_known_status(*code))?),
            _ => return None,
        })
    }
}

/// The status codes that Go's `http.StatusText` names, which is Kuma's test.
fn is_known_status(code: u32) -> bool {
    matches!(code, 100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508 | 510 | 511)
}

/// Envoy's name of a condition of `grpc.retryOn`. Kuma sends `canceled`, which Envoy does not know and so ignores; Envoy's
/// spelling is what the user means.
pub fn grpc_retry_on(text: &str) -> Option<&'static str> {
    Some(match text {
        "Canceled" => "cancelled",
        "DeadlineExceeded" => "deadline-exceeded",
        "Internal" => "internal",
        "ResourceExhausted" => "resource-exhausted",
        "Unavailable" => "unavailable",
        _ => return None,
    })
}

impl BackOff {
    fn validate(&self, at: &str, out: &mut Violations) {
        if self.base_interval.is_none() && self.max_interval.is_none() {
            out.add(at, "must not be empty");
        }
        // Envoy refuses a zero, so it is refused before it reaches every proxy.
        for (field, interval) in [("baseInterval", self.base_interval), ("maxInterval", self.max_interval)] {
            if interval.is_some_and(|d| d.0.is_zero()) {
                out.add(format!("{at}.{field}"), "must be greater than zero when defined");
            }
        }
    }
}

impl RateLimitedBackOff {
    fn validate(&self, at: &str, out: &mut Violations) {
        if self.max_interval.is_some_and(|d| d.0.is_zero()) {
            out.add(format!("{at}.maxInterval"), "must be defined and greater than zero");
        }
        let headers = self.reset_headers.as_deref().unwrap_or_default();
        if headers.is_empty() {
            out.add(format!("{at}.resetHeaders"), "must be defined");
        }
        validate_len(&format!("{at}.resetHeaders"), headers, MAX_LIST, out);
        for (i, header) in headers.iter().enumerate() {
            validate_header_name(&format!("{at}.resetHeaders[{i}].name"), &header.name, out);
        }
    }
}

impl Http {
    fn validate(&self, at: &str, out: &mut Violations) {
        // As in Kuma, hostSelectionMaxAttempts alone does not count.
        if *self
            == (Self {
                host_selection_max_attempts: self.host_selection_max_attempts,
                ..Self::default()
            })
        {
            out.add(at, "must not be empty");
        }
        if let Some(back_off) = &self.back_off {
            back_off.validate(&format!("{at}.backOff"), out);
        }
        if let Some(back_off) = &self.rate_limited_back_off {
            back_off.validate(&format!("{at}.rateLimitedBackOff"), out);
        }
        let retry_on = self.retry_on.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.retryOn"), retry_on, MAX_LIST, out);
        for (i, condition) in retry_on.iter().enumerate() {
            if HttpRetryOn::parse(condition).is_none() {
                out.add(format!("{at}.retryOn[{i}]"), "unknown item");
            }
        }
        for (field, headers) in [
            ("retriableResponseHeaders", &self.retriable_response_headers),
            ("retriableRequestHeaders", &self.retriable_request_headers),
        ] {
            let headers = headers.as_deref().unwrap_or_default();
            validate_len(&format!("{at}.{field}"), headers, MAX_LIST, out);
            for (i, header) in headers.iter().enumerate() {
                header.validate(&format!("{at}.{field}[{i}]"), out);
            }
        }
        let predicates = self.host_selection.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.hostSelection"), predicates, MAX_LIST, out);
        let mut priorities = false;
        for (i, predicate) in predicates.iter().enumerate() {
            let at = format!("{at}.hostSelection[{i}]");
            match predicate.kind {
                PredicateType::OmitPreviousHosts => {}
                PredicateType::OmitHostsWithTags => match &predicate.tags {
                    None => out.add(format!("{at}.tags"), "must be defined"),
                    Some(tags) if tags.len() > MAX_LIST => out.add(format!("{at}.tags"), format!("must have at most {MAX_LIST} items")),
                    Some(_) => {}
                },
                PredicateType::OmitPreviousPriorities => {
                    if std::mem::replace(&mut priorities, true) {
                        out.add(format!("{at}.predicate"), "OmitPreviousPriorities must only be specified once");
                    }
                    if predicate.update_frequency <= 0 {
                        out.add(format!("{at}.updateFrequency"), "must be defined and greater than zero");
                    }
                }
            }
        }
        if self.host_selection_max_attempts.is_some_and(|n| n < 0) {
            out.add(format!("{at}.hostSelectionMaxAttempts"), "must not be negative when defined");
        }
    }
}

impl Grpc {
    fn validate(&self, at: &str, out: &mut Violations) {
        if *self == Self::default() {
            out.add(at, "must not be empty");
        }
        if let Some(back_off) = &self.back_off {
            back_off.validate(&format!("{at}.backOff"), out);
        }
        if let Some(back_off) = &self.rate_limited_back_off {
            back_off.validate(&format!("{at}.rateLimitedBackOff"), out);
        }
        let retry_on = self.retry_on.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.retryOn"), retry_on, MAX_LIST, out);
        for (i, condition) in retry_on.iter().enumerate() {
            if grpc_retry_on(condition).is_none() {
                out.add(format!("{at}.retryOn[{i}]"), "unknown item");
            }
        }
    }
}

impl Conf {
    fn validate(&self, at: &str, out: &mut Violations) {
        if *self == Self::default() {
            out.add(at, "at least one of the 'tcp', 'http', 'grpc' must be specified");
        }
        match self.tcp.as_ref().map(|tcp| tcp.max_connect_attempt) {
            Some(None) => out.add(format!("{at}.tcp"), "must not be empty"),
            Some(Some(0)) => out.add(format!("{at}.tcp.maxConnectAttempt"), "must be greater than 0"),
            _ => {}
        }
        if let Some(http) = &self.http {
            http.validate(&format!("{at}.http"), out);
        }
        if let Some(grpc) = &self.grpc {
            grpc.validate(&format!("{at}.grpc"), out);
        }
    }
}

impl Spec for MeshRetry {
    fn validate(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            validate_target_ref("targetRef", target, &[TargetKind::Mesh, TargetKind::Dataplane], false, out);
        }
        validate_len("to", &self.to, MAX_ITEMS, out);
        for (i, to) in self.to.iter().enumerate() {
            let kinds = [
                TargetKind::Mesh,
                TargetKind::MeshService,
                TargetKind::MeshExternalService,
                TargetKind::MeshMultiZoneService,
                TargetKind::MeshHTTPRoute,
            ];
            validate_target_ref(&format!("to[{i}].targetRef"), &to.target_ref, &kinds, false, out);
            to.default.validate(&format!("to[{i}].default"), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Kind;

    fn canonical(spec: Value) -> Result<Value, Vec<String>> {
        (Kind::MeshRetry.descriptor().canonical)(spec).map_err(|v| v.0.into_iter().map(|v| v.field).collect())
    }

    fn to_mesh(conf: Value) -> Value {
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]})
    }

    #[test]
    fn every_field_survives() {
        let limited = json!({"resetHeaders": [{"name": "retry-after", "format": "Seconds"}, {"name": "x", "format": "UnixTimestamp"}], "maxInterval": "5m0s"});
        let spec = to_mesh(json!({
            "tcp": {"maxConnectAttempt": 5},
            "http": {
                "numRetries": 0, "perTryTimeout": "16s", "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"}, "rateLimitedBackOff": limited,
                "retryOn": ["5xx", "HttpMethodGet", "503"],
                "retriableResponseHeaders": [{"type": "Present", "name": "a"}], "retriableRequestHeaders": [{"type": "Exact", "name": "b", "value": "c"}],
                "hostSelection": [{"predicate": "OmitPreviousHosts", "updateFrequency": 2},
                                  {"predicate": "OmitHostsWithTags", "tags": {"a": "b"}, "updateFrequency": 2},
                                  {"predicate": "OmitPreviousPriorities", "updateFrequency": 3}],
                "hostSelectionMaxAttempts": 2
            },
            "grpc": {"numRetries": 1, "perTryTimeout": "0s", "backOff": {"maxInterval": "1s"}, "rateLimitedBackOff": limited,
                     "retryOn": ["Canceled", "DeadlineExceeded", "Internal", "ResourceExhausted", "Unavailable"]}
        }));
        assert_eq!(canonical(spec.clone()), Ok(spec));
        assert_eq!(canonical(json!({})), Ok(json!({})));
    }

    #[test]
    fn conditions() {
        assert_eq!(HttpRetryOn::parse("GatewayError"), Some(HttpRetryOn::Condition("gateway-error")));
        assert_eq!(HttpRetryOn::parse("HttpMethodPut"), Some(HttpRetryOn::Method("PUT")));
        assert_eq!(HttpRetryOn::parse("429"), Some(HttpRetryOn::Status(429)));
        for bad in ["5XX", "306", "599", "+50", "0500", "", "Get", "gateway-error"] {
            assert_eq!(HttpRetryOn::parse(bad), None, "{bad}");
        }
        assert_eq!(grpc_retry_on("Unavailable"), Some("unavailable"));
        assert_eq!(grpc_retry_on("unavailable"), None);
    }

    #[test]
    fn bad_ones_name_their_field() {
        let at = |rest: &str| vec![format!("to[0].default{rest}")];
        for (spec, want) in [
            (to_mesh(json!({})), at("")),
            (to_mesh(json!({"tcp": {}})), at(".tcp")),
            (to_mesh(json!({"tcp": {"maxConnectAttempt": 0}})), at(".tcp.maxConnectAttempt")),
            (to_mesh(json!({"http": {}})), at(".http")),
            (to_mesh(json!({"http": {"hostSelectionMaxAttempts": 2}})), at(".http")),
            (to_mesh(json!({"grpc": {}})), at(".grpc")),
            (to_mesh(json!({"http": {"backOff": {}}})), at(".http.backOff")),
            (
                to_mesh(json!({"grpc": {"backOff": {"baseInterval": "0s"}}})),
                at(".grpc.backOff.baseInterval"),
            ),
            (
                to_mesh(json!({"http": {"rateLimitedBackOff": {}}})),
                at(".http.rateLimitedBackOff.resetHeaders"),
            ),
            (
                to_mesh(json!({"http": {"rateLimitedBackOff": {"resetHeaders": []}}})),
                at(".http.rateLimitedBackOff.resetHeaders"),
            ),
            (
                to_mesh(json!({"http": {"rateLimitedBackOff": {"resetHeaders": [{"name": "", "format": "Seconds"}]}}})),
                at(".http.rateLimitedBackOff.resetHeaders[0].name"),
            ),
            (
                to_mesh(
                    json!({"http": {"rateLimitedBackOff": {"resetHeaders": [{"name": "a", "format": "Seconds"}], "maxInterval": "0s"}}}),
                ),
                at(".http.rateLimitedBackOff.maxInterval"),
            ),
            (to_mesh(json!({"http": {"retryOn": ["5xx", "5XX"]}})), at(".http.retryOn[1]")),
            (to_mesh(json!({"grpc": {"retryOn": ["Cancelled"]}})), at(".grpc.retryOn[0]")),
            (
                to_mesh(json!({"http": {"retriableRequestHeaders": [{"name": "A"}]}})),
                at(".http.retriableRequestHeaders[0].name"),
            ),
            (
                to_mesh(json!({"http": {"hostSelection": [{"predicate": "OmitHostsWithTags"}]}})),
                at(".http.hostSelection[0].tags"),
            ),
            (
                to_mesh(json!({"http": {"hostSelection": [{"predicate": "OmitPreviousPriorities", "updateFrequency": 0}]}})),
                at(".http.hostSelection[0].updateFrequency"),
            ),
            (
                to_mesh(
                    json!({"http": {"hostSelection": [{"predicate": "OmitPreviousPriorities"}, {"predicate": "OmitPreviousPriorities"}]}}),
                ),
                at(".http.hostSelection[1].predicate"),
            ),
            (
                to_mesh(json!({"http": {"hostSelection": [{"predicate": "Other"}]}})),
                at(".http.hostSelection[0].predicate"),
            ),
            (
                json!({"to": [{"targetRef": {"kind": "Dataplane"}, "default": {"tcp": {"maxConnectAttempt": 1}}}]}),
                vec!["to[0].targetRef.kind".into()],
            ),
        ] {
            assert_eq!(canonical(spec.clone()).unwrap_err(), want, "{spec}");
        }
    }
}
