//! The data-plane server as proxies meet it: who is let in, what garbage gets, what a stream leaves behind.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod bootstrap;
mod drain;
mod streams;

use common::{MESH, PATIENCE, TestZone, first_request};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::Streaming;
use ursa_model::Kind;
use ursa_pki::token::DataplaneClaims;
use ursa_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ursa_state::View;

/// The answer of a client that takes everything.
fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// Takes clusters, listeners and routes, as a starting Envoy does.
async fn take_all(requests: &mpsc::Sender<DeltaDiscoveryRequest>, responses: &mut Streaming<DeltaDiscoveryResponse>) {
    let mut taken = Vec::new();
    while !taken.contains(&ROUTES.to_owned()) {
        let response = tokio::time::timeout(PATIENCE, responses.message())
            .await
            .expect("a response")
            .unwrap()
            .unwrap();
        let subscribe = |url: &str, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: url.into(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        if response.type_url.ends_with("v3.Cluster") && taken.is_empty() {
            requests.send(subscribe(LISTENERS, Vec::new())).await.unwrap();
        }
        if response.type_url == LISTENERS {
            let names = response.resources.iter().map(|r| r.name.clone()).collect();
            requests.send(subscribe(ROUTES, names)).await.unwrap();
        }
        requests.send(ack(&response)).await.unwrap();
        taken.push(response.type_url);
    }
}

fn is_ready(view: &View, name: &str) -> bool {
    let inbounds = view
        .list(Kind::Dataplane)
        .find(|d| d.name() == name)
        .map(|d| d.spec["networking"]["inbound"].clone());
    inbounds.is_some_and(|i| i[0].get("state").is_none() && i[0].get("health").is_none())
}

fn with_instance(mut request: DeltaDiscoveryRequest, instance: &str) -> DeltaDiscoveryRequest {
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let text = value(prost_types::value::Kind::StringValue(instance.into()));
    let metadata = request.node.as_mut().unwrap().metadata.as_mut().unwrap();
    let mut fields = match metadata.fields.remove("dynamicMetadata").and_then(|v| v.kind) {
        Some(prost_types::value::Kind::StructValue(dynamic)) => dynamic.fields,
        _ => Default::default(),
    };
    fields.insert("ursa.io/instance".to_owned(), text);
    let dynamic = value(prost_types::value::Kind::StructValue(prost_types::Struct { fields }));
    metadata.fields.insert("dynamicMetadata".into(), dynamic);
    request
}

/// The first request of a zone ingress that advertises an address.
fn ingress_request() -> DeltaDiscoveryRequest {
    let dataplane = json!({"type": "Dataplane", "mesh": MESH, "name": "ingress", "labels": {"kuma.io/workload": "zone-ingress"},
        "networking": {"address": "127.0.2.2", "listeners": [{"type": "ZoneIngress", "port": 10001, "name": "ingress"}]}});
    let mut request = first_request("default.ingress", Some(&dataplane.to_string()));
    let text = |s: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(s.into())),
    };
    let advertised = [("ursa.io/advertised-address", "203.0.113.7"), ("ursa.io/advertised-port", "443")];
    let fields = advertised.into_iter().map(|(k, v)| (k.to_owned(), text(v))).collect();
    let dynamic = prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct { fields })),
    };
    let metadata = request.node.as_mut().unwrap().metadata.as_mut().unwrap();
    metadata.fields.insert("dynamicMetadata".into(), dynamic);
    request
}

/// A token that lets that ingress publish its address.
fn ingress_token(zone: &TestZone) -> String {
    let tags = [("kuma.io/listener-zoneingress".to_owned(), vec!["enabled".to_owned()])];
    zone.token(&DataplaneClaims {
        name: "ingress".into(),
        mesh: MESH.into(),
        workload: "zone-ingress".into(),
        tags: tags.into_iter().collect(),
        ..DataplaneClaims::default()
    })
}
