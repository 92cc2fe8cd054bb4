//! CAs of this zone: a MeshIdentity that generates its CA gets key, certificate and MeshTrust in one changeset.
//! The CA's secrets have no owner: certificates issued from it outlive the MeshIdentity, so it must not vanish with it.
//! Source: dataplane.md 3.3 to 3.5, facts.md F5.

use ursa_model::{
    Kind, Labels, ResourceKey,
    kind::{
        mesh_identity::{Condition, MeshIdentity, MeshIdentityStatus},
        mesh_trust::{BundleType, CaBundle, MeshTrust, MeshTrustStatus, Pem, TrustOrigin},
        secret::Secret,
    },
    kri::Kri,
    labels::{Site, computed},
};
use ursa_pki::ca::{CaMaterial, CertificateAuthority};
use ursa_policy::Parsed;
use ursa_state::{Expect, Op, Put, View};

use super::identity;
use crate::world::{MeshWorld, World};

/// A CA that this zone must make.
#[derive(Debug)]
pub struct Missing<'a> {
    pub identity: &'a Parsed<MeshIdentity>,
    pub trust_domain: ursa_pki::TrustDomain,
}

/// The CA of an identity, as stored in this zone.
pub fn stored_ca(view: &View, identity: &Parsed<MeshIdentity>) -> Option<CaMaterial> {
    let (cert, key) = identity::ca_secret_names(identity);
    let text = |name: &str| {
        let key = ResourceKey::new(Kind::Secret, identity.resource.mesh(), name).ok()?;
        view.get(&key)?.spec::<Secret>().ok()?.text()
    };
    Some(CaMaterial {
        cert_pem: text(&cert)?,
        key_pem: text(&key)?,
    })
}

/// Identities of a mesh whose CA this zone has yet to make.
pub fn missing<'a>(world: &World, mesh: &'a MeshWorld, view: &View, problems: &mut Vec<String>) -> Vec<Missing<'a>> {
    let mut out = Vec::new();
    for identity in mesh.identities.iter().filter(|i| identity::generates_ca(&i.spec)) {
        if stored_ca(view, identity).is_some() {
            continue;
        }
        // Half a CA is never completed: certificate and key would not belong together.
        let (cert, key) = identity::ca_secret_names(identity);
        let exists = |name: &str| ResourceKey::new(Kind::Secret, identity.resource.mesh(), name).is_ok_and(|key| view.get(&key).is_some());
        if exists(&cert) || exists(&key) {
            problems.push(format!(
                "{}: secrets {cert} and {key} are no complete CA; restore them, or delete both for a new CA",
                identity.resource.key
            ));
            continue;
        }
        match identity::trust_domain(identity, world.zone.as_str()) {
            Ok(text) => match text.parse() {
                Ok(trust_domain) => out.push(Missing { identity, trust_domain }),
                Err(err) => problems.push(format!(
                    "MeshIdentity {}: {text:?} is no trust domain: {err}",
                    identity.resource.name()
                )),
            },
            Err(err) => problems.push(err.to_string()),
        }
    }
    out
}

/// Ops that store a new CA of an identity.
pub fn store_ca(world: &World, identity: &Parsed<MeshIdentity>, ca: &CaMaterial) -> Vec<Op> {
    let mesh = identity.resource.mesh();
    let (cert_name, key_name) = identity::ca_secret_names(identity);
    [(cert_name, &ca.cert_pem), (key_name, &ca.key_pem)]
        .into_iter()
        .filter_map(|(name, pem)| {
            let labels = computed(Site::Zone(world.zone.as_str()), Kind::Secret, mesh, &name, Labels::new(), None);
            Some(Op::Put(Put {
                key: ResourceKey::new(Kind::Secret, mesh, &name).ok()?,
                labels,
                spec: serde_json::to_value(Secret::of(pem.as_bytes())).ok()?,
                status: None,
                owner: ResourceKey::mesh_itself(mesh).ok(),
                expect: Expect::Absent,
            }))
        })
        .collect()
}

