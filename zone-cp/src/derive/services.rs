//! MeshServices of this zone, derived from its Dataplanes: one per workload. Pure. Source: facts.md F9, F10; dataplane.md 3.6, 4.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use ursa_model::{
    Kind, Labels, ResourceKey, Timestamp,
    kind::{
        dataplane::Dataplane,
        mesh_service::{
            Identity, IdentityType, LabelSelector, MeshService, MeshServiceStatus, Port, ProxyCounts, Selector, ServiceState, TargetPort,
            TlsReadiness,
        },
    },
    labels,
    name::is_dns1035_label,
};
use ursa_policy::Parsed;
use ursa_state::{Expect, Op, Put};

use super::identity;
use crate::world::{MeshWorld, World, is_local};

/// Who made a derived MeshService (value of label `kuma.io/managed-by`).
pub const MANAGED_BY: &str = "meshservice-generator";
/// A service without proxies stays this long, Unavailable, before it is removed: a redeployment must not make other zones
/// forget it.
const GRACE_MS: u64 = 3_600_000;

/// Ops that bring the derived MeshServices of a mesh to what its Dataplanes say. Empty when they already agree.
pub fn wanted(world: &World, mesh: &MeshWorld, now: Timestamp, problems: &mut Vec<String>) -> Vec<Op> {
    let mut by_workload: BTreeMap<&str, Vec<&Arc<Parsed<Dataplane>>>> = BTreeMap::new();
    for dataplane in mesh
        .dataplanes
        .values()
        .filter(|d| !d.spec.is_zone_proxy() && d.spec.networking.gateway.is_none())
    {
        let Some(workload) = dataplane.resource.label(labels::WORKLOAD) else {
            continue;
        };
        if is_dns1035_label(workload) {
            by_workload.entry(workload).or_default().push(dataplane);
        } else {
            problems.push(format!(
                "{}: workload {workload:?} is no RFC 1035 label, it gets no MeshService",
                dataplane.resource.key
            ));
        }
    }
    let existing: BTreeMap<&str, &Arc<Parsed<MeshService>>> = mesh
        .services
        .iter()
        .filter(|s| is_local(&s.resource))
        .map(|s| (s.resource.name(), s))
        .collect();
    let mut ops = Vec::new();
    for (workload, dataplanes) in &by_workload {
        let stored = existing.get(workload).copied();
        if stored.is_some_and(|s| s.resource.label(labels::MANAGED_BY) != Some(MANAGED_BY)) {
            continue;
        }
        ops.extend(service(world, mesh, workload, dataplanes, stored));
    }
    for (name, stored) in existing {
        if !by_workload.contains_key(name) && stored.resource.label(labels::MANAGED_BY) == Some(MANAGED_BY) {
            ops.extend(without_proxies(stored, now));
        }
    }
    ops
}

