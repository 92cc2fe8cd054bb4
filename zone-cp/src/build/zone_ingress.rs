//! Listeners of a zone ingress: TLS passes through them unread, and its SNI says to which local service. There is no TLS context,
//! so the ingress needs no identity and can read nothing. Source: dataplane.md 2.8, demo.md (2), facts.md F11.
//!
//! A port is known by the SNI with its name, and also by the one with its number: a Kuma 2.14 proxy with an explicit outbound writes
//! the section as the outbound does, and an outbound can only say a number (docs/interop.md).

use std::collections::{BTreeMap, BTreeSet};

use ursa_model::{
    kind::dataplane::{Listener as ModelListener, ListenerType},
    sni::sni as sni_of,
};
use ursa_policy::TimeoutConf;

use super::{
    Builder, endpoints, names,
    plan::{
        Cluster, Listener, Target,
        cluster::Members,
        listener::{Direction, FilterChain, Handler, TcpProxy},
    },
};
use crate::{dp::phase, world::is_local};

pub(super) fn build(builder: &mut Builder<'_>) {
    let listeners = builder
        .dataplane
        .spec
        .networking
        .listeners
        .iter()
        .filter(|l| l.kind == ListenerType::ZoneIngress);
    for listener in listeners {
        build_one(builder, listener);
    }
}

fn build_one(builder: &mut Builder<'_>, model: &ModelListener) {
    let networking = &builder.dataplane.spec.networking;
    let address = if model.address.is_empty() {
        &networking.address
    } else {
        &model.address
    };
    let section = model.section();
    let name = names::zone_ingress(&section);
    // Without the wildcard check of other sockets: an ingress may listen on all addresses.
    let socket = match (builder.mesh.ip(address), u16::try_from(model.port)) {
        (Some(ip), Ok(port)) if port != 0 => super::Socket { ip, port },
        _ => {
            builder.plan.warn(format!(
                "{name} is left out: {address:?} port {} is no IP address (or name that resolves) and port",
                model.port
            ));
            return;
        }
    };
    let rules = builder.matched.inbound.get(&section).cloned().unwrap_or_default();
    let breaker = rules.circuit_breaker().unwrap_or_default();
    let mut chains = BTreeMap::new();
    let mut by_number = Vec::new();
    let mesh = builder.mesh;
    for service in builder.destinations.services().iter().filter(|s| is_local(&s.resource)) {
        for port in &service.spec.ports {
            let Some(cluster) = names::destination(&service.resource, &port.section()) else {
                continue;
            };
            let Some(sni) = sni_of(&service.resource, &port.section()) else {
                builder
                    .plan
                    .warn(format!("{cluster} cannot be reached from other zones: its name cannot be an SNI"));
                continue;
            };
            if chains.contains_key(&sni) {
                builder
                    .plan
                    .warn(format!("{cluster} stands for the oldest of several services or ports"));
                continue;
            }
            let timeout = rules.chain_timeout(&sni).unwrap_or(TimeoutConf::UNTOUCHED_INBOUND);
            let tcp = TcpProxy {
                stat_prefix: cluster.clone(),
                targets: vec![Target {
                    cluster: cluster.clone(),
                    weight: 1,
                }],
                idle_timeout: Some(timeout.idle),
                max_connect_attempts: None,
                permissions: None,
            };
            let chain = FilterChain {
                name: Some(cluster.clone()),
                server_names: vec![sni.clone()],
                tls: None,
                handler: Handler::Tcp(tcp),
            };
            by_number.extend(sni_of(&service.resource, &port.port.to_string()).map(|number| (number, sni.clone())));
            chains.insert(sni, chain);
            let endpoints = endpoints::local(mesh, service, port, &mut builder.plan, &mut builder.reads);
            builder.plan.endpoints.insert(cluster.clone(), endpoints);
            builder.plan.clusters.insert(
                cluster,
                Cluster {
                    members: Members::Eds,
                    connect_timeout: timeout.connect,
                    http: None,
                    breaker: breaker.clone(),
                    tls: None,
                },
            );
        }
    }
    if chains.is_empty() {
        return;
    }
    // A name always wins over a number: another port may have this port's number as its name.
    let mut numbers = BTreeSet::new();
    for (number, sni) in by_number {
        if !chains.contains_key(&number)
            && numbers.insert(number.clone())
            && let Some(chain) = chains.get_mut(&sni)
        {
            chain.server_names.push(number);
        }
    }
    let listener = Listener {
        socket,
        direction: Direction::Unspecified,
        tls_inspector: true,
        chains: chains.into_values().collect(),
        tags: phase::shown(&builder.dataplane.resource),
    };
    builder.listen(&name, listener);
}
