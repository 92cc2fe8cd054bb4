//! What a build read of its mesh, so that a change of something else does not build it again.
//! In: notes taken while building. Out: whether another [`MeshWorld`] gives the same result. Invariant: never "the same" when a full
//! build would differ (property test); the other way round it may err. Lists that few changes touch are compared as a whole.

use std::{collections::BTreeSet, sync::Arc};

use ursa_model::{ResourceKey, kind::mesh_service::MeshService};
use ursa_policy::{Parsed, Policies};

use crate::world::MeshWorld;

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Services whose content was read. Labels, age and ports of all services decide which ones these are.
    services: BTreeSet<ResourceKey>,
    /// Workloads whose proxies were looked through.
    workloads: BTreeSet<String>,
    /// All proxies were looked through.
    all_dataplanes: bool,
}

impl Reads {
    pub(super) fn service(&mut self, service: &Parsed<MeshService>) {
        if !self.services.contains(&service.resource.key) {
            self.services.insert(service.resource.key.clone());
        }
    }

    /// The proxies of a workload, or of all.
    pub(super) fn dataplanes(&mut self, workload: Option<&str>) {
        match workload {
            Some(workload) if !self.workloads.contains(workload) => {
                self.workloads.insert(workload.to_owned());
            }
            Some(_) => {}
            None => self.all_dataplanes = true,
        }
    }

    /// Whether a build for `proxy` from `new` gives what the one from `old` gave, at which these notes were taken.
    pub fn still_hold(&self, old: &MeshWorld, new: &MeshWorld, proxy: &str) -> bool {
        let own = match (old.dataplanes.get(proxy), new.dataplanes.get(proxy)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        own && old.mesh == new.mesh
            && Arc::ptr_eq(&old.names, &new.names)
            && same(&old.addresses, &new.addresses)
            && same(&old.identities, &new.identities)
            && same(&old.trusts, &new.trusts)
            && same_policies(&old.policies, &new.policies)
            && self.same_services(old, new)
            && self.same_endpoints(old, new)
    }

    fn same_services(&self, old: &MeshWorld, new: &MeshWorld) -> bool {
        old.services.len() == new.services.len()
            && old
                .services
                .iter()
                .zip(&new.services)
                .all(|(a, b)| Arc::ptr_eq(a, b) || (same_shape(a, b) && !self.services.contains(&a.resource.key)))
    }

    fn same_endpoints(&self, old: &MeshWorld, new: &MeshWorld) -> bool {
        if self.all_dataplanes {
            let same = old.dataplanes.values().zip(new.dataplanes.values()).all(|(a, b)| Arc::ptr_eq(a, b));
            return old.dataplanes.len() == new.dataplanes.len() && same;
        }
        let of = |mesh: &MeshWorld, workload: &str| mesh.by_workload.get(workload).cloned().unwrap_or_default();
        self.workloads.iter().all(|w| same(&of(old, w), &of(new, w)))
    }
}

fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn same_policies(a: &Policies, b: &Policies) -> bool {
    same(&a.permissions, &b.permissions)
        && same(&a.http_routes, &b.http_routes)
        && same(&a.timeouts, &b.timeouts)
        && same(&a.retries, &b.retries)
        && same(&a.circuit_breakers, &b.circuit_breakers)
}

/// Alike in everything by which a reference finds a service and its port.
fn same_shape(a: &Parsed<MeshService>, b: &Parsed<MeshService>) -> bool {
    a.resource.key == b.resource.key
        && a.resource.labels == b.resource.labels
        && a.resource.created == b.resource.created
        && a.spec.ports == b.spec.ports
}
