//! One proxy's full configuration, encoded: what [`crate::build::build`] makes and the xDS machine serves.
//! Versions are hashes of our own model, never of encoded protobuf, whose maps have no order.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use ursa_state::GlobalRevision;

/// xDS types in the order of make-before-break: what is referred to comes before what refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XdsType {
    Secret,
    Cluster,
    Endpoint,
    Listener,
    Route,
}

impl XdsType {
    pub const ALL: [Self; 5] = [Self::Secret, Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    pub fn by_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// Short name for metrics and insights.
    pub fn short(self) -> &'static str {
        match self {
            Self::Secret => "sds",
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
        }
    }

    /// The client asks for everything (a wildcard) rather than by name.
    pub fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

/// One encoded xDS resource. Clones share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct XdsResource {
    /// Hash of our model of it, 16 hexadecimal digits.
    pub version: Arc<str>,
    /// The protobuf message (the value of its `Any`).
    pub bytes: Bytes,
}

impl fmt::Debug for XdsResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the bytes: they may hold a private key.
        write!(f, "XdsResource({}, {} bytes)", self.version, self.bytes.len())
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct ProxySnapshot {
    /// The zone's revision that it was built from.
    pub zone_revision: u64,
    /// The newest global revision contained in it.
    pub global: Option<GlobalRevision>,
    pub resources: BTreeMap<XdsType, BTreeMap<String, XdsResource>>,
    /// What could not be built, in words, for the proxy's insight and the log.
    pub warnings: Vec<String>,
}

impl ProxySnapshot {
    /// The resources of a type; empty where there are none.
    pub fn of(&self, kind: XdsType) -> &BTreeMap<String, XdsResource> {
        static EMPTY: BTreeMap<String, XdsResource> = BTreeMap::new();
        self.resources.get(&kind).unwrap_or(&EMPTY)
    }
}
