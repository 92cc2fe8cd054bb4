//! Route configurations.

use std::{borrow::Cow, collections::HashMap};

use envoy_types::{
    pb::{
        envoy::{
            config::{
                core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
                route::v3::{
                    DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, RetryPolicy as RetryMessage,
                    Route as RouteMessage, RouteAction, RouteConfiguration, RouteMatch as MatchMessage, VirtualHost, WeightedCluster,
                    header_matcher::HeaderMatchSpecifier,
                    query_parameter_matcher::QueryParameterMatchSpecifier,
                    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
                    retry_policy::{
                        RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
                        retry_host_predicate, retry_priority,
                    },
                    route,
                    route_action::{ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy},
                    route_match::PathSpecifier,
                    weighted_cluster::ClusterWeight,
                },
            },
            extensions::retry::{
                host::{omit_host_metadata::v3::OmitHostMetadataConfig, previous_hosts::v3::PreviousHostsPredicate},
                priority::previous_priorities::v3::PreviousPrioritiesConfig,
            },
            r#type::matcher::v3::RegexMatchAndSubstitute,
        },
        google::protobuf::Any,
    },
    util::pack_any,
};
use ursa_model::{
    header_format::{self, Reading},
    kind::{
        mesh_http_route::{HeaderMatch, HeaderMatchType},
        mesh_retry::ResetFormat,
    },
};
use ursa_policy::{Permissions, RetryPolicy, retry::HostPredicate};

use super::{
    caller,
    common::{boolean, duration, fraction, metadata, regex, text, uint},
    rbac,
};
use crate::build::plan::{
    RouteConfig, Target, TextMatch,
    route::{Action, Forward, HeaderEdits, PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteMatch},
};

pub(super) fn encode(name: &str, config: &RouteConfig) -> RouteConfiguration {
    RouteConfiguration {
        name: name.into(),
        // A cluster may arrive a moment later; refusing the routes for that would hold up every other change in them.
        validate_clusters: Some(boolean(false)),
        request_headers_to_remove: config.strip_request_headers.clone(),
        virtual_hosts: vec![VirtualHost {
            name: name.into(),
            domains: vec!["*".into()],
            routes: config.routes.iter().map(route).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn route(plan: &Route) -> RouteMessage {
    RouteMessage {
        name: plan.name.clone(),
        r#match: Some(matcher(&plan.matcher)),
        action: Some(match &plan.action {
            Action::Forward(forward) => route::Action::Route(action(forward)),
            Action::Redirect(to) => route::Action::Redirect(redirect(to)),
            Action::Respond { status } => route::Action::DirectResponse(DirectResponseAction {
                status: *status,
                ..DirectResponseAction::default()
            }),
        }),
        typed_per_filter_config: plan.permissions.as_ref().map(permissions).unwrap_or_default(),
        request_headers_to_add: header_options(&plan.request_headers),
        request_headers_to_remove: plan.request_headers.remove.clone(),
        response_headers_to_add: header_options(&plan.response_headers),
        response_headers_to_remove: plan.response_headers.remove.clone(),
        ..RouteMessage::default()
    }
}

fn permissions(plan: &Permissions) -> HashMap<String, Any> {
    HashMap::from([("envoy.filters.http.rbac".into(), rbac::per_route(plan))])
}

fn matcher(plan: &RouteMatch) -> MatchMessage {
    MatchMessage {
        path_specifier: Some(match &plan.path {
            PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
            PathMatch::Prefix(path) => PathSpecifier::Prefix(path.clone()),
            PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
        }),
        headers: plan
            .headers
            .iter()
            .map(header)
            .chain(plan.method.as_ref().map(|m| header(&method(m))))
            .collect(),
        query_parameters: plan
            .query
            .iter()
            .map(|q| QueryParameterMatcher {
                name: q.name.clone(),
                query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(text(&q.test))),
            })
            .collect(),
        runtime_fraction: plan.share.map(fraction),
        filter_state: plan.caller.as_ref().map(caller::matchers).unwrap_or_default(),
        ..MatchMessage::default()
    }
}

fn method(name: &str) -> HeaderMatch {
    HeaderMatch {
        kind: HeaderMatchType::Exact,
        name: ":method".into(),
        value: name.into(),
    }
}

fn header(plan: &HeaderMatch) -> HeaderMatcher {
    let value = || plan.value.clone();
    let text = |test: TextMatch| HeaderMatchSpecifier::StringMatch(text(&test));
    HeaderMatcher {
        name: plan.name.clone(),
        header_match_specifier: Some(match plan.kind {
            HeaderMatchType::Present => HeaderMatchSpecifier::PresentMatch(true),
            // An empty prefix is on every header that is there, and Envoy refuses it as a text.
            HeaderMatchType::Prefix if plan.value.is_empty() => HeaderMatchSpecifier::PresentMatch(true),
            HeaderMatchType::Absent => HeaderMatchSpecifier::PresentMatch(false),
            HeaderMatchType::Exact => text(TextMatch::Exact(value())),
            HeaderMatchType::Prefix => text(TextMatch::Prefix(value())),
            HeaderMatchType::RegularExpression => text(TextMatch::Regex(value())),
        }),
        ..HeaderMatcher::default()
    }
}

fn header_options(edits: &HeaderEdits) -> Vec<HeaderValueOption> {
    let option = |(name, value): &(String, String), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.clone(),
            value: format_safe(value).into_owned(),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        keep_empty_value: value.is_empty(),
        ..HeaderValueOption::default()
    };
    let set = edits.set.iter().map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    set.chain(edits.add.iter().map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd)))
        .collect()
}

