//! What holds for one inbound or listener of a proxy. Source: Kuma, `pkg/plugins/policies/core/rules/inbound`; dataplane.md 5.4.

use serde::{Serialize, de::DeserializeOwned};
use ursa_model::{
    Spec,
    kind::{
        mesh_circuit_breaker,
        mesh_circuit_breaker::MeshCircuitBreaker,
        mesh_timeout,
        mesh_timeout::MeshTimeout,
        mesh_traffic_permission::{Match, MeshTrafficPermission, SpiffeIdMatchType},
    },
};

use crate::{
    circuit_breaker::CircuitBreakerConf,
    merge::merge_confs,
    outbound::Origin,
    parsed::Parsed,
    permissions::Permissions,
    timeout::{InboundTimeout, TimeoutConf, chain_timeout, inbound_timeout},
};

/// One item of a policy's `rules`, for one of its matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InboundRule<C> {
    /// Callers it is about; `None` means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matching: Option<Match>,
    pub conf: C,
    pub origin: Origin,
}

/// Merged policies of one inbound or listener. The default is that of a proxy without policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InboundRules {
    pub permissions: Permissions,
    /// In the order of [`build`].
    pub timeouts: Vec<InboundRule<mesh_timeout::Conf>>,
    /// In the order of [`build`].
    pub circuit_breakers: Vec<InboundRule<mesh_circuit_breaker::Conf>>,
}

impl InboundRules {
    /// Who may call. To be enforced on chains that terminate TLS, once the proxy has an identity; without any permission
    /// everybody is denied.
    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// Timeouts of the inbound's cluster, connection manager and routes.
    pub fn timeout(&self) -> InboundTimeout {
        inbound_timeout(&self.timeouts)
    }

    /// Timeouts of the chain for this SNI in a zone ingress or egress listener; `None` leaves it as it is.
    pub fn chain_timeout(&self, sni: &str) -> Option<TimeoutConf> {
        chain_timeout(&self.timeouts, sni)
    }

    /// Limits of the inbound's cluster; `None` when no policy sets any.
    pub fn circuit_breaker(&self) -> Option<CircuitBreakerConf> {
        catch_all(&self.circuit_breakers).as_ref().map(CircuitBreakerConf::from)
    }
}

/// A kind of policy with `rules`.
pub(crate) trait RulesPolicy: Spec {
    type Conf;
    fn rules(&self) -> impl Iterator<Item = (&[Match], &Self::Conf)>;
}

impl RulesPolicy for MeshTimeout {
    type Conf = mesh_timeout::Conf;

    fn rules(&self) -> impl Iterator<Item = (&[Match], &Self::Conf)> {
        let from = self.from.iter().map(|f| (&[][..], &f.default));
        self.rules.iter().map(|r| (r.matches.as_slice(), &r.default)).chain(from)
    }
}

impl RulesPolicy for MeshCircuitBreaker {
    type Conf = mesh_circuit_breaker::Conf;

    fn rules(&self) -> impl Iterator<Item = (&[Match], &Self::Conf)> {
        let from = self.from.iter().map(|f| &f.default);
        self.rules.iter().map(|r| &r.default).chain(from).map(|conf| (&[][..], conf))
    }
}

impl RulesPolicy for MeshTrafficPermission {
    type Conf = ursa_model::kind::mesh_traffic_permission::RuleConf;

    fn rules(&self) -> impl Iterator<Item = (&[Match], &Self::Conf)> {
        self.rules.iter().map(|r| (&[][..], &r.default))
    }
}

/// The rules of policies that are in rising precedence, one per match, and of these first those that name a caller (exactly,
/// then by prefix), then those that name an SNI, then those for all traffic; otherwise in rising precedence.
pub(crate) fn build<'a, P>(policies: impl IntoIterator<Item = &'a Parsed<P>>) -> Vec<InboundRule<P::Conf>>
where
    P: RulesPolicy,
    P::Conf: Clone + 'a,
{
    let mut rules = Vec::new();
    for policy in policies {
        let kri = policy.kri();
        for (index, (matches, conf)) in policy.spec.rules().enumerate() {
            let origin = Origin {
                policy: kri.clone(),
                rule_index: index,
            };
            if matches.is_empty() {
                rules.push(InboundRule {
                    matching: None,
                    conf: conf.clone(),
                    origin,
                });
            } else {
                rules.extend(matches.iter().map(|m| InboundRule {
                    matching: Some(m.clone()),
                    conf: conf.clone(),
                    origin: origin.clone(),
                }));
            }
        }
    }
    rules.sort_by_key(|r| specificity(r.matching.as_ref()));
    rules
}

/// Smaller is more specific.
pub(crate) fn specificity(matching: Option<&Match>) -> (u8, bool) {
    let spiffe_id = matching.and_then(|m| m.spiffe_id.as_ref()).map(|id| id.kind);
    let by_caller = match spiffe_id {
        Some(SpiffeIdMatchType::Exact) => 0,
        Some(SpiffeIdMatchType::Prefix) => 1,
        None => 2,
    };
    (by_caller, matching.is_none_or(|m| m.sni.is_none()))
}

/// The merge of the rules for all traffic; `None` when there is none.
pub(crate) fn catch_all<C: Serialize + DeserializeOwned + Clone>(rules: &[InboundRule<C>]) -> Option<C> {
    // The schemas rule out that merged confs are no conf; the most important rule then stands alone.
    let all = || rules.iter().filter(|r| r.matching.is_none()).map(|r| &r.conf);
    merge_confs(all()).unwrap_or_else(|_| all().last().cloned())
}

#[cfg(test)]
mod tests;
