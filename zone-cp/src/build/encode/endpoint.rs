//! Load assignments.

use envoy_types::pb::envoy::config::{
    core::v3::Locality,
    endpoint::v3::{ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};

use super::common::{address, metadata, uint};
use crate::build::plan::{
    Endpoints,
    endpoint::{Endpoint, Group},
};

/// Both namespaces that Envoy looks into when it picks a host: subsets, and transport sockets.
const NAMESPACES: [&str; 2] = ["envoy.lb", "envoy.transport_socket_match"];

pub(super) fn encode(name: &str, endpoints: &Endpoints) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: endpoints.groups.iter().map(group).collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn group(group: &Group) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality {
            zone: group.zone.clone(),
            ..Locality::default()
        }),
        priority: group.priority,
        lb_endpoints: group.endpoints.iter().map(host).collect(),
        ..LocalityLbEndpoints::default()
    }
}

fn host(endpoint: &Endpoint) -> LbEndpoint {
    let message = EndpointMessage {
        address: Some(address(&endpoint.socket)),
        ..EndpointMessage::default()
    };
    LbEndpoint {
        load_balancing_weight: Some(uint(endpoint.weight)),
        metadata: (!endpoint.tags.is_empty()).then(|| metadata(&NAMESPACES, &endpoint.tags)),
        host_identifier: Some(HostIdentifier::Endpoint(message)),
        ..LbEndpoint::default()
    }
}
