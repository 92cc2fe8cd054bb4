//! What holds for a proxy's requests to a destination: `to` items resolved to real resources, merged per resource, and looked up.
//! Source: Kuma, `pkg/plugins/policies/core/rules/{outbound,resolve}`; dataplane.md 5.3.
//!
//! Merging happens when rules are built: what is said about the mesh is folded into every rule of a service or route. A lookup
//! merges nothing: the first rule found, from the most specific on, is the answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use ursa_model::{
    Kind, Kri, Resource, Spec,
    kind::{
        common::{TargetKind, TargetRef},
        mesh_circuit_breaker,
        mesh_circuit_breaker::MeshCircuitBreaker,
        mesh_http_route::{self, MeshHTTPRoute},
        mesh_retry,
        mesh_retry::MeshRetry,
        mesh_timeout,
        mesh_timeout::MeshTimeout,
    },
};

use crate::{
    circuit_breaker::CircuitBreakerConf,
    destinations::Destinations,
    merge::merge_confs,
    order::Rank,
    parsed::Parsed,
    retry::{RetryPolicy, retry_policy},
    routes::{HttpRules, Route, build_routes},
    text,
    timeout::TimeoutConf,
};

/// Where a piece of configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    #[serde(serialize_with = "text::kri")]
    pub policy: Kri,
    /// Index in the policy's `to` or `rules`.
    pub rule_index: usize,
}

/// Merged configuration for one resource or one section of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceRule<C> {
    pub conf: C,
    /// Contributors, in rising precedence.
    pub origins: Vec<Origin>,
}

/// The rules of one kind of policy, for the resources that some item names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(bound(serialize = "C: Serialize"))]
pub struct ResourceRules<C> {
    #[serde(serialize_with = "text::kri")]
    mesh: Kri,
    #[serde(serialize_with = "text::kri_keys")]
    rules: BTreeMap<Kri, ResourceRule<C>>,
}

impl<C> ResourceRules<C> {
    /// No rules.
    pub fn none(mesh: &str) -> Self {
        Self {
            mesh: mesh_kri(mesh),
            rules: BTreeMap::new(),
        }
    }

    /// The rule for a destination: for its section, else for the whole of it, else for the mesh.
    pub fn get(&self, destination: &Kri) -> Option<&ResourceRule<C>> {
        self.exactly(destination).or_else(|| self.rules.get(&self.mesh))
    }

    /// The rule for a route to a destination: as [`Self::get`], but what is said of the route goes first.
    pub fn get_for_route(&self, route: &Kri, destination: &Kri) -> Option<&ResourceRule<C>> {
        self.exactly(route).or_else(|| self.get(destination))
    }

    fn exactly(&self, kri: &Kri) -> Option<&ResourceRule<C>> {
        self.rules.get(kri).or_else(|| {
            if kri.section.is_empty() {
                None
            } else {
                self.rules.get(&kri.clone().with_section(""))
            }
        })
    }

    /// All rules, by KRI.
    pub fn iter(&self) -> impl Iterator<Item = (&Kri, &ResourceRule<C>)> {
        self.rules.iter()
    }
}

/// Merged policies for a proxy's outbound traffic. Destinations are KRIs of services with their port as section; routes are
/// KRIs of MeshHTTPRoutes ([`Route::policy`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutboundRules {
    pub http_routes: HttpRules,
    pub timeouts: ResourceRules<mesh_timeout::Conf>,
    pub retries: ResourceRules<mesh_retry::Conf>,
    pub circuit_breakers: ResourceRules<mesh_circuit_breaker::Conf>,
}

impl OutboundRules {
    /// The routes to a destination in the order in which they are tried, a catch-all last. Empty when the destination is
    /// unknown or its traffic is not HTTP: then it is proxied as TCP.
    pub fn http_routes(&self, destination: &Kri, destinations: &Destinations) -> Vec<Route> {
        build_routes(self.http_routes.get(destination), destination, destinations)
    }

