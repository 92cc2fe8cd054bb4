//! Which zone a trust domain belongs to. A zone that publishes a MeshTrust for another zone's trust domain could vouch for that
//! zone's workloads everywhere; so its MeshTrust stays where it is.
//! In: all MeshTrusts at the global. Out: a verdict per MeshTrust. Pure.
//! Invariant: a trust domain belongs to the zone that published it first; another zone's MeshTrust for it passes only if it adds no
//! CA, or if a MeshTrust made at the global names the trust domain (then the operator answers for it).
//! Relies on: the receiver at the global stores a MeshTrust whose trust domain changes as a new one, so that `create_revision`
//! says when this trust domain was first published under that name. Source: DESIGN.md 4.

use std::collections::{BTreeMap, BTreeSet};

use ursa_model::{Kind, Resource, kind::mesh_trust::MeshTrust};
use ursa_pki::trust::Bundle;
use ursa_state::Catalog;

use super::{Made, made_at_global};

/// Mesh and lower-case trust domain.
type Domain = (String, String);

/// Who owns which trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    owners: BTreeMap<Domain, Owner>,
    /// Trust domains that the operator named at the global.
    open: BTreeSet<Domain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    zone: String,
    /// All CAs of the owner's MeshTrusts for the trust domain.
    authorities: BTreeSet<String>,
}

/// Whether a zone's MeshTrust goes to other zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passes,
    Belongs { trust_domain: String, owner: String },
}

impl Bindings {
    pub fn of(catalog: &Catalog) -> Self {
        let mut trusts = catalog.list(Kind::MeshTrust);
        trusts.sort_by(|a, b| (a.create_revision, &a.key).cmp(&(b.create_revision, &b.key)));
        let mut out = Self::default();
        for resource in trusts {
            let Some((domain, spec)) = read(&resource) else { continue };
            match (made_at_global(&resource), resource.zone()) {
                (Made::Here, _) => {
                    out.open.insert(domain);
                }
                (Made::InZone, Some(zone)) => {
                    let owner = out.owners.entry(domain).or_insert_with(|| Owner {
                        zone: zone.to_owned(),
                        authorities: BTreeSet::new(),
                    });
                    if owner.zone == zone {
                        owner.authorities.extend(authorities(&spec));
                    }
                }
                _ => {}
            }
        }
        out
    }

    /// For a MeshTrust that a zone made.
    pub fn verdict(&self, resource: &Resource) -> Verdict {
        let Some((domain, spec)) = read(resource) else {
            return Verdict::Belongs {
                trust_domain: String::new(),
                owner: String::new(),
            };
        };
        if self.open.contains(&domain) {
            return Verdict::Passes;
        }
        match self.owners.get(&domain) {
            Some(owner) if Some(owner.zone.as_str()) != resource.zone() && !authorities(&spec).is_subset(&owner.authorities) => {
                Verdict::Belongs {
                    trust_domain: spec.trust_domain,
                    owner: owner.zone.clone(),
                }
            }
            _ => Verdict::Passes,
        }
    }
}

fn read(resource: &Resource) -> Option<(Domain, MeshTrust)> {
    let spec: MeshTrust = resource.spec().ok()?;
    Some(((resource.mesh().to_owned(), spec.trust_domain.to_ascii_lowercase()), spec))
}

/// Certificates by fingerprint, so that white space and order make no difference; a text that is no PEM stands for itself.
fn authorities(spec: &MeshTrust) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for pem in spec.pems() {
        match Bundle::parse(pem) {
            Ok(bundle) => out.extend(bundle.certificates().iter().map(|ca| ca.fingerprint().to_string())),
            Err(_) => {
                out.insert(pem.trim().to_owned());
            }
        }
    }
    out
}
