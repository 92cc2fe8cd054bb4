//! The HTTP routes to a destination, ordered, with their backends resolved.
//! Source: Kuma, `pkg/plugins/policies/meshhttproute/{api,plugin}/v1alpha1`; dataplane.md 5.6, facts.md F4.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;
use ursa_model::{
    Kri,
    kind::{
        common::TargetRef,
        mesh_http_route::{BackendRef, Filter, FilterType, Match, MeshHTTPRoute, PathMatch, PathMatchType, RuleConf},
    },
};

use crate::{
    destinations::{Destinations, resolve_backend},
    merge::merge_rules,
    outbound::{Origin, Resolver, group},
    parsed::Parsed,
    text,
};

/// Name of the catch-all route that no policy made: base64 of the SHA-256 of the JSON of its matches, as Kuma names it.
pub const DEFAULT_ROUTE: &str = "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=";
/// Weight of a destination that stands alone; Kuma's number.
const WHOLE: u32 = 100;

/// A merged rule of MeshHTTPRoutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRule {
    /// The most important policy that has a rule with these matches.
    pub origin: Origin,
    pub matches: Vec<Match>,
    pub conf: RuleConf,
}

/// The merged rules of each destination that some policy names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HttpRules {
    #[serde(serialize_with = "text::kri_keys")]
    rules: BTreeMap<Kri, Vec<RouteRule>>,
}

impl HttpRules {
    /// The rules for a destination: for its section, else for the whole of it.
    pub fn get(&self, destination: &Kri) -> &[RouteRule] {
        self.rules
            .get(destination)
            .or_else(|| self.rules.get(&destination.clone().with_section("")))
            .map_or(&[], Vec::as_slice)
    }

    /// All rules, by KRI.
    pub fn iter(&self) -> impl Iterator<Item = (&Kri, &[RouteRule])> {
        self.rules.iter().map(|(kri, rules)| (kri, rules.as_slice()))
    }
}

/// One route. A prefix match other than `/` stands for two routes in Envoy: the path itself, and what is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// `<KRI of the policy>_rule_<index of its to item>`, or [`DEFAULT_ROUTE`]. Several routes may share a name.
    pub name: String,
    /// The MeshHTTPRoute, without section: what other policies may name. `None` for the route no policy made.
    #[serde(serialize_with = "text::optional_kri")]
    pub policy: Option<Kri>,
    /// Its path is always set.
    pub matching: Match,
    pub filters: Vec<Filter>,
    /// Where requests go; none has weight 0. Empty only if `all_unresolved`.
    pub backends: Vec<RouteBackend>,
    /// Weights of the backends that resolve to no HTTP port.
    pub unresolved_weight: u64,
    /// Backends are named and none is of use: every request is answered 500 (unless it is redirected).
    pub all_unresolved: bool,
    /// Clusters of the RequestMirror filters, by index in `filters`; one that is missing mirrors nothing.
    #[serde(serialize_with = "text::kri_values")]
    pub mirrors: BTreeMap<usize, Kri>,
}

/// A backend of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteBackend {
    /// KRI with section: the cluster.
    #[serde(serialize_with = "text::kri")]
    pub destination: Kri,
    /// At least 1.
    pub weight: u32,
}

impl Route {
    /// A filter answers with a redirect, so no backend is asked.
    pub fn redirects(&self) -> bool {
        self.filters.iter().any(|f| f.kind == FilterType::RequestRedirect)
    }

    /// The share of requests answered with 500 because their backend is unknown, as (part, whole); `None` when there is none.
    pub fn failing_share(&self) -> Option<(u64, u64)> {
        if self.redirects() {
            return None;
        }
        if self.all_unresolved {
            return Some((1, 1));
        }
        let known: u64 = self.backends.iter().map(|b| u64::from(b.weight)).sum();
        (self.unresolved_weight > 0).then_some((self.unresolved_weight, self.unresolved_weight + known))
    }
}

