//! Routes of an outbound: each of the policies' routes becomes one or more of Envoy's.
//! Source: dataplane.md 5.6; Gateway API, HTTPRoute.

use std::collections::BTreeMap;

use ursa_model::{
    Kri,
    kind::mesh_http_route::{
        Filter, HeaderModifier, IntOrString, Match, PathMatchType, PathRewrite as ModelRewrite, PathRewriteType, QueryParamMatchType,
        RequestRedirect,
    },
};
use ursa_policy::{Route as PolicyRoute, RouteBackend};

use super::{
    Builder,
    plan::{
        RouteConfig, Target, TextMatch,
        route::{Action, Forward, HeaderEdits, Mirror, PathMatch, PathRewrite, QueryMatch, Redirect, RedirectPath, Route, RouteMatch},
    },
};

/// All of something, in millionths.
const WHOLE: u32 = 1_000_000;

/// The route configuration of a destination. Every cluster that the routes name is in the plan already.
pub(super) fn build(builder: &Builder<'_>, destination: &Kri, protocol: &str, routes: &[PolicyRoute]) -> RouteConfig {
    let mut out = Vec::new();
    for route in routes {
        let policies = &builder.matched.outbound;
        let timeout = policies.timeout(destination, route.policy.as_ref());
        let retry = policies.retry(destination, route.policy.as_ref(), protocol);
        let edits = Edits::of(route, &builder.plan.clusters);
        let targets = targets(&route.backends, &builder.plan.clusters);
        let failing = failing_share(route, targets.is_empty());
        for (path, prefix) in paths(&route.matching) {
            let matcher = matcher(&route.matching, path);
            let make = |share, action, edits: &Edits| Route {
                name: route.name.clone(),
                matcher: RouteMatch { share, ..matcher.clone() },
                action,
                request_headers: edits.request.clone(),
                response_headers: edits.response.clone(),
                permissions: None,
            };
            if let Some(redirect) = &edits.redirect {
                out.push(make(None, Action::Redirect(to_redirect(redirect, prefix)), &edits));
                continue;
            }
            if let Some(share) = failing {
                let share = (share < WHOLE).then_some(share);
                out.push(make(share, Action::Respond { status: 500 }, &Edits::default()));
                if share.is_none() {
                    continue;
                }
            }
            let forward = Forward {
                targets: targets.clone(),
                timeout: Some(timeout.request),
                idle_timeout: Some(timeout.stream_idle),
                retry: retry.clone(),
                host_rewrite: edits.host.clone(),
                path_rewrite: edits.path.as_ref().and_then(|p| to_rewrite(p, prefix)),
                mirrors: edits.mirrors.clone(),
            };
            out.push(make(None, Action::Forward(Box::new(forward)), &edits));
        }
    }
    RouteConfig {
        routes: out,
        strip_request_headers: Vec::new(),
    }
}

/// Backends as clusters, each once; weights are scaled down when their sum exceeds what Envoy counts with.
fn targets(backends: &[RouteBackend], clusters: &BTreeMap<String, super::plan::Cluster>) -> Vec<Target> {
    let mut weights: Vec<(String, u64)> = Vec::new();
    for backend in backends {
        let cluster = backend.destination.to_string();
        if !clusters.contains_key(&cluster) {
            continue;
        }
        match weights.iter_mut().find(|(c, _)| *c == cluster) {
            Some((_, weight)) => *weight += u64::from(backend.weight),
            None => weights.push((cluster, u64::from(backend.weight))),
        }
    }
    let sum: u64 = weights.iter().map(|(_, w)| w).sum();
    // Twice what is needed, for the weights that are raised to 1.
    let scale = if sum > u64::from(u32::MAX) {
        sum / u64::from(u32::MAX / 2) + 1
    } else {
        1
    };
    let weights = weights.into_iter();
    weights
        .map(|(cluster, w)| Target {
            cluster,
            weight: u32::try_from(w / scale).unwrap_or(u32::MAX).max(1),
        })
        .collect()
}

/// The share of requests answered 500 because their backend is unknown, in millionths; `None` when there is none.
fn failing_share(route: &PolicyRoute, nowhere: bool) -> Option<u32> {
    if nowhere {
        return Some(WHOLE);
    }
    let (part, whole) = route.failing_share()?;
    let share = u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
    Some(u32::try_from(share).unwrap_or(WHOLE))
}

/// How a path was matched, for what replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matched {
    /// The whole path.
    Whole,
    /// The part up to and including a slash; the rest follows.
    UpToSlash,
}

/// Envoy's matches for a path. A prefix means whole segments: the path itself, and what is below it.
fn paths(matching: &Match) -> Vec<(PathMatch, Matched)> {
    let Some(path) = &matching.path else {
        return vec![(PathMatch::Prefix("/".into()), Matched::UpToSlash)];
    };
    let value = path.value.clone();
    match path.kind {
        PathMatchType::Exact => vec![(PathMatch::Exact(value), Matched::Whole)],
        PathMatchType::RegularExpression => vec![(PathMatch::Regex(value), Matched::Whole)],
        PathMatchType::PathPrefix => match value.trim_end_matches('/') {
            "" => vec![(PathMatch::Prefix("/".into()), Matched::UpToSlash)],
            trimmed => vec![
                (PathMatch::Exact(trimmed.into()), Matched::Whole),
                (PathMatch::Prefix(format!("{trimmed}/")), Matched::UpToSlash),
            ],
        },
    }
}

