//! Listeners: where a proxy takes connections, and what it does with them.
//! Anything in here that changes makes Envoy drain connections, so what changes often (routes, HTTP permissions) is in
//! [`super::route`] instead (demo.md, trap 3).

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use ursa_policy::Permissions;

use super::{Socket, Target, Timeout};

/// An Envoy listener; its name is its key in the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listener {
    /// One only: Envoy cannot take over a socket from a listener that has other sockets too.
    pub socket: Socket,
    pub direction: Direction,
    /// Reads the SNI of each connection before a filter chain is chosen.
    pub tls_inspector: bool,
    pub chains: Vec<FilterChain>,
    /// Metadata `io.kuma.tags`.
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Direction {
    Inbound,
    Outbound,
    /// A zone proxy's.
    Unspecified,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FilterChain {
    /// Absent: Envoy names it itself.
    pub name: Option<String>,
    /// Taken only by TLS connections with one of these SNIs. Empty: by all.
    pub server_names: Vec<String>,
    /// TLS ends here. Absent: bytes pass through.
    pub tls: Option<DownstreamTls>,
    pub handler: Handler,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Handler {
    Http(HttpManager),
    Tcp(TcpProxy),
}

/// Mutual TLS 1.3 from callers of the mesh; a client certificate is required, no ALPN is offered (demo.md, trap 2).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DownstreamTls {
    /// Secret with this proxy's certificate.
    pub identity: String,
    /// Secret with the trust bundle.
    pub trust: String,
    /// The caller's SPIFFE id starts with one of these, sorted; never empty, since none would mean any.
    pub prefixes: Vec<String>,
}

/// An HTTP connection manager whose routes come over RDS.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpManager {
    pub stat_prefix: String,
    /// Name of the route configuration.
    pub routes: String,
    pub normalize_path: bool,
    /// Tell the application who called, in `x-forwarded-client-cert`, and drop what a caller wrote there itself.
    pub forward_client_cert: bool,
    /// Refuse every request for which the route brings no permission of its own.
    pub deny_by_default: bool,
    /// Keep the caller's SPIFFE id and SNI where routes can match on them. Always with TLS, so that a policy that needs it later
    /// does not change the listener.
    pub remember_caller: bool,
    pub grpc_stats: bool,
    /// Zero means no limit.
    pub request_headers_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpProxy {
    pub stat_prefix: String,
    /// Never empty.
    pub targets: Vec<Target>,
    pub idle_timeout: Timeout,
    pub max_connect_attempts: Option<u32>,
    /// Who may connect. Absent: anybody who gets this far.
    pub permissions: Option<Permissions>,
}
