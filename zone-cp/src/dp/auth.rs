//! Who may be a proxy: dataplane tokens, checked against the signing keys of the Dataplane's mesh. Pure over a view.
//! Source: Kuma, `pkg/xds/auth/universal/authenticator.go` (dataplane.md 1.6, api.md 4.3).

use time::OffsetDateTime;
use ursa_model::{
    Kind, Resource, ResourceKey,
    kind::{dataplane::Dataplane, secret::Secret},
    labels,
};
use ursa_pki::token::{self, DataplaneClaims, Family, Known};
use ursa_policy::Parsed;
use ursa_state::View;

use crate::{
    derive::identity,
    world::{MeshWorld, ProxyId},
};

/// Why a proxy is refused.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("a dataplane token is required (metadata `authorization`)")]
    NoToken,
    #[error("dataplane token refused: {0}")]
    Token(#[from] token::Error),
    #[error("mesh {0:?} has no dataplane token signing key")]
    NoKey(String),
    #[error("the token is for {claim} {token:?}, the proxy is {proxy:?}")]
    Mismatch { claim: &'static str, token: String, proxy: String },
    #[error("the token requires label {key} to be one of {allowed:?}, the Dataplane has {have:?}")]
    Tag {
        key: String,
        allowed: Vec<String>,
        have: Option<String>,
    },
    #[error(
        "the token is not bound to a workload, but MeshIdentity {identity} derives the proxy's SPIFFE ID from label kuma.io/workload; generate the token with --workload {workload}"
    )]
    Unbound { identity: String, workload: String },
    #[error("a Dataplane of this name exists, and the token could not be its own: {0}")]
    Taken(#[source] Box<Denied>),
    #[error("the Dataplane has no label kuma.io/workload, which the SPIFFE ID of MeshIdentity {identity} is made of")]
    NoWorkload { identity: String },
}

/// Keys and revocations of the dataplane tokens of a mesh. Revocations are kept in a Secret of the mesh, and in practice also in a
/// GlobalSecret of the same name (api.md 4.3).
fn known(view: &View, mesh: &str) -> Known {
    let family = Family::dataplane(mesh);
    let content = |secret: &Resource| secret.spec::<Secret>().ok().and_then(|s| s.bytes()).unwrap_or_default();
    let of_mesh = view.list_in(Kind::Secret, mesh).filter(|s| family.purpose(s.name()).is_some());
    let of_all = ResourceKey::new(Kind::GlobalSecret, "", family.revocations())
        .ok()
        .and_then(|key| view.get(&key));
    let known = family.read(of_mesh.chain(of_all).map(|s| (s.name(), content(s))));
    for (secret, error) in &known.unreadable {
        tracing::warn!(mesh, secret, %error, "dataplane tokens signed with this key are refused: it cannot be read");
    }
    known
}

/// Checks a proxy's token against its identity and its Dataplane. Called once per stream; what changes later is checked with the
/// workload of the claims, when a certificate is issued.
pub fn authenticate(
    view: &View,
    mesh: Option<&MeshWorld>,
    proxy: &ProxyId,
    dataplane: &Parsed<Dataplane>,
    token: Option<&str>,
    now: OffsetDateTime,
) -> Result<DataplaneClaims, Denied> {
    let claims = claims(view, proxy, token, now)?;
    check_bounds(&claims, proxy, &dataplane.resource)?;
    check_workload(&claims, mesh, dataplane)?;
    Ok(claims)
}

/// Checks that a token may speak for the proxy of a stored Dataplane, to end its life in order.
pub fn may_drain(view: &View, proxy: &ProxyId, stored: &Resource, token: Option<&str>, now: OffsetDateTime) -> Result<(), Denied> {
    let claims = claims(view, proxy, token, now)?;
    check_bounds(&claims, proxy, stored)
}

/// Checks that a token may also be the one of the Dataplane that a proxy is about to replace: otherwise whoever holds a token
/// without a name could take another proxy's place. What identities ask for is not looked at: the new one has to meet it.
/// Source: dataplane.md 1.8.
pub fn may_replace(view: &View, proxy: &ProxyId, stored: &Resource, token: Option<&str>, now: OffsetDateTime) -> Result<(), Denied> {
    let claims = claims(view, proxy, token, now)?;
    check_bounds(&claims, proxy, stored).map_err(|denied| Denied::Taken(Box::new(denied)))
}

/// Whether a token lets its proxy publish an address of the zone: it must carry the tag of a zone ingress,
/// `kuma.io/listener-zoneingress: enabled`. Otherwise any sidecar could draw the traffic of other zones to itself.
pub fn may_advertise(claims: &DataplaneClaims) -> bool {
    claims
        .tags
        .get(labels::LISTENER_ZONE_INGRESS)
        .is_some_and(|allowed| allowed.iter().any(|a| a == "enabled"))
}

fn claims(view: &View, proxy: &ProxyId, token: Option<&str>, now: OffsetDateTime) -> Result<DataplaneClaims, Denied> {
    let token = token
        .map(|t| t.strip_prefix("Bearer ").unwrap_or(t).trim())
        .filter(|t| !t.is_empty())
        .ok_or(Denied::NoToken)?;
    let known = known(view, &proxy.mesh);
    if known.keys.is_empty() {
        return Err(Denied::NoKey(proxy.mesh.to_string()));
    }
    Ok(token::validate(token, &known.keys, &known.revoked, now)?.claims)
}

/// What a token is bound to: name, mesh, labels, workload.
fn check_bounds(claims: &DataplaneClaims, proxy: &ProxyId, resource: &Resource) -> Result<(), Denied> {
    for (claim, token, proxy) in [("name", &claims.name, &proxy.name), ("mesh", &claims.mesh, &proxy.mesh)] {
        if !token.is_empty() && token.as_str() != proxy.as_ref() {
            return Err(Denied::Mismatch {
                claim,
                token: token.clone(),
                proxy: proxy.to_string(),
            });
        }
    }
    for (key, allowed) in &claims.tags {
        let have = resource.label(key);
        if !have.is_some_and(|have| allowed.iter().any(|a| a == have)) {
            return Err(Denied::Tag {
                key: key.clone(),
                allowed: allowed.clone(),
                have: have.map(str::to_owned),
            });
        }
    }
    let workload = resource.label(labels::WORKLOAD);
    if !claims.workload.is_empty() && workload != Some(claims.workload.as_str()) {
        return Err(Denied::Mismatch {
            claim: "workload",
            token: claims.workload.clone(),
            proxy: workload.unwrap_or_default().to_owned(),
        });
    }
    Ok(())
}

/// Whether the identity that selects the proxy asks for a workload, and the token is bound to it.
fn check_workload(claims: &DataplaneClaims, mesh: Option<&MeshWorld>, dataplane: &Parsed<Dataplane>) -> Result<(), Denied> {
    let workload = dataplane.resource.label(labels::WORKLOAD);
    let chosen = mesh.and_then(|m| identity::of_proxy(m, dataplane).first().copied().cloned());
    if let Some(identity) = chosen.filter(|i| identity::uses_workload(&i.spec)) {
        let identity_name = identity.resource.display_name().to_owned();
        match workload {
            None => return Err(Denied::NoWorkload { identity: identity_name }),
            Some(workload) if claims.workload.is_empty() => {
                return Err(Denied::Unbound {
                    identity: identity_name,
                    workload: workload.to_owned(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
