//! ZoneInsight: what the global knows of a zone's connection. Source: Kuma, `api/system/v1alpha1/zone_insight.proto`.
//! Integers of 64 bits are texts, as protobuf's JSON mapping writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Spec, common::validate_len};
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneInsight {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<KdsSubscription>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kds_streams: Option<KdsStreams>,
    /// Ours; clients of Kuma ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ursa_progress: Option<UrsaProgress>,
}

/// How far the zone is, in revisions of the global; texts of decimal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrsaProgress {
    /// The history that the revisions belong to.
    #[serde(default)]
    pub history: String,
    /// Everything up to this revision was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The zone says that it has stored everything up to this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdsSubscription {
    #[serde(default)]
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub global_instance_id: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect_time: Option<String>,
    #[serde(default)]
    pub status: KdsSubscriptionStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<ZoneVersion>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auth_token_provided: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone_instance_id: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdsSubscriptionStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<String>,
    #[serde(default)]
    pub total: KdsStats,
    /// By kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stat: BTreeMap<String, KdsStats>,
}

/// Counters of one kind; texts of decimal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdsStats {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_sent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_acknowledged: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub responses_rejected: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneVersion {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kuma_cp: Option<KumaCpVersion>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KumaCpVersion {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub git_tag: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub git_commit: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build_date: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kuma_cp_global_compatible: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdsStreams {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global_to_zone: Option<KdsStream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_to_global: Option<KdsStream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_dump: Option<KdsStream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<KdsStream>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<KdsStream>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KdsStream {
    #[serde(default)]
    pub global_instance_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<String>,
}

impl ZoneInsight {
    /// A subscription is open.
    pub fn is_online(&self) -> bool {
        self.subscriptions
            .iter()
            .any(|s| s.connect_time.is_some() && s.disconnect_time.is_none())
    }
}

impl Spec for ZoneInsight {
    fn validate(&self, out: &mut Violations) {
        validate_len("subscriptions", &self.subscriptions, 64, out);
    }
}