    /// Timeouts of a destination (without `route`: its cluster and listener), or of a route to it (then `request` and
    /// `stream_idle` are the route's; the rest stays the destination's).
    pub fn timeout(&self, destination: &Kri, route: Option<&Kri>) -> TimeoutConf {
        let of_destination = self.timeouts.get(destination).map(|r| r.conf.clone()).unwrap_or_default();
        let mut out = TimeoutConf::from(&of_destination);
        if let Some(rule) = route.and_then(|r| self.timeouts.get_for_route(r, destination)) {
            out.for_route(&rule.conf);
        }
        out
    }

    /// When requests to a destination, or over one route to it, are tried again; `None`: never. `protocol` is the
    /// destination port's: only exactly `http` and `grpc` have retries (facts.md F21).
    ///
    /// A route whose policy has no section for the protocol has the destination's retries, as in Kuma. One that says
    /// `numRetries: 0` has none; Kuma would leave it the destination's.
    pub fn retry(&self, destination: &Kri, route: Option<&Kri>, protocol: &str) -> Option<RetryPolicy> {
        let of_destination = || self.retries.get(destination).and_then(|r| retry_policy(&r.conf, protocol));
        route
            .and_then(|r| self.retries.get_for_route(r, destination))
            .and_then(|rule| retry_policy(&rule.conf, protocol))
            .or_else(of_destination)
            .flatten()
    }

    /// How often a TCP proxy tries to connect, the first time included; `None` means Envoy's default of once.
    pub fn connect_attempts(&self, destination: &Kri) -> Option<u32> {
        self.retries
            .get(destination)?
            .conf
            .tcp
            .as_ref()?
            .max_connect_attempt
            .filter(|n| *n > 0)
    }

    /// Limits of a destination's cluster; `None` when no policy sets any.
    pub fn circuit_breaker(&self, destination: &Kri) -> Option<CircuitBreakerConf> {
        self.circuit_breakers
            .get(destination)
            .map(|rule| CircuitBreakerConf::from(&rule.conf))
    }
}

/// A kind of policy with `to`.
pub(crate) trait ToPolicy: Spec {
    type Conf;
    fn to(&self) -> impl Iterator<Item = (&TargetRef, &Self::Conf)>;
}

impl ToPolicy for MeshTimeout {
    type Conf = mesh_timeout::Conf;

    fn to(&self) -> impl Iterator<Item = (&TargetRef, &Self::Conf)> {
        self.to.iter().map(|t| (&t.target_ref, &t.default))
    }
}

impl ToPolicy for MeshRetry {
    type Conf = mesh_retry::Conf;

    fn to(&self) -> impl Iterator<Item = (&TargetRef, &Self::Conf)> {
        self.to.iter().map(|t| (&t.target_ref, &t.default))
    }
}

impl ToPolicy for MeshCircuitBreaker {
    type Conf = mesh_circuit_breaker::Conf;

    fn to(&self) -> impl Iterator<Item = (&TargetRef, &Self::Conf)> {
        self.to.iter().map(|t| (&t.target_ref, &t.default))
    }
}

impl ToPolicy for MeshHTTPRoute {
    type Conf = Vec<mesh_http_route::Rule>;

    fn to(&self) -> impl Iterator<Item = (&TargetRef, &Self::Conf)> {
        self.to.iter().map(|t| (&t.target_ref, &t.rules))
    }
}

/// What the targets of `to` items may resolve to.
pub(crate) struct Resolver<'a> {
    pub(crate) mesh: &'a str,
    pub(crate) destinations: &'a Destinations,
    /// All routes of the mesh, also those that are not about the proxy.
    pub(crate) http_routes: &'a [Arc<Parsed<MeshHTTPRoute>>],
}

/// KRI of a Mesh itself.
pub(crate) fn mesh_kri(mesh: &str) -> Kri {
    Kri {
        short: Kind::Mesh.descriptor().short.into(),
        name: mesh.into(),
        ..Kri::default()
    }
}

