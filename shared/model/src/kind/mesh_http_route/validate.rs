//! Validation of MeshHTTPRoute, and of the pieces that MeshRetry shares with it. Beyond Kuma's rules it refuses what Envoy
//! would refuse later, at every proxy at once: a path rewrite without its value, a modified `host` header, control characters
//! in a header value or a path that becomes one, a regular expression that is not RE2's. Source: Kuma, `pkg/plugins/policies/meshhttproute/api/v1alpha1/validation.go` and the schema beside it.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    BackendRef, Filter, FilterType, HeaderMatch, HeaderMatchType, HeaderModifier, Match, MeshHTTPRoute, PathMatchType, PathRewrite,
    PathRewriteType, QueryParamMatchType,
};
use crate::{
    header_format::{self, Reading},
    kind::{
        Spec,
        common::{TargetKind, TargetRef, validate_len, validate_port, validate_target_ref},
    },
    name::is_dns1123_subdomain,
    re2,
    validate::Violations,
};

/// Most items of `to`, and most rules of an item.
const MAX_ITEMS: usize = 1024;
/// Most matches of a rule, and most backends.
const MAX_BRANCHES: usize = 256;
/// Most headers or query parameters of a match, and most filters of a rule.
const MAX_PARTS: usize = 64;
/// Most headers that one list of a modifier names; Kuma's bound.
const MAX_MODIFIED: usize = 16;
/// Longest path, query value or regular expression, in bytes; the Gateway API's bound.
const MAX_VALUE: usize = 1024;
/// Longest header value, in bytes; the Gateway API's bound.
const MAX_HEADER_VALUE: usize = 4096;
/// Longest name of a header or query parameter, in bytes; Kuma's bound.
const MAX_NAME: usize = 256;

const BACKEND_KINDS: [TargetKind; 3] = [
    TargetKind::MeshService,
    TargetKind::MeshExternalService,
    TargetKind::MeshMultiZoneService,
];

/// Bounds a text that a user writes.
pub fn validate_text(at: &str, text: &str, max: usize, out: &mut Violations) {
    if text.len() > max {
        out.add(at, format!("must not be longer than {max} bytes"));
    }
}

/// A text that Envoy writes into a header: bounded, and without what would end the header.
fn validate_header_value(at: &str, value: &str, max: usize, out: &mut Violations) {
    validate_text(at, value, max, out);
    if value.contains(['\0', '\r', '\n']) {
        out.add(at, "must not contain line breaks or NUL");
    }
}

/// A regular expression that Envoy takes.
fn validate_regex(at: &str, pattern: &str, out: &mut Violations) {
    if pattern.is_empty() {
        out.add(at, "must not be empty");
    } else if pattern.len() > MAX_VALUE {
        out.add(at, format!("must not be longer than {MAX_VALUE} bytes"));
    } else if let Err(why) = re2::check(pattern) {
        out.add(at, format!("must be a valid regular expression in RE2 syntax: {why}"));
    }
}

/// A header name as Kuma asks for it: 1..=256 bytes, lower case, no ':'.
pub fn validate_header_name(at: &str, name: &str, out: &mut Violations) {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&c);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        out.add(at, "must be 1 to 256 characters of lower case letters, digits and !#$%&'*+-.^_`|~");
    }
}

impl HeaderMatch {
    pub fn validate(&self, at: &str, out: &mut Violations) {
        validate_header_name(&format!("{at}.name"), &self.name, out);
        let value = format!("{at}.value");
        match self.kind {
            HeaderMatchType::Present | HeaderMatchType::Absent => {
                if !self.value.is_empty() {
                    out.add(value, "must not be defined");
                }
            }
            HeaderMatchType::RegularExpression => validate_regex(&value, &self.value, out),
            HeaderMatchType::Exact | HeaderMatchType::Prefix => validate_text(&value, &self.value, MAX_HEADER_VALUE, out),
        }
    }
}

impl BackendRef {
    pub fn validate(&self, at: &str, out: &mut Violations) {
        let target = TargetRef {
            kind: self.kind,
            labels: self.labels.clone(),
            section_name: self.section_name.clone(),
            ..TargetRef::default()
        };
        validate_target_ref(at, &target, &BACKEND_KINDS, true, out);
        match self.port {
            None if self.kind == TargetKind::MeshMultiZoneService => {
                out.add(format!("{at}.port"), "must be defined with kind MeshMultiZoneService");
            }
            None => {}
            Some(port) => validate_port(&format!("{at}.port"), port, out),
        }
    }
}

