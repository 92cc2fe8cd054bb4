//! Whether a policy is about a proxy, and about which of its inbounds and listeners.
//! Source: Kuma, `pkg/plugins/policies/core/matchers/dataplane.go`; dataplane.md 5.1.
//!
//! Kuma's engine still knows MeshHTTPRoute as a top-level target, which its validators refuse; here it is
//! [`UnsupportedTarget`], as is every other kind that may not stand there.

use std::collections::BTreeSet;

use serde::Serialize;
use ursa_model::{
    Labels, Origin, Resource,
    kind::{
        common::{ProxyType, TargetKind, TargetRef},
        dataplane::Dataplane,
    },
    labels,
};

use crate::parsed::Parsed;

/// What of a proxy a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Selected {
    /// Section names of inbounds and of listeners.
    pub sections: BTreeSet<String>,
    /// The proxy is a delegated gateway, which has no inbounds and is selected as a whole.
    pub gateway: bool,
}

impl Selected {
    /// The policy is not about the proxy. So a Dataplane without inbound, listener or gateway is selected by nothing.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty() && !self.gateway
    }
}

/// A kind that may not be a policy's top-level target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsupported targetRef kind '{}'", .0.as_str())]
pub struct UnsupportedTarget(pub TargetKind);

/// Whether the policy only shows what it would do (label `kuma.io/effect: shadow`).
pub fn is_shadow(policy: &Resource) -> bool {
    policy.label(labels::EFFECT) == Some("shadow")
}

/// Which inbounds and listeners of `dataplane` the policy with this top-level target selects; `None` as target means Mesh.
/// Does not look at [`is_shadow`].
pub fn selects(policy: &Resource, target: Option<&TargetRef>, dataplane: &Parsed<Dataplane>) -> Result<Selected, UnsupportedTarget> {
    let proxy = &dataplane.resource;
    if !same_zone(policy, proxy) || !same_namespace(policy, proxy) {
        return Ok(Selected::default());
    }
    let gateway = dataplane.spec.networking.gateway.is_some();
    let proxy_type = if gateway { ProxyType::Gateway } else { ProxyType::Sidecar };
    if target.is_some_and(|t| !t.proxy_types.is_empty() && !t.proxy_types.contains(&proxy_type)) {
        return Ok(Selected::default());
    }
    let section = match target {
        None => None,
        Some(t) => match t.kind {
            TargetKind::Mesh => None,
            TargetKind::Dataplane => {
                if !t.labels.as_ref().is_none_or(|wanted| has_labels(proxy, wanted)) {
                    return Ok(Selected::default());
                }
                t.section_name.as_deref().filter(|s| !s.is_empty())
            }
            other => return Err(UnsupportedTarget(other)),
        },
    };
    let net = &dataplane.spec.networking;
    let sections = net
        .inbound
        .iter()
        .map(|i| i.section())
        .chain(net.listeners.iter().map(|l| l.section()));
    Ok(Selected {
        sections: sections.filter(|have| section.is_none_or(|s| s == have)).collect(),
        gateway,
    })
}

/// A policy made in a zone is about that zone's proxies only, unless it is a producer's.
fn same_zone(policy: &Resource, proxy: &Resource) -> bool {
    if Role::of(policy) == Role::Producer || proxy.origin() != Some(Origin::Zone) || policy.origin() != Some(Origin::Zone) {
        return true;
    }
    match (policy.zone(), proxy.zone()) {
        (Some(policy), Some(proxy)) => policy == proxy,
        _ => true,
    }
}

/// A policy of a namespace's user is about that namespace's proxies only.
fn same_namespace(policy: &Resource, proxy: &Resource) -> bool {
    match Role::of(policy) {
        Role::Consumer | Role::WorkloadOwner => policy
            .label(labels::K8S_NAMESPACE)
            .is_some_and(|ns| ns == proxy.label(labels::K8S_NAMESPACE).unwrap_or_default()),
        Role::Unknown | Role::System | Role::Producer => true,
    }
}

/// All wanted labels equal the proxy's; a label it lacks equals the empty value, as in Kuma.
fn has_labels(proxy: &Resource, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| {
        let have = if key == labels::DISPLAY_NAME {
            proxy.display_name()
        } else {
            proxy.label(key).unwrap_or_default()
        };
        have == value
    })
}

/// Who made a policy for whom (label `kuma.io/policy-role`), in rising precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Unknown,
    System,
    Producer,
    Consumer,
    WorkloadOwner,
}

impl Role {
    /// The role of a policy; `System` when it has none.
    pub fn of(policy: &Resource) -> Self {
        match policy.label(labels::POLICY_ROLE).unwrap_or_default() {
            "" | "system" => Self::System,
            "producer" => Self::Producer,
            "consumer" => Self::Consumer,
            "workload-owner" => Self::WorkloadOwner,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
