//! Connection limits and outlier detection of a cluster, in Envoy's words.
//! Source: Kuma, `pkg/plugins/policies/meshcircuitbreaker/plugin/xds`; dataplane.md 6.

use std::time::Duration;

use serde::Serialize;
use ursa_model::kind::mesh_circuit_breaker::{Conf, ConnectionLimits, Consecutive, FailurePercentage, OutlierDetection};

/// Of a cluster. Every cluster, with or without this, has a DEFAULT threshold with track_remaining.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CircuitBreakerConf {
    /// Fields of the DEFAULT threshold; absent ones stay Envoy's.
    pub limits: ConnectionLimits,
    /// `None`: no outlier detection.
    pub outliers: Option<Outliers>,
}

/// outlier_detection. `None` in a detector switches it off (its enforcing_* are 0, else 100); in another field it leaves Envoy's
/// default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outliers {
    pub interval: Option<Duration>,
    pub base_ejection_time: Option<Duration>,
    /// 0..=100.
    pub max_ejection_percent: Option<u32>,
    /// split_external_local_origin_errors.
    pub split_errors: bool,
    /// consecutive_5xx.
    pub consecutive_5xx: Option<u32>,
    /// consecutive_gateway_failure.
    pub consecutive_gateway_failure: Option<u32>,
    /// consecutive_local_origin_failure.
    pub consecutive_local_origin_failure: Option<u32>,
    /// Both enforcing_success_rate and enforcing_local_origin_success_rate.
    pub success_rate: Option<SuccessRate>,
    /// Both enforcing_failure_percentage and enforcing_failure_percentage_local_origin.
    pub failure_percentage: Option<FailurePercentage>,
    /// common_lb_config.healthy_panic_threshold in millionths of a percent: divide by 1,000,000.
    pub healthy_panic_millionths: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    pub minimum_hosts: Option<u32>,
    pub request_volume: Option<u32>,
    /// success_rate_stdev_factor: the factor times 1000.
    pub stdev_factor: Option<u32>,
}

impl From<&Conf> for CircuitBreakerConf {
    fn from(conf: &Conf) -> Self {
        Self {
            limits: conf.connection_limits.clone().unwrap_or_default(),
            outliers: conf
                .outlier_detection
                .as_ref()
                .filter(|o| o.disabled != Some(true))
                .map(Outliers::from),
        }
    }
}

impl From<&OutlierDetection> for Outliers {
    fn from(conf: &OutlierDetection) -> Self {
        let consecutive = |d: Option<Consecutive>| d.and_then(|d| d.consecutive);
        let detectors = conf.detectors.clone().unwrap_or_default();
        Self {
            interval: conf.interval.map(|d| d.0),
            base_ejection_time: conf.base_ejection_time.map(|d| d.0),
            max_ejection_percent: conf.max_ejection_percent,
            split_errors: conf.split_external_and_local_errors.unwrap_or(false),
            consecutive_5xx: consecutive(detectors.total_failures),
            consecutive_gateway_failure: consecutive(detectors.gateway_failures),
            consecutive_local_origin_failure: consecutive(detectors.local_origin_failures),
            success_rate: detectors.success_rate.map(|rate| SuccessRate {
                minimum_hosts: rate.minimum_hosts,
                request_volume: rate.request_volume,
                stdev_factor: rate
                    .standard_deviation_factor
                    .and_then(|f| f.millionths())
                    .and_then(|millionths| u32::try_from(millionths / 1000).ok()),
            }),
            failure_percentage: detectors.failure_percentage,
            healthy_panic_millionths: conf.healthy_panic_threshold.as_ref().and_then(|p| p.millionths()),
        }
    }
}

#[cfg(test)]
mod tests;
