//! MeshService: a service of one zone. On VMs it is derived from the Dataplanes of one workload.

use serde::{Deserialize, Serialize};

use super::{
    Spec,
    common::{validate_len, validate_port},
};
use crate::{labels::Labels, validate::Violations};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshService {
    #[serde(default)]
    pub state: ServiceState,
    #[serde(default)]
    pub selector: Selector,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Identity>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    Available,
    #[default]
    Unavailable,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane_ref: Option<DataplaneRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane_labels: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneRef {
    #[serde(default)]
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(default)]
    pub match_labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub port: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    #[serde(default = "tcp")]
    pub app_protocol: String,
}

fn tcp() -> String {
    "tcp".into()
}

/// A port of the Dataplanes: by number (`inbound.port`) or by name (`inbound.name`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(u32),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    #[serde(rename = "type")]
    pub kind: IdentityType,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IdentityType {
    #[serde(rename = "SpiffeID")]
    SpiffeId,
    ServiceTag,
}

/// Status as REST shows it and KDS carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshServiceStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
    #[serde(default)]
    pub tls: TlsStatus,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<serde_json::Value>,
    #[serde(default)]
    pub dataplane_proxies: ProxyCounts,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    pub ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// `Ready` or `NotReady`; absent until decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TlsReadiness>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsReadiness {
    Ready,
    NotReady,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyCounts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
}

impl Port {
    /// Section name of the port: its name, else the number as text.
    pub fn section(&self) -> String {
        if self.name.is_empty() {
            self.port.to_string()
        } else {
            self.name.clone()
        }
    }

    /// The Dataplane port it stands for; the same number when not said.
    pub fn target(&self) -> TargetPort {
        self.target_port.clone().unwrap_or(TargetPort::Number(self.port))
    }

    /// HTTP, HTTP/2 or gRPC.
    pub fn is_http_like(&self) -> bool {
        matches!(self.app_protocol.as_str(), "http" | "http2" | "grpc")
    }
}

impl Spec for MeshService {
    fn validate(&self, out: &mut Violations) {
        if self.selector.dataplane_ref.is_some() && self.selector.dataplane_labels.is_some() {
            out.add("selector", "must have only one of dataplaneRef, dataplaneLabels defined");
        }
        validate_len("ports", &self.ports, 256, out);
        validate_len("identities", &self.identities, 10_000, out);
        let mut keys = std::collections::BTreeSet::new();
        for (i, port) in self.ports.iter().enumerate() {
            validate_port(&format!("ports[{i}].port"), port.port, out);
            if let Some(TargetPort::Number(n)) = port.target_port {
                validate_port(&format!("ports[{i}].targetPort"), n, out);
            }
            if !keys.insert((port.port, port.app_protocol.clone())) {
                out.add(format!("ports[{i}]"), "port and appProtocol must be unique");
            }
        }
    }
}
