//! Pieces that several kinds share: target references, references to backends, matches on the caller, data sources.
//! Source: Kuma, `api/common/v1alpha1`; validation: `pkg/core/resources/apis/mesh/validators.go`.

use serde::{Deserialize, Serialize};

use crate::{labels::Labels, validate::Violations};

/// Kinds a target reference may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetKind {
    #[default]
    Mesh,
    Dataplane,
    MeshService,
    MeshExternalService,
    MeshMultiZoneService,
    MeshHTTPRoute,
}

impl TargetKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Dataplane => "Dataplane",
            Self::MeshService => "MeshService",
            Self::MeshExternalService => "MeshExternalService",
            Self::MeshMultiZoneService => "MeshMultiZoneService",
            Self::MeshHTTPRoute => "MeshHTTPRoute",
        }
    }
}

/// What a policy or one of its items is about. Absent labels select all; so do empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    pub kind: TargetKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Only Kuma 2 writes it: a policy of its default mesh is about gateways alone. Empty means all proxies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_types: Vec<ProxyType>,
}

/// What a proxy stands before: a workload, or everything behind a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyType {
    Sidecar,
    Gateway,
}

/// An item of `from`, as Kuma 2 has it beside `to`; Kuma 3 has `rules` instead. It is about all inbound traffic: what else Kuma 2 can
/// say there goes by tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FromItem<C> {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub default: C,
}

/// Checks a target reference: `allowed` kinds, whether a section may be named, and the rules every kind has.
pub fn validate_target_ref(at: &str, target: &TargetRef, allowed: &[TargetKind], section: bool, out: &mut Violations) {
    if !allowed.contains(&target.kind) {
        out.add(format!("{at}.kind"), "value is not supported");
        return;
    }
    let has_section = target.section_name.as_deref().is_some_and(|s| !s.is_empty());
    match target.kind {
        TargetKind::Mesh => {
            if target.labels.as_ref().is_some_and(|l| !l.is_empty()) {
                out.add(format!("{at}.labels"), "must not be set with kind Mesh");
            }
            if has_section {
                out.add(format!("{at}.sectionName"), "must not be set with kind Mesh");
            }
        }
        TargetKind::Dataplane => {
            if has_section && !section {
                out.add(format!("{at}.sectionName"), "must not be set here");
            }
        }
        TargetKind::MeshService | TargetKind::MeshMultiZoneService | TargetKind::MeshExternalService | TargetKind::MeshHTTPRoute => {
            if target.labels.as_ref().is_none_or(Labels::is_empty) {
                out.add(format!("{at}.labels"), format!("must be set with kind {}", target.kind.as_str()));
            }
            if has_section && matches!(target.kind, TargetKind::MeshExternalService | TargetKind::MeshHTTPRoute) {
                out.add(
                    format!("{at}.sectionName"),
                    format!("must not be set with kind {}", target.kind.as_str()),
                );
            }
        }
    }
    if let Some(labels) = &target.labels {
        let mut found = Violations::default();
        crate::labels::validate(labels, &mut found);
        out.0.extend(found.0.into_iter().map(|mut v| {
            v.field = format!("{at}.{}", v.field);
            v
        }));
    }
}

/// A port that TCP and UDP know: 1..=65535.
pub fn validate_port(at: &str, port: u32, out: &mut Violations) {
    if port == 0 || port > 65_535 {
        out.add(at, "port must be in the range [1, 65535]");
    }
}

/// Bounds a list that a user writes, so that one resource cannot blow up every proxy's configuration.
pub fn validate_len<T>(at: &str, list: &[T], max: usize, out: &mut Violations) {
    if list.len() > max {
        out.add(at, format!("must have at most {max} items"));
    }
}

/// An IP address or a DNS name, and no wildcard address.
pub fn is_address(text: &str) -> bool {
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => !ip.is_unspecified(),
        Err(_) => crate::name::is_dns1123_subdomain(&text.to_ascii_lowercase()),
    }
}

/// A secret value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecureDataSource {
    #[serde(rename = "type")]
    pub kind: DataSourceKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_var: Option<EnvSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_inline: Option<InlineSource>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataSourceKind {
    File,
    Secret,
    EnvVar,
    InsecureInline,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSource {
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvSource {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineSource {
    pub value: String,
}

impl SecureDataSource {
    pub fn validate(&self, at: &str, out: &mut Violations) {
        match self.kind {
            DataSourceKind::File => match &self.file {
                Some(f) if f.path.starts_with('/') && !f.path.split('/').any(|p| p == "..") => {}
                _ => out.add(format!("{at}.file.path"), "must be an absolute path without '..'"),
            },
            DataSourceKind::Secret => match &self.secret_ref {
                Some(r) if r.kind == "Secret" && !r.name.is_empty() => {}
                _ => out.add(format!("{at}.secretRef"), "must name a Secret"),
            },
            DataSourceKind::EnvVar => match &self.env_var {
                Some(e) if !e.name.is_empty() => {}
                _ => out.add(format!("{at}.envVar.name"), "must be set"),
            },
            DataSourceKind::InsecureInline => match &self.insecure_inline {
                Some(i) if !i.value.is_empty() => {}
                _ => out.add(format!("{at}.insecureInline.value"), "must be set"),
            },
        }
    }
}
