//! MeshHTTPRoute: which backends an HTTP request to a service goes to, and what is changed on its way. Also the pieces it
//! shares with other policies: [`HeaderMatch`], [`BackendRef`] and [`IntOrString`].
//! Defaults that Kuma's schema fills in on a write (weight 1, header match `Exact`, redirect 302) are filled in here too,
//! so that equal matches of two policies are equal in the store. Source: Kuma, `pkg/plugins/policies/meshhttproute`,
//! `api/common/v1alpha1/{header,targetref}.go`; dataplane.md 4. Validation: [`validate`].

use serde::{Deserialize, Serialize};

use super::common::{TargetKind, TargetRef};
use crate::{labels::Labels, validate::Violations};

pub mod validate;

#[cfg(test)]
mod tests;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshHTTPRoute {
    /// Proxies whose outbound requests it is about; absent means the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    /// Services that the requests are for.
    pub target_ref: TargetRef,
    /// Must be empty; Kuma keeps the field without supporting it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// Requests that fulfil one of the matches are treated as `default` says. Rules of several policies with equal `matches`
/// are one rule whose defaults are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// At least one; the items are ORed.
    #[serde(default)]
    pub matches: Vec<Match>,
    #[serde(default)]
    pub default: RuleConf,
}

/// The fields that are set are ANDed; none set matches every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_params: Option<Vec<QueryParamMatch>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderMatch>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PathMatch {
    pub value: String,
    #[serde(rename = "type")]
    pub kind: PathMatchType,
}

/// Ordered by precedence of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PathMatchType {
    Exact,
    /// Whole path segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    PathPrefix,
    RegularExpression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
}

impl Method {
    /// The method as a request line writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Trace => "TRACE",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueryParamMatch {
    #[serde(rename = "type")]
    pub kind: QueryParamMatchType,
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QueryParamMatchType {
    Exact,
    RegularExpression,
}

/// A match on one header. Names are lower case; of several items with one name only the first counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeaderMatch {
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HeaderMatchType {
    #[default]
    Exact,
    Present,
    RegularExpression,
    Absent,
    /// An empty value means `Present`.
    Prefix,
}

/// What a rule does; absent fields are left to policies of lower precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleConf {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<Filter>>,
    /// Absent or empty: the service that the request was for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<BackendRef>>,
}

/// One of the fields after `kind` is set, the one that `kind` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    #[serde(rename = "type")]
    pub kind: FilterType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    RequestMirror,
}

/// Each header name appears once over the three lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderModifier {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<HeaderValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<Vec<HeaderValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderValue {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    pub status_code: u32,
}

fn found() -> u32 {
    302
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The field that `kind` names is set. `ReplacePrefixMatch` needs a rule whose matches all are `PathPrefix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRewrite {
    #[serde(rename = "type")]
    pub kind: PathRewriteType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathRewriteType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrlRewrite {
    /// New Host header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// Must not be true; Kuma keeps the field without supporting it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_to_backend_hostname: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// Percent of the requests; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
    pub backend_ref: BackendRef,
}

/// Where to send a request. Labels select the service, the oldest of several; the port is named by `sectionName`, else by
/// `port` as text, else it must be the only one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    pub kind: TargetKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Share of the requests, relative to the sum of the weights; 0 means none.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

impl BackendRef {
    /// The section asked for: `sectionName`, else the port as text, else `None`.
    pub fn section(&self) -> Option<String> {
        match (&self.section_name, self.port) {
            (Some(name), _) if !name.is_empty() => Some(name.clone()),
            (_, Some(port)) if port > 0 => Some(port.to_string()),
            _ => None,
        }
    }
}

/// A number that Kubernetes lets users write as an integer or, for decimals, as a text: `10` or `"10.5"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

/// Longest text of a number, in bytes.
const MAX_NUMBER: usize = 32;

impl IntOrString {
    /// The value in millionths, cut (not rounded) there; `None` when the text is no decimal number or does not fit. No floats:
    /// every replica must get the same.
    pub fn millionths(&self) -> Option<i64> {
        const SCALE: i64 = 1_000_000;
        let text = match self {
            Self::Int(n) => return i64::from(*n).checked_mul(SCALE),
            Self::String(s) => s.as_str(),
        };
        if text.len() > MAX_NUMBER {
            return None;
        }
        let (negative, digits) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|c| c.is_ascii_digit()) {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut place = SCALE;
        let mut part = 0;
        for digit in fraction.bytes().take(6) {
            place /= 10;
            part += i64::from(digit - b'0') * place;
        }
        let value = whole.checked_mul(SCALE)?.checked_add(part)?;
        Some(if negative { -value } else { value })
    }

    /// A percentage, 0 to 100.
    pub fn validate_percentage(&self, at: &str, out: &mut Violations) {
        match self.millionths() {
            None => out.add(at, "string must be a valid number"),
            Some(0..=100_000_000) => {}
            Some(_) => out.add(at, "must be in inclusive range [0.0, 100.0]"),
        }
    }
}
