//! Label keys with a meaning, label syntax, and the labels computed on a write.
//! Source: Kuma, `pkg/core/resources/labels`; label syntax: Kubernetes.

use std::collections::BTreeMap;

use crate::{
    kind::{Kind, Scope},
    validate::Violations,
};

/// Labels of a resource.
pub type Labels = BTreeMap<String, String>;

pub const DISPLAY_NAME: &str = "kuma.io/display-name";
pub const MESH: &str = "kuma.io/mesh";
pub const ORIGIN: &str = "kuma.io/origin";
pub const ZONE: &str = "kuma.io/zone";
pub const ENV: &str = "kuma.io/env";
pub const WORKLOAD: &str = "kuma.io/workload";
pub const POLICY_ROLE: &str = "kuma.io/policy-role";
pub const EFFECT: &str = "kuma.io/effect";
pub const KDS_SYNC: &str = "kuma.io/kds-sync";
pub const MANAGED_BY: &str = "kuma.io/managed-by";
pub const LISTENER_ZONE_INGRESS: &str = "kuma.io/listener-zoneingress";
pub const LISTENER_ZONE_EGRESS: &str = "kuma.io/listener-zoneegress";
pub const K8S_NAMESPACE: &str = "k8s.kuma.io/namespace";
pub const K8S_SERVICE_ACCOUNT: &str = "k8s.kuma.io/service-account";
/// Prefix of the labels that only a Kubernetes control plane sets.
pub const K8S_PREFIX: &str = "k8s.kuma.io/";
/// Value of [`ENV`] on VMs.
pub const UNIVERSAL: &str = "universal";
pub const PROXY_TYPE: &str = "kuma.io/proxy-type";
pub const DELETION_GRACE: &str = "kuma.io/deletion-grace-period-started-at";

/// Most labels a resource may carry, and so the bound on what a peer can make us keep.
pub const MAX_LABELS: usize = 256;

/// Where a resource was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Global,
    Zone,
}

impl Origin {
    /// The origin a resource names itself; `None` when the label is absent or unknown.
    pub fn of(labels: &Labels) -> Option<Self> {
        match labels.get(ORIGIN).map(String::as_str) {
            Some("global") => Some(Self::Global),
            Some("zone") => Some(Self::Zone),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Zone => "zone",
        }
    }
}

/// Whether every `wanted` label is present with its value. `kuma.io/display-name` is compared with the display name,
/// which the resource has even where the label is missing.
pub fn matches(labels: &Labels, display_name: &str, wanted: &Labels) -> bool {
    wanted.iter().all(|(k, v)| {
        if k == DISPLAY_NAME {
            display_name == v
        } else {
            labels.get(k).is_some_and(|have| have == v)
        }
    })
}

/// What a write knows about where it happens; decides the computed labels.
#[derive(Clone, Copy, Debug)]
pub enum Site<'a> {
    Global,
    /// A zone control plane on VMs, with its zone's name.
    Zone(&'a str),
}

/// The labels stored for a write: the request's, with the computed ones set (api.md 3.3). `zone_listeners` tells, for a
/// Dataplane, whether it has an ingress and an egress listener.
pub fn computed(site: Site<'_>, kind: Kind, mesh: &str, name: &str, mut labels: Labels, zone_listeners: Option<(bool, bool)>) -> Labels {
    labels.insert(DISPLAY_NAME.into(), name.into());
    if kind.descriptor().scope == Scope::Mesh {
        labels.entry(MESH.into()).or_insert_with(|| mesh.into());
    }
    match site {
        Site::Global => {
            labels.insert(ORIGIN.into(), Origin::Global.as_str().into());
        }
        Site::Zone(zone) => {
            labels.insert(ORIGIN.into(), Origin::Zone.as_str().into());
            if kind.descriptor().flags.provided_by_zone() {
                labels.entry(ZONE.into()).or_insert_with(|| zone.into());
                labels.entry(ENV.into()).or_insert_with(|| UNIVERSAL.into());
            }
        }
    }
    if let Some((ingress, egress)) = zone_listeners {
        for (label, present) in [(LISTENER_ZONE_INGRESS, ingress), (LISTENER_ZONE_EGRESS, egress)] {
            if present {
                labels.insert(label.into(), "enabled".into());
            } else {
                labels.remove(label);
            }
        }
        labels.remove(PROXY_TYPE);
    }
    labels
}

/// Checks the labels that a proxy on a VM brings with its Dataplane: those that say where it runs are not its to choose. SPIFFE ids
/// may be made of the ones under `k8s.kuma.io/`, which only a Kubernetes control plane sets, from what it knows of a Pod.
pub fn validate_brought(given: &Labels, zone: &str, mesh: &str, out: &mut Violations) {
    validate(given, out);
    for (label, want) in [(ZONE, zone), (MESH, mesh), (ENV, UNIVERSAL)] {
        if given.get(label).is_some_and(|have| have != want) {
            out.add(format!("labels[\"{label}\"]"), format!("{label} label should have {want} value"));
        }
    }
    for label in given.keys().filter(|label| label.starts_with(K8S_PREFIX)) {
        out.add(
            format!("labels[\"{label}\"]"),
            format!("labels under {K8S_PREFIX} are set by a control plane on Kubernetes, not by a proxy"),
        );
    }
}

/// Checks keys (qualified names) and values against Kubernetes' rules; violations are at `labels["<key>"]`.
pub fn validate(labels: &Labels, out: &mut Violations) {
    if labels.len() > MAX_LABELS {
        out.add("labels", format!("must have at most {MAX_LABELS} items"));
    }
    for (key, value) in labels {
        if !is_qualified_name(key) {
            out.add(
                format!("labels[\"{key}\"]"),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            );
        }
        if !is_label_value(value) {
            out.add(format!("labels[\"{key}\"]"), "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, at most 63 bytes");
        }
    }
}

fn is_label_part(s: &str) -> bool {
    let b = s.as_bytes();
    let alnum = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    b.len() <= 63 && alnum(b.first()) && alnum(b.last()) && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// A Kubernetes label value: empty, or 1..=63 bytes.
pub fn is_label_value(s: &str) -> bool {
    s.is_empty() || is_label_part(s)
}

/// A Kubernetes qualified name: `[dns-subdomain/]name`.
pub fn is_qualified_name(s: &str) -> bool {
    match s.split_once('/') {
        Some((prefix, name)) => crate::name::is_dns1123_subdomain(prefix) && is_label_part(name),
        None => is_label_part(s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_does_not_say_where_it_runs() {
        let found = |pairs: &[(&str, &str)]| {
            let given = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut found = Violations::default();
            validate_brought(&given, "east", "default", &mut found);
            found.0.into_iter().map(|v| v.field).collect::<Vec<_>>()
        };
        let own = [
            (ZONE, "east"),
            (MESH, "default"),
            (ENV, "universal"),
            (WORKLOAD, "a"),
            ("team", "b"),
        ];
        assert_eq!(found(&own), Vec::<String>::new());
        for (label, value) in [
            (ZONE, "west"),
            (MESH, "other"),
            (ENV, "kubernetes"),
            (K8S_NAMESPACE, "kube-system"),
            (K8S_SERVICE_ACCOUNT, "admin"),
        ] {
            assert_eq!(found(&[(label, value)]), [format!("labels[\"{label}\"]")]);
        }
    }
}
