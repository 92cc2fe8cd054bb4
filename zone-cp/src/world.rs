//! `World`: the immutable picture of everything that proxies' configuration depends on, at one revision of the zone.
//! Made from a [`View`] by [`World::next`], which parses only what changed. No clock, no I/O.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ursa_model::{
    Kind, Resource, ZoneName,
    kind::{
        dataplane::Dataplane, mesh_identity::MeshIdentity, mesh_service::MeshService, mesh_trust::MeshTrust,
        mesh_zone_address::MeshZoneAddress,
    },
    labels,
};
use ursa_pki::Bundle;
use ursa_policy::{Destinations, Parsed, Policies};
use ursa_state::{GlobalRevision, View};

use crate::{connections::Connected, derive::identity, resolve::Names};

/// A proxy: Envoy's `Node.id` is `<mesh>.<name>`, split at the first dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId {
    pub mesh: Arc<str>,
    pub name: Arc<str>,
}

impl ProxyId {
    pub fn new(mesh: &str, name: &str) -> Self {
        Self {
            mesh: mesh.into(),
            name: name.into(),
        }
    }

    /// Parses a node id; `None` without a dot or with an empty part.
    pub fn parse(node_id: &str) -> Option<Self> {
        let (mesh, name) = node_id.split_once('.')?;
        (!mesh.is_empty() && !name.is_empty()).then(|| Self::new(mesh, name))
    }
}

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.mesh, self.name)
    }
}

/// A certificate issued to one proxy of this zone.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedSvid {
    /// Name of the secret in SDS: the KRI of the MeshIdentity.
    pub secret_name: String,
    pub spiffe_id: String,
    /// Leaf first, PEM.
    pub chain_pem: String,
    pub key_pem: String,
    /// Serial number in hexadecimal: tells certificates apart without looking at keys.
    pub serial: String,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
}

impl fmt::Debug for IssuedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuedSvid({}, serial {})", self.spiffe_id, self.serial)
    }
}

/// Certificates of this zone's proxies, by proxy.
pub type Svids = BTreeMap<ProxyId, Arc<IssuedSvid>>;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct World {
    pub zone: ZoneName,
    pub zone_revision: u64,
    pub global: Option<GlobalRevision>,
    pub meshes: BTreeMap<Arc<str>, Arc<MeshWorld>>,
    pub svids: Arc<Svids>,
    /// Streams that certificates were issued for, where an identity selects their proxy. A stream that is not among them yet must
    /// not be configured from this world: without its certificate the proxy would be told to close its inbounds.
    pub seen: Connected,
    /// IP addresses of the names that the next world's proxies and ingresses have for addresses.
    pub names: Arc<Names>,
}

/// What one mesh's proxies depend on. Lists are in key order.
#[derive(Clone, Debug, Default)]
pub struct MeshWorld {
    pub mesh: Arc<str>,
    /// This zone's proxies, zone proxies included.
    pub dataplanes: BTreeMap<Arc<str>, Arc<Parsed<Dataplane>>>,
    /// Of this zone and of the others.
    pub services: Vec<Arc<Parsed<MeshService>>>,
    /// Of this zone and of the others.
    pub addresses: Vec<Arc<Parsed<MeshZoneAddress>>>,
    pub identities: Vec<Arc<Parsed<MeshIdentity>>>,
    pub trusts: Vec<Arc<Parsed<MeshTrust>>>,
    pub policies: Policies,
    /// The services again, indexed.
    pub destinations: Arc<Destinations>,
    /// The proxies again, by workload (label `kuma.io/workload`), by which almost every service selects.
    pub by_workload: Arc<BTreeMap<String, Vec<Arc<Parsed<Dataplane>>>>>,
    /// What the trusts come to.
    pub trusted: Arc<Trusted>,
    /// IP addresses of names.
    pub names: Arc<Names>,
}

/// The certificate authorities of a mesh. A text that is no certificate is left out here, once and for all proxies: Envoy
/// refuses a bundle as a whole for one bad entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// PEM by trust domain, never empty.
    pub domains: BTreeMap<String, String>,
    /// What was left out.
    pub problems: Vec<String>,
}

impl World {
    /// A world without content.
    pub fn empty(zone: ZoneName) -> Self {
        Self {
            zone,
            zone_revision: 0,
            global: None,
            meshes: BTreeMap::new(),
            svids: Arc::default(),
            seen: Connected::default(),
            names: Arc::default(),
        }
    }

