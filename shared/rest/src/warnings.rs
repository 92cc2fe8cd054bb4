//! Warnings in the answer to a PUT: what is accepted and yet unlikely to be meant.
//! Source: Kuma's `Deprecations` methods; of the kinds here only MeshService has one. Ours: secrets called almost like signing keys.

use ursa_model::{Kind, Resource, kind::mesh_service::MeshService, sni::sni};
use ursa_pki::token::{Family, stored::Purpose};

use crate::rules::token_family;

/// Warnings about a resource as it will be stored.
pub(crate) fn about(resource: &Resource) -> Vec<String> {
    match resource.kind() {
        Kind::MeshService => about_service(resource),
        Kind::Secret | Kind::GlobalSecret => about_secret(resource).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// A secret that is called like a signing key and is none.
fn about_secret(resource: &Resource) -> Option<String> {
    let (kind, mesh, name) = (resource.kind(), resource.mesh(), resource.name());
    let key = match kind {
        Kind::Secret => Family::dataplane(mesh).key_name(1),
        _ => Family::of_global(name).map_or_else(String::new, |f| f.key_name(1)),
    };
    let looks = match kind {
        Kind::Secret => name.starts_with("dataplane-token-signing-key-"),
        _ => !key.is_empty(),
    };
    let used = token_family(kind, mesh, name).and_then(|f| f.purpose(name).map(|p| p != Purpose::Misnamed));
    (looks && used != Some(true)).then(|| format!("{kind} {name:?} signs no tokens: a key would be called like {key:?}"))
}

fn about_service(resource: &Resource) -> Vec<String> {
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
