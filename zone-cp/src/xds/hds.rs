//! Health Discovery Service messages: what a stock proxy's Envoy is asked to look at, and what it saw. Pure.
//! In: the path of an Envoy's own admin socket. Out: a specifier with one check, `GET /ready` there; and from a report whether it passed.
//! kuma-dp drains by making that page answer 503, so this tells a draining proxy. Source: dataplane.md 1.11. Not here: probes of
//! workloads (`serviceProbe`).

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                Address, HealthCheck, HealthStatus, Node, Pipe,
                address::Address as Where,
                health_check::{HealthChecker, HttpHealthCheck},
            },
            endpoint::v3::Endpoint,
        },
        service::health::v3::{
            ClusterHealthCheck, EndpointHealthResponse, HealthCheckSpecifier, LocalityEndpoints,
            health_check_request_or_endpoint_health_response::RequestType,
        },
    },
    google::protobuf::{Duration, UInt32Value, value::Kind},
};

pub use envoy_types::pb::envoy::service::health::v3::{
    HealthCheckRequestOrEndpointHealthResponse as Message, HealthCheckSpecifier as Specifier,
    health_discovery_service_server::{HealthDiscoveryService, HealthDiscoveryServiceServer},
};

/// Kuma's name for the check of Envoy itself.
const ADMIN: &str = "system_envoy_admin";
/// Between two checks and between two reports: a draining proxy should be known long before its drain time (30 s) is over.
const INTERVAL_S: i64 = 1;
/// Of one check.
const TIMEOUT_S: i64 = 2;

/// What a stream's first message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub node_id: String,
    /// Where its admin interface is.
    pub admin_socket: String,
}

/// Reads the first message; `None` if it is none, or names no node or socket.
pub fn hello(message: &Message) -> Option<Hello> {
    let Some(RequestType::HealthCheckRequest(request)) = &message.request_type else {
        return None;
    };
    let node: &Node = request.node.as_ref()?;
    let value = node.metadata.as_ref()?.fields.get("dataplane.admin.socketPath")?;
    match &value.kind {
        Some(Kind::StringValue(path)) if !path.is_empty() => Some(Hello {
            node_id: node.id.clone(),
            admin_socket: path.clone(),
        }),
        _ => None,
    }
}

/// What a report says of Envoy itself; `None` if it says nothing certain: a check that was late proves nothing.
pub fn is_live(message: &Message) -> Option<bool> {
    let Some(RequestType::EndpointHealthResponse(EndpointHealthResponse {
        cluster_endpoints_health, ..
    })) = &message.request_type
    else {
        return None;
    };
    let admin = cluster_endpoints_health.iter().find(|c| c.cluster_name == ADMIN)?;
    let endpoint = admin.locality_endpoints_health.first()?.endpoints_health.first()?;
    match endpoint.health_status() {
        HealthStatus::Healthy => Some(true),
        HealthStatus::Unhealthy | HealthStatus::Draining => Some(false),
        _ => None,
    }
}

/// What the Envoy shall look at.
pub fn specifier(admin_socket: &str) -> Specifier {
    let seconds = |seconds| Some(Duration { seconds, nanos: 0 });
    let once = Some(UInt32Value { value: 1 });
    let check = HealthCheck {
        timeout: seconds(TIMEOUT_S),
        interval: seconds(INTERVAL_S),
        no_traffic_interval: seconds(INTERVAL_S),
        unhealthy_threshold: once,
        healthy_threshold: once,
        health_checker: Some(HealthChecker::HttpHealthCheck(HttpHealthCheck {
            path: "/ready".into(),
            ..HttpHealthCheck::default()
        })),
        ..HealthCheck::default()
    };
    let pipe = Pipe {
        path: admin_socket.into(),
        mode: 0,
    };
    let endpoint = Endpoint {
        address: Some(Address {
            address: Some(Where::Pipe(pipe)),
        }),
        ..Endpoint::default()
    };
    HealthCheckSpecifier {
        cluster_health_checks: vec![ClusterHealthCheck {
            cluster_name: ADMIN.into(),
            health_checks: vec![check],
            locality_endpoints: vec![LocalityEndpoints {
                locality: None,
                endpoints: vec![endpoint],
            }],
            ..ClusterHealthCheck::default()
        }],
        interval: seconds(INTERVAL_S),
    }
}