    /// The world at `view`, reusing every parsed resource of `self` that did not change. A resource that cannot be parsed is
    /// left out and reported: one bad resource must not take the others away.
    pub fn next(&self, view: &View, svids: Arc<Svids>, problems: &mut Vec<String>) -> Self {
        let mut meshes = BTreeMap::new();
        for mesh in view.list(Kind::Mesh) {
            let name = mesh.name();
            let old = self.meshes.get(name);
            let next = MeshWorld::next(name, old.map(AsRef::as_ref), view, &self.names, problems);
            // Equal content keeps its identity, so that consumers can compare meshes by pointer.
            let shared = match old {
                Some(old) if old.same(&next) => old.clone(),
                _ => Arc::new(next),
            };
            meshes.insert(name.into(), shared);
        }
        Self {
            zone: self.zone.clone(),
            zone_revision: view.revision(),
            global: view.global(),
            meshes,
            svids,
            seen: self.seen.clone(),
            names: self.names.clone(),
        }
    }

    pub fn mesh(&self, mesh: &str) -> Option<&Arc<MeshWorld>> {
        self.meshes.get(mesh)
    }

    /// Whether this stream of the proxy, or a newer one, was known when certificates were issued.
    pub fn has_seen(&self, proxy: &ProxyId, stream: u64) -> bool {
        self.seen.get(proxy).is_some_and(|c| c.stream >= stream)
    }

    /// Whether the proxy's token lets it have the certificate of an identity: one whose SPIFFE id is made of the workload needs a
    /// token that is bound to that workload. Tokens are checked when a stream begins; identities and labels may come later. Of a proxy
    /// that is not connected nothing bad is known.
    pub fn is_bound(&self, identity: &MeshIdentity, dataplane: &Resource) -> bool {
        let proxy = ProxyId::new(dataplane.mesh(), dataplane.name());
        match self.seen.get(&proxy) {
            Some(connection) if identity::uses_workload(identity) => {
                connection.workload.is_some() && connection.workload.as_deref() == dataplane.label(labels::WORKLOAD)
            }
            _ => true,
        }
    }

    /// The same content, told by identity: never true for different content.
    pub fn same(&self, other: &Self) -> bool {
        let meshes = self.meshes.len() == other.meshes.len()
            && self
                .meshes
                .iter()
                .zip(&other.meshes)
                .all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y));
        meshes
            && self.zone_revision == other.zone_revision
            && self.global == other.global
            && Arc::ptr_eq(&self.svids, &other.svids)
            && Arc::ptr_eq(&self.seen, &other.seen)
    }
}

/// Parses the resources of a kind in a mesh, taking over from `old` those that are the same object.
fn parse_all<T: ursa_model::Spec>(
    view: &View,
    kind: Kind,
    mesh: &str,
    old: &[Arc<Parsed<T>>],
    problems: &mut Vec<String>,
) -> Vec<Arc<Parsed<T>>> {
    let mut out = Vec::new();
    for resource in view.list_in(kind, mesh) {
        let known = old
            .binary_search_by(|p| p.resource.key.cmp(&resource.key))
            .ok()
            .and_then(|i| old.get(i));
        match known {
            Some(known) if Arc::ptr_eq(&known.resource, resource) => out.push(known.clone()),
            _ => match Parsed::parse(resource.clone()) {
                Ok(parsed) => out.push(Arc::new(parsed)),
                Err(err) => problems.push(format!("{} is left out: {err}", resource.key)),
            },
        }
    }
    out
}

