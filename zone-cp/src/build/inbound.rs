//! Inbounds of a sidecar: mutual TLS and permissions in front of the application beside it.
//! HTTP permissions are in the routes, which change without draining a connection; TCP permissions can only be in the listener.
//! Source: dataplane.md 2.3 and 6, demo.md (3).

use std::net::{IpAddr, Ipv4Addr};

use ursa_model::kind::dataplane::{Dataplane, Inbound};
use ursa_policy::{InboundTimeout, Parsed, Permissions, TimeoutConf};

use super::{
    Builder, endpoints, names,
    plan::{
        Cluster, Listener, RouteConfig, Socket, Target,
        cluster::{HttpVersion, Members, UpstreamHttp},
        listener::{Direction, FilterChain, Handler, HttpManager, TcpProxy},
        route::{Action, Forward, HeaderEdits, PathMatch, Route, RouteMatch},
    },
    tls::Security,
};
use crate::dp::phase;

/// Port of a Dataplane that has no service; nothing listens for it. Source: Kuma, IANA's reserved port.
const NO_SERVICE_PORT: u32 = 49151;

/// Kuma's header with the labels of the caller; it never reaches an application.
const TAGS_HEADER: &str = "x-kuma-tags";

/// Name of the route that takes every request.
const ROUTE: &str = "inbound";

pub(super) fn build(builder: &mut Builder<'_>) {
    let inbounds = &builder.dataplane.spec.networking.inbound;
    if inbounds.is_empty() {
        return;
    }
    if let Security::Broken(reason) = &builder.security {
        let warning = format!("its inbounds are closed: {reason}");
        builder.plan.warn(warning);
        return;
    }
    for inbound in inbounds.iter().filter(|i| i.port != NO_SERVICE_PORT) {
        build_one(builder, inbound);
    }
}

fn build_one(builder: &mut Builder<'_>, inbound: &Inbound) {
    let dataplane = builder.dataplane;
    let section = inbound.section();
    let name = names::inbound(&section);
    let Some(socket) = endpoints::inbound_socket(builder.mesh, dataplane, inbound) else {
        builder
            .plan
            .warn(format!("{name} is left out: {}", endpoints::unresolved(dataplane)));
        return;
    };
    let Some(application) = application(inbound) else {
        builder
            .plan
            .warn(format!("{name} is left out: its service has no IP address and port"));
        return;
    };
    if application == socket {
        builder
            .plan
            .warn(format!("{name} is left out: its service is at {socket}, where it listens itself"));
        return;
    }
    let rules = builder.matched.inbound.get(&section).cloned().unwrap_or_default();
    let timeout = rules.timeout();
    let tls = match &builder.security {
        Security::Mutual(own) => Some(own.downstream()),
        Security::None | Security::Broken(_) => None,
    };
    // Without TLS nobody proves who they are, so there is nothing to decide by.
    let permissions = tls.is_some().then(|| rules.permissions().clone());
    let http = HttpProtocol::of(inbound);
    let handler = match http {
        Some(protocol) => Handler::Http(HttpManager {
            stat_prefix: name.clone(),
            routes: name.clone(),
            normalize_path: false,
            forward_client_cert: true,
            deny_by_default: tls.is_some(),
            remember_caller: tls.is_some(),
            grpc_stats: protocol == HttpProtocol::Grpc,
            request_headers_timeout: timeout.common.request_headers,
        }),
        None => Handler::Tcp(TcpProxy {
            stat_prefix: name.clone(),
            targets: vec![Target {
                cluster: name.clone(),
                weight: 1,
            }],
            idle_timeout: Some(timeout.common.idle),
            max_connect_attempts: None,
            permissions: permissions.clone(),
        }),
    };
    let by_sni = permissions.as_ref().is_some_and(Permissions::needs_sni) || timeout.callers.iter().any(|c| c.matching.sni.is_some());
    let listener = Listener {
        socket,
        direction: Direction::Inbound,
        tls_inspector: tls.is_some() && by_sni,
        chains: vec![FilterChain {
            name: None,
            server_names: Vec::new(),
            tls,
            handler,
        }],
        tags: tags(dataplane, &name),
    };
    if !builder.listen(&name, listener) {
        return;
    }
    if http.is_some() {
        builder
            .plan
            .routes
            .insert(name.clone(), routes(&name, &timeout, permissions.as_ref()));
    }
    let cluster = Cluster {
        members: Members::Static(application),
        connect_timeout: timeout.common.connect,
        http: http.map(|protocol| protocol.upstream(&timeout.common)),
        breaker: rules.circuit_breaker().unwrap_or_default(),
        tls: None,
    };
    builder.plan.clusters.insert(name, cluster);
}

