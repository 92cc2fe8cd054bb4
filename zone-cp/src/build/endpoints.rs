//! Endpoints of one port of a service: this zone's proxies, or the ingresses of the service's zone.
//! Source: dataplane.md 2.4.

use std::{collections::BTreeMap, sync::Arc};

use ursa_model::{
    kind::{
        dataplane::{Dataplane, Inbound},
        mesh_service::{MeshService, Port, TargetPort},
    },
    labels,
};
use ursa_policy::Parsed;

use super::{
    Reads,
    plan::{
        Endpoints, Plan, Socket,
        endpoint::{Endpoint, Group},
    },
};
use crate::{
    dp::phase,
    world::{MeshWorld, is_local},
};

/// Tag with the protocol of an inbound.
const PROTOCOL: &str = "kuma.io/protocol";
/// Own zone first.
const LOCAL_PRIORITY: u32 = 0;
/// All other zones together.
const REMOTE_PRIORITY: u32 = 1;

/// Endpoints of a port, local or remote.
pub(super) fn of_service(mesh: &MeshWorld, service: &Parsed<MeshService>, port: &Port, plan: &mut Plan, reads: &mut Reads) -> Endpoints {
    if is_local(&service.resource) {
        local(mesh, service, port, plan, reads)
    } else {
        remote(mesh, service, plan)
    }
}

/// Ready inbounds of this zone's proxies that stand for the port.
pub(super) fn local(mesh: &MeshWorld, service: &Parsed<MeshService>, port: &Port, plan: &mut Plan, reads: &mut Reads) -> Endpoints {
    reads.service(service);
    let target = port.target();
    // By zone and address, so that each appears once and the order is stable.
    let mut zones: BTreeMap<String, BTreeMap<Socket, Endpoint>> = BTreeMap::new();
    for dataplane in candidates(mesh, &service.spec, reads).filter(|d| selects(&service.spec, d)) {
        let inbounds = dataplane.spec.networking.inbound.iter();
        for inbound in inbounds.filter(|i| i.is_ready() && stands_for(i, &target)) {
            let Some(socket) = inbound_socket(mesh, dataplane, inbound) else {
                plan.warn(unresolved(dataplane));
                continue;
            };
            let mut tags = phase::shown(&dataplane.resource);
            tags.insert(PROTOCOL.into(), inbound.protocol().into());
            let zone = dataplane.resource.zone().unwrap_or_default().to_owned();
            zones
                .entry(zone)
                .or_default()
                .entry(socket.clone())
                .or_insert(Endpoint { socket, weight: 1, tags });
        }
    }
    Endpoints {
        groups: zones
            .into_iter()
            .map(|(zone, all)| Group {
                zone,
                priority: LOCAL_PRIORITY,
                endpoints: all.into_values().collect(),
            })
            .collect(),
    }
}

/// The proxies that a service may select: those of its workload where it names one, else all.
fn candidates<'a>(
    mesh: &'a MeshWorld,
    service: &MeshService,
    reads: &mut Reads,
) -> impl Iterator<Item = &'a Arc<Parsed<Dataplane>>> + use<'a> {
    let workload = service
        .selector
        .dataplane_labels
        .as_ref()
        .and_then(|s| s.match_labels.get(labels::WORKLOAD));
    let (some, all) = match workload {
        Some(workload) if service.selector.dataplane_ref.is_none() => {
            reads.dataplanes(Some(workload));
            (mesh.by_workload.get(workload), None)
        }
        _ => {
            reads.dataplanes(None);
            (None, Some(mesh.dataplanes.values()))
        }
    };
    some.into_iter().flatten().chain(all.into_iter().flatten())
}

/// The addresses of the ingresses of the service's zone.
fn remote(mesh: &MeshWorld, service: &Parsed<MeshService>, plan: &mut Plan) -> Endpoints {
    let Some(zone) = service.resource.zone() else {
        plan.warn(format!("{} is of another zone and does not say which", service.resource.key));
        return Endpoints::default();
    };
    let mut all = BTreeMap::new();
    for (address, port) in mesh.zone_addresses(zone) {
        let Some(socket) = socket(mesh, address, port) else {
            plan.warn(format!(
                "ingress {address}:{port} of zone {zone} is left out: not an IP address or a name that resolves, and a port"
            ));
            continue;
        };
        let tags = BTreeMap::from([(labels::ZONE.to_owned(), zone.to_owned())]);
        all.insert(socket.clone(), Endpoint { socket, weight: 1, tags });
    }
    if all.is_empty() {
        plan.warn(format!(
            "zone {zone} has no ingress address, so {} has no endpoints",
            service.resource.key
        ));
        return Endpoints::default();
    }
    Endpoints {
        groups: vec![Group {
            zone: zone.into(),
            priority: REMOTE_PRIORITY,
            endpoints: all.into_values().collect(),
        }],
    }
}

/// Whether a service selects a proxy. One that names nothing selects nothing.
pub fn selects(service: &MeshService, dataplane: &Parsed<Dataplane>) -> bool {
    if let Some(named) = &service.selector.dataplane_ref {
        return !named.name.is_empty() && (named.name == dataplane.resource.name() || named.name == dataplane.resource.display_name());
    }
    let wanted = service.selector.dataplane_labels.as_ref().map(|s| &s.match_labels);
    wanted.is_some_and(|wanted| !wanted.is_empty() && dataplane.resource.matches_labels(wanted))
}

fn stands_for(inbound: &Inbound, target: &TargetPort) -> bool {
    match target {
        TargetPort::Number(port) => inbound.port == *port,
        TargetPort::Name(name) => !name.is_empty() && inbound.name == *name,
    }
}

/// Where a proxy takes connections for an inbound. `None` while its address is a name that was not resolved yet.
pub(super) fn inbound_socket(mesh: &MeshWorld, dataplane: &Parsed<Dataplane>, inbound: &Inbound) -> Option<Socket> {
    let networking = &dataplane.spec.networking;
    socket(
        mesh,
        if inbound.address.is_empty() {
            &networking.address
        } else {
            &inbound.address
        },
        inbound.port,
    )
}

/// An address that Envoy takes: an IP address that is not the wildcard, and a port that is not 0.
fn socket(mesh: &MeshWorld, address: &str, port: u32) -> Option<Socket> {
    let ip = mesh.ip(address)?;
    let port = u16::try_from(port).ok().filter(|p| *p != 0)?;
    (!ip.is_unspecified()).then_some(Socket { ip, port })
}

pub(super) fn unresolved(dataplane: &Parsed<Dataplane>) -> String {
    format!(
        "the address {:?} of {} is no IP address and no name that resolves",
        dataplane.spec.networking.address, dataplane.resource.key
    )
}
