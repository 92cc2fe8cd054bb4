//! All policies of a mesh, and what of them holds for one proxy. Source: dataplane.md 5.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use ursa_model::kind::{
    common::TargetRef, dataplane::Dataplane, mesh_circuit_breaker::MeshCircuitBreaker, mesh_http_route::MeshHTTPRoute,
    mesh_retry::MeshRetry, mesh_timeout::MeshTimeout, mesh_traffic_permission::MeshTrafficPermission,
};

use crate::{
    destinations::Destinations,
    inbound::{self, InboundRules, RulesPolicy},
    order,
    outbound::{self, OutboundRules, Resolver},
    parsed::Parsed,
    permissions::Permissions,
    routes,
    select::{Selected, is_shadow, selects},
};

/// All policies of one mesh, in any order.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub permissions: Vec<Arc<Parsed<MeshTrafficPermission>>>,
    pub http_routes: Vec<Arc<Parsed<MeshHTTPRoute>>>,
    pub timeouts: Vec<Arc<Parsed<MeshTimeout>>>,
    pub retries: Vec<Arc<Parsed<MeshRetry>>>,
    pub circuit_breakers: Vec<Arc<Parsed<MeshCircuitBreaker>>>,
}

/// What holds for one proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// By section name; every inbound and every listener of the proxy has an entry.
    pub inbound: BTreeMap<String, InboundRules>,
    pub outbound: OutboundRules,
    /// Policies that could not be used, and why; to be shown to the operator.
    pub warnings: Vec<String>,
}

/// Whether policies count that only show what they would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    Ignored,
    Included,
}

/// The policies that are about a proxy, merged; shadow policies are ignored. `mesh` is the name of the mesh that everything is in.
pub fn match_proxy(policies: &Policies, destinations: &Destinations, dataplane: &Parsed<Dataplane>, mesh: &str) -> Matched {
    match_proxy_with(policies, destinations, dataplane, mesh, Shadow::Ignored)
}

/// As [`match_proxy`], for an inspection that wants to see the shadow policies' effect too.
pub fn match_proxy_with(
    policies: &Policies,
    destinations: &Destinations,
    dataplane: &Parsed<Dataplane>,
    mesh: &str,
    shadow: Shadow,
) -> Matched {
    let mut warnings = Vec::new();
    let mut select = Selection {
        dataplane,
        shadow,
        warnings: &mut warnings,
    };
    let permissions = select.of(&policies.permissions, |p| p.target_ref.as_ref());
    let http_routes = select.of(&policies.http_routes, |p| p.target_ref.as_ref());
    let timeouts = select.of(&policies.timeouts, |p| p.target_ref.as_ref());
    let retries = select.of(&policies.retries, |p| p.target_ref.as_ref());
    let circuit_breakers = select.of(&policies.circuit_breakers, |p| p.target_ref.as_ref());

    let net = &dataplane.spec.networking;
    let sections = net
        .inbound
        .iter()
        .map(|i| i.section())
        .chain(net.listeners.iter().map(|l| l.section()));
    let inbound = sections
        .map(|section| {
            let rules = InboundRules {
                permissions: Permissions::new(&inbound_rules(&permissions, &section)),
                timeouts: inbound_rules(&timeouts, &section),
                circuit_breakers: inbound_rules(&circuit_breakers, &section),
            };
            (section, rules)
        })
        .collect();

    let resolver = Resolver {
        mesh,
        destinations,
        http_routes: &policies.http_routes,
    };
    let outbound = OutboundRules {
        http_routes: routes::build(&all(&http_routes), |p| p.target_ref.as_ref(), &resolver, &mut warnings),
        timeouts: outbound::build(&all(&timeouts), |p| p.target_ref.as_ref(), &resolver, &mut warnings),
        retries: outbound::build(&all(&retries), |p| p.target_ref.as_ref(), &resolver, &mut warnings),
        circuit_breakers: outbound::build(&all(&circuit_breakers), |p| p.target_ref.as_ref(), &resolver, &mut warnings),
    };
    Matched {
        inbound,
        outbound,
        warnings,
    }
}

/// Policies of one kind that are about the proxy, in rising precedence.
type SelectedPolicies<'a, P> = Vec<(&'a Parsed<P>, Selected)>;

struct Selection<'a> {
    dataplane: &'a Parsed<Dataplane>,
    shadow: Shadow,
    warnings: &'a mut Vec<String>,
}

impl Selection<'_> {
    fn of<'p, P>(&mut self, policies: &'p [Arc<Parsed<P>>], top: impl Fn(&P) -> Option<&TargetRef>) -> SelectedPolicies<'p, P> {
        let mut sorted: Vec<&Parsed<P>> = policies.iter().map(Arc::as_ref).collect();
        order::sort(&mut sorted, &top);
        let mut selected = Vec::new();
        for policy in sorted {
            if self.shadow == Shadow::Ignored && is_shadow(&policy.resource) {
                continue;
            }
            match selects(&policy.resource, top(&policy.spec), self.dataplane) {
                Ok(s) if s.is_empty() => {}
                Ok(s) => selected.push((policy, s)),
                Err(err) => self.warnings.push(format!("{}: {err}", policy.resource.key)),
            }
        }
        selected
    }
}

fn all<'a, P>(selected: &SelectedPolicies<'a, P>) -> Vec<&'a Parsed<P>> {
    selected.iter().map(|(policy, _)| *policy).collect()
}

fn inbound_rules<P>(selected: &SelectedPolicies<'_, P>, section: &str) -> Vec<inbound::InboundRule<P::Conf>>
where
    P: RulesPolicy,
    P::Conf: Clone,
{
    inbound::build(
        selected
            .iter()
            .filter(|(_, s)| s.sections.contains(section))
            .map(|(policy, _)| *policy),
    )
}

#[cfg(test)]
mod tests;
