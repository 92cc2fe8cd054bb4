//! MeshIdentity: which proxies get a SPIFFE identity, how it is named and who issues it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Spec, common::SecureDataSource, mesh_service::LabelSelector};
use crate::{duration::GoDuration, validate::Violations};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeshIdentity {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<IdentitySelector>,
    #[serde(rename = "spiffeID", default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeTemplate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// Absent selects nothing; empty `matchLabels` select all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySelector {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane: Option<LabelSelector>,
}

/// Templates in Go's syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpiffeTemplate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    #[serde(rename = "type")]
    pub kind: ProviderType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundled: Option<Bundled>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spire: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderType {
    Bundled,
    Spire,
    Extension,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundled {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_trust_creation: Option<TrustCreation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_allow_self_signed: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autogenerate: Option<Autogenerate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Ca>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_parameters: Option<CertificateParameters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustCreation {
    Enabled,
    Disabled,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autogenerate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ca {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<SecureDataSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<SecureDataSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateParameters {
    /// Life of a workload certificate. Default 24 h (Kuma: 120 h).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<GoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshIdentityStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Spec for MeshIdentity {
    fn validate(&self, out: &mut Violations) {
        let Some(provider) = &self.provider else { return };
        match provider.kind {
            ProviderType::Bundled => {
                let Some(b) = &provider.bundled else {
                    out.add("provider.bundled", "must be defined");
                    return;
                };
                let auto = b.autogenerate.as_ref().and_then(|a| a.enabled).unwrap_or(false);
                match (&b.ca, auto) {
                    (Some(_), true) => out.add("provider.bundled", "must have only one of autogenerate, ca defined"),
                    (None, false) => out.add("provider.bundled", "must have one of autogenerate, ca defined"),
                    (None, true) if b.insecure_allow_self_signed != Some(true) => {
                        out.add(
                            "provider.bundled.insecureAllowSelfSigned",
                            "must be true when the CA is generated: it is self-signed",
                        );
                    }
                    (Some(ca), false) => {
                        for (at, source) in [("certificate", &ca.certificate), ("privateKey", &ca.private_key)] {
                            match source {
                                Some(s) => s.validate(&format!("provider.bundled.ca.{at}"), out),
                                None => out.add(format!("provider.bundled.ca.{at}"), "must be defined"),
                            }
                        }
                    }
                    (None, true) => {}
                }
            }
            ProviderType::Spire => {}
            ProviderType::Extension => {
                if provider.extension.is_none() {
                    out.add("provider.extension", "must be defined");
                }
            }
        }
    }
}
