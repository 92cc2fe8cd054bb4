//! Clusters: where a proxy sends to, and how.

use std::time::Duration;

use serde::Serialize;
use ursa_policy::CircuitBreakerConf;

use super::{Socket, Timeout};

/// An Envoy cluster; its name is its key in the plan, and the name of its endpoints too.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    pub members: Members,
    /// Above zero.
    pub connect_timeout: Duration,
    /// Absent: no HTTP is spoken, or Envoy's HTTP/1.1 default.
    pub http: Option<UpstreamHttp>,
    /// Limits and ejection of bad hosts. What remains of the limits is always tracked.
    pub breaker: CircuitBreakerConf,
    pub tls: Option<UpstreamTls>,
}

/// Where the hosts of a cluster come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Members {
    /// One fixed address.
    Static(Socket),
    /// The endpoints of the same name, over ADS.
    Eds,
}

/// Which HTTP is spoken, chosen by us and never negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum HttpVersion {
    Http1,
    Http2,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamHttp {
    pub version: HttpVersion,
    pub idle_timeout: Timeout,
    pub max_stream_duration: Timeout,
    pub max_connection_duration: Timeout,
}

impl UpstreamHttp {
    /// Without timeouts beyond Envoy's own.
    pub fn plain(version: HttpVersion) -> Self {
        Self {
            version,
            idle_timeout: None,
            max_stream_duration: None,
            max_connection_duration: None,
        }
    }
}

/// Mutual TLS 1.3 towards a destination of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamTls {
    pub sni: String,
    /// SPIFFE ids that may answer, sorted; never empty, since none would mean any.
    pub sans: Vec<String>,
    /// Secret with this proxy's certificate.
    pub identity: String,
    /// Secret with the trust bundle.
    pub trust: String,
}
