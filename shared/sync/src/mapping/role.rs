//! The role of a policy made in a zone, recomputed from its content: a zone's word alone does not let it reach into others.
//! Source: kds.md 4.5. Only policies of a Kubernetes namespace have a role other than `system`.

use serde_json::Value;
use ursa_model::{
    Resource,
    labels::{DISPLAY_NAME, K8S_NAMESPACE},
};

/// Value of label `kuma.io/policy-role`.
pub(super) const PRODUCER: &str = "producer";

/// All `to` items select one service or route by name in the policy's own namespace, and there is at least one.
pub(super) fn is_producer(policy: &Resource) -> bool {
    let Some(namespace) = policy.label(K8S_NAMESPACE).filter(|n| !n.is_empty()) else {
        return false;
    };
    let Some(to) = policy.spec.get("to").and_then(Value::as_array) else {
        return false;
    };
    !to.is_empty()
        && to
            .iter()
            .all(|item| item.get("targetRef").is_some_and(|target| is_local_service(target, namespace)))
}

fn is_local_service(target: &Value, namespace: &str) -> bool {
    let text = |key: &str| target.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
    if !matches!(text("kind"), Some("MeshService" | "MeshHTTPRoute")) {
        return false;
    }
    // Kuma 2 refers by name and namespace, Kuma 3 by labels.
    if text("name").is_some() {
        return text("namespace").is_none_or(|n| n == namespace);
    }
    let Some(labels) = target.get("labels").and_then(Value::as_object) else {
        return false;
    };
    labels.contains_key(DISPLAY_NAME)
        && labels
            .iter()
            .all(|(key, value)| key == DISPLAY_NAME || (key == K8S_NAMESPACE && value.as_str() == Some(namespace)))
}
