//! Warnings in the answer to a PUT: what is accepted and yet unlikely to be meant.
//! Source: Kuma's `Deprecations` methods; of the kinds here only MeshService has one.

use ursa_model::{Kind, Resource, kind::mesh_service::MeshService, sni::sni};

/// Warnings about a resource as it will be stored.
pub(crate) fn about(resource: &Resource) -> Vec<String> {
    if resource.kind() != Kind::MeshService {
        return Vec::new();
    }
    let Ok(service) = resource.spec::<MeshService>() else {
        return Vec::new();
    };
    let name = resource.display_name();
    let mut found = Vec::new();
    if service.selector.dataplane_ref.is_none() && service.selector.dataplane_labels.is_none() {
        found.push(format!(
            "MeshService '{name}' selects no data plane proxies: set spec.selector.dataplaneLabels or spec.selector.dataplaneRef"
        ));
    }
    for port in &service.ports {
        if sni(resource, &port.section()).is_none() {
            found.push(format!(
                "port {} of MeshService '{name}' cannot be reached from other zones: its SNI would be invalid",
                port.section()
            ));
        }
    }
    found
}
