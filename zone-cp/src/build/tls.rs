//! What secures a proxy: its identity, whom it trusts, and what follows for TLS towards a destination.
//! Fail closed: a proxy that an identity selects, but that has no certificate yet, takes nothing in; a destination whose
//! identities are not known is not spoken to.

use std::sync::Arc;

use ursa_model::{
    kind::{
        dataplane::Dataplane,
        mesh_identity::ProviderType,
        mesh_service::{IdentityType, MeshService, MeshServiceStatus, Port, TlsReadiness},
    },
    sni::sni,
};
use ursa_policy::Parsed;

use super::{
    names,
    plan::{Plan, Secret, cluster::UpstreamTls, listener::DownstreamTls},
};
use crate::{
    derive::identity,
    world::{IssuedSvid, MeshWorld, World, is_local},
};

/// How a proxy is secured.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Security {
    /// No identity: plain text, and everybody is let in, as Kuma does before there is an identity.
    None,
    /// Mutual TLS with this certificate.
    Mutual(MeshTls),
    /// It should have an identity and has none that works, for this reason.
    Broken(String),
}

/// What every TLS context of a proxy with an identity has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MeshTls {
    /// Name of the secret with its certificate.
    pub(super) identity: String,
    /// `spiffe://<trust domain>/` of all trusted domains, sorted.
    pub(super) prefixes: Vec<String>,
}

impl MeshTls {
    /// The inbound side.
    pub(super) fn downstream(&self) -> DownstreamTls {
        DownstreamTls {
            identity: self.identity.clone(),
            trust: names::TRUST_BUNDLE.into(),
            prefixes: self.prefixes.clone(),
        }
    }
}

/// Finds out how a proxy is secured, and puts its secrets into the plan.
pub(super) fn security(
    world: &World,
    mesh: &MeshWorld,
    dataplane: &Parsed<Dataplane>,
    svid: Option<&Arc<IssuedSvid>>,
    plan: &mut Plan,
) -> Security {
    let Some(svid) = svid else {
        return without_certificate(world, mesh, dataplane);
    };
    let domains = mesh.trusted.domains.clone();
    if domains.is_empty() {
        return Security::Broken("no trust domain has a usable certificate authority".into());
    }
    let prefixes = domains.keys().map(|domain| format!("spiffe://{domain}/")).collect();
    plan.secrets.insert(names::TRUST_BUNDLE.into(), Secret::Trust { domains });
    plan.secrets.insert(
        svid.secret_name.clone(),
        Secret::Identity {
            chain_pem: svid.chain_pem.clone(),
            key_pem: svid.key_pem.clone(),
        },
    );
    Security::Mutual(MeshTls {
        identity: svid.secret_name.clone(),
        prefixes,
    })
}

/// Without a certificate a proxy is plain only as long as none is meant for it: no identity selects it, or one that issues
/// nothing, or one whose authority does not exist yet (its MeshTrust comes with it).
fn without_certificate(world: &World, mesh: &MeshWorld, dataplane: &Parsed<Dataplane>) -> Security {
    let Some(chosen) = identity::of_proxy(mesh, dataplane).first().copied() else {
        return Security::None;
    };
    let name = chosen.resource.name();
    match chosen.spec.provider.as_ref().map(|p| p.kind) {
        None => return Security::None,
        Some(ProviderType::Bundled) => {}
        Some(ProviderType::Spire | ProviderType::Extension) => {
            return Security::Broken(format!("the provider of MeshIdentity {name} is not supported"));
        }
    }
    let ready =
        identity::trust_domain(chosen, world.zone.as_str()).is_ok_and(|domain| mesh.trusts.iter().any(|t| t.spec.trust_domain == domain));
    if ready {
        Security::Broken(format!("MeshIdentity {name} selects it, and no certificate is issued to it"))
    } else {
        Security::None
    }
}

/// How to speak to one port of a service.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Upstream {
    Plain,
    Tls(UpstreamTls),
    /// Not at all, for this reason.
    Closed(String),
}

/// Whether and how TLS is spoken to a port. A remote service is reached through its zone's ingress, which knows nothing but
/// SNIs, so it is TLS or nothing; a local one is TLS from the moment that all its proxies have an identity.
/// Source: dataplane.md 2.6, facts.md F7 and F10.
pub(super) fn upstream(security: &Security, service: &Parsed<MeshService>, port: &Port) -> Upstream {
    let local = is_local(&service.resource);
    let terminates = !local
        || service
            .resource
            .status::<MeshServiceStatus>()
            .is_ok_and(|s| s.tls.status == Some(TlsReadiness::Ready));
    let own = match security {
        Security::Mutual(own) => own,
        Security::None if local => return Upstream::Plain,
        Security::Broken(_) if !terminates => return Upstream::Plain,
        Security::None => return Upstream::Closed("it is in another zone, and this proxy has no identity".into()),
        Security::Broken(reason) => return Upstream::Closed(format!("it asks for TLS, and {reason}")),
    };
    if !terminates {
        return Upstream::Plain;
    }
    let ids = service.spec.identities.iter().filter(|i| i.kind == IdentityType::SpiffeId);
    let mut sans: Vec<String> = ids.map(|i| i.value.clone()).filter(|id| !id.is_empty()).collect();
    sans.sort();
    sans.dedup();
    if sans.is_empty() {
        return Upstream::Closed("its identities are not known".into());
    }
    let Some(sni) = sni(&service.resource, &port.section()) else {
        return Upstream::Closed("its name cannot be an SNI".into());
    };
    Upstream::Tls(UpstreamTls {
        sni,
        sans,
        identity: own.identity.clone(),
        trust: names::TRUST_BUNDLE.into(),
    })
}