/// Where the application listens: its own address and port, or this host's and the inbound's.
fn application(inbound: &Inbound) -> Option<Socket> {
    let ip = match inbound.service_address.as_str() {
        "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        given => given.parse().ok()?,
    };
    let port = if inbound.service_port == 0 {
        inbound.port
    } else {
        inbound.service_port
    };
    Some(Socket {
        ip,
        port: u16::try_from(port).ok().filter(|p| *p != 0)?,
    })
}

/// Labels of the Dataplane, as Kuma's users select listeners by them; else the listener's own name.
fn tags(dataplane: &Parsed<Dataplane>, name: &str) -> std::collections::BTreeMap<String, String> {
    let labels = phase::shown(&dataplane.resource);
    if labels.is_empty() { names::unified(name) } else { labels }
}

/// One route for all requests, and before it one for each kind of caller that has timeouts of its own.
fn routes(name: &str, timeout: &InboundTimeout, permissions: Option<&Permissions>) -> RouteConfig {
    let route = |caller, request, stream_idle| Route {
        name: ROUTE.into(),
        matcher: RouteMatch {
            caller,
            ..RouteMatch::all(PathMatch::Prefix("/".into()))
        },
        action: Action::Forward(Box::new(Forward {
            targets: vec![Target {
                cluster: name.into(),
                weight: 1,
            }],
            timeout: Some(request),
            idle_timeout: Some(stream_idle),
            ..Forward::default()
        })),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        permissions: permissions.cloned(),
    };
    let common = &timeout.common;
    // A caller is known by its certificate alone.
    let callers = timeout.callers.iter().filter(|_| permissions.is_some());
    let mut routes: Vec<Route> = callers
        .map(|c| {
            route(
                Some(c.matching.clone()),
                c.request.unwrap_or(common.request),
                c.stream_idle.unwrap_or(common.stream_idle),
            )
        })
        .collect();
    routes.push(route(None, common.request, common.stream_idle));
    RouteConfig {
        routes,
        strip_request_headers: vec![TAGS_HEADER.into()],
    }
}

/// What of HTTP a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpProtocol {
    Http1,
    Http2,
    Grpc,
}

impl HttpProtocol {
    fn of(inbound: &Inbound) -> Option<Self> {
        Self::parse(inbound.protocol())
    }

    /// `None` for what is proxied as TCP.
    pub(super) fn parse(protocol: &str) -> Option<Self> {
        match protocol {
            "http" => Some(Self::Http1),
            "http2" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }

    /// Towards the application, in its own version.
    fn upstream(self, timeout: &TimeoutConf) -> UpstreamHttp {
        let version = if self == Self::Http1 {
            HttpVersion::Http1
        } else {
            HttpVersion::Http2
        };
        self.upstream_with(version, timeout)
    }

    /// A gRPC cluster has no timeouts of connections and streams: calls may be as long as they like (dataplane.md 6).
    pub(super) fn upstream_with(self, version: HttpVersion, timeout: &TimeoutConf) -> UpstreamHttp {
        let on = |d: std::time::Duration| (!d.is_zero()).then_some(d);
        match self {
            Self::Grpc => UpstreamHttp::plain(version),
            Self::Http1 | Self::Http2 => UpstreamHttp {
                version,
                idle_timeout: Some(timeout.idle),
                max_stream_duration: on(timeout.max_stream),
                max_connection_duration: on(timeout.max_connection),
            },
        }
    }
}
