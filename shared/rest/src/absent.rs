//! Kinds of Kuma that this version does not have: a request for one is told so, instead of "nothing here".
//! Pure. What becomes a [`Kind`] disappears from here by itself.

use ursa_model::{Kind, kind::ALL};

use crate::error::Error;

/// Kinds of Kuma 3.0 by path. Source: `reference/api.md` 1.1.
const KUMA_3: [(&str, &str); 16] = [
    ("hostnamegenerators", "HostnameGenerator"),
    ("meshaccesslogs", "MeshAccessLog"),
    ("meshexternalservices", "MeshExternalService"),
    ("meshfaultinjections", "MeshFaultInjection"),
    ("meshhealthchecks", "MeshHealthCheck"),
    ("meshloadbalancingstrategies", "MeshLoadBalancingStrategy"),
    ("meshmetrics", "MeshMetric"),
    ("meshmultizoneservices", "MeshMultiZoneService"),
    ("meshopentelemetrybackends", "MeshOpenTelemetryBackend"),
    ("meshpassthroughs", "MeshPassthrough"),
    ("meshproxypatches", "MeshProxyPatch"),
    ("meshratelimits", "MeshRateLimit"),
    ("meshtcproutes", "MeshTCPRoute"),
    ("meshtlses", "MeshTLS"),
    ("meshtraces", "MeshTrace"),
    ("workloads", "Workload"),
];

/// Kinds of Kuma 2 that Kuma 3.0 has no more, by path, and what took their place. Source: `reference/api.md` 9.
const KUMA_2: [(&str, &str, &str); 19] = [
    ("circuit-breakers", "CircuitBreaker", "MeshCircuitBreaker"),
    ("external-services", "ExternalService", "MeshExternalService"),
    ("fault-injections", "FaultInjection", "MeshFaultInjection"),
    ("health-checks", "HealthCheck", "MeshHealthCheck"),
    ("meshgatewayroutes", "MeshGatewayRoute", "MeshHTTPRoute"),
    ("meshgateways", "MeshGateway", "a delegated gateway"),
    ("proxytemplates", "ProxyTemplate", "MeshProxyPatch"),
    ("rate-limits", "RateLimit", "MeshRateLimit"),
    ("retries", "Retry", "MeshRetry"),
    ("timeouts", "Timeout", "MeshTimeout"),
    ("traffic-logs", "TrafficLog", "MeshAccessLog"),
    ("traffic-permissions", "TrafficPermission", "MeshTrafficPermission"),
    ("traffic-routes", "TrafficRoute", "MeshHTTPRoute"),
    ("traffic-traces", "TrafficTrace", "MeshTrace"),
    ("virtual-outbounds", "VirtualOutbound", "MeshService"),
    ("zone-ingresses", "ZoneIngress", "a Dataplane with a ZoneIngress listener"),
    ("zoneegresses", "ZoneEgress", "a Dataplane with a ZoneEgress listener"),
    ("zoneingresses", "ZoneIngress", "a Dataplane with a ZoneIngress listener"),
    ("zone-egresses", "ZoneEgress", "a Dataplane with a ZoneEgress listener"),
];

/// The answer to a path that no route has.
pub(crate) fn explain(path: &str) -> Error {
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    let first = parts.next().unwrap_or_default();
    let segment = match first {
        "meshes" => parts.nth(1).unwrap_or_default(),
        other => other,
    };
    if let Some((_, name)) = KUMA_3.iter().find(|(p, _)| *p == segment && Kind::by_path(p).is_none()) {
        return Error::no_kind(format!("{name} is not yet in this version, which has {}", kinds()));
    }
    if let Some((_, name, now)) = KUMA_2.iter().find(|(p, ..)| *p == segment) {
        return Error::no_kind(format!(
            "{name} is a kind of Kuma 2, in whose place is {now}; this version has {}",
            kinds()
        ));
    }
    Error::no_route()
}

/// The kinds that can be asked for.
fn kinds() -> String {
    let names: Vec<&str> = ALL
        .iter()
        .map(|k| k.descriptor())
        .filter(|d| !d.internal && !d.read_only)
        .map(|d| d.name)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_here_is_named() {
        for (path, says) in [
            (
                "/meshes/default/meshtlses",
                "MeshTLS is not yet in this version, which has Mesh, Zone,",
            ),
            ("/meshes/default/meshtlses/x/_resources/dataplanes", "MeshTLS is not yet"),
            ("/meshtlses", "MeshTLS is not yet"),
            ("/meshes/default/circuit-breakers/x", "in whose place is MeshCircuitBreaker"),
            ("/zoneingresses/x", "ZoneIngress is a kind of Kuma 2"),
            ("/meshes/default/nonsense", "nothing at this path"),
            ("/meshes/meshtlses", "nothing at this path"),
            ("/meshes", "nothing at this path"),
            ("//", "nothing at this path"),
            ("", "nothing at this path"),
        ] {
            let error = explain(path);
            assert!(error.status() == 404 && error.to_string().contains(says), "{path}: {error}");
            assert!(!error.to_string().contains("..."), "it fits: {error}");
        }
        // Nothing that is here is said not to be.
        assert!(KUMA_2.iter().all(|(p, ..)| Kind::by_path(p).is_none()));
    }
}
