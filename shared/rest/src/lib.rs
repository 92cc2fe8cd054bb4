//! The resource API: one axum router that the global and the zone control planes serve, differing by [`Site`].
//! In: HTTP requests. Out: Kuma's answers, and changesets to a [`Backend`]; audit events (tracing target `audit`); stages.
//! Invariants: nothing is written without the Bearer token of an administrator, and no address is trusted, loopback included;
//! every body, list and query is bounded; every answer names the revision it was made at.
//! Source: Kuma's REST API as in `reference/api.md`. Not here: TLS and connections (ursa-runtime), where state is kept (ursa-store).

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use ursa_model::{Kind, ZoneName, labels};
use ursa_runtime::Stages;

mod absent;
mod audit;
mod auth;
mod backend;
mod body;
pub mod bootstrap;
mod call;
mod check;
mod defaults;
mod depth;
mod envelope;
mod error;
mod gate;
mod insight;
mod inspect;
mod keys;
mod kubernetes;
mod past;
mod query;
mod rollback;
mod routes;
mod rules;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod wait;
mod warnings;
mod write;

pub use auth::{ADMIN, Access, Caller, User};
pub use backend::{Backend, BoxFuture, Freshness, NotEarly, ProposeError, Unavailable};
pub use call::{HISTORY_HEADER, IDEMPOTENCY_HEADER, REQUEST_ID_HEADER, REVISION_HEADER, STALE_HEADER};
pub use error::Error;
pub use routes::{router, router_with};
pub use wait::{APPLIED_HEADER, WAIT_HEADER};

/// Which control plane serves the API; decides what is read-only and which labels are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    Global,
    Zone {
        name: ZoneName,
        /// It has a global control plane, which owns the meshes.
        federated: bool,
    },
}

impl Site {
    pub(crate) fn labels(&self) -> labels::Site<'_> {
        match self {
            Self::Global => labels::Site::Global,
            Self::Zone { name, .. } => labels::Site::Zone(name.as_str()),
        }
    }

    pub fn is_global(&self) -> bool {
        matches!(self, Self::Global)
    }

    pub fn is_federated(&self) -> bool {
        matches!(self, Self::Zone { federated: true, .. })
    }

    pub fn zone(&self) -> Option<&ZoneName> {
        match self {
            Self::Global => None,
            Self::Zone { name, .. } => Some(name),
        }
    }

    /// Nobody may write the kind over REST here.
    /// Source: Kuma, `IsReadOnly` in `pkg/core/resources/model/resource.go`.
    pub fn is_read_only(&self, kind: Kind) -> bool {
        let descriptor = kind.descriptor();
        descriptor.read_only
            || match self {
                Self::Global => !descriptor.flags.provided_by_global(),
                Self::Zone { federated: true, .. } => !descriptor.flags.provided_by_zone(),
                Self::Zone { federated: false, .. } => false,
            }
    }
}

/// What `GET /` tells.
#[derive(Clone, Debug)]
pub struct Info {
    pub hostname: String,
    /// kumactl warns unless this is its own version or contains `preview`.
    pub version: String,
    /// Names this process among the replicas of its control plane.
    pub instance_id: String,
    /// The version of Kuma whose contracts are spoken.
    pub based_on_kuma: Option<String>,
}

impl Info {
    /// The version reported unless configured otherwise.
    pub const DEFAULT_VERSION: &str = concat!("3.0.0-preview.ursa.", env!("CARGO_PKG_VERSION"));
}

/// Bounds of one request. The number of connections, headers and streams is bounded by `ursa_runtime::serve::Limits`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body. Default 2 MiB: a resource is some KiB, a secret at most 1 MiB of base64.
    pub max_body: usize,
    /// Time to receive a request's body. Default 10 s, as Kuma's.
    pub body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: 2 * 1024 * 1024,
            body_timeout: Duration::from_secs(10),
        }
    }
}

/// Everything the router needs.
pub struct Api {
    pub site: Site,
    pub backend: Arc<dyn Backend>,
    pub info: Info,
    /// The effective configuration for `GET /config`, its secrets masked already.
    pub config: Value,
    /// The global records here when a write was received and committed. A zone records nothing: its revisions are its own.
    pub stages: Stages,
    pub access: Access,
    pub limits: Limits,
    /// No kind may be written over REST (`apiServer.readOnly` of Kuma).
    pub read_only: bool,
}

impl Api {
    /// With the default access rules and limits.
    pub fn new(site: Site, backend: Arc<dyn Backend>, info: Info, config: Value, stages: Stages) -> Self {
        Self {
            site,
            backend,
            info,
            config,
            stages,
            access: Access::default(),
            limits: Limits::default(),
            read_only: false,
        }
    }

    pub(crate) fn is_read_only(&self, kind: Kind) -> bool {
        self.read_only || self.site.is_read_only(kind)
    }
}
