//! The policies that a new Mesh gets. Source: Kuma, `pkg/defaults/mesh`; api.md 5.1.
//! There is no default MeshTrafficPermission: with an identity, and until someone allows it, nobody may call.

use serde_json::{Value, json};
use ursa_model::Kind;

/// Kind, name and spec of the policies to create with the mesh, in a fixed order. `skip` is the Mesh's
/// `skipCreatingInitialPolicies`: names of kinds, or `*` for all.
pub fn initial_policies(mesh: &str, skip: &[String]) -> Vec<(Kind, String, Value)> {
    let target = json!({"kind": "Mesh"});
    // Inbound: twice the outbound's values, or off, so that the caller's timeout is the one that strikes.
    let inbound_timeout = json!({
        "connectionTimeout": "10s",
        "idleTimeout": "2h0m0s",
        "http": {"requestTimeout": "0s", "streamIdleTimeout": "1h0m0s", "maxStreamDuration": "0s"}
    });
    let outbound_timeout = json!({
        "connectionTimeout": "5s",
        "idleTimeout": "1h0m0s",
        "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m0s"}
    });
    let limits = json!({"connectionLimits": {"maxConnections": 1024, "maxPendingRequests": 1024, "maxRequests": 1024, "maxRetries": 3}});
    let requests = json!({"numRetries": 5, "perTryTimeout": "16s", "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"}});
    let retry = json!({"tcp": {"maxConnectAttempt": 5}, "http": requests, "grpc": requests});

    let to_mesh = |conf: Value| json!({"targetRef": target, "to": [{"targetRef": target, "default": conf}]});
    let all = [
        (
            Kind::MeshTimeout,
            "mesh-timeout-all",
            json!({"targetRef": target, "rules": [{"default": inbound_timeout}]}),
        ),
        (Kind::MeshTimeout, "mesh-timeout-to-all", to_mesh(outbound_timeout)),
        (Kind::MeshCircuitBreaker, "mesh-circuit-breaker-all", to_mesh(limits)),
        (Kind::MeshRetry, "mesh-retry-all", to_mesh(retry)),
    ];
    all.into_iter()
        .filter(|(kind, ..)| !skip.iter().any(|s| s == "*" || s == kind.name()))
        .map(|(kind, prefix, spec)| (kind, format!("{prefix}-{mesh}"), spec))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_valid_and_canonical() {
        let made = initial_policies("default", &[]);
        let names: Vec<&str> = made.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "mesh-timeout-all-default",
                "mesh-timeout-to-all-default",
                "mesh-circuit-breaker-all-default",
                "mesh-retry-all-default"
            ]
        );
        for (kind, _, spec) in made {
            assert_eq!((kind.descriptor().canonical)(spec.clone()), Ok(spec));
        }
    }

    #[test]
    fn kinds_can_be_skipped() {
        assert!(initial_policies("m", &["*".into()]).is_empty());
        let made = initial_policies("m", &["MeshTimeout".into(), "Other".into()]);
        assert_eq!(
            made.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(),
            [Kind::MeshCircuitBreaker, Kind::MeshRetry]
        );
    }
}
