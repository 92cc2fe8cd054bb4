//! MeshZoneAddresses of this zone: each connected zone ingress that advertises an address gets one. Pure.
//! A hand-made one of the same name wins. It is owned by the ingress' Dataplane, so it goes with it, and not with a stream.

use std::{collections::BTreeMap, sync::Arc};

use ursa_model::{
    Kind, Labels, ResourceKey, Spec, Violations,
    kind::{dataplane::ListenerType, mesh_zone_address::MeshZoneAddress},
    labels,
};
use ursa_state::{Expect, Op, Put, View};

use crate::world::{MeshWorld, ProxyId, World};

/// Who made a derived MeshZoneAddress (value of label `kuma.io/managed-by`).
pub const MANAGED_BY: &str = "zone-ingress";

/// What a connected ingress says of itself in its bootstrap metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    pub address: String,
    pub port: u32,
}

/// Ops that publish what connected ingresses advertise. Empty when they already agree.
pub fn wanted(
    world: &World,
    mesh: &MeshWorld,
    view: &View,
    advertised: &BTreeMap<ProxyId, Advertised>,
    problems: &mut Vec<String>,
) -> Vec<Op> {
    let mut ops = Vec::new();
    for (proxy, advertised) in advertised.iter().filter(|(p, _)| p.mesh == mesh.mesh) {
        let Some(dataplane) = mesh.dataplanes.get(&proxy.name) else {
            continue;
        };
        if !dataplane
            .spec
            .networking
            .listeners
            .iter()
            .any(|l| l.kind == ListenerType::ZoneIngress)
        {
            continue;
        }
        let spec = MeshZoneAddress {
            address: advertised.address.clone(),
            port: advertised.port,
        };
        let mut found = Violations::default();
        spec.validate(&mut found);
        if !found.is_empty() {
            problems.push(format!("{proxy} advertises an unusable address: {found}"));
            continue;
        }
        let Ok(key) = ResourceKey::new(Kind::MeshZoneAddress, &mesh.mesh, &proxy.name) else {
            continue;
        };
        let Ok(spec) = serde_json::to_value(spec) else { continue };
        let wanted_labels = Labels::from([
            (labels::DISPLAY_NAME.into(), proxy.name.as_ref().into()),
            (labels::MESH.into(), mesh.mesh.as_ref().into()),
            (labels::ORIGIN.into(), "zone".into()),
            (labels::ZONE.into(), world.zone.as_str().into()),
            (labels::ENV.into(), "universal".into()),
            (labels::MANAGED_BY.into(), MANAGED_BY.into()),
        ]);
        match view.get(&key).map(Arc::as_ref) {
            Some(stored) if stored.label(labels::MANAGED_BY) != Some(MANAGED_BY) => continue,
            Some(stored) if stored.spec == spec && stored.labels == wanted_labels => continue,
            _ => {}
        }
        let owner = Some(dataplane.resource.key.clone());
        ops.push(Op::Put(Put {
            key,
            labels: wanted_labels,
            spec,
            status: None,
            owner,
            expect: Expect::Any,
        }));
    }
    ops
}