/// Ops that bring MeshTrust and status of an identity to what its CA says. A CA is added to a MeshTrust, never removed.
pub fn publish(world: &World, mesh: &MeshWorld, identity: &Parsed<MeshIdentity>, ca: &CaMaterial) -> Vec<Op> {
    let mut ops = Vec::new();
    let name = identity.resource.name();
    let Ok(trust_domain) = identity::trust_domain(identity, world.zone.as_str()) else {
        return ops;
    };
    let usable = CertificateAuthority::load(&ca.cert_pem, &ca.key_pem)
        .map_err(|e| e.to_string())
        .and_then(|loaded| match loaded.trust_domain() {
            // Renaming the MeshTrust would take the trust away from every certificate in use, and the CA issues none for the new domain.
            Some(of_ca) if of_ca.as_str() != trust_domain => Err(format!(
                "its CA is of trust domain {of_ca}, not {trust_domain}; a trust domain cannot be changed, make another MeshIdentity"
            )),
            _ => Ok(()),
        });
    let stored = mesh.trusts.iter().find(|t| t.resource.name() == name);
    let known = mesh
        .trusts
        .iter()
        .filter(|t| crate::world::is_local(&t.resource) && t.spec.trust_domain == trust_domain)
        .any(|t| t.spec.pems().any(|p| p.trim() == ca.cert_pem.trim()));
    if usable.is_ok() && identity::creates_trust(&identity.spec) && !known {
        let mut spec = stored.map_or_else(
            || MeshTrust {
                trust_domain: trust_domain.clone(),
                ca_bundles: Vec::new(),
            },
            |t| t.spec.clone(),
        );
        spec.trust_domain.clone_from(&trust_domain);
        spec.ca_bundles.push(CaBundle {
            kind: BundleType::Pem,
            pem: Some(Pem {
                value: ca.cert_pem.clone(),
            }),
        });
        let status = MeshTrustStatus {
            origin: Some(TrustOrigin {
                kri: Kri::of(&identity.resource).map(|k| k.to_string()),
            }),
        };
        let labels = computed(
            Site::Zone(world.zone.as_str()),
            Kind::MeshTrust,
            &mesh.mesh,
            name,
            Labels::new(),
            None,
        );
        if let (Ok(key), Ok(spec), Ok(status)) = (
            ResourceKey::new(Kind::MeshTrust, &mesh.mesh, name),
            serde_json::to_value(spec),
            serde_json::to_value(status),
        ) {
            let owner = ResourceKey::mesh_itself(&mesh.mesh).ok();
            ops.push(Op::Put(Put {
                key,
                labels,
                spec,
                status: Some(status),
                owner,
                expect: Expect::Any,
            }));
        }
    }
    let ready = MeshIdentityStatus {
        conditions: conditions(usable),
    };
    if identity.resource.status::<MeshIdentityStatus>().ok().as_ref() != Some(&ready)
        && let Ok(status) = serde_json::to_value(ready)
    {
        let r = &identity.resource;
        let put = Put {
            key: r.key.clone(),
            labels: r.labels.clone(),
            spec: r.spec.clone(),
            status: Some(status),
            owner: None,
            expect: Expect::Version(r.version),
        };
        ops.push(Op::Put(put));
    }
    ops
}

fn conditions<E: std::fmt::Display>(loaded: Result<(), E>) -> Vec<Condition> {
    let condition = |kind: &str, status: &str, reason: &str, message: String| Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
    };
    match loaded {
        Ok(()) => vec![
            condition("Provider", "True", "ProviderInitialized", String::new()),
            condition("MeshTrustCreated", "True", "MeshTrustCreated", String::new()),
            condition("Ready", "True", "Ready", String::new()),
        ],
        Err(err) => vec![
            condition("Provider", "False", "ProviderInitializationError", err.to_string()),
            condition("Ready", "False", "Failure", err.to_string()),
        ],
    }
}
