//! MeshTrust: the certificate authorities of a trust domain.

use serde::{Deserialize, Serialize};

use super::{Spec, common::validate_len};
use crate::validate::Violations;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTrust {
    /// 1..=253 bytes.
    pub trust_domain: String,
    #[serde(default)]
    pub ca_bundles: Vec<CaBundle>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaBundle {
    #[serde(rename = "type")]
    pub kind: BundleType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pem: Option<Pem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BundleType {
    Pem,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pem {
    #[serde(default)]
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshTrustStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<TrustOrigin>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustOrigin {
    /// KRI of the MeshIdentity that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kri: Option<String>,
}

impl MeshTrust {
    /// The PEM texts of all bundles, in order.
    pub fn pems(&self) -> impl Iterator<Item = &str> {
        self.ca_bundles.iter().filter_map(|b| b.pem.as_ref()).map(|p| p.value.as_str())
    }
}

impl Spec for MeshTrust {
    fn validate(&self, out: &mut Violations) {
        if self.trust_domain.is_empty() || self.trust_domain.len() > 253 {
            out.add("trustDomain", "must be 1 to 253 characters long");
        }
        if self.ca_bundles.is_empty() {
            out.add("caBundles", "must have at least 1 item");
        }
        validate_len("caBundles", &self.ca_bundles, 64, out);
        for (i, bundle) in self.ca_bundles.iter().enumerate() {
            let at = format!("caBundles[{i}].pem");
            match &bundle.pem {
                None => out.add(at, "must be defined"),
                Some(p) if p.value.contains("PRIVATE KEY") => out.add(format!("{at}.value"), "must not be a private key"),
                Some(p) if !p.value.contains("-----BEGIN CERTIFICATE-----") => out.add(format!("{at}.value"), "must be a PEM certificate"),
                Some(p) if p.value.len() > 256 * 1024 => out.add(format!("{at}.value"), "must not be larger than 256 KiB"),
                Some(_) => {}
            }
        }
    }
}
