//! What the policies of a mesh do to its proxies, for the inspect endpoints.
//! In: a [`Catalog`]. Out: the same matching as the proxies' configuration is built from ([`ursa_policy`]). Pure.
//! Not here: what Envoy was sent; how it looks in JSON ([`crate::routes`]).

use std::{collections::BTreeMap, sync::Arc};

use ursa_model::{
    Kind, Kri, Resource, ResourceKey, Spec,
    kind::{
        ALL,
        common::TargetRef,
        dataplane::Dataplane,
        mesh_service::{MeshService, Selector},
    },
};
use ursa_policy::{Destinations, Matched, Parsed, Policies, Selected, match_proxy, select::is_shadow, selects};
use ursa_state::Catalog;

/// The policies and services of a mesh.
pub(crate) struct MeshPicture {
    mesh: String,
    policies: Policies,
    pub(crate) destinations: Destinations,
    by_kri: BTreeMap<Kri, Arc<Resource>>,
}

fn parsed<T: Spec>(catalog: &Catalog, kind: Kind, mesh: &str) -> Vec<Arc<Parsed<T>>> {
    let all = catalog.list_in(kind, mesh).into_iter();
    all.filter_map(|r| Parsed::parse(r).ok()).map(Arc::new).collect()
}

impl MeshPicture {
    pub(crate) fn of(catalog: &Catalog, mesh: &str) -> Self {
        let named = ALL
            .iter()
            .filter(|k| k.descriptor().policy.is_some() || k.descriptor().destination)
            .flat_map(|k| catalog.list_in(*k, mesh));
        let itself = ResourceKey::mesh_itself(mesh).ok().and_then(|key| catalog.get(&key).cloned());
        Self {
            mesh: mesh.to_owned(),
            policies: Policies {
                permissions: parsed(catalog, Kind::MeshTrafficPermission, mesh),
                http_routes: parsed(catalog, Kind::MeshHTTPRoute, mesh),
                timeouts: parsed(catalog, Kind::MeshTimeout, mesh),
                retries: parsed(catalog, Kind::MeshRetry, mesh),
                circuit_breakers: parsed(catalog, Kind::MeshCircuitBreaker, mesh),
            },
            destinations: Destinations::new(parsed::<MeshService>(catalog, Kind::MeshService, mesh)),
            by_kri: named.chain(itself).filter_map(|r| Some((Kri::of(&r)?, r))).collect(),
        }
    }

    /// What holds for a proxy.
    pub(crate) fn matched(&self, dataplane: &Parsed<Dataplane>) -> Matched {
        match_proxy(&self.policies, &self.destinations, dataplane, &self.mesh)
    }

    /// The resource that a KRI names; its section is not looked at.
    pub(crate) fn resource(&self, kri: &Kri) -> Option<&Arc<Resource>> {
        self.by_kri.get(&kri.clone().with_section(""))
    }
}

/// The Dataplanes of a mesh.
pub(crate) fn dataplanes(catalog: &Catalog, mesh: &str) -> Vec<Arc<Parsed<Dataplane>>> {
    parsed(catalog, Kind::Dataplane, mesh)
}

/// What of a proxy a policy is about. A policy that only shows what it would do, or whose target is not known, is about nothing.
pub(crate) fn selected(policy: &Resource, dataplane: &Parsed<Dataplane>) -> Selected {
    if is_shadow(policy) {
        return Selected::default();
    }
    let target = policy.spec.get("targetRef").filter(|t| !t.is_null());
    let target = target.map(|t| serde_json::from_value::<TargetRef>(t.clone())).transpose();
    target
        .ok()
        .and_then(|t| selects(policy, t.as_ref(), dataplane).ok())
        .unwrap_or_default()
}

/// The policies that are about a proxy, by kind and name.
pub(crate) fn policies_of(catalog: &Catalog, mesh: &str, dataplane: &Parsed<Dataplane>) -> Vec<(Arc<Resource>, Selected)> {
    ALL.iter()
        .filter(|k| k.descriptor().policy.is_some())
        .flat_map(|k| catalog.list_in(*k, mesh))
        .filter_map(|policy| {
            let selected = selected(&policy, dataplane);
            (!selected.is_empty()).then_some((policy, selected))
        })
        .collect()
}

/// Whether a proxy stands behind a service: it is of the service's zone and its selector fits.
pub(crate) fn is_behind(service: &Resource, selector: &Selector, dataplane: &Resource) -> bool {
    if service.zone() != dataplane.zone() {
        return false;
    }
    match (&selector.dataplane_ref, &selector.dataplane_labels) {
        (Some(by_name), _) => dataplane.display_name() == by_name.name,
        (None, Some(by_labels)) => !by_labels.match_labels.is_empty() && dataplane.matches_labels(&by_labels.match_labels),
        (None, None) => false,
    }
}