/// Envoy reads header values as format strings and refuses the whole route configuration over one that it cannot read. Percent
/// signs that form no command are meant literally.
fn format_safe(value: &str) -> Cow<'_, str> {
    match header_format::read(value) {
        Reading::Formatted => Cow::Borrowed(value),
        Reading::Literal | Reading::Unknown(_) => Cow::Owned(value.replace('%', "%%")),
    }
}

fn action(plan: &Forward) -> RouteAction {
    let clusters = match plan.targets.as_slice() {
        [Target { cluster, .. }] => ClusterSpecifier::Cluster(cluster.clone()),
        many => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: many
                .iter()
                .map(|t| ClusterWeight {
                    name: t.cluster.clone(),
                    weight: Some(uint(t.weight)),
                    ..ClusterWeight::default()
                })
                .collect(),
            ..WeightedCluster::default()
        }),
    };
    let mut action = RouteAction {
        cluster_specifier: Some(clusters),
        timeout: plan.timeout.map(duration),
        idle_timeout: plan.idle_timeout.map(duration),
        retry_policy: plan.retry.as_ref().map(retry),
        host_rewrite_specifier: plan.host_rewrite.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        request_mirror_policies: plan
            .mirrors
            .iter()
            .map(|m| RequestMirrorPolicy {
                cluster: m.cluster.clone(),
                runtime_fraction: Some(fraction(m.share)),
                ..RequestMirrorPolicy::default()
            })
            .collect(),
        ..RouteAction::default()
    };
    match &plan.path_rewrite {
        Some(PathRewrite::Prefix(path)) => action.prefix_rewrite = path.clone(),
        Some(PathRewrite::Regex { pattern, with }) => action.regex_rewrite = Some(substitution(pattern, with)),
        None => {}
    }
    action
}

fn substitution(pattern: &str, with: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        substitution: with.into(),
    }
}

fn redirect(plan: &Redirect) -> RedirectAction {
    RedirectAction {
        host_redirect: plan.host.clone().unwrap_or_default(),
        port_redirect: plan.port.unwrap_or_default(),
        response_code: match plan.status {
            301 => RedirectResponseCode::MovedPermanently,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            _ => RedirectResponseCode::Found,
        }
        .into(),
        scheme_rewrite_specifier: plan.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: plan.path.as_ref().map(|path| match path {
            RedirectPath::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
            RedirectPath::Rewrite(PathRewrite::Prefix(path)) => PathRewriteSpecifier::PrefixRewrite(path.clone()),
            RedirectPath::Rewrite(PathRewrite::Regex { pattern, with }) => PathRewriteSpecifier::RegexRewrite(substitution(pattern, with)),
        }),
        ..RedirectAction::default()
    }
}

fn retry(plan: &RetryPolicy) -> RetryMessage {
    let methods = plan.retriable_methods.iter().map(|m| header(&method(m)));
    RetryMessage {
        retry_on: plan.retry_on.clone(),
        num_retries: plan.num_retries.map(uint),
        per_try_timeout: plan.per_try_timeout.map(duration),
        retry_back_off: plan.back_off.as_ref().map(|b| RetryBackOff {
            base_interval: Some(duration(b.base)),
            max_interval: b.max.map(duration),
        }),
        rate_limited_retry_back_off: plan.rate_limited_back_off.as_ref().map(|b| RateLimitedRetryBackOff {
            reset_headers: b
                .reset_headers
                .iter()
                .map(|h| ResetHeader {
                    name: h.name.clone(),
                    format: match h.format {
                        ResetFormat::Seconds => ResetHeaderFormat::Seconds,
                        ResetFormat::UnixTimestamp => ResetHeaderFormat::UnixTimestamp,
                    }
                    .into(),
                })
                .collect(),
            max_interval: b.max.map(duration),
        }),
        retriable_status_codes: plan.retriable_status_codes.clone(),
        retriable_headers: plan.retriable_response_headers.iter().map(header).collect(),
        retriable_request_headers: methods.chain(plan.retriable_request_headers.iter().map(header)).collect(),
        retry_host_predicate: plan.host_predicates.iter().map(host_predicate).collect(),
        retry_priority: plan.previous_priorities.map(|update_frequency| RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".into(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(pack_any(PreviousPrioritiesConfig {
                update_frequency,
            }))),
        }),
        host_selection_retry_max_attempts: plan.host_selection_max_attempts.unwrap_or_default(),
        ..RetryMessage::default()
    }
}

fn host_predicate(plan: &HostPredicate) -> RetryHostPredicate {
    let (name, config) = match plan {
        HostPredicate::PreviousHosts => (
            "envoy.retry_host_predicates.previous_hosts",
            pack_any(PreviousHostsPredicate::default()),
        ),
        HostPredicate::OmitHostMetadata(tags) => {
            let config = OmitHostMetadataConfig {
                metadata_match: Some(metadata(&["envoy.lb"], tags)),
            };
            ("envoy.retry_host_predicates.omit_host_metadata", pack_any(config))
        }
    };
    RetryHostPredicate {
        name: name.into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(config)),
    }
}

#[cfg(test)]
mod tests {
    use super::format_safe;

    #[test]
    fn stray_percent_signs_are_doubled_and_commands_kept() {
        for (value, want) in [
            ("plain", "plain"),
            ("%%", "%%"),
            ("a %REQ(x-y?z):12% b", "a %REQ(x-y?z):12% b"),
            ("100%", "100%%"),
            ("50% off %", "50%% off %%"),
            ("%UNKNOWN%", "%%UNKNOWN%%"),
        ] {
            assert_eq!(format_safe(value), want);
        }
    }
}
