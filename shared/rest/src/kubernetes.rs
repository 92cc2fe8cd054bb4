//! Resources as objects of Kubernetes (`format=k8s`), as `kumactl export --format kubernetes` asks for them.
//! Pure. Source: `reference/api.md` 1.2 and the CRDs of Kuma's documentation. Not written: status, versions, times, which are the
//! other cluster's to make.

use serde_json::{Map, Value, json};
use ursa_model::{Kind, Resource, Scope, kind::Encoding, labels};

/// Where Kuma keeps its objects unless told otherwise.
pub(crate) const SYSTEM_NAMESPACE: &str = "kuma-system";
const API_VERSION: &str = "kuma.io/v1alpha1";

/// A resource as the object that `kubectl apply` takes.
pub(crate) fn object(resource: &Resource, namespace: &str) -> Value {
    let descriptor = resource.kind().descriptor();
    let mut labels = resource.labels.clone();
    if descriptor.scope == Scope::Mesh {
        labels.insert(labels::MESH.into(), resource.mesh().into());
    }
    let mut metadata = Map::new();
    metadata.insert("name".into(), resource.name().into());
    // Meshes and zones belong to the whole cluster.
    if !matches!(resource.kind(), Kind::Mesh | Kind::Zone | Kind::ZoneInsight) {
        metadata.insert("namespace".into(), namespace.into());
    }
    if !labels.is_empty() {
        metadata.insert("labels".into(), json!(labels));
    }
    let secret = match resource.kind() {
        Kind::Secret => Some("system.kuma.io/secret"),
        Kind::GlobalSecret => Some("system.kuma.io/global-secret"),
        _ => None,
    };
    if let Some(kind) = secret {
        let data = resource.spec.get("data").cloned().unwrap_or_else(|| "".into());
        return json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": {"value": data}});
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), API_VERSION.into());
    object.insert("kind".into(), descriptor.name.into());
    if descriptor.scope == Scope::Mesh && matches!(descriptor.encoding, Encoding::Proto(_)) {
        object.insert("mesh".into(), resource.mesh().into());
    }
    object.insert("metadata".into(), metadata.into());
    object.insert("spec".into(), resource.spec.clone());
    object.into()
}
