//! Permissions, as Envoy's RBAC matchers: the first list that a caller is on decides, and who is on none is refused.
//! Shape: facts.md F8.

use envoy_types::{
    pb::{
        envoy::{
            config::rbac::v3::{Action as ActionMessage, rbac::Action as Verdict},
            extensions::{
                filters::{
                    http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute},
                    network::rbac::v3::Rbac as NetworkRbac,
                },
                matching::common_inputs::{network::v3::ServerNameInput, ssl::v3::UriSanInput},
            },
        },
        google::protobuf::Any,
        xds::{
            core::v3::TypedExtensionConfig,
            r#type::matcher::v3::{
                Matcher, StringMatcher,
                matcher::{
                    MatcherList, MatcherType, OnMatch,
                    matcher_list::{
                        FieldMatcher, Predicate,
                        predicate::{MatchType, PredicateList, SinglePredicate, single_predicate},
                    },
                    on_match,
                },
                string_matcher::MatchPattern,
            },
        },
    },
    util::pack_any,
};
use ursa_model::kind::mesh_traffic_permission::{Match, SpiffeIdMatchType};
use ursa_policy::{Permission, Permissions};

/// Name of what happens to a caller that is on no list.
const DEFAULT: &str = "default";

/// The filter of an HTTP inbound by itself: nobody. Its routes bring the permissions, so that a change of them leaves the
/// listener alone.
pub(super) fn deny_all() -> Any {
    pack_any(HttpRbac {
        matcher: Some(matcher(std::iter::empty())),
        ..HttpRbac::default()
    })
}

pub(super) fn per_route(permissions: &Permissions) -> Any {
    pack_any(RbacPerRoute {
        rbac: Some(HttpRbac {
            matcher: Some(matcher(enforced(permissions))),
            shadow_matcher: shadow(permissions),
            ..HttpRbac::default()
        }),
    })
}

pub(super) fn network(permissions: &Permissions, stat_prefix: &str) -> Any {
    pack_any(NetworkRbac {
        matcher: Some(matcher(enforced(permissions))),
        shadow_matcher: shadow(permissions),
        stat_prefix: format!("{stat_prefix}."),
        ..NetworkRbac::default()
    })
}

fn enforced(permissions: &Permissions) -> impl Iterator<Item = (&Permission, Verdict)> {
    let deny = permissions.deny.iter().map(|p| (p, Verdict::Deny));
    deny.chain(permissions.allow.iter().map(|p| (p, Verdict::Allow)))
}

/// What would be decided if shadow denials counted; Envoy only logs and counts it.
fn shadow(permissions: &Permissions) -> Option<Matcher> {
    if permissions.shadow_deny.is_empty() {
        return None;
    }
    let denied = permissions.deny.iter().chain(&permissions.shadow_deny).map(|p| (p, Verdict::Deny));
    Some(matcher(denied.chain(permissions.allow.iter().map(|p| (p, Verdict::Allow)))))
}

fn matcher<'a>(lists: impl Iterator<Item = (&'a Permission, Verdict)>) -> Matcher {
    let matchers: Vec<FieldMatcher> = lists
        .filter_map(|(list, verdict)| {
            Some(FieldMatcher {
                predicate: Some(join(list.matches.iter().filter_map(caller).collect(), MatchType::OrMatcher)?),
                on_match: Some(action(&list.policy.to_string(), verdict)),
            })
        })
        .collect();
    Matcher {
        matcher_type: (!matchers.is_empty()).then_some(MatcherType::MatcherList(MatcherList { matchers })),
        on_no_match: Some(Box::new(action(DEFAULT, Verdict::Deny))),
    }
}

fn action(name: &str, verdict: Verdict) -> OnMatch {
    let action = ActionMessage {
        name: name.into(),
        action: verdict.into(),
    };
    OnMatch {
        on_match: Some(on_match::OnMatch::Action(extension(name, pack_any(action)))),
        ..OnMatch::default()
    }
}

fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.into(),
        typed_config: Some(config),
    }
}

/// Envoy wants at least two members in a list of predicates.
fn join(mut all: Vec<Predicate>, list: fn(PredicateList) -> MatchType) -> Option<Predicate> {
    match all.len() {
        0 | 1 => all.pop(),
        _ => Some(Predicate {
            match_type: Some(list(PredicateList { predicate: all })),
        }),
    }
}

fn caller(caller: &Match) -> Option<Predicate> {
    let id = caller.spiffe_id.as_ref().map(|id| {
        let value = id.value.clone();
        single(
            "envoy.matching.inputs.uri_san",
            pack_any(UriSanInput {}),
            match id.kind {
                SpiffeIdMatchType::Exact => MatchPattern::Exact(value),
                SpiffeIdMatchType::Prefix => MatchPattern::Prefix(value),
            },
        )
    });
    let sni = caller.sni.as_ref().map(|sni| {
        single(
            "envoy.matching.inputs.server_name",
            pack_any(ServerNameInput {}),
            MatchPattern::Exact(sni.value.clone()),
        )
    });
    join(id.into_iter().chain(sni).collect(), MatchType::AndMatcher)
}

fn single(name: &str, input: Any, pattern: MatchPattern) -> Predicate {
    Predicate {
        match_type: Some(MatchType::SinglePredicate(SinglePredicate {
            input: Some(extension(name, input)),
            matcher: Some(single_predicate::Matcher::ValueMatch(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            })),
        })),
    }
}
