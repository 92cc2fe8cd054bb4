//! The other nodes of the group: gRPC over mutual TLS, with certificates of the cluster's own CA.
//! In: calls of Raft and of callers that are not at the leader. Out: the answers of the node that was meant, or why there are none.
//! Invariants: nobody is listened to before certificate, node id, history and data folder were checked, in both directions; a node
//! that lost its folder takes no part, in particular it never votes; every call has a deadline; nothing here panics.
//!
//! - [`tls`]: who is who in the handshake. - [`peers`]: connections and calls. - [`wire`]: the bytes of Raft's messages.
//! - [`server`]: the other side of the calls. - [`known`]: which life of each member was met. - [`introduction`]: making this node's life
//!   known. - [`promises`]: what each member has confirmed. - [`disks`]: whose disk takes nothing. - [`roster`]: who belongs to the group.
//! - [`admission`]: taking one's place on the first start. - [`snapshot`], [`receiving`]: whole states, as files. - [`refusal`]: mistakes of
//!   set-up, with their way out.
pub(crate) mod admission;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod carrier;
mod contact;
mod dial;
pub(crate) mod disks;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "only the store's own tests cut links"))]
pub(crate) mod faults;
mod introduction;
pub(crate) mod known;
pub mod peers;
pub(crate) mod promises;
mod receiving;
mod refusal;
pub(crate) mod roster;
mod serve;
pub(crate) mod server;
pub(crate) mod snapshot;
pub mod tls;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use ursa_runtime::config::Secret;

pub(crate) use contact::Contact;
pub use contact::QuorumContact;
pub use peers::{Lane, PeerStatus, Peers};
pub use refusal::Refusal;
pub use serve::PeerNode;
pub(crate) use serve::{identified as serve_routes, limits as serve_limits};
pub use tls::NodeTls;

/// The group that a node belongs to.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Every member, this node included: id to `host:port` of its peer listener. The same on all nodes. On the first start it founds
    /// the group; later the log says who is a member, and this only how to reach them.
    pub members: BTreeMap<u64, String>,
    /// Where this node, unlike the others, reaches a member (through a forwarder, say). Default empty.
    pub dial: BTreeMap<u64, String>,
    /// The token with which this node, on its first start, joins a group that runs. With [`crate::FirstStart::WaitToBeAdded`].
    pub join: Option<Secret<String>>,
    /// This node's certificate, its key, and the CA of all. What is sent later is used from the next connection on.
    pub tls: tokio::sync::watch::Receiver<Arc<NodeTls>>,
}

impl ClusterConfig {
    /// Members and a certificate that is not renewed while the process runs.
    pub fn new(members: BTreeMap<u64, String>, tls: NodeTls) -> Self {
        Self {
            members,
            dial: BTreeMap::new(),
            join: None,
            // The receiver keeps the value although its sender is gone.
            tls: tokio::sync::watch::channel(Arc::new(tls)).1,
        }
    }
}
