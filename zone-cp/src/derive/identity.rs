//! Which identity a proxy has: selection of the MeshIdentity, and the SPIFFE id by its templates. Pure.
//! Source: dataplane.md 3.1 and 3.2.

use std::sync::Arc;

use ursa_model::{
    Labels,
    kind::{
        dataplane::Dataplane,
        mesh_identity::{MeshIdentity, ProviderType, TrustCreation},
    },
    labels,
};
use ursa_pki::spiffe::SpiffeId;
use ursa_policy::Parsed;

use super::template;
use crate::world::MeshWorld;

const DEFAULT_TRUST_DOMAIN: &str = "{{ .Mesh }}.{{ .Zone }}.mesh.local";
/// On VMs; Kubernetes names namespace and service account.
const DEFAULT_PATH: &str = "/workload/{{ .Workload }}";

/// Why a proxy that is selected gets no SPIFFE id.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("trust domain of MeshIdentity {identity}: {source}")]
    TrustDomain { identity: String, source: template::Error },
    #[error("path of MeshIdentity {identity}: {source}")]
    Path { identity: String, source: template::Error },
    #[error("MeshIdentity {identity} gives {id:?}, which is no SPIFFE id (does the Dataplane carry the label kuma.io/workload?): {source}")]
    Invalid {
        identity: String,
        id: String,
        source: ursa_pki::spiffe::Error,
    },
}

/// Whether the identity selects a Dataplane with these labels. An absent selector selects nothing, empty labels select all.
pub fn selects(identity: &MeshIdentity, display_name: &str, labels: &Labels) -> bool {
    identity
        .selector
        .as_ref()
        .and_then(|s| s.dataplane.as_ref())
        .is_some_and(|s| labels::matches(labels, display_name, &s.match_labels))
}

/// All identities that select the proxy, the one that issues first: most labels, then the smallest name.
pub fn of_proxy<'a>(mesh: &'a MeshWorld, dataplane: &Parsed<Dataplane>) -> Vec<&'a Arc<Parsed<MeshIdentity>>> {
    let mut found: Vec<_> = mesh
        .identities
        .iter()
        .filter(|i| selects(&i.spec, dataplane.resource.display_name(), &dataplane.resource.labels))
        .collect();
    let specificity = |i: &Parsed<MeshIdentity>| {
        i.spec
            .selector
            .as_ref()
            .and_then(|s| s.dataplane.as_ref())
            .map_or(0, |d| d.match_labels.len())
    };
    found.sort_by(|a, b| {
        specificity(b)
            .cmp(&specificity(a))
            .then_with(|| a.resource.name().cmp(b.resource.name()))
    });
    found
}

/// The trust domain that an identity has in this zone.
pub fn trust_domain(identity: &Parsed<MeshIdentity>, zone: &str) -> Result<String, Error> {
    let r = &identity.resource;
    let text = identity
        .spec
        .spiffe_id
        .as_ref()
        .and_then(|s| s.trust_domain.as_deref())
        .unwrap_or(DEFAULT_TRUST_DOMAIN);
    let zone = r.zone().unwrap_or(zone);
    let value = |name: &str| match name {
        "Mesh" => Some(r.mesh().to_owned()),
        "Zone" => Some(zone.to_owned()),
        _ => None,
    };
    template::render(text, value, |key| r.label(key).map(str::to_owned)).map_err(|source| Error::TrustDomain {
        identity: r.name().to_owned(),
        source,
    })
}

/// The SPIFFE id that an identity gives a proxy.
pub fn spiffe_id(identity: &Parsed<MeshIdentity>, zone: &str, dataplane: &Parsed<Dataplane>) -> Result<SpiffeId, Error> {
    let name = identity.resource.name();
    let domain = trust_domain(identity, zone)?;
    let d = &dataplane.resource;
    let text = identity
        .spec
        .spiffe_id
        .as_ref()
        .and_then(|s| s.path.as_deref())
        .unwrap_or(DEFAULT_PATH);
    let label = |key: &str| d.label(key).map(str::to_owned);
    let value = |name: &str| match name {
        "TrustDomain" => Some(domain.clone()),
        "Namespace" => Some(label(labels::K8S_NAMESPACE).unwrap_or_default()),
        "ServiceAccount" => Some(label(labels::K8S_SERVICE_ACCOUNT).unwrap_or_default()),
        "Workload" => Some(label(labels::WORKLOAD).unwrap_or_default()),
        _ => None,
    };
    let path = template::render(text, value, label).map_err(|source| Error::Path {
        identity: name.to_owned(),
        source,
    })?;
    let id = format!("spiffe://{domain}{path}");
    id.parse().map_err(|source| Error::Invalid {
        identity: name.to_owned(),
        id,
        source,
    })
}

/// Whether the path names the workload, so that the proxy's token must be bound to one (dataplane.md 1.6).
pub fn uses_workload(identity: &MeshIdentity) -> bool {
    identity
        .spiffe_id
        .as_ref()
        .and_then(|s| s.path.as_deref())
        .unwrap_or(DEFAULT_PATH)
        .contains(".Workload")
}

/// The identity's CA is made and kept by this zone.
pub fn generates_ca(identity: &MeshIdentity) -> bool {
    identity.provider.as_ref().is_some_and(|p| {
        p.kind == ProviderType::Bundled
            && p.bundled
                .as_ref()
                .is_some_and(|b| b.ca.is_none() && b.autogenerate.as_ref().is_some_and(|a| a.enabled == Some(true)))
    })
}

/// A MeshTrust is made of its CA.
pub fn creates_trust(identity: &MeshIdentity) -> bool {
    identity
        .provider
        .as_ref()
        .and_then(|p| p.bundled.as_ref())
        .is_some_and(|b| b.mesh_trust_creation.unwrap_or(TrustCreation::Enabled) == TrustCreation::Enabled)
}

/// Names of the secrets that hold the CA: certificate and key (facts.md F5).
pub fn ca_secret_names(identity: &Parsed<MeshIdentity>) -> (String, String) {
    let name = identity.resource.display_name();
    (format!("{name}-root-ca"), format!("{name}-private-key"))
}
