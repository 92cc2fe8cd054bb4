//! Outbounds of a sidecar: each names a destination, gets a listener for it, and clusters for whatever its routes lead to.
//! Source: dataplane.md 2.3 to 2.6 and 6, demo.md (1), facts.md F3.

use std::net::{IpAddr, Ipv4Addr};

use ursa_model::{
    Kri,
    kind::dataplane::{ListenerType, Outbound},
    labels,
};
use ursa_policy::{Backend, resolve_outbound};

use super::{
    Builder, endpoints,
    inbound::HttpProtocol,
    names,
    plan::{
        Cluster, Endpoints, Listener, Socket, Target,
        cluster::{HttpVersion, Members, UpstreamHttp},
        listener::{Direction, FilterChain, Handler, HttpManager, TcpProxy},
    },
    routes,
    tls::{self, Upstream},
};

pub(super) fn build(builder: &mut Builder<'_>) {
    let networking = &builder.dataplane.spec.networking;
    if networking.outbound.is_empty() {
        return;
    }
    // Its clusters have the names that outbounds would give them, and lead past TLS instead of into it.
    if networking.listeners.iter().any(|l| l.kind == ListenerType::ZoneIngress) {
        builder.plan.warn("its outbounds are left out: a zone ingress has none".into());
        return;
    }
    for outbound in &networking.outbound {
        build_one(builder, outbound);
    }
}

fn build_one(builder: &mut Builder<'_>, outbound: &Outbound) {
    let Some(reference) = &outbound.backend_ref else {
        builder
            .plan
            .warn(format!("outbound {} is left out: it names no destination", outbound.port));
        return;
    };
    let Some(socket) = socket(outbound) else {
        builder.plan.warn(format!(
            "outbound {}:{} is left out: no IP address and port",
            outbound.address, outbound.port
        ));
        return;
    };
    let namespace = builder.dataplane.resource.label(labels::K8S_NAMESPACE).unwrap_or_default();
    let destinations = builder.destinations;
    let Some(backend) = resolve_outbound(reference, namespace, destinations) else {
        builder
            .plan
            .warn(format!("outbound {socket} is left out: there is no such destination"));
        return;
    };
    let kri = backend.kri();
    let name = kri.to_string();
    let timeout = builder.matched.outbound.timeout(&kri, None);
    let http = builder.matched.outbound.http_routes(&kri, destinations);
    let handler = if http.is_empty() {
        Handler::Tcp(TcpProxy {
            stat_prefix: name.clone(),
            targets: vec![Target {
                cluster: name.clone(),
                weight: 1,
            }],
            idle_timeout: Some(timeout.idle),
            max_connect_attempts: builder.matched.outbound.connect_attempts(&kri),
            permissions: None,
        })
    } else {
        Handler::Http(HttpManager {
            stat_prefix: name.clone(),
            routes: name.clone(),
            normalize_path: true,
            forward_client_cert: false,
            deny_by_default: false,
            remember_caller: false,
            grpc_stats: backend.port.app_protocol == "grpc",
            request_headers_timeout: timeout.request_headers,
        })
    };
    let listener = Listener {
        socket,
        direction: Direction::Outbound,
        tls_inspector: false,
        chains: vec![FilterChain {
            name: None,
            server_names: Vec::new(),
            tls: None,
            handler,
        }],
        tags: names::unified(&name),
    };
    let listener_name = names::outbound(&name, builder.plan.listeners.contains_key(&name).then_some(&listener.socket));
    if !builder.listen(&listener_name, listener) {
        return;
    }
    if http.is_empty() {
        build_cluster(builder, &backend);
        return;
    }
    for used in ursa_policy::routes::clusters(&http) {
        if let Some(backend) = destinations.port(&used) {
            build_cluster(builder, &backend);
        }
    }
    let config = routes::build(builder, &kri, &backend.port.app_protocol, &http);
    builder.plan.routes.insert(name, config);
}

/// An outbound's own address; 127.0.0.1 by default.
fn socket(outbound: &Outbound) -> Option<Socket> {
    let ip = match outbound.address.as_str() {
        "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        given => given.parse().ok()?,
    };
    Some(Socket {
        ip,
        port: u16::try_from(outbound.port).ok().filter(|p| *p != 0)?,
    })
}

/// Cluster and endpoints of a destination; nothing when they are there already.
fn build_cluster(builder: &mut Builder<'_>, backend: &Backend<'_>) {
    let kri: Kri = backend.kri();
    let name = kri.to_string();
    if builder.plan.clusters.contains_key(&name) {
        return;
    }
    builder.reads.service(backend.service);
    let upstream = tls::upstream(&builder.security, backend.service, backend.port);
    let (tls, endpoints) = match upstream {
        Upstream::Plain => (
            None,
            endpoints::of_service(builder.mesh, backend.service, backend.port, &mut builder.plan, &mut builder.reads),
        ),
        Upstream::Tls(tls) => (
            Some(tls),
            endpoints::of_service(builder.mesh, backend.service, backend.port, &mut builder.plan, &mut builder.reads),
        ),
        // The cluster stays, so that requests fail here and at once, and go nowhere unprotected.
        Upstream::Closed(reason) => {
            builder.plan.warn(format!("{name} has no endpoints: {reason}"));
            (None, Endpoints::default())
        }
    };
    let timeout = builder.matched.outbound.timeout(&kri, None);
    let cluster = Cluster {
        members: Members::Eds,
        connect_timeout: timeout.connect,
        // HTTP/2 between proxies whatever the application speaks; a TCP proxy takes no notice of it.
        http: Some(match HttpProtocol::parse(&backend.port.app_protocol) {
            Some(protocol) => protocol.upstream_with(HttpVersion::Http2, &timeout),
            None => UpstreamHttp::plain(HttpVersion::Http2),
        }),
        breaker: builder.matched.outbound.circuit_breaker(&kri).unwrap_or_default(),
        tls,
    };
    builder.plan.endpoints.insert(name.clone(), endpoints);
    builder.plan.clusters.insert(name, cluster);
}
