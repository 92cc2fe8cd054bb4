//! The global's resources as zones get them.
//! Source: kds.md 4.3 (mapping), 4.6 (GlobalProvidedFilter); facts.md F1. Ours beside Kuma's: a zone's MeshTrust goes to every other zone.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use ursa_model::{
    Kind, Labels, Origin, Resource, ResourceKey,
    kind::{config, secret::Secret, zone::Zone},
    labels::{ORIGIN, POLICY_ROLE},
};
use ursa_pki::token::VerifyingKey;
use ursa_proto::kds::KumaResource;
use ursa_state::Catalog;

use super::{Context, Draft, Entry, Made, Problem, hashed_name, made_at_global, role, trust::Verdict};
use crate::{
    auth::SIGNING_KEY_PREFIX,
    peer::{Features, Line},
};

/// What a zone knows the public half of a signing key by.
const PUBLIC_KEY_PREFIX: &str = "zone-token-signing-public-key";
/// GlobalSecrets that stay at the global.
const PRIVATE_SECRETS: [&str; 4] = ["envoy-admin-ca", "admin-user-token", "inter-cp-ca", "user-token-revocations"];
const PRIVATE_SECRET_PREFIX: &str = "user-token-signing-key";
/// Field 9 of Kuma 2's Mesh, `meshServices {mode: Exclusive}`: field 1 of the inner message is the enum, Exclusive is 3.
const MESH_SERVICES_EXCLUSIVE: [u8; 4] = [9 << 3 | 2, 2, 1 << 3, 3];

pub(super) fn map(context: &Context<'_>, resource: &Resource, hash_suffix: bool, line: Line) -> Result<Option<Entry>, Problem> {
    let made = made_at_global(resource);
    let Some(needs) = shown(context, resource, made)? else {
        return Ok(None);
    };
    let kind = resource.kind();
    let mut labels: Labels = resource.labels.clone();
    labels.insert(ORIGIN.into(), Origin::Global.as_str().into());
    let mut name = resource.name().to_owned();
    let mut public_key = Value::Null;
    if kind == Kind::GlobalSecret
        && let Some(rest) = name.strip_prefix(SIGNING_KEY_PREFIX)
    {
        public_key = public_half(resource)?;
        name = format!("{PUBLIC_KEY_PREFIX}{rest}");
    }
    if kind.descriptor().hashed && hash_suffix {
        name = hashed_name(resource.mesh(), &name, &mut labels);
    }
    let from: Option<Arc<str>> = if made == Made::InZone {
        source_zone(resource).map(Into::into)
    } else {
        None
    };
    let draft = Draft {
        source: resource,
        name,
        labels,
        spec: if public_key.is_null() { &resource.spec } else { &public_key },
        status: None,
        from,
        needs,
    };
    draft.finish(|bytes| {
        if kind == Kind::Mesh && line == Line::V2 {
            with_exclusive_mesh_services(&bytes)
        } else {
            Ok(bytes)
        }
    })
}

/// `None`: hidden from every zone. Otherwise what a zone must understand to get it.
fn shown(context: &Context<'_>, resource: &Resource, made: Made) -> Result<Option<Features>, Problem> {
    let flags = resource.kind().descriptor().flags;
    let name = resource.name();
    match resource.kind() {
        Kind::Config if name != config::CLUSTER_ID => return Ok(None),
        Kind::GlobalSecret if PRIVATE_SECRETS.contains(&name) || name.starts_with(PRIVATE_SECRET_PREFIX) => return Ok(None),
        _ => {}
    }
    match made {
        Made::Elsewhere => Ok(None),
        Made::Here => Ok(flags.global_to_zones().then(Features::default)),
        // A MeshTrust stays when its zone is disabled: connections that it vouches for go on.
        Made::InZone if resource.kind() == Kind::MeshTrust => match context.trust.verdict(resource) {
            Verdict::Passes => Ok(Some(Features::default())),
            Verdict::Belongs { trust_domain, owner } => Err(Problem::Quarantined {
                key: resource.key.clone(),
                trust_domain,
                owner,
            }),
        },
        Made::InZone if !flags.across_zones() => Ok(None),
        Made::InZone if !source_zone(resource).is_some_and(|zone| is_enabled(context.catalog, zone)) => Ok(None),
        Made::InZone if resource.kind().descriptor().policy.is_some() => {
            let producer = resource.label(POLICY_ROLE) == Some(role::PRODUCER) && role::is_producer(resource);
            Ok(producer.then_some(Features::PRODUCER_POLICY_FLOW))
        }
        Made::InZone => Ok(Some(Features::default())),
    }
}

/// The zone by its label; else the part of the name before the first dot, as zones without `hash-suffix` are stored.
fn source_zone(resource: &Resource) -> Option<&str> {
    resource.zone().or_else(|| resource.name().split_once('.').map(|(zone, _)| zone))
}

/// A zone that cannot be read counts as enabled, as in Kuma.
pub(crate) fn is_enabled(catalog: &Catalog, zone: &str) -> bool {
    ResourceKey::new(Kind::Zone, "", zone)
        .ok()
        .and_then(|key| catalog.get(&key)?.spec::<Zone>().ok())
        .is_none_or(|z| z.is_enabled())
}

/// A private key never leaves the global: no public half, no secret.
fn public_half(resource: &Resource) -> Result<Value, Problem> {
    let key = || {
        resource
            .spec::<Secret>()
            .ok()?
            .bytes()
            .and_then(|pem| VerifyingKey::parse(&pem).ok())
    };
    key()
        .and_then(|key| serde_json::to_value(Secret::of(key.to_pem().as_bytes())).ok())
        .ok_or_else(|| Problem::SigningKey { key: resource.key.clone() })
}

/// Appends field 9 to the encoded Mesh: protobuf fields may come in any order.
fn with_exclusive_mesh_services(bytes: &[u8]) -> Result<Bytes, String> {
    let mut resource = KumaResource::decode(bytes).map_err(|e| e.to_string())?;
    if let Some(spec) = resource.spec.as_mut() {
        spec.value.extend_from_slice(&MESH_SERVICES_EXCLUSIVE);
    }
    Ok(resource.encode_to_vec().into())
}
