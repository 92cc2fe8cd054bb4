//! MeshCircuitBreaker: connection limits and outlier detection, for outbound (`to`) and inbound (`rules`) traffic.
//! Source: Kuma, `pkg/plugins/policies/meshcircuitbreaker`; dataplane.md 4.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{FromItem, TargetKind, TargetRef, validate_len, validate_target_ref},
    mesh_http_route::IntOrString,
};
use crate::{duration::GoDuration, validate::Violations};

/// Most items of `to` or `rules`.
const MAX_ITEMS: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshCircuitBreaker {
    /// Proxies it is about; absent means the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Kuma 2's rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<FromItem<Conf>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub default: Conf,
}

/// About all inbound traffic; it has no matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    #[serde(default)]
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conf {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_limits: Option<ConnectionLimits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// Limits per upstream cluster and proxy; absent means Envoy's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_pools: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<GoDuration>,
    /// 0..=100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_external_and_local_errors: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectors: Option<Detectors>,
    /// Percent, 0..=100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_panic_threshold: Option<IntOrString>,
}

/// A detector that is absent is switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detectors {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_failures: Option<Consecutive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_failures: Option<Consecutive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_origin_failures: Option<Consecutive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consecutive {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// Greater than 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_deviation_factor: Option<IntOrString>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailurePercentage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// 0..=100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u32>,
}

fn greater_than_zero(at: String, value: Option<u32>, out: &mut Violations) {
    if value == Some(0) {
        out.add(at, "must be greater than 0");
    }
}

fn duration_greater_than_zero(at: String, value: Option<GoDuration>, out: &mut Violations) {
    if value.is_some_and(|d| d.0.is_zero()) {
        out.add(at, "must be greater than zero when defined");
    }
}

fn percentage(at: String, value: Option<u32>, out: &mut Violations) {
    if value.is_some_and(|p| p > 100) {
        out.add(at, "must be in inclusive range [0, 100]");
    }
}

impl Conf {
    fn validate(&self, at: &str, out: &mut Violations) {
        if self.connection_limits.is_none() && self.outlier_detection.is_none() {
            out.add(at, "at least one of: 'connectionLimits' or 'outlierDetection' should be configured");
        }
        if let Some(limits) = &self.connection_limits {
            for (field, value) in [
                ("maxConnections", limits.max_connections),
                ("maxConnectionPools", limits.max_connection_pools),
                ("maxPendingRequests", limits.max_pending_requests),
                ("maxRetries", limits.max_retries),
                ("maxRequests", limits.max_requests),
            ] {
                greater_than_zero(format!("{at}.connectionLimits.{field}"), value, out);
            }
        }
        if let Some(outlier) = &self.outlier_detection {
            outlier.validate(&format!("{at}.outlierDetection"), out);
        }
    }
}

impl OutlierDetection {
    fn validate(&self, at: &str, out: &mut Violations) {
        duration_greater_than_zero(format!("{at}.interval"), self.interval, out);
        duration_greater_than_zero(format!("{at}.baseEjectionTime"), self.base_ejection_time, out);
        percentage(format!("{at}.maxEjectionPercent"), self.max_ejection_percent, out);
        if let Some(threshold) = &self.healthy_panic_threshold {
            threshold.validate_percentage(&format!("{at}.healthyPanicThreshold"), out);
        }
        let at = format!("{at}.detectors");
        let Some(d) = &self.detectors else {
            out.add(at, "must be defined");
            return;
        };
        if *d == Detectors::default() {
            out.add(
                at,
                "must have at least one defined: totalFailures, gatewayFailures, localOriginFailures, successRate, failurePercentage",
            );
            return;
        }
        for (field, detector) in [
            ("totalFailures", &d.total_failures),
            ("gatewayFailures", &d.gateway_failures),
            ("localOriginFailures", &d.local_origin_failures),
        ] {
            greater_than_zero(
                format!("{at}.{field}.consecutive"),
                detector.as_ref().and_then(|d| d.consecutive),
                out,
            );
        }
        if let Some(rate) = &d.success_rate {
            greater_than_zero(format!("{at}.successRate.minimumHosts"), rate.minimum_hosts, out);
            greater_than_zero(format!("{at}.successRate.requestVolume"), rate.request_volume, out);
            let field = format!("{at}.successRate.standardDeviationFactor");
            match rate.standard_deviation_factor.as_ref().map(IntOrString::millionths) {
                Some(None) => out.add(field, "invalid number"),
                Some(Some(..=0)) => out.add(field, "must be greater than 0"),
                _ => {}
            }
        }
        if let Some(failures) = &d.failure_percentage {
            greater_than_zero(format!("{at}.failurePercentage.minimumHosts"), failures.minimum_hosts, out);
            greater_than_zero(format!("{at}.failurePercentage.requestVolume"), failures.request_volume, out);
            percentage(format!("{at}.failurePercentage.threshold"), failures.threshold, out);
        }
    }
}

