//! Envoy's words for a MeshCircuitBreaker.

use serde_json::{Value, json};

use super::*;

fn conf(v: Value) -> CircuitBreakerConf {
    CircuitBreakerConf::from(&serde_json::from_value::<Conf>(v).unwrap())
}

#[test]
fn absent_parts_stay_envoy_s() {
    assert_eq!(conf(json!({})), CircuitBreakerConf::default());
    assert_eq!(conf(json!({"connectionLimits": {"maxRetries": 3}})).limits.max_retries, Some(3));
    let disabled = json!({"outlierDetection": {"disabled": true, "detectors": {"totalFailures": {"consecutive": 1}}}});
    assert_eq!(conf(disabled).outliers, None);
}

#[test]
fn detectors_without_a_number_are_off() {
    let got =
        conf(json!({"outlierDetection": {"interval": "5s", "detectors": {"totalFailures": {}, "gatewayFailures": {"consecutive": 2}}}}));
    let want = Outliers {
        interval: Some(Duration::from_secs(5)),
        consecutive_gateway_failure: Some(2),
        ..Outliers::default()
    };
    assert_eq!(got.outliers, Some(want));
}

#[test]
fn everything() {
    let got = conf(json!({"outlierDetection": {
        "disabled": false, "baseEjectionTime": "30s", "maxEjectionPercent": 20, "splitExternalAndLocalErrors": true, "healthyPanicThreshold": "62.9",
        "detectors": {
            "totalFailures": {"consecutive": 1}, "localOriginFailures": {"consecutive": 3},
            "successRate": {"minimumHosts": 5, "standardDeviationFactor": "1.9"},
            "failurePercentage": {"requestVolume": 50, "threshold": 85}
        }
    }}));
    let want = Outliers {
        interval: None,
        base_ejection_time: Some(Duration::from_secs(30)),
        max_ejection_percent: Some(20),
        split_errors: true,
        consecutive_5xx: Some(1),
        consecutive_gateway_failure: None,
        consecutive_local_origin_failure: Some(3),
        success_rate: Some(SuccessRate {
            minimum_hosts: Some(5),
            request_volume: None,
            stdev_factor: Some(1900),
        }),
        failure_percentage: Some(FailurePercentage {
            minimum_hosts: None,
            request_volume: Some(50),
            threshold: Some(85),
        }),
        healthy_panic_millionths: Some(62_900_000),
    };
    assert_eq!(got.outliers, Some(want));
    let factor = |f: Value| {
        let detectors = json!({"successRate": {"standardDeviationFactor": f}});
        conf(json!({"outlierDetection": {"detectors": detectors}}))
            .outliers
            .unwrap()
            .success_rate
            .unwrap()
            .stdev_factor
    };
    assert_eq!(
        (factor(json!(2)), factor(json!("nonsense")), factor(json!(-1))),
        (Some(2000), None, None)
    );
}
