//! Who may call an inbound. Source: Kuma, `pkg/plugins/policies/meshtrafficpermission`; facts.md F8.

use serde::Serialize;
use ursa_model::{
    Kri,
    kind::mesh_traffic_permission::{Match, RuleConf},
};

use crate::{inbound::InboundRule, text};

/// One list of one policy's rule: it is hit when one of `matches` is; the fields of a match are ANDed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The MeshTrafficPermission: name of the RBAC action.
    #[serde(serialize_with = "text::kri")]
    pub policy: Kri,
    /// Never empty, and no match in it is.
    pub matches: Vec<Match>,
}

/// The lists in the order they are tried: first all of `deny`, then all of `allow`; the first hit decides, and no hit denies.
/// Empty lists, as of a proxy without policies, deny all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    pub deny: Vec<Permission>,
    /// Per rule its `allow` and then its `allowWithShadowDeny`.
    pub allow: Vec<Permission>,
    /// The shadow matcher's denials: `allowWithShadowDeny` again. Empty: no shadow matcher.
    pub shadow_deny: Vec<Permission>,
}

impl Permissions {
    /// From the rules of an inbound, in order.
    pub(crate) fn new(rules: &[InboundRule<RuleConf>]) -> Self {
        let mut out = Self::default();
        for rule in rules {
            let mut add = |list: fn(&mut Self) -> &mut Vec<Permission>, matches: Vec<&Match>| {
                // An empty match names nobody; validation refuses it, and Envoy would refuse the predicate.
                let matches: Vec<Match> = matches.into_iter().filter(|m| !m.is_empty()).cloned().collect();
                if !matches.is_empty() {
                    list(&mut out).push(Permission {
                        policy: rule.origin.policy.clone(),
                        matches,
                    });
                }
            };
            let conf = &rule.conf;
            add(|p| &mut p.deny, conf.deny.iter().collect());
            add(|p| &mut p.allow, conf.allow.iter().chain(&conf.allow_with_shadow_deny).collect());
            add(|p| &mut p.shadow_deny, conf.allow_with_shadow_deny.iter().collect());
        }
        out
    }

    /// Some match asks for an SNI, so the listener has to inspect TLS.
    pub fn needs_sni(&self) -> bool {
        self.deny
            .iter()
            .chain(&self.allow)
            .flat_map(|p| &p.matches)
            .any(|m| m.sni.is_some())
    }
}

#[cfg(test)]
mod tests;
