//! Retries of requests, in Envoy's words. Source: Kuma, `pkg/plugins/policies/meshretry/plugin/xds`; dataplane.md 6, facts.md F21.

use std::time::Duration;

use serde::Serialize;
use ursa_model::Labels;
use ursa_model::kind::{
    mesh_http_route::HeaderMatch,
    mesh_retry::{self, Conf, HttpRetryOn, PredicateType, ResetHeader, grpc_retry_on},
};

const HTTP_RETRY_ON: &str = "gateway-error,connect-failure,refused-stream";
const GRPC_RETRY_ON: &str = "cancelled,connect-failure,gateway-error,refused-stream,reset,resource-exhausted,unavailable";
const RETRIABLE_STATUS_CODES: &str = "retriable-status-codes";
const BASE_INTERVAL: Duration = Duration::from_millis(25);

/// A route's retry_policy. `None` in a field leaves Envoy's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// Envoy's comma-separated conditions.
    pub retry_on: String,
    /// At least 1.
    pub num_retries: Option<u32>,
    /// Zero means none.
    pub per_try_timeout: Option<Duration>,
    pub back_off: Option<BackOff>,
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    pub retriable_status_codes: Vec<u32>,
    /// Requests of these methods only: exact matches on `:method`, before `retriable_request_headers` in the same list.
    pub retriable_methods: Vec<String>,
    /// retriable_request_headers.
    pub retriable_request_headers: Vec<HeaderMatch>,
    /// retriable_headers.
    pub retriable_response_headers: Vec<HeaderMatch>,
    /// retry_host_predicate, in order.
    pub host_predicates: Vec<HostPredicate>,
    /// retry_priority envoy.retry_priorities.previous_priorities with this update_frequency, greater than 0.
    pub previous_priorities: Option<i32>,
    /// host_selection_retry_max_attempts.
    pub host_selection_max_attempts: Option<i64>,
}

/// retry_back_off. Invariant: 0 < base <= max, as Envoy demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackOff {
    pub base: Duration,
    /// `None`: ten times the base.
    pub max: Option<Duration>,
}

/// rate_limited_retry_back_off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimitedBackOff {
    /// Never empty.
    pub reset_headers: Vec<ResetHeader>,
    /// `None`: 300 s.
    pub max: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum HostPredicate {
    /// envoy.retry_host_predicates.previous_hosts
    PreviousHosts,
    /// envoy.retry_host_predicates.omit_host_metadata, on metadata `envoy.lb`.
    OmitHostMetadata(Labels),
}

/// The retries of a protocol: `None` when the conf has no section for it, `Some(None)` when it switches them off.
#[allow(clippy::option_option)]
pub(crate) fn retry_policy(conf: &Conf, protocol: &str) -> Option<Option<RetryPolicy>> {
    match protocol {
        "http" => conf.http.as_ref().map(http_policy),
        "grpc" => conf.grpc.as_ref().map(grpc_policy),
        _ => None,
    }
}

fn back_off(conf: Option<&mesh_retry::BackOff>) -> Option<BackOff> {
    let conf = conf?;
    // Merged from several policies the interval may end up above the maximum, or come from nobody; Envoy would refuse both.
    let base = conf.base_interval.map(|d| d.0).filter(|d| !d.is_zero()).unwrap_or(BASE_INTERVAL);
    Some(BackOff {
        base,
        max: conf.max_interval.map(|d| d.0.max(base)),
    })
}

fn rate_limited(conf: Option<&mesh_retry::RateLimitedBackOff>) -> Option<RateLimitedBackOff> {
    let conf = conf?;
    let reset_headers = conf.reset_headers.clone().filter(|h| !h.is_empty())?;
    Some(RateLimitedBackOff {
        reset_headers,
        max: conf.max_interval.map(|d| d.0),
    })
}

fn grpc_policy(conf: &mesh_retry::Grpc) -> Option<RetryPolicy> {
    if conf.num_retries == Some(0) {
        return None;
    }
    let conditions: Vec<&str> = conf.retry_on.iter().flatten().filter_map(|c| grpc_retry_on(c)).collect();
    Some(RetryPolicy {
        retry_on: if conditions.is_empty() {
            GRPC_RETRY_ON.into()
        } else {
            conditions.join(",")
        },
        num_retries: conf.num_retries,
        per_try_timeout: conf.per_try_timeout.map(|d| d.0),
        back_off: back_off(conf.back_off.as_ref()),
        rate_limited_back_off: rate_limited(conf.rate_limited_back_off.as_ref()),
        ..RetryPolicy::default()
    })
}

fn http_policy(conf: &mesh_retry::Http) -> Option<RetryPolicy> {
    if conf.num_retries == Some(0) {
        return None;
    }
    let mut out = RetryPolicy {
        num_retries: conf.num_retries,
        per_try_timeout: conf.per_try_timeout.map(|d| d.0),
        back_off: back_off(conf.back_off.as_ref()),
        rate_limited_back_off: rate_limited(conf.rate_limited_back_off.as_ref()),
        retriable_request_headers: conf.retriable_request_headers.clone().unwrap_or_default(),
        retriable_response_headers: conf.retriable_response_headers.clone().unwrap_or_default(),
        host_selection_max_attempts: conf.host_selection_max_attempts,
        ..RetryPolicy::default()
    };
    let mut conditions = Vec::new();
    for condition in conf.retry_on.iter().flatten().filter_map(|c| HttpRetryOn::parse(c)) {
        match condition {
            HttpRetryOn::Condition(name) => conditions.push(name),
            HttpRetryOn::Method(method) => out.retriable_methods.push(method.into()),
            HttpRetryOn::Status(code) => out.retriable_status_codes.push(code),
        }
    }
    if conditions.is_empty() {
        conditions.push(HTTP_RETRY_ON);
    }
    if !out.retriable_status_codes.is_empty() {
        conditions.push(RETRIABLE_STATUS_CODES);
    }
    out.retry_on = conditions.join(",");
    for predicate in conf.host_selection.iter().flatten() {
        match predicate.kind {
            PredicateType::OmitPreviousHosts => out.host_predicates.push(HostPredicate::PreviousHosts),
            PredicateType::OmitHostsWithTags => {
                out.host_predicates
                    .push(HostPredicate::OmitHostMetadata(predicate.tags.clone().unwrap_or_default()));
            }
            PredicateType::OmitPreviousPriorities => out.previous_priorities = Some(predicate.update_frequency),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
