//! Endpoints: the hosts of an EDS cluster, by locality and priority.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Socket;

/// A load assignment; its name is its key in the plan, and the cluster's. Empty is a valid answer: no host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Endpoints {
    /// Sorted by priority, then zone; each priority and zone once.
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    pub zone: String,
    /// 0 is used first.
    pub priority: u32,
    /// Sorted by address, each once.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    pub socket: Socket,
    /// At least 1.
    pub weight: u32,
    /// Metadata for load balancing: the Dataplane's labels and the inbound's protocol.
    pub tags: BTreeMap<String, String>,
}

impl Endpoints {
    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|g| g.endpoints.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
