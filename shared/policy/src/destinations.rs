//! The services of a mesh, and the resolution of references to them.
//! Source: Kuma, `pkg/xds/context/{destination_index,backendref_normalization}.go`; dataplane.md 2.11 and 5.6, facts.md F3.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use ursa_model::{
    Kri, Labels,
    kind::{
        common::TargetKind,
        dataplane::OutboundRef,
        mesh_http_route::BackendRef,
        mesh_service::{MeshService, Port},
    },
    labels,
};

use crate::parsed::Parsed;

/// All services of one mesh, indexed. Build it once per change and share it: it is the same for every proxy.
#[derive(Clone, Debug, Default)]
pub struct Destinations {
    /// Oldest first; equal ages by name.
    services: Vec<Arc<Parsed<MeshService>>>,
    /// Without section. Of two services with one KRI the older is found.
    by_kri: BTreeMap<Kri, usize>,
    by_display_name: BTreeMap<String, Vec<usize>>,
    /// 0..services.len(): candidates where no name is asked for.
    all: Vec<usize>,
}

/// A service's port.
#[derive(Clone, Debug)]
pub struct Backend<'a> {
    pub service: &'a Arc<Parsed<MeshService>>,
    pub port: &'a Port,
}

impl Backend<'_> {
    /// KRI of the port: the name of the cluster, endpoints and listener.
    pub fn kri(&self) -> Kri {
        self.service.kri().with_section(self.port.section())
    }
}

impl Destinations {
    pub fn new(services: impl IntoIterator<Item = Arc<Parsed<MeshService>>>) -> Self {
        let mut services: Vec<_> = services.into_iter().collect();
        services.sort_by(|a, b| (a.resource.created, a.resource.name()).cmp(&(b.resource.created, b.resource.name())));
        let mut by_kri = BTreeMap::new();
        let mut by_display_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, service) in services.iter().enumerate() {
            by_kri.entry(service.kri()).or_insert(i);
            by_display_name
                .entry(service.resource.display_name().to_owned())
                .or_default()
                .push(i);
        }
        let all = (0..services.len()).collect();
        Self {
            services,
            by_kri,
            by_display_name,
            all,
        }
    }

    /// All services, oldest first.
    pub fn services(&self) -> &[Arc<Parsed<MeshService>>] {
        &self.services
    }

    /// The service with this KRI; its section is not looked at.
    pub fn service(&self, kri: &Kri) -> Option<&Arc<Parsed<MeshService>>> {
        let at = if kri.section.is_empty() {
            self.by_kri.get(kri)
        } else {
            self.by_kri.get(&kri.clone().with_section(""))
        };
        at.and_then(|i| self.services.get(*i))
    }

    /// The port with this KRI: by name, by number as text, or the only one if the KRI has no section.
    pub fn port(&self, kri: &Kri) -> Option<Backend<'_>> {
        let service = self.service(kri)?;
        Some(Backend {
            service,
            port: find_port(&service.spec, &kri.section)?,
        })
    }

    /// Services that have all these labels, oldest first. No labels: all of them.
    pub fn with_labels<'s, 'w>(&'s self, wanted: &'w Labels) -> impl Iterator<Item = &'s Arc<Parsed<MeshService>>> + use<'s, 'w> {
        let candidates = match wanted.get(labels::DISPLAY_NAME) {
            Some(name) => self.by_display_name.get(name).map_or(&[][..], Vec::as_slice),
            None => &self.all,
        };
        candidates
            .iter()
            .filter_map(|i| self.services.get(*i))
            .filter(|s| s.resource.matches_labels(wanted))
    }

    /// The oldest service with these labels, and its port. No label selects nothing. A service that lacks the port is not
    /// passed over for a younger one that has it.
    fn resolve(&self, wanted: &Labels, section: &str) -> Option<Backend<'_>> {
        if wanted.is_empty() {
            return None;
        }
        let service = self.with_labels(wanted).next()?;
        Some(Backend {
            service,
            port: find_port(&service.spec, section)?,
        })
    }
}

/// The port with this name or number, the first that fits; the only one when none is named.
fn find_port<'a>(service: &'a MeshService, section: &str) -> Option<&'a Port> {
    if section.is_empty() {
        return match service.ports.as_slice() {
            [only] => Some(only),
            _ => None,
        };
    }
    service.ports.iter().find(|p| p.name == section || p.port.to_string() == section)
}

/// Adds the namespace of who refers, if a name is given without one.
fn in_namespace<'a>(wanted: &'a Labels, namespace: &str) -> Cow<'a, Labels> {
    let named = wanted.get(labels::DISPLAY_NAME).is_some_and(|n| !n.is_empty());
    let placed = wanted.get(labels::K8S_NAMESPACE).is_some_and(|n| !n.is_empty());
    if namespace.is_empty() || !named || placed {
        return Cow::Borrowed(wanted);
    }
    let mut wanted = wanted.clone();
    wanted.insert(labels::K8S_NAMESPACE.into(), namespace.into());
    Cow::Owned(wanted)
}

/// The service and port that a route's backend means; `None` when there is none, or its kind is not MeshService.
/// `namespace`: of the route, empty outside Kubernetes.
pub fn resolve_backend<'a>(backend: &BackendRef, namespace: &str, destinations: &'a Destinations) -> Option<Backend<'a>> {
    if backend.kind != TargetKind::MeshService {
        return None;
    }
    let wanted = in_namespace(backend.labels.as_ref()?, namespace);
    destinations.resolve(&wanted, backend.section().as_deref().unwrap_or_default())
}

/// The service and port that an outbound of a Dataplane means; `None` when there is none, or its kind is not MeshService.
/// Labels win over the name; a name `service_namespace_svc_port` is Kuma's old tag. `namespace`: of the Dataplane.
pub fn resolve_outbound<'a>(outbound: &OutboundRef, namespace: &str, destinations: &'a Destinations) -> Option<Backend<'a>> {
    if outbound.kind != TargetKind::MeshService.as_str() {
        return None;
    }
    let mut section = if outbound.port > 0 {
        outbound.port.to_string()
    } else {
        String::new()
    };
    if !outbound.labels.is_empty() {
        return destinations.resolve(&outbound.labels, &section);
    }
    let (mut name, mut namespace) = (outbound.name.as_str(), namespace);
    if let [service, ns, "svc", port] = name.split('_').collect::<Vec<_>>().as_slice()
        && let Ok(port) = port.parse::<u32>()
    {
        (name, namespace) = (service, ns);
        if section.is_empty() && port > 0 {
            section = port.to_string();
        }
    }
    if name.is_empty() {
        return None;
    }
    let wanted = Labels::from([(labels::DISPLAY_NAME.into(), name.into())]);
    destinations.resolve(&in_namespace(&wanted, namespace), &section)
}

#[cfg(test)]
mod tests;