/// Merges the routes that are about a proxy.
pub(crate) fn build<'a>(
    policies: &[&'a Parsed<MeshHTTPRoute>],
    top: impl Fn(&'a MeshHTTPRoute) -> Option<&'a TargetRef>,
    resolver: &Resolver<'_>,
    warnings: &mut Vec<String>,
) -> HttpRules {
    let mut out = HttpRules::default();
    for (kri, items) in group(policies, top, resolver) {
        let merged = match merge_rules(items.iter().map(|i| i.conf.as_slice())) {
            Ok(merged) => merged,
            Err(err) => {
                warnings.push(format!("cannot merge routes for {kri}: {err}"));
                continue;
            }
        };
        // Items are in rising precedence, so the last one to name the matches is the one that counts.
        let origins: BTreeMap<&[Match], &Origin> = items
            .iter()
            .flat_map(|i| i.conf.iter().map(|rule| (rule.matches.as_slice(), &i.origin)))
            .collect();
        let rules = merged.into_iter().filter_map(|rule| {
            let origin = origins.get(rule.matches.as_slice()).map(|o| (*o).clone())?;
            Some(RouteRule {
                origin,
                matches: rule.matches,
                conf: rule.default,
            })
        });
        out.rules.insert(kri, rules.collect());
    }
    out
}

/// The routes of [`crate::OutboundRules::http_routes`].
pub(crate) fn build_routes(rules: &[RouteRule], destination: &Kri, destinations: &Destinations) -> Vec<Route> {
    let Some(own) = destinations.port(destination) else {
        return Vec::new();
    };
    let own_is_http = own.port.is_http_like();
    if rules.is_empty() && !own_is_http {
        return Vec::new();
    }
    let whole = RouteBackend {
        destination: own.kri(),
        weight: WHOLE,
    };
    let mut routes: Vec<Route> = rules.iter().flat_map(|rule| routes_of(rule, destinations)).collect();
    routes.sort_by_key(|r| precedence(&r.matching));
    let catch_all = Match {
        path: Some(root()),
        ..Match::default()
    };
    if !routes.iter().any(|r| r.matching == catch_all) {
        routes.push(Route {
            name: DEFAULT_ROUTE.into(),
            policy: None,
            matching: catch_all,
            filters: Vec::new(),
            backends: Vec::new(),
            unresolved_weight: 0,
            all_unresolved: false,
            mirrors: BTreeMap::new(),
        });
    }
    for route in &mut routes {
        route.matching.path.get_or_insert_with(root);
        if route.backends.is_empty() && !route.all_unresolved && own_is_http {
            route.backends.push(whole.clone());
        }
    }
    routes.retain(|r| !r.backends.is_empty() || r.all_unresolved);
    routes
}

fn root() -> PathMatch {
    PathMatch {
        kind: PathMatchType::PathPrefix,
        value: "/".into(),
    }
}

/// One route per match; backends and mirrors resolved.
fn routes_of(rule: &RouteRule, destinations: &Destinations) -> impl Iterator<Item = Route> {
    let policy = &rule.origin.policy;
    let cluster = |backend: &BackendRef| {
        let found = resolve_backend(backend, &policy.namespace, destinations)?;
        (backend.weight > 0 && found.port.is_http_like()).then(|| found.kri())
    };
    let named = rule.conf.backend_refs.as_deref().unwrap_or_default();
    let mut backends = Vec::new();
    let mut unresolved_weight = 0;
    for backend in named {
        match cluster(backend) {
            Some(destination) => backends.push(RouteBackend {
                destination,
                weight: backend.weight,
            }),
            None => unresolved_weight += u64::from(backend.weight),
        }
    }
    let filters = rule.conf.filters.clone().unwrap_or_default();
    let mirrors = filters
        .iter()
        .enumerate()
        .filter(|(_, f)| f.kind == FilterType::RequestMirror)
        .filter_map(|(i, f)| Some((i, cluster(&f.request_mirror.as_ref()?.backend_ref)?)))
        .collect();
    let route = Route {
        name: policy.clone().with_section(format!("rule_{}", rule.origin.rule_index)).to_string(),
        policy: Some(policy.clone()),
        matching: Match::default(),
        filters,
        all_unresolved: !named.is_empty() && backends.is_empty(),
        backends,
        unresolved_weight,
        mirrors,
    };
    rule.matches.iter().map(move |m| Route {
        matching: m.clone(),
        ..route.clone()
    })
}

/// The Gateway API's precedence: a smaller key is tried first. Exact paths, then prefixes, then expressions, the longer first
/// (but all exact paths are equal), then no path; then those with a method, with more headers, with more query parameters.
fn precedence(m: &Match) -> (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>) {
    let (kind, len) = match &m.path {
        Some(p) if p.kind == PathMatchType::Exact => (0, 0),
        Some(p) if p.kind == PathMatchType::PathPrefix => (1, p.value.len()),
        Some(p) => (2, p.value.len()),
        None => (3, 0),
    };
    let count = |n: Option<usize>| Reverse(n.unwrap_or_default());
    (
        kind,
        Reverse(len),
        m.method.is_none(),
        count(m.headers.as_ref().map(Vec::len)),
        count(m.query_params.as_ref().map(Vec::len)),
    )
}

/// The clusters that routes send requests to, mirrored ones included.
pub fn clusters<'a>(routes: impl IntoIterator<Item = &'a Route>) -> BTreeSet<Kri> {
    let of = |r: &'a Route| r.backends.iter().map(|b| &b.destination).chain(r.mirrors.values()).cloned();
    routes.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests;
