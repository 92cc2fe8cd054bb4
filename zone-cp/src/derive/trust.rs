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
use crate::world::{MeshWorld, World, is_local};

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
        if let Some(ca) = stored_ca(view, identity) {
            if let Some(Err(problem)) = name_taken(world, mesh, identity, &ca) {
                problems.push(format!("{}: {problem}", identity.resource.key));
            }
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

/// What stands where this zone's MeshTrust for an identity would be, if it belongs to the global: one that was made there under
/// the identity's own name has the same stored name in every zone. It is not this zone's to change. `Ok` when it trusts the CA
/// already. Without that the identity is not ready, and its proxies stay closed: they have certificates that nobody trusts yet.
fn name_taken(world: &World, mesh: &MeshWorld, identity: &Parsed<MeshIdentity>, ca: &CaMaterial) -> Option<Result<(), String>> {
    let name = identity.resource.name();
    let taken = mesh.trusts.iter().find(|t| t.resource.name() == name && !is_local(&t.resource))?;
    if !identity::creates_trust(&identity.spec)
        || identity::trust_domain(identity, world.zone.as_str()).is_ok_and(|d| covers(&taken.spec, &d, ca))
    {
        return Some(Ok(()));
    }
    Some(Err(format!(
        "MeshTrust {} of the global control plane has the name of the one that this zone makes; give that one another name, or add this zone's CA to it",
        taken.resource.display_name()
    )))
}

/// Whether a MeshTrust trusts this CA for this domain.
fn covers(trust: &MeshTrust, domain: &str, ca: &CaMaterial) -> bool {
    trust.trust_domain == domain && trust.pems().any(|p| p.trim() == ca.cert_pem.trim())
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
        .any(|t| is_local(&t.resource) && covers(&t.spec, &trust_domain, ca));
    let taken = name_taken(world, mesh, identity, ca);
    if usable.is_ok() && identity::creates_trust(&identity.spec) && !known && taken.is_none() {
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
        conditions: conditions(usable, taken.unwrap_or(Ok(()))),
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

fn conditions(loaded: Result<(), String>, trust: Result<(), String>) -> Vec<Condition> {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
    };
    let provider = match &loaded {
        Ok(()) => condition("Provider", "True", "ProviderInitialized", ""),
        Err(why) => condition("Provider", "False", "ProviderInitializationError", why),
    };
    let created = loaded.is_ok().then(|| match &trust {
        Ok(()) => condition("MeshTrustCreated", "True", "MeshTrustCreated", ""),
        Err(why) => condition("MeshTrustCreated", "False", "MeshTrustCreationError", why),
    });
    let ready = match loaded.and(trust) {
        Ok(()) => condition("Ready", "True", "Ready", ""),
        Err(why) => condition("Ready", "False", "Failure", &why),
    };
    [provider].into_iter().chain(created).chain([ready]).collect()
}
