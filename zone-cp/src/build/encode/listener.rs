//! Listeners.

use envoy_types::{
    pb::{
        envoy::{
            config::{
                core::v3::{CidrRange, HttpProtocolOptions, TrafficDirection, TransportSocket, transport_socket},
                listener::v3::{
                    Filter, FilterChain as ChainMessage, FilterChainMatch, Listener as Message, ListenerFilter, filter, listener_filter,
                },
            },
            extensions::{
                filters::{
                    http::{grpc_stats::v3::FilterConfig as GrpcStats, router::v3::Router},
                    listener::tls_inspector::v3::TlsInspector,
                    network::{
                        http_connection_manager::v3::{
                            HttpConnectionManager, HttpFilter, Rds,
                            http_connection_manager::{
                                CodecType, ForwardClientCertDetails, InternalAddressConfig, RouteSpecifier, SetCurrentClientCertDetails,
                            },
                            http_filter,
                        },
                        tcp_proxy::v3::{
                            TcpProxy as TcpMessage,
                            tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
                        },
                    },
                },
                transport_sockets::tls::v3::DownstreamTlsContext,
            },
        },
        google::protobuf::Any,
    },
    util::pack_any,
};

use super::{
    caller,
    common::{address, ads, boolean, duration, mesh_tls, metadata, uint},
    rbac,
};
use crate::build::plan::{
    Listener, Target, TextMatch,
    listener::{Direction, DownstreamTls, FilterChain, Handler, HttpManager, TcpProxy},
};

/// Addresses that Envoy calls internal: Kuma's default without the IPv6 ranges, which an Envoy refuses on a machine without IPv6.
/// Source: dataplane.md 2.11.
const INTERNAL: [(&str, u32); 4] = [("10.0.0.0", 8), ("192.168.0.0", 16), ("172.16.0.0", 12), ("127.0.0.1", 32)];

pub(super) fn encode(name: &str, listener: &Listener) -> Message {
    Message {
        name: name.into(),
        address: Some(address(&listener.socket)),
        traffic_direction: match listener.direction {
            Direction::Inbound => TrafficDirection::Inbound,
            Direction::Outbound => TrafficDirection::Outbound,
            Direction::Unspecified => TrafficDirection::Unspecified,
        }
        .into(),
        enable_reuse_port: Some(boolean(false)),
        listener_filters: listener
            .tls_inspector
            .then(|| ListenerFilter {
                name: "envoy.filters.listener.tls_inspector".into(),
                config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(TlsInspector::default()))),
                ..ListenerFilter::default()
            })
            .into_iter()
            .collect(),
        filter_chains: listener.chains.iter().map(chain).collect(),
        metadata: (!listener.tags.is_empty()).then(|| metadata(&["io.kuma.tags"], &listener.tags)),
        ..Message::default()
    }
}

fn chain(chain: &FilterChain) -> ChainMessage {
    ChainMessage {
        name: chain.name.clone().unwrap_or_default(),
        filter_chain_match: (!chain.server_names.is_empty()).then(|| FilterChainMatch {
            transport_protocol: "tls".into(),
            server_names: chain.server_names.clone(),
            ..FilterChainMatch::default()
        }),
        transport_socket: chain.tls.as_ref().map(tls),
        filters: match &chain.handler {
            Handler::Http(http) => {
                let remember = http
                    .remember_caller
                    .then(|| filter("envoy.filters.network.set_filter_state", caller::remember()));
                let manager = filter("envoy.filters.network.http_connection_manager", pack_any(manager(http)));
                remember.into_iter().chain([manager]).collect()
            }
            Handler::Tcp(tcp) => {
                let guard = tcp
                    .permissions
                    .as_ref()
                    .map(|p| filter("envoy.filters.network.rbac", rbac::network(p, &tcp.stat_prefix)));
                guard
                    .into_iter()
                    .chain([filter("envoy.filters.network.tcp_proxy", pack_any(tcp_proxy(tcp)))])
                    .collect()
            }
        },
        ..ChainMessage::default()
    }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.into(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}

fn tls(plan: &DownstreamTls) -> TransportSocket {
    let accept = plan.prefixes.iter().cloned().map(TextMatch::Prefix);
    let context = DownstreamTlsContext {
        require_client_certificate: Some(boolean(true)),
        common_tls_context: Some(mesh_tls(&plan.identity, &plan.trust, accept, &[])),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn manager(http: &HttpManager) -> HttpConnectionManager {
    let mut filters = Vec::new();
    if http.deny_by_default {
        filters.push(http_filter("envoy.filters.http.rbac", rbac::deny_all()));
    }
    if http.grpc_stats {
        let stats = GrpcStats {
            emit_filter_state: true,
            ..GrpcStats::default()
        };
        filters.push(http_filter("envoy.filters.http.grpc_stats", pack_any(stats)));
    }
    filters.push(http_filter("envoy.filters.http.router", pack_any(Router::default())));
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: http.stat_prefix.clone(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: http.routes.clone(),
        })),
        http_filters: filters,
        normalize_path: http.normalize_path.then(|| boolean(true)),
        internal_address_config: http.forward_client_cert.then(|| InternalAddressConfig {
            cidr_ranges: INTERNAL
                .iter()
                .map(|(prefix, length)| CidrRange {
                    address_prefix: (*prefix).into(),
                    prefix_len: Some(uint(*length)),
                })
                .collect(),
            ..InternalAddressConfig::default()
        }),
        forward_client_cert_details: if http.forward_client_cert {
            ForwardClientCertDetails::SanitizeSet
        } else {
            ForwardClientCertDetails::Sanitize
        }
        .into(),
        set_current_client_cert_details: http.forward_client_cert.then(|| SetCurrentClientCertDetails {
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        // Idle connections are closed by the side that opened them: two timers would race, and the loser resets a request.
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: Some(duration(std::time::Duration::ZERO)),
            ..HttpProtocolOptions::default()
        }),
        request_headers_timeout: (!http.request_headers_timeout.is_zero()).then(|| duration(http.request_headers_timeout)),
        ..HttpConnectionManager::default()
    }
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn tcp_proxy(tcp: &TcpProxy) -> TcpMessage {
    let specifier = match tcp.targets.as_slice() {
        [Target { cluster, .. }] => ClusterSpecifier::Cluster(cluster.clone()),
        many => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: many
                .iter()
                .map(|t| ClusterWeight {
                    name: t.cluster.clone(),
                    weight: t.weight,
                    ..ClusterWeight::default()
                })
                .collect(),
        }),
    };
    TcpMessage {
        stat_prefix: tcp.stat_prefix.clone(),
        cluster_specifier: Some(specifier),
        idle_timeout: tcp.idle_timeout.map(duration),
        max_connect_attempts: tcp.max_connect_attempts.map(uint),
        ..TcpMessage::default()
    }
}
