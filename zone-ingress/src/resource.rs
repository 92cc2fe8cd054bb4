//! The Dataplane of a zone ingress, made from its settings.
//! In: a checked config. Out: who the proxy is, with the address to advertise in its metadata.
//! Source: Kuma 3 has zone proxies as Dataplanes with `networking.listeners`; without a workload label no identity is issued.
use std::net::IpAddr;

use serde_json::{Value, json};
use ursa_proxy::ProxySpec;

use crate::Config;

/// Key in the dynamic metadata: host name or IP address at which other zones reach this ingress. The zone control plane makes the
/// zone's MeshZoneAddress from it as long as this proxy is connected.
pub const ADVERTISED_ADDRESS: &str = "ursa.io/advertised-address";
/// The port that belongs to it, as decimal text.
pub const ADVERTISED_PORT: &str = "ursa.io/advertised-port";
/// Label that a workload's identity is made from.
const WORKLOAD: &str = "kuma.io/workload";

/// Who this zone ingress is. The config must have been checked.
pub fn spec(config: &Config) -> ProxySpec {
    let mesh = config.meshes.first().cloned().unwrap_or_default();
    let mut spec = ProxySpec::new(mesh.clone(), &config.name);
    spec.dataplane = Some(dataplane(config, &mesh).to_string());
    let advertised = config.advertised_address.clone().unwrap_or_else(|| config.address.to_string());
    let port = config.advertised_port.unwrap_or(config.port);
    spec.dynamic_metadata.insert(ADVERTISED_ADDRESS.to_owned(), advertised);
    spec.dynamic_metadata.insert(ADVERTISED_PORT.to_owned(), port.to_string());
    spec
}

fn dataplane(config: &Config, mesh: &str) -> Value {
    let listener =
        |kind: &str, name: &str, address: IpAddr, port: u16| json!({"type": kind, "address": address, "port": port, "name": name});
    let mut listeners = vec![listener("ZoneIngress", "ingress", config.address, config.port)];
    if let Some(port) = config.egress_port {
        listeners.push(listener("ZoneEgress", "egress", config.address, port));
    }
    let mut labels = config.labels.clone();
    labels.insert(WORKLOAD.to_owned(), config.workload.clone());
    json!({
        "type": "Dataplane",
        "mesh": mesh,
        "name": config.name,
        "labels": labels,
        "networking": {"address": config.address, "listeners": listeners},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dataplane_is_that_of_the_demo() {
        let config = Config {
            address: "127.0.2.2".parse().unwrap(),
            egress_port: Some(10002),
            ..Config::default()
        };
        let spec = spec(&config);
        let made: Value = serde_json::from_str(spec.dataplane.as_deref().unwrap()).unwrap();
        let wanted = json!({
            "type": "Dataplane", "mesh": "default", "name": "zone-ingress", "labels": {"kuma.io/workload": "zone-ingress"},
            "networking": {"address": "127.0.2.2", "listeners": [
                {"type": "ZoneIngress", "address": "127.0.2.2", "port": 10001, "name": "ingress"},
                {"type": "ZoneEgress", "address": "127.0.2.2", "port": 10002, "name": "egress"},
            ]},
        });
        assert_eq!(made, wanted);
        assert_eq!(
            (spec.mesh.as_str(), spec.name.as_str(), spec.proxy_type.as_str()),
            ("default", "zone-ingress", "dataplane")
        );
        assert_eq!(spec.dynamic_metadata[ADVERTISED_ADDRESS], "127.0.2.2");
        assert_eq!(spec.dynamic_metadata[ADVERTISED_PORT], "10001");
    }

    #[test]
    fn what_is_advertised_may_be_another_address() {
        let config = Config {
            advertised_address: Some("lb.example".into()),
            advertised_port: Some(443),
            ..Config::default()
        };
        let spec = spec(&config);
        assert_eq!(spec.dynamic_metadata[ADVERTISED_ADDRESS], "lb.example");
        assert_eq!(spec.dynamic_metadata[ADVERTISED_PORT], "443");
        assert!(
            !spec.dataplane.unwrap().contains("lb.example"),
            "Envoy listens where it is, not where it is reached"
        );
    }
}
