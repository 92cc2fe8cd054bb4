//! Whether a plan is whole: everything it names is in it. A missing name is a silent stall or a 503 in Envoy, so tests run
//! this over every plan they make.

use super::{
    Plan,
    cluster::Members,
    listener::{FilterChain, Handler},
    route::{Action, RouteConfig},
};

/// What is wrong, in words; empty for a whole plan.
pub fn check(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    check_clusters(plan, &mut found);
    for (name, endpoints) in &plan.endpoints {
        if plan.clusters.get(name).is_none_or(|c| c.members != Members::Eds) {
            found.push(format!("endpoints {name} belong to no EDS cluster"));
        }
        for group in &endpoints.groups {
            if group.endpoints.is_empty() || group.endpoints.iter().any(|e| e.weight == 0 || e.socket.port == 0) {
                found.push(format!("endpoints {name} have an empty group, a weight of 0 or a port of 0"));
            }
        }
    }
    let mut sockets = std::collections::BTreeSet::new();
    for (name, listener) in &plan.listeners {
        if listener.chains.is_empty() {
            found.push(format!("listener {name} has no filter chain"));
        }
        if !sockets.insert(&listener.socket) {
            found.push(format!("listener {name} shares {} with another", listener.socket));
        }
        let mut matches = std::collections::BTreeSet::new();
        for chain in &listener.chains {
            let any = chain.server_names.is_empty().then_some("");
            if !chain
                .server_names
                .iter()
                .map(String::as_str)
                .chain(any)
                .all(|sni| matches.insert(sni))
            {
                found.push(format!("listener {name} has two filter chains for one match"));
            }
            if !chain.server_names.is_empty() && !listener.tls_inspector {
                found.push(format!("listener {name} chooses by SNI without reading it"));
            }
            check_chain(plan, name, chain, &mut found);
        }
    }
    for (name, routes) in &plan.routes {
        check_routes(plan, name, routes, &mut found);
    }
    found
}

fn check_clusters(plan: &Plan, found: &mut Vec<String>) {
    for (name, cluster) in &plan.clusters {
        if cluster.members == Members::Eds && !plan.endpoints.contains_key(name) {
            found.push(format!("EDS cluster {name} has no endpoints resource"));
        }
        if cluster.connect_timeout.is_zero() {
            found.push(format!("cluster {name} has no connect timeout"));
        }
        if let Some(tls) = &cluster.tls {
            for secret in [&tls.identity, &tls.trust] {
                if !plan.secrets.contains_key(secret) {
                    found.push(format!("cluster {name} names the secret {secret}, which is absent"));
                }
            }
            if tls.sans.is_empty() {
                found.push(format!("cluster {name} would accept any identity"));
            }
        }
    }
}

fn check_chain(plan: &Plan, name: &str, chain: &FilterChain, found: &mut Vec<String>) {
    if let Some(tls) = &chain.tls {
        for secret in [&tls.identity, &tls.trust] {
            if !plan.secrets.contains_key(secret) {
                found.push(format!("listener {name} names the secret {secret}, which is absent"));
            }
        }
        if tls.prefixes.is_empty() {
            found.push(format!("listener {name} would accept any trust domain"));
        }
    }
    let (protected, targets) = match &chain.handler {
        Handler::Http(http) => {
            match plan.routes.get(&http.routes) {
                None => found.push(format!("listener {name} names the routes {}, which are absent", http.routes)),
                Some(routes) if http.deny_by_default && routes.routes.iter().any(|r| r.permissions.is_none()) => {
                    found.push(format!("routes {} hold one that nobody may use", http.routes));
                }
                Some(_) => {}
            }
            (http.deny_by_default, &[][..])
        }
        Handler::Tcp(tcp) => (tcp.permissions.is_some(), tcp.targets.as_slice()),
    };
    if chain.tls.is_some() != protected {
        found.push(format!("listener {name} has TLS without permissions, or permissions without TLS"));
    }
    if matches!(&chain.handler, Handler::Tcp(tcp) if tcp.targets.is_empty()) {
        found.push(format!("listener {name} sends nowhere"));
    }
    for target in targets {
        if !plan.clusters.contains_key(&target.cluster) || target.weight == 0 {
            found.push(format!(
                "listener {name} sends to {}, which is absent or without weight",
                target.cluster
            ));
        }
    }
}

fn check_routes(plan: &Plan, name: &str, routes: &RouteConfig, found: &mut Vec<String>) {
    for route in &routes.routes {
        let Action::Forward(forward) = &route.action else { continue };
        if forward.targets.is_empty() {
            found.push(format!("routes {name} have one that sends nowhere"));
        }
        let named = forward
            .targets
            .iter()
            .map(|t| &t.cluster)
            .chain(forward.mirrors.iter().map(|m| &m.cluster));
        for cluster in named {
            if !plan.clusters.contains_key(cluster) {
                found.push(format!("routes {name} send to the cluster {cluster}, which is absent"));
            }
        }
        if forward.targets.iter().any(|t| t.weight == 0) {
            found.push(format!("routes {name} have a weight of 0"));
        }
    }
}