impl Spec for MeshCircuitBreaker {
    fn validate(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            validate_target_ref(
                "targetRef",
                target,
                &[TargetKind::Mesh, TargetKind::Dataplane],
                !self.rules.is_empty() || !self.from.is_empty(),
                out,
            );
        }
        if self.rules.is_empty() && self.to.is_empty() && self.from.is_empty() {
            out.add("", "at least one of 'to' or 'rules' has to be defined");
        }
        validate_len("to", &self.to, MAX_ITEMS, out);
        validate_len("rules", &self.rules, MAX_ITEMS, out);
        validate_len("from", &self.from, MAX_ITEMS, out);
        for (i, from) in self.from.iter().enumerate() {
            validate_target_ref(&format!("from[{i}].targetRef"), &from.target_ref, &[TargetKind::Mesh], false, out);
            from.default.validate(&format!("from[{i}].default"), out);
        }
        for (i, rule) in self.rules.iter().enumerate() {
            rule.default.validate(&format!("rules[{i}].default"), out);
        }
        for (i, to) in self.to.iter().enumerate() {
            let kinds = [
                TargetKind::Mesh,
                TargetKind::MeshService,
                TargetKind::MeshExternalService,
                TargetKind::MeshMultiZoneService,
            ];
            validate_target_ref(&format!("to[{i}].targetRef"), &to.target_ref, &kinds, false, out);
            to.default.validate(&format!("to[{i}].default"), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::Kind;

    fn canonical(spec: Value) -> Result<Value, Vec<String>> {
        (Kind::MeshCircuitBreaker.descriptor().canonical)(spec).map_err(|v| v.0.into_iter().map(|v| v.field).collect())
    }

    fn to_mesh(conf: Value) -> Value {
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]})
    }

    #[test]
    fn every_field_survives() {
        let conf = json!({
            "connectionLimits": {"maxConnections": 1, "maxConnectionPools": 2, "maxPendingRequests": 3, "maxRetries": 4, "maxRequests": 5},
            "outlierDetection": {
                "disabled": false, "interval": "5s", "baseEjectionTime": "30s", "maxEjectionPercent": 0, "splitExternalAndLocalErrors": true,
                "healthyPanicThreshold": "10.5",
                "detectors": {
                    "totalFailures": {"consecutive": 10}, "gatewayFailures": {}, "localOriginFailures": {"consecutive": 1},
                    "successRate": {"minimumHosts": 5, "requestVolume": 10, "standardDeviationFactor": "1.9"},
                    "failurePercentage": {"minimumHosts": 5, "requestVolume": 10, "threshold": 85}
                }
            }
        });
        let spec =
            json!({"targetRef": {"kind": "Mesh"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": conf}], "rules": [{"default": conf}]});
        assert_eq!(canonical(spec.clone()), Ok(spec));
    }

    #[test]
    fn what_kuma_2_says_by_from_is_kept_if_it_is_about_all_traffic() {
        let conf = json!({"connectionLimits": {"maxConnections": 1}});
        let of = |kind: &str| json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}], "from": [{"targetRef": {"kind": kind}, "default": conf}]});
        assert_eq!(canonical(of("Mesh")), Ok(of("Mesh")));
        assert_eq!(canonical(of("MeshService")), Err(vec!["from[0].targetRef.kind".to_owned()]));
        canonical(of("MeshSubset")).unwrap_err();
        let mut alone = of("Mesh");
        alone.as_object_mut().unwrap().remove("to");
        assert_eq!(canonical(alone.clone()), Ok(alone));
    }

    #[test]
    fn bad_ones_name_their_field() {
        let outlier = |o: Value| {
            let mut o = o;
            o["detectors"] = json!({"totalFailures": {}});
            to_mesh(json!({"outlierDetection": o}))
        };
        let detectors = |d: Value| to_mesh(json!({"outlierDetection": {"detectors": d}}));
        for (spec, want) in [
            (json!({}), ""),
            (to_mesh(json!({})), "to[0].default"),
            (json!({"rules": [{}]}), "rules[0].default"),
            (
                to_mesh(json!({"connectionLimits": {"maxRetries": 0}})),
                "to[0].default.connectionLimits.maxRetries",
            ),
            (
                to_mesh(json!({"connectionLimits": {"maxRetries": -1}})),
                "to[0].default.connectionLimits.maxRetries",
            ),
            (to_mesh(json!({"outlierDetection": {}})), "to[0].default.outlierDetection.detectors"),
            (detectors(json!({})), "to[0].default.outlierDetection.detectors"),
            (outlier(json!({"interval": "0s"})), "to[0].default.outlierDetection.interval"),
            (
                outlier(json!({"baseEjectionTime": "0s"})),
                "to[0].default.outlierDetection.baseEjectionTime",
            ),
            (
                outlier(json!({"maxEjectionPercent": 101})),
                "to[0].default.outlierDetection.maxEjectionPercent",
            ),
            (
                outlier(json!({"healthyPanicThreshold": "100.1"})),
                "to[0].default.outlierDetection.healthyPanicThreshold",
            ),
            (
                outlier(json!({"healthyPanicThreshold": -1})),
                "to[0].default.outlierDetection.healthyPanicThreshold",
            ),
            (
                outlier(json!({"healthyPanicThreshold": "half"})),
                "to[0].default.outlierDetection.healthyPanicThreshold",
            ),
            (
                detectors(json!({"gatewayFailures": {"consecutive": 0}})),
                "to[0].default.outlierDetection.detectors.gatewayFailures.consecutive",
            ),
            (
                detectors(json!({"successRate": {"minimumHosts": 0}})),
                "to[0].default.outlierDetection.detectors.successRate.minimumHosts",
            ),
            (
                detectors(json!({"successRate": {"standardDeviationFactor": "0"}})),
                "to[0].default.outlierDetection.detectors.successRate.standardDeviationFactor",
            ),
            (
                detectors(json!({"successRate": {"standardDeviationFactor": "x"}})),
                "to[0].default.outlierDetection.detectors.successRate.standardDeviationFactor",
            ),
            (
                detectors(json!({"failurePercentage": {"threshold": 101}})),
                "to[0].default.outlierDetection.detectors.failurePercentage.threshold",
            ),
            (
                json!({"to": [{"targetRef": {"kind": "MeshHTTPRoute", "labels": {"a": "b"}}, "default": {"connectionLimits": {}}}]}),
                "to[0].targetRef.kind",
            ),
            (
                json!({"targetRef": {"kind": "Dataplane", "sectionName": "a"}, "to": [{"targetRef": {"kind": "Mesh"}, "default": {"connectionLimits": {}}}]}),
                "targetRef.sectionName",
            ),
        ] {
            assert_eq!(canonical(spec.clone()).unwrap_err(), [want], "{spec}");
        }
    }
}
