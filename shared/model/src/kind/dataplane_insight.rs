//! DataplaneInsight: what a zone knows of a proxy's connection. Source: Kuma, `api/mesh/v1alpha1/dataplane_insight.proto`.
//! Integers of 64 bits are texts, as protobuf's JSON mapping writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Spec, common::validate_len};
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataplaneInsight {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscription>,
    #[serde(rename = "mTLS", default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// The node metadata of the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    #[serde(rename = "openTelemetry", default, skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expiration_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_certificate_regeneration: Option<String>,
    #[serde(default)]
    pub certificate_regenerations: u32,
    /// KRI of the MeshIdentity.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub issued_backend: String,
    /// KRIs of the MeshTrusts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supported_backends: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    #[serde(default)]
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub control_plane_instance_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect_time: Option<String>,
    #[serde(default)]
    pub status: SubscriptionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<DpVersion>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<String>,
    #[serde(default)]
    pub total: XdsStats,
    #[serde(default)]
    pub cds: XdsStats,
    #[serde(default)]
    pub eds: XdsStats,
    #[serde(default)]
    pub lds: XdsStats,
    #[serde(default)]
    pub rds: XdsStats,
}

/// Counters of one xDS type; texts of decimal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct XdsStats {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_sent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_acknowledged: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_rejected: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DpVersion {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kuma_dp: Option<KumaDpVersion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envoy: Option<EnvoyVersion>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dependencies: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KumaDpVersion {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub git_tag: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub git_commit: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build_date: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kuma_cp_compatible: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvoyVersion {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kuma_dp_compatible: bool,
}

impl DataplaneInsight {
    /// A subscription is open.
    pub fn is_online(&self) -> bool {
        self.subscriptions
            .iter()
            .any(|s| s.connect_time.is_some() && s.disconnect_time.is_none())
    }
}

impl Spec for DataplaneInsight {
    fn validate(&self, out: &mut Violations) {
        validate_len("subscriptions", &self.subscriptions, 64, out);
    }
}