fn matcher(matching: &Match, path: PathMatch) -> RouteMatch {
    let mut headers = Vec::new();
    for header in matching.headers.iter().flatten() {
        // Of several for one name the first counts (Gateway API).
        if !headers
            .iter()
            .any(|h: &ursa_model::kind::mesh_http_route::HeaderMatch| h.name == header.name)
        {
            headers.push(header.clone());
        }
    }
    let query = matching.query_params.iter().flatten().map(|q| QueryMatch {
        name: q.name.clone(),
        test: match q.kind {
            QueryParamMatchType::Exact => TextMatch::Exact(q.value.clone()),
            QueryParamMatchType::RegularExpression => TextMatch::Regex(q.value.clone()),
        },
    });
    RouteMatch {
        method: matching.method.map(|m| m.as_str().to_owned()),
        headers,
        query: query.collect(),
        ..RouteMatch::all(path)
    }
}

/// What the filters of a route do.
#[derive(Clone, Debug, Default)]
struct Edits<'a> {
    request: HeaderEdits,
    response: HeaderEdits,
    redirect: Option<&'a RequestRedirect>,
    host: Option<String>,
    path: Option<&'a ModelRewrite>,
    mirrors: Vec<Mirror>,
}

impl<'a> Edits<'a> {
    fn of(route: &'a PolicyRoute, clusters: &BTreeMap<String, super::plan::Cluster>) -> Self {
        let mut out = Self::default();
        for (index, filter) in route.filters.iter().enumerate() {
            out.add(filter);
            let mirror = filter.request_mirror.as_ref().zip(route.mirrors.get(&index));
            if let Some((mirror, cluster)) = mirror
                && clusters.contains_key(&cluster.to_string())
            {
                out.mirrors.push(Mirror {
                    cluster: cluster.to_string(),
                    share: percentage(mirror.percentage.as_ref()),
                });
            }
        }
        out
    }

    fn add(&mut self, filter: &'a Filter) {
        let edit = |out: &mut HeaderEdits, modifier: &HeaderModifier| {
            let pairs = |list: &Option<Vec<ursa_model::kind::mesh_http_route::HeaderValue>>| -> Vec<(String, String)> {
                list.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect()
            };
            out.set.extend(pairs(&modifier.set));
            out.add.extend(pairs(&modifier.add));
            out.remove.extend(modifier.remove.iter().flatten().cloned());
        };
        if let Some(modifier) = &filter.request_header_modifier {
            edit(&mut self.request, modifier);
        }
        if let Some(modifier) = &filter.response_header_modifier {
            edit(&mut self.response, modifier);
        }
        if let Some(redirect) = &filter.request_redirect {
            self.redirect = Some(redirect);
        }
        if let Some(rewrite) = &filter.url_rewrite {
            self.host = rewrite.hostname.clone().or(self.host.take());
            self.path = rewrite.path.as_ref().or(self.path);
        }
    }
}

/// A percentage in millionths of the whole; absent means all.
fn percentage(percent: Option<&IntOrString>) -> u32 {
    let millionths_of_percent = percent.map_or(Some(100_000_000), IntOrString::millionths).unwrap_or(0);
    u32::try_from(millionths_of_percent / 100).unwrap_or(0).min(WHOLE)
}

/// What replaces a path, by how it was matched; `None` when the rewrite lacks its value.
fn to_rewrite(rewrite: &ModelRewrite, matched: Matched) -> Option<PathRewrite> {
    match rewrite.kind {
        PathRewriteType::ReplaceFullPath => {
            let path = rooted(rewrite.replace_full_path.as_deref()?);
            // In a substitution a backslash starts a reference to a group.
            Some(PathRewrite::Regex {
                pattern: "^/.*$".into(),
                with: path.replace('\\', "\\\\"),
            })
        }
        PathRewriteType::ReplacePrefixMatch => Some(PathRewrite::Prefix(replaced_prefix(rewrite, matched)?)),
    }
}

/// The text for the part of the path that matched: it ends in a slash exactly when that part did.
fn replaced_prefix(rewrite: &ModelRewrite, matched: Matched) -> Option<String> {
    let prefix = rooted(rewrite.replace_prefix_match.as_deref()?);
    let trimmed = prefix.trim_end_matches('/');
    Some(match (matched, trimmed) {
        (Matched::UpToSlash, trimmed) => format!("{trimmed}/"),
        (Matched::Whole, "") => "/".into(),
        (Matched::Whole, trimmed) => trimmed.into(),
    })
}

/// A path starts with a slash, also where a user left it out.
fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/{path}") }
}

fn to_redirect(redirect: &RequestRedirect, matched: Matched) -> Redirect {
    Redirect {
        scheme: redirect.scheme.map(|s| s.as_str().to_owned()),
        host: redirect.hostname.clone(),
        port: redirect.port,
        status: redirect.status_code,
        path: redirect.path.as_ref().and_then(|path| match path.kind {
            PathRewriteType::ReplaceFullPath => Some(RedirectPath::Full(rooted(path.replace_full_path.as_deref()?))),
            PathRewriteType::ReplacePrefixMatch => Some(RedirectPath::Rewrite(PathRewrite::Prefix(replaced_prefix(path, matched)?))),
        }),
    }
}