impl Resolver<'_> {
    /// The resources an item is about, each once, with the section it names. An item with a section that is no port's name
    /// (or number, where the port has no name) is about nothing.
    fn resolve(&self, target: &TargetRef) -> BTreeSet<Kri> {
        let section = target.section_name.as_deref().unwrap_or_default();
        let Some(wanted) = (match target.kind {
            TargetKind::Mesh => return BTreeSet::from([mesh_kri(self.mesh)]),
            TargetKind::MeshService | TargetKind::MeshHTTPRoute => target.labels.as_ref(),
            // No such kinds yet; a Dataplane is no destination.
            TargetKind::MeshExternalService | TargetKind::MeshMultiZoneService | TargetKind::Dataplane => return BTreeSet::new(),
        }) else {
            return BTreeSet::new();
        };
        if target.kind == TargetKind::MeshHTTPRoute {
            let matching = |r: &&Arc<Parsed<MeshHTTPRoute>>| r.resource.matches_labels(wanted);
            return self.http_routes.iter().filter(matching).map(|r| r.kri()).collect();
        }
        self.destinations
            .with_labels(wanted)
            .filter(|s| section.is_empty() || s.spec.ports.iter().any(|p| p.section() == section))
            .map(|s| s.kri().with_section(section))
            .collect()
    }
}

/// A `to` item of a policy.
pub(crate) struct ToItem<'a, C> {
    pub(crate) conf: &'a C,
    pub(crate) origin: Origin,
}

/// The items that matter for each resource (and section) that some item names, in rising precedence: those about the mesh,
/// about the resource, and about the section.
pub(crate) fn group<'a, P>(
    policies: &[&'a Parsed<P>],
    top: impl Fn(&'a P) -> Option<&'a TargetRef>,
    resolver: &Resolver<'_>,
) -> BTreeMap<Kri, Vec<ToItem<'a, P::Conf>>>
where
    P: ToPolicy,
{
    let mut items: Vec<(Rank<'a>, &'a Resource, usize, &'a TargetRef, &'a P::Conf)> = Vec::new();
    for policy in policies {
        for (index, (target, conf)) in policy.spec.to().enumerate() {
            items.push((
                Rank::of_to(&policy.resource, top(&policy.spec), target, index),
                &policy.resource,
                index,
                target,
                conf,
            ));
        }
    }
    items.sort_by(|a, b| a.0.cmp(&b.0));

    let resolved: Vec<BTreeSet<Kri>> = items.iter().map(|item| resolver.resolve(item.3)).collect();
    let mut named: BTreeMap<&Kri, Vec<usize>> = BTreeMap::new();
    for (i, kris) in resolved.iter().enumerate() {
        for kri in kris {
            named.entry(kri).or_default().push(i);
        }
    }
    let mesh = mesh_kri(resolver.mesh);
    let nobody = Vec::new();
    let of = |kri: &Kri| named.get(kri).unwrap_or(&nobody);
    named
        .keys()
        .map(|kri| {
            let mut relevant: BTreeSet<usize> = of(kri).iter().chain(of(&mesh)).copied().collect();
            if !kri.section.is_empty() {
                relevant.extend(of(&(*kri).clone().with_section("")));
            }
            let relevant = relevant
                .into_iter()
                .filter_map(|i| items.get(i))
                .map(|(_, policy, index, _, conf)| ToItem {
                    conf: *conf,
                    origin: Origin {
                        policy: Kri::of(policy).unwrap_or_default(),
                        rule_index: *index,
                    },
                });
            ((*kri).clone(), relevant.collect())
        })
        .collect()
}

/// Merges what [`group`] found. `warnings` gets what could not be merged, which the schemas rule out.
pub(crate) fn build<'a, P>(
    policies: &[&'a Parsed<P>],
    top: impl Fn(&'a P) -> Option<&'a TargetRef>,
    resolver: &Resolver<'_>,
    warnings: &mut Vec<String>,
) -> ResourceRules<P::Conf>
where
    P: ToPolicy,
    P::Conf: Serialize + DeserializeOwned + Clone + 'a,
{
    let mut rules = BTreeMap::new();
    for (kri, items) in group(policies, top, resolver) {
        match merge_confs(items.iter().map(|i| i.conf)) {
            Ok(Some(conf)) => {
                rules.insert(
                    kri,
                    ResourceRule {
                        conf,
                        origins: items.into_iter().map(|i| i.origin).collect(),
                    },
                );
            }
            Ok(None) => {}
            Err(err) => warnings.push(format!("cannot merge policies for {kri}: {err}")),
        }
    }
    ResourceRules {
        mesh: mesh_kri(resolver.mesh),
        rules,
    }
}

#[cfg(test)]
mod tests;
