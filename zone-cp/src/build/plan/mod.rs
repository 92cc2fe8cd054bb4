//! The plan of one proxy: what it shall be configured with, in a small model of our own, before it becomes Envoy's messages.
//! Versions are hashes of it, a dry run shows it, tests read it. Only ordered maps, so equal plans serialise equally.
//! Not here: how a plan is encoded ([`super::encode`]).

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

pub mod check;
pub mod cluster;
pub mod endpoint;
pub mod listener;
pub mod route;
pub mod secret;

pub use cluster::Cluster;
pub use endpoint::Endpoints;
pub use listener::Listener;
pub use route::RouteConfig;
pub use secret::Secret;

/// Everything of one proxy, by resource name. Serialising it leaves private keys out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    pub secrets: BTreeMap<String, Secret>,
    pub clusters: BTreeMap<String, Cluster>,
    pub endpoints: BTreeMap<String, Endpoints>,
    pub listeners: BTreeMap<String, Listener>,
    pub routes: BTreeMap<String, RouteConfig>,
    /// What was asked for and could not be built, in words, in a stable order.
    pub warnings: Vec<String>,
}

/// An IP address (never a name: Envoy refuses names in these places) and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Socket {
    pub ip: std::net::IpAddr,
    pub port: u16,
}

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

/// A share of traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    pub cluster: String,
    /// At least 1.
    pub weight: u32,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum TextMatch {
    Exact(String),
    Prefix(String),
    /// The whole text, RE2.
    Regex(String),
}

/// A timeout that Envoy may be told is off: zero means none.
pub type Timeout = Option<Duration>;

impl Plan {
    /// Notes a warning once.
    pub fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}