impl Match {
    fn validate(&self, at: &str, out: &mut Violations) {
        if let Some(path) = &self.path {
            let value = format!("{at}.path.value");
            match path.kind {
                PathMatchType::RegularExpression => validate_regex(&value, &path.value, out),
                PathMatchType::PathPrefix if path.value == "/" => {}
                PathMatchType::PathPrefix | PathMatchType::Exact => {
                    validate_text(&value, &path.value, MAX_VALUE, out);
                    if path.kind == PathMatchType::PathPrefix && path.value.ends_with('/') {
                        out.add(
                            value.clone(),
                            "does not need a trailing slash because only a `/`-separated prefix or an entire path is matched",
                        );
                    }
                    if !path.value.starts_with('/') {
                        out.add(value, "must be an absolute path");
                    }
                }
            }
        }
        let params = self.query_params.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.queryParams"), params, MAX_PARTS, out);
        let mut names = BTreeSet::new();
        for (i, param) in params.iter().enumerate() {
            let at = format!("{at}.queryParams[{i}]");
            if param.name.is_empty() {
                out.add(format!("{at}.name"), "must not be empty");
            } else if !names.insert(&param.name) {
                out.add(format!("{at}.name"), "multiple entries for this name");
            }
            validate_text(&format!("{at}.name"), &param.name, MAX_NAME, out);
            match param.kind {
                QueryParamMatchType::Exact => validate_text(&format!("{at}.value"), &param.value, MAX_VALUE, out),
                QueryParamMatchType::RegularExpression => validate_regex(&format!("{at}.value"), &param.value, out),
            }
        }
        let headers = self.headers.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.headers"), headers, MAX_PARTS, out);
        for (i, header) in headers.iter().enumerate() {
            header.validate(&format!("{at}.headers[{i}]"), out);
        }
    }
}

impl HeaderModifier {
    fn validate(&self, at: &str, out: &mut Violations) {
        if self.set.is_none() && self.add.is_none() && self.remove.is_none() {
            out.add(at, "must have at least one defined: set, add, remove");
            return;
        }
        let mut names = BTreeSet::new();
        let mut check_name = |at: String, name: &str, out: &mut Violations| {
            if name.eq_ignore_ascii_case("host") {
                out.add(at, "must not be host; use a URLRewrite filter with hostname");
            } else if !names.insert(name.to_ascii_lowercase()) {
                out.add(at, "duplicate header name");
            }
        };
        for (list, items) in [("set", &self.set), ("add", &self.add)] {
            let items = items.as_deref().unwrap_or_default();
            validate_len(&format!("{at}.{list}"), items, MAX_MODIFIED, out);
            for (i, header) in items.iter().enumerate() {
                let at = format!("{at}.{list}[{i}]");
                validate_header_name(&format!("{at}.name"), &header.name, out);
                check_name(format!("{at}.name"), &header.name, out);
                validate_header_value(&format!("{at}.value"), &header.value, MAX_HEADER_VALUE, out);
                if let Reading::Unknown(command) = header_format::read(&header.value) {
                    out.add(
                        format!("{at}.value"),
                        format!("{command:?} is no command operator of Envoy that is known here; write %% for a percent sign"),
                    );
                }
            }
        }
        let remove = self.remove.as_deref().unwrap_or_default();
        validate_len(&format!("{at}.remove"), remove, MAX_MODIFIED, out);
        for (i, name) in remove.iter().enumerate() {
            let at = format!("{at}.remove[{i}]");
            validate_header_name(&at, &name.to_ascii_lowercase(), out);
            check_name(at, name, out);
        }
    }
}

impl PathRewrite {
    /// `prefixes`: all matches of the rule are prefixes, so a prefix can be replaced.
    fn validate(&self, at: &str, prefixes: bool, out: &mut Violations) {
        if self.replace_prefix_match.is_some() && !prefixes {
            out.add(
                format!("{at}.replacePrefixMatch"),
                "can only appear if all matches match a path prefix",
            );
        }
        let (field, value) = match self.kind {
            PathRewriteType::ReplaceFullPath => ("replaceFullPath", &self.replace_full_path),
            PathRewriteType::ReplacePrefixMatch => ("replacePrefixMatch", &self.replace_prefix_match),
        };
        match value {
            None => out.add(format!("{at}.{field}"), "must be defined"),
            Some(path) => validate_header_value(&format!("{at}.{field}"), path, MAX_VALUE, out),
        }
    }
}

fn validate_hostname(at: &str, hostname: Option<&str>, out: &mut Violations) {
    match hostname {
        None => {}
        Some(name) if name.parse::<IpAddr>().is_ok() => out.add(at, "cannot be an IP address"),
        Some(name) if !is_dns1123_subdomain(name) => out.add(
            at,
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
        ),
        Some(_) => {}
    }
}

