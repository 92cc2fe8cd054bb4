//! Route configurations: what happens to a request, by its path, method, headers and query.

use serde::Serialize;
use ursa_model::kind::{mesh_http_route::HeaderMatch, mesh_traffic_permission::Match as CallerMatch};
use ursa_policy::{Permissions, RetryPolicy};

use super::{Target, TextMatch, Timeout};

/// A route configuration with one virtual host for all domains; its name is its key in the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteConfig {
    /// The first that matches is taken; without a match Envoy answers 404.
    pub routes: Vec<Route>,
    /// Request headers taken away before anything is forwarded.
    pub strip_request_headers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    pub name: String,
    pub matcher: RouteMatch,
    pub action: Action,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    /// Who may use it; inbound only. Absent: the listener's default decides.
    pub permissions: Option<Permissions>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub method: Option<String>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Only requests of this caller, by its certificate and the SNI it asked for; inbound only.
    pub caller: Option<CallerMatch>,
    /// Takes only this share of the matching requests, in millionths.
    pub share: Option<u32>,
}

impl RouteMatch {
    /// Every request to this path.
    pub fn all(path: PathMatch) -> Self {
        Self {
            path,
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            caller: None,
            share: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PathMatch {
    Exact(String),
    /// A plain text prefix.
    Prefix(String),
    /// The whole path, RE2.
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryMatch {
    pub name: String,
    pub test: TextMatch,
}

/// `set` replaces what is there, `add` appends to it. No name is in two of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeaderEdits {
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    /// An answer of the proxy's own, without a body.
    Respond {
        status: u32,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Forward {
    /// Never empty.
    pub targets: Vec<Target>,
    /// For the whole request; zero means none. Absent: Envoy's 15 s.
    pub timeout: Timeout,
    /// For a stream without traffic; zero means none. Absent: the listener's.
    pub idle_timeout: Timeout,
    pub retry: Option<RetryPolicy>,
    pub host_rewrite: Option<String>,
    pub path_rewrite: Option<PathRewrite>,
    pub mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PathRewrite {
    /// Replaces what the prefix (or exact path) matched.
    Prefix(String),
    /// Replaces what the pattern matches in the path.
    Regex { pattern: String, with: String },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    pub cluster: String,
    /// In millionths.
    pub share: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u32>,
    /// 301, 302, 303, 307 or 308.
    pub status: u32,
    pub path: Option<RedirectPath>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RedirectPath {
    Full(String),
    Rewrite(PathRewrite),
}