fn same_list<T>(a: &[Arc<Parsed<T>>], b: &[Arc<Parsed<T>>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn by_workload(dataplanes: &[Arc<Parsed<Dataplane>>]) -> BTreeMap<String, Vec<Arc<Parsed<Dataplane>>>> {
    let mut out: BTreeMap<String, Vec<Arc<Parsed<Dataplane>>>> = BTreeMap::new();
    for dataplane in dataplanes {
        if let Some(workload) = dataplane.resource.label(labels::WORKLOAD) {
            out.entry(workload.to_owned()).or_default().push(dataplane.clone());
        }
    }
    out
}

impl MeshWorld {
    fn next(mesh: &str, old: Option<&Self>, view: &View, names: &Arc<Names>, problems: &mut Vec<String>) -> Self {
        let empty = Self::default();
        let old = old.unwrap_or(&empty);
        let old_dataplanes: Vec<_> = old.dataplanes.values().cloned().collect();
        let p = &old.policies;
        let services = parse_all(view, Kind::MeshService, mesh, &old.services, problems);
        let trusts = parse_all(view, Kind::MeshTrust, mesh, &old.trusts, problems);
        let trusted = if same_list(&trusts, &old.trusts) {
            old.trusted.clone()
        } else {
            Arc::new(Trusted::of(&trusts))
        };
        problems.extend(trusted.problems.iter().cloned());
        let destinations = if same_list(&services, &old.services) {
            old.destinations.clone()
        } else {
            Arc::new(Destinations::new(services.iter().cloned()))
        };
        let dataplanes = parse_all(view, Kind::Dataplane, mesh, &old_dataplanes, problems);
        let by_workload = if same_list(&dataplanes, &old_dataplanes) {
            old.by_workload.clone()
        } else {
            Arc::new(by_workload(&dataplanes))
        };
        Self {
            mesh: mesh.into(),
            destinations,
            by_workload,
            trusted,
            names: names.clone(),
            dataplanes: dataplanes.into_iter().map(|d| (d.resource.name().into(), d)).collect(),
            services,
            addresses: parse_all(view, Kind::MeshZoneAddress, mesh, &old.addresses, problems),
            identities: parse_all(view, Kind::MeshIdentity, mesh, &old.identities, problems),
            trusts,
            policies: Policies {
                permissions: parse_all(view, Kind::MeshTrafficPermission, mesh, &p.permissions, problems),
                http_routes: parse_all(view, Kind::MeshHTTPRoute, mesh, &p.http_routes, problems),
                timeouts: parse_all(view, Kind::MeshTimeout, mesh, &p.timeouts, problems),
                retries: parse_all(view, Kind::MeshRetry, mesh, &p.retries, problems),
                circuit_breakers: parse_all(view, Kind::MeshCircuitBreaker, mesh, &p.circuit_breakers, problems),
            },
        }
    }

    fn same(&self, other: &Self) -> bool {
        let dataplanes = self.dataplanes.len() == other.dataplanes.len()
            && self
                .dataplanes
                .values()
                .zip(other.dataplanes.values())
                .all(|(a, b)| Arc::ptr_eq(a, b));
        let (p, q) = (&self.policies, &other.policies);
        dataplanes
            && Arc::ptr_eq(&self.names, &other.names)
            && same_list(&self.services, &other.services)
            && same_list(&self.addresses, &other.addresses)
            && same_list(&self.identities, &other.identities)
            && same_list(&self.trusts, &other.trusts)
            && same_list(&p.permissions, &q.permissions)
            && same_list(&p.http_routes, &q.http_routes)
            && same_list(&p.timeouts, &q.timeouts)
            && same_list(&p.retries, &q.retries)
            && same_list(&p.circuit_breakers, &q.circuit_breakers)
    }

    /// CA bundles by trust domain, each the PEM texts of all MeshTrusts of that domain without repeats.
    pub fn trust_domains(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for trust in &self.trusts {
            let bundle = out.entry(trust.spec.trust_domain.as_str()).or_default();
            for pem in trust.spec.pems() {
                if !bundle.contains(&pem) {
                    bundle.push(pem);
                }
            }
        }
        out
    }

    /// The IP address that an address is or, as a name, stands for. `None` for a name that was not resolved yet.
    pub fn ip(&self, address: &str) -> Option<IpAddr> {
        address.parse().ok().or_else(|| self.names.get(address).copied())
    }

    /// Addresses of a zone's ingress, in key order, without repeats.
    pub fn zone_addresses<'a>(&'a self, zone: &'a str) -> impl Iterator<Item = (&'a str, u32)> {
        let mut seen = std::collections::BTreeSet::new();
        self.addresses
            .iter()
            .filter(move |a| a.resource.zone() == Some(zone))
            .map(|a| (a.spec.address.as_str(), a.spec.port))
            .filter(move |a| seen.insert(*a))
    }
}

impl Trusted {
    fn of(trusts: &[Arc<Parsed<MeshTrust>>]) -> Self {
        let mut bundles: BTreeMap<&str, Bundle> = BTreeMap::new();
        let mut problems = Vec::new();
        for trust in trusts {
            let domain = trust.spec.trust_domain.as_str();
            for pem in trust.spec.pems() {
                let merged = Bundle::parse(pem).and_then(|parsed| match bundles.get_mut(domain) {
                    Some(all) => all.merge(&parsed).map(drop),
                    None => {
                        bundles.insert(domain, parsed);
                        Ok(())
                    }
                });
                if let Err(err) = merged {
                    problems.push(format!(
                        "{}: a certificate authority of trust domain {domain} is left out: {err}",
                        trust.resource.key
                    ));
                }
            }
        }
        Self {
            domains: bundles
                .into_iter()
                .map(|(domain, bundle)| (domain.to_owned(), bundle.to_pem()))
                .collect(),
            problems,
        }
    }
}

/// Whether a service belongs to this zone: no origin label, or `zone` (facts.md F10).
pub fn is_local(resource: &Resource) -> bool {
    !matches!(resource.origin(), Some(ursa_model::Origin::Global))
}
