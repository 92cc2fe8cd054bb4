//! Clusters.

use std::collections::HashMap;

use envoy_types::{
    pb::envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster as Message, OutlierDetection as OutlierMessage,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Common, TransportSocket, transport_socket::ConfigType,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::{
            transport_sockets::tls::v3::UpstreamTlsContext,
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
            },
        },
        r#type::v3::Percent,
    },
    util::pack_any,
};
use ursa_model::kind::mesh_circuit_breaker::ConnectionLimits;
use ursa_policy::Outliers;

use super::common::{address, ads, duration, mesh_tls, uint};
use crate::build::plan::{
    Cluster, TextMatch,
    cluster::{HttpVersion, Members, UpstreamHttp, UpstreamTls},
};

/// What a client of the mesh offers; servers ignore it (demo.md, trap 2).
const ALPN: &str = "kuma";

pub(super) fn encode(name: &str, cluster: &Cluster) -> Message {
    let (kind, eds, load) = match &cluster.members {
        Members::Eds => (
            DiscoveryType::Eds,
            Some(EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: String::new(),
            }),
            None,
        ),
        Members::Static(socket) => {
            let endpoint = EndpointMessage {
                address: Some(address(socket)),
                ..EndpointMessage::default()
            };
            let host = LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..LbEndpoint::default()
            };
            let group = LocalityLbEndpoints {
                lb_endpoints: vec![host],
                ..LocalityLbEndpoints::default()
            };
            let load = ClusterLoadAssignment {
                cluster_name: name.into(),
                endpoints: vec![group],
                ..ClusterLoadAssignment::default()
            };
            (DiscoveryType::Static, None, Some(load))
        }
    };
    Message {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        eds_cluster_config: eds,
        load_assignment: load,
        connect_timeout: Some(duration(cluster.connect_timeout)),
        circuit_breakers: Some(limits(&cluster.breaker.limits)),
        outlier_detection: cluster.breaker.outliers.as_ref().map(outliers),
        common_lb_config: cluster
            .breaker
            .outliers
            .as_ref()
            .and_then(|o| o.healthy_panic_millionths)
            .map(|millionths| CommonLbConfig {
                healthy_panic_threshold: Some(Percent {
                    value: millionths as f64 / 1_000_000.0,
                }),
                ..CommonLbConfig::default()
            }),
        typed_extension_protocol_options: cluster.http.as_ref().map(http).unwrap_or_default(),
        transport_socket: cluster.tls.as_ref().map(tls),
        ..Message::default()
    }
}

fn limits(limits: &ConnectionLimits) -> CircuitBreakers {
    CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: limits.max_connections.map(uint),
            max_connection_pools: limits.max_connection_pools.map(uint),
            max_pending_requests: limits.max_pending_requests.map(uint),
            max_requests: limits.max_requests.map(uint),
            max_retries: limits.max_retries.map(uint),
            track_remaining: true,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    }
}

/// An absent detector is enforced at 0 %, a present one at 100 %: Envoy's own defaults would switch some on unasked.
fn outliers(plan: &Outliers) -> OutlierMessage {
    let on = |present: bool| Some(uint(if present { 100 } else { 0 }));
    let rate = plan.success_rate.as_ref();
    let share = plan.failure_percentage.as_ref();
    OutlierMessage {
        interval: plan.interval.map(duration),
        base_ejection_time: plan.base_ejection_time.map(duration),
        max_ejection_percent: plan.max_ejection_percent.map(uint),
        split_external_local_origin_errors: plan.split_errors,
        consecutive_5xx: plan.consecutive_5xx.map(uint),
        enforcing_consecutive_5xx: on(plan.consecutive_5xx.is_some()),
        consecutive_gateway_failure: plan.consecutive_gateway_failure.map(uint),
        enforcing_consecutive_gateway_failure: on(plan.consecutive_gateway_failure.is_some()),
        consecutive_local_origin_failure: plan.consecutive_local_origin_failure.map(uint),
        enforcing_consecutive_local_origin_failure: on(plan.consecutive_local_origin_failure.is_some()),
        success_rate_minimum_hosts: rate.and_then(|r| r.minimum_hosts).map(uint),
        success_rate_request_volume: rate.and_then(|r| r.request_volume).map(uint),
        success_rate_stdev_factor: rate.and_then(|r| r.stdev_factor).map(uint),
        enforcing_success_rate: on(rate.is_some()),
        enforcing_local_origin_success_rate: on(rate.is_some()),
        failure_percentage_minimum_hosts: share.and_then(|s| s.minimum_hosts).map(uint),
        failure_percentage_request_volume: share.and_then(|s| s.request_volume).map(uint),
        failure_percentage_threshold: share.and_then(|s| s.threshold).map(uint),
        enforcing_failure_percentage: on(share.is_some()),
        enforcing_failure_percentage_local_origin: on(share.is_some()),
        ..OutlierMessage::default()
    }
}

fn http(plan: &UpstreamHttp) -> HashMap<String, envoy_types::pb::google::protobuf::Any> {
    let protocol = match plan.version {
        HttpVersion::Http1 => ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
        HttpVersion::Http2 => ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()),
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(Common {
            idle_timeout: plan.idle_timeout.map(duration),
            max_stream_duration: plan.max_stream_duration.map(duration),
            max_connection_duration: plan.max_connection_duration.map(duration),
            ..Common::default()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..HttpProtocolOptions::default()
    };
    HashMap::from([("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(), pack_any(options))])
}

fn tls(plan: &UpstreamTls) -> TransportSocket {
    let accept = plan.sans.iter().cloned().map(TextMatch::Exact);
    let context = UpstreamTlsContext {
        sni: plan.sni.clone(),
        common_tls_context: Some(mesh_tls(&plan.identity, &plan.trust, accept, &[ALPN])),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(pack_any(context))),
    }
}
