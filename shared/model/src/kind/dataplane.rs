//! Dataplane: one proxy and the services beside it. Source: Kuma, `api/mesh/v1alpha1/dataplane.proto` and its validator.
//! JSON is protobuf's mapping: default values are left out, so the typed spec leaves them out too.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{is_address, validate_len, validate_port},
};
use crate::{duration::GoDuration, labels::Labels, validate::Violations};

/// Most inbounds, outbounds or listeners of one proxy.
const MAX_LIST: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataplane {
    #[serde(default)]
    pub networking: Networking,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Networking {
    /// IP address or DNS name under which other proxies reach this one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inbound: Vec<Inbound>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<Outbound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transparent_proxying: Option<TransparentProxying>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InboundState {
    #[default]
    Ready,
    NotReady,
    Ignored,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    #[serde(default)]
    pub port: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub service_port: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_probe: Option<ServiceProbe>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub state: InboundState,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    #[serde(default)]
    pub ready: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProbe {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProbe {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// Default 127.0.0.1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default)]
    pub port: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<OutboundRef>,
}

/// A destination of an outbound. Labels win over the name, which means label `kuma.io/display-name` (facts.md F3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundRef {
    #[serde(default)]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub tags: Labels,
    #[serde(rename = "type", default, skip_serializing_if = "is_default")]
    pub kind: GatewayType,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GatewayType {
    #[default]
    #[serde(rename = "DELEGATED")]
    Delegated,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransparentProxying {
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redirect_port_inbound: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redirect_port_outbound: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct_access_services: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ip_family_mode: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable_backends: Option<ReachableBackends>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachableBackends {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<ReachableBackendRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachableBackendRef {
    #[serde(default)]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    #[serde(default)]
    pub port: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ListenerType {
    #[default]
    Unspecified,
    ZoneIngress,
    ZoneEgress,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerState {
    #[default]
    Ready,
    NotReady,
}

/// A listener of a zone proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    #[serde(rename = "type", default, skip_serializing_if = "is_default")]
    pub kind: ListenerType,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default)]
    pub port: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub state: ListenerState,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Inbound {
    /// Section name of the inbound: its name, else its port as text.
    pub fn section(&self) -> String {
        if self.name.is_empty() {
            self.port.to_string()
        } else {
            self.name.clone()
        }
    }

    /// Traffic may be sent to it.
    pub fn is_ready(&self) -> bool {
        self.state == InboundState::Ready && self.health.as_ref().is_none_or(|h| h.ready)
    }

    /// Protocol of the application, `tcp` when not said.
    pub fn protocol(&self) -> &str {
        if self.protocol.is_empty() { "tcp" } else { &self.protocol }
    }
}

impl Listener {
    pub fn section(&self) -> String {
        if self.name.is_empty() {
            self.port.to_string()
        } else {
            self.name.clone()
        }
    }
}

impl Dataplane {
    /// Whether it has an ingress and an egress listener.
    pub fn zone_listeners(&self) -> (bool, bool) {
        let has = |kind| self.networking.listeners.iter().any(|l| l.kind == kind);
        (has(ListenerType::ZoneIngress), has(ListenerType::ZoneEgress))
    }

    /// A proxy of the zone rather than of a workload.
    pub fn is_zone_proxy(&self) -> bool {
        !self.networking.listeners.is_empty()
    }
}

fn validate_ip(at: String, text: &str, out: &mut Violations) {
    if !text.is_empty() && text.parse::<IpAddr>().is_err() {
        out.add(at, "has to be an IP address");
    }
}

impl Spec for Dataplane {
    fn validate(&self, out: &mut Violations) {
        let net = &self.networking;
        if net.address.is_empty() {
            out.add("networking.address", "address can't be empty");
        } else if !is_address(&net.address) {
            out.add(
                "networking.address",
                "address has to be valid IP address or domain name and must not be 0.0.0.0 or ::",
            );
        }
        validate_len("networking.inbound", &net.inbound, MAX_LIST, out);
        validate_len("networking.outbound", &net.outbound, MAX_LIST, out);
        validate_len("networking.listeners", &net.listeners, MAX_LIST, out);
        if net.gateway.is_some() && !net.inbound.is_empty() {
            out.add("networking", "inbound cannot be defined for delegated gateways");
        }
        if net.gateway.is_some() && !net.listeners.is_empty() {
            out.add("networking", "listeners cannot be defined for delegated gateways");
        }
        let mut names = std::collections::BTreeSet::new();
        let mut places = std::collections::BTreeSet::new();
        for (i, inbound) in net.inbound.iter().enumerate() {
            let at = format!("networking.inbound[{i}]");
            validate_port(&format!("{at}.port"), inbound.port, out);
            if inbound.service_port != 0 {
                validate_port(&format!("{at}.servicePort"), inbound.service_port, out);
            }
            validate_ip(format!("{at}.serviceAddress"), &inbound.service_address, out);
            validate_ip(format!("{at}.address"), &inbound.address, out);
            if !matches!(inbound.protocol(), "tcp" | "http" | "http2" | "grpc" | "tls" | "kafka" | "mysql") {
                out.add(
                    format!("{at}.protocol"),
                    "has an unknown value; must be one of: grpc, http, http2, kafka, mysql, tcp, tls",
                );
            }
            if !inbound.name.is_empty() && !crate::name::is_dns1123_label(&inbound.name) {
                out.add(format!("{at}.name"), "must be a valid DNS-1123 label");
            }
            if !names.insert(inbound.section()) {
                out.add(format!("{at}.name"), "must be unique among inbounds and listeners");
            }
            places.insert((
                if inbound.address.is_empty() {
                    net.address.clone()
                } else {
                    inbound.address.clone()
                },
                inbound.port,
            ));
        }
        for (i, outbound) in net.outbound.iter().enumerate() {
            let at = format!("networking.outbound[{i}]");
            validate_port(&format!("{at}.port"), outbound.port, out);
            validate_ip(format!("{at}.address"), &outbound.address, out);
            let Some(backend) = &outbound.backend_ref else {
                out.add(format!("{at}.backendRef"), "must be defined");
                continue;
            };
            if !matches!(
                backend.kind.as_str(),
                "MeshService" | "MeshExternalService" | "MeshMultiZoneService"
            ) {
                out.add(
                    format!("{at}.backendRef.kind"),
                    "must be one of: MeshService, MeshExternalService, MeshMultiZoneService",
                );
            }
            if backend.name.is_empty() && backend.labels.is_empty() {
                out.add(format!("{at}.backendRef"), "name or labels must be defined");
            }
            if backend.kind != "MeshExternalService" {
                validate_port(&format!("{at}.backendRef.port"), backend.port, out);
            }
        }
        for (i, listener) in net.listeners.iter().enumerate() {
            let at = format!("networking.listeners[{i}]");
            if listener.kind == ListenerType::Unspecified {
                out.add(format!("{at}.type"), "must be one of: ZoneIngress, ZoneEgress");
            }
            validate_ip(format!("{at}.address"), &listener.address, out);
            validate_port(&format!("{at}.port"), listener.port, out);
            if !names.insert(listener.section()) {
                out.add(format!("{at}.name"), "must be unique among inbounds and listeners");
            }
            let address = if listener.address.is_empty() {
                net.address.clone()
            } else {
                listener.address.clone()
            };
            if !places.insert((address, listener.port)) {
                out.add(at, "address and port must be unique among inbounds and listeners");
            }
        }
        if let Some(admin) = &net.admin {
            validate_port("networking.admin.port", admin.port, out);
        }
    }
}