fn service(
    world: &World,
    mesh: &MeshWorld,
    workload: &str,
    dataplanes: &[&Arc<Parsed<Dataplane>>],
    stored: Option<&Arc<Parsed<MeshService>>>,
) -> Option<Op> {
    // The stored ports stay while some proxy still has them; otherwise the first proxy decides.
    let ports_of = |d: &Parsed<Dataplane>| -> Vec<Port> { d.spec.networking.inbound.iter().map(port).collect() };
    let ports = stored
        .map(|s| s.spec.ports.clone())
        .filter(|have| dataplanes.iter().any(|d| ports_of(d) == *have))
        .or_else(|| dataplanes.first().map(|d| ports_of(d)))?;
    let matched: Vec<&Arc<Parsed<Dataplane>>> = dataplanes.iter().copied().filter(|d| ports_of(d) == ports).collect();

    let mut ids = BTreeSet::new();
    let mut all_have_identity = true;
    let domains = mesh.trust_domains();
    for dataplane in dataplanes {
        let of_proxy = identity::of_proxy(mesh, dataplane);
        let mut trusted = false;
        for i in &of_proxy {
            if let Ok(id) = identity::spiffe_id(i, world.zone.as_str(), dataplane) {
                // A proxy whose token does not fit never gets its certificate.
                trusted |= domains.contains_key(id.trust_domain().as_str()) && world.is_bound(&i.spec, &dataplane.resource);
                ids.insert(id.to_string());
            }
        }
        all_have_identity &= trusted;
    }
    let available = matched
        .iter()
        .any(|d| !d.spec.networking.inbound.is_empty() && d.spec.networking.inbound.iter().all(|i| i.is_ready()));
    let spec = MeshService {
        state: if available {
            ServiceState::Available
        } else {
            ServiceState::Unavailable
        },
        selector: Selector {
            dataplane_ref: None,
            dataplane_labels: Some(LabelSelector {
                match_labels: Labels::from([(labels::WORKLOAD.into(), workload.into())]),
            }),
        },
        ports,
        identities: ids
            .into_iter()
            .map(|value| Identity {
                kind: IdentityType::SpiffeId,
                value,
            })
            .collect(),
    };
    let old: MeshServiceStatus = stored.and_then(|s| s.resource.status().ok()).unwrap_or_default();
    // A one-way latch while an identity exists: a proxy that joins without a certificate must not turn TLS off for the others.
    let latched = old.tls.status == Some(TlsReadiness::Ready) && !mesh.identities.is_empty();
    let mut status = old.clone();
    // What is connected changes with every stream and would cost an entry each time; these change with the Dataplanes.
    let ready = dataplanes
        .iter()
        .filter(|d| d.spec.networking.inbound.iter().all(|i| i.is_ready()))
        .count();
    status.dataplane_proxies = ProxyCounts {
        connected: None,
        healthy: u32::try_from(ready).ok(),
        total: u32::try_from(dataplanes.len()).ok(),
    };
    status.tls.status = Some(if latched || all_have_identity {
        TlsReadiness::Ready
    } else {
        TlsReadiness::NotReady
    });

    let wanted_labels = Labels::from([
        (labels::DISPLAY_NAME.into(), workload.into()),
        (labels::MESH.into(), mesh.mesh.as_ref().into()),
        (labels::ORIGIN.into(), "zone".into()),
        (labels::ZONE.into(), world.zone.as_str().into()),
        (labels::ENV.into(), "universal".into()),
        (labels::MANAGED_BY.into(), MANAGED_BY.into()),
    ]);
    let spec: Value = serde_json::to_value(spec).ok()?;
    if let Some(s) = stored
        && s.resource.spec == spec
        && s.resource.labels == wanted_labels
        && old == status
    {
        return None;
    }
    let key = ResourceKey::new(Kind::MeshService, &mesh.mesh, workload).ok()?;
    let owner = ResourceKey::mesh_itself(&mesh.mesh).ok();
    Some(Op::Put(Put {
        key,
        labels: wanted_labels,
        spec,
        status: serde_json::to_value(status).ok(),
        owner,
        expect: Expect::Any,
    }))
}

fn port(inbound: &ursa_model::kind::dataplane::Inbound) -> Port {
    Port {
        name: inbound.section(),
        port: inbound.port,
        target_port: Some(TargetPort::Number(inbound.port)),
        app_protocol: inbound.protocol().to_owned(),
    }
}

/// A service that lost its last proxy: Unavailable first, removed after the grace.
fn without_proxies(stored: &Parsed<MeshService>, now: Timestamp) -> Option<Op> {
    let r = &stored.resource;
    match r.label(labels::DELETION_GRACE).and_then(|s| s.parse::<u64>().ok()) {
        Some(since) if now.0.saturating_sub(since) >= GRACE_MS => Some(Op::delete(r.key.clone())),
        Some(_) => None,
        None => {
            let spec = MeshService {
                state: ServiceState::Unavailable,
                ..stored.spec.clone()
            };
            let mut labels = r.labels.clone();
            labels.insert(labels::DELETION_GRACE.into(), now.0.to_string());
            Some(Op::Put(Put {
                key: r.key.clone(),
                labels,
                spec: serde_json::to_value(spec).ok()?,
                status: None,
                owner: None,
                expect: Expect::Present,
            }))
        }
    }
}