impl Filter {
    fn validate(&self, at: &str, prefixes: bool, out: &mut Violations) {
        match self.kind {
            FilterType::RequestHeaderModifier => match &self.request_header_modifier {
                Some(modifier) => modifier.validate(&format!("{at}.requestHeaderModifier"), out),
                None => out.add(format!("{at}.requestHeaderModifier"), "must be defined"),
            },
            FilterType::ResponseHeaderModifier => match &self.response_header_modifier {
                Some(modifier) => modifier.validate(&format!("{at}.responseHeaderModifier"), out),
                None => out.add(format!("{at}.responseHeaderModifier"), "must be defined"),
            },
            FilterType::RequestRedirect => {
                let at = format!("{at}.requestRedirect");
                let Some(redirect) = &self.request_redirect else {
                    out.add(at, "must be defined");
                    return;
                };
                if let Some(path) = &redirect.path {
                    path.validate(&format!("{at}.path"), prefixes, out);
                }
                validate_hostname(&format!("{at}.hostname"), redirect.hostname.as_deref(), out);
                if let Some(port) = redirect.port {
                    validate_port(&format!("{at}.port"), port, out);
                }
                if !matches!(redirect.status_code, 301 | 302 | 303 | 307 | 308) {
                    out.add(format!("{at}.statusCode"), "must be one of: 301, 302, 303, 307, 308");
                }
            }
            FilterType::UrlRewrite => {
                let at = format!("{at}.urlRewrite");
                let Some(rewrite) = &self.url_rewrite else {
                    out.add(at, "must be defined");
                    return;
                };
                if let Some(path) = &rewrite.path {
                    path.validate(&format!("{at}.path"), prefixes, out);
                }
                validate_hostname(&format!("{at}.hostname"), rewrite.hostname.as_deref(), out);
                if rewrite.host_to_backend_hostname == Some(true) {
                    out.add(format!("{at}.hostToBackendHostname"), "must not be set");
                }
            }
            FilterType::RequestMirror => {
                let at = format!("{at}.requestMirror");
                let Some(mirror) = &self.request_mirror else {
                    out.add(at, "must be defined");
                    return;
                };
                if let Some(percentage) = &mirror.percentage {
                    percentage.validate_percentage(&format!("{at}.percentage"), out);
                }
                mirror.backend_ref.validate(&format!("{at}.backendRef"), out);
            }
        }
    }
}

impl Spec for MeshHTTPRoute {
    fn validate(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            validate_target_ref("targetRef", target, &[TargetKind::Mesh, TargetKind::Dataplane], false, out);
        }
        validate_len("to", &self.to, MAX_ITEMS, out);
        for (i, to) in self.to.iter().enumerate() {
            let at = format!("to[{i}]");
            validate_target_ref(&format!("{at}.targetRef"), &to.target_ref, &BACKEND_KINDS, false, out);
            if !to.hostnames.is_empty() {
                out.add(format!("{at}.hostnames"), "must not be defined");
            }
            validate_len(&format!("{at}.rules"), &to.rules, MAX_ITEMS, out);
            for (j, rule) in to.rules.iter().enumerate() {
                let at = format!("{at}.rules[{j}]");
                if rule.matches.is_empty() {
                    out.add(format!("{at}.matches"), "must have at least 1 item");
                }
                validate_len(&format!("{at}.matches"), &rule.matches, MAX_BRANCHES, out);
                for (k, m) in rule.matches.iter().enumerate() {
                    m.validate(&format!("{at}.matches[{k}]"), out);
                }
                let prefixes = rule
                    .matches
                    .iter()
                    .all(|m| m.path.as_ref().is_some_and(|p| p.kind == PathMatchType::PathPrefix));
                let filters = rule.default.filters.as_deref().unwrap_or_default();
                validate_len(&format!("{at}.default.filters"), filters, MAX_PARTS, out);
                for (k, filter) in filters.iter().enumerate() {
                    filter.validate(&format!("{at}.default.filters[{k}]"), prefixes, out);
                }
                let backends = rule.default.backend_refs.as_deref().unwrap_or_default();
                validate_len(&format!("{at}.default.backendRefs"), backends, MAX_BRANCHES, out);
                // Envoy takes weights whose sum fits 32 bits.
                if backends.iter().map(|b| u64::from(b.weight)).sum::<u64>() > u64::from(u32::MAX) {
                    out.add(format!("{at}.default.backendRefs"), "sum of weights must not exceed 4294967295");
                }
                for (k, backend) in backends.iter().enumerate() {
                    backend.validate(&format!("{at}.default.backendRefs[{k}]"), out);
                }
            }
        }
    }
}
