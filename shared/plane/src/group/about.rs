//! What a node tells the others of itself: its configured periods once, how it is every second.
//! In: the store's status. Out: messages, and what they say. Invariant: what a peer leaves out is unknown, not zero.

use std::{fmt, sync::Arc, time::Duration};

use ursa_proto::peer;
use ursa_store::{Role, StoreStatus};

use crate::config::Timing;

/// How a node is, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    pub role: Option<Role>,
    pub term: u64,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    /// It answers linearizable reads.
    pub ready: bool,
    pub revision: u64,
}

impl NodeStatus {
    pub(crate) fn of(store: &StoreStatus, ready: bool) -> Self {
        Self {
            role: Some(store.role),
            term: store.term,
            last_log: store.last_log,
            applied: store.applied,
            snapshot: store.snapshot,
            ready,
            revision: store.revision,
        }
    }
}

/// Where a node's word about itself comes from.
#[derive(Clone)]
pub(crate) struct About {
    pub(crate) timing: Timing,
    /// Called every second for each peer: quick, no I/O.
    pub(crate) status: Arc<dyn Fn() -> NodeStatus + Send + Sync>,
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("About").field("timing", &self.timing).finish_non_exhaustive()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn timing_to(timing: Timing) -> peer::Timing {
    peer::Timing {
        heartbeat_ms: millis(timing.heartbeat),
        election_min_ms: millis(timing.election_min),
        election_max_ms: millis(timing.election_max),
    }
}

pub(super) fn timing_of(timing: peer::Timing) -> Timing {
    Timing {
        heartbeat: Duration::from_millis(timing.heartbeat_ms),
        election_min: Duration::from_millis(timing.election_min_ms),
        election_max: Duration::from_millis(timing.election_max_ms),
    }
}

pub(super) fn status_to(status: &NodeStatus) -> peer::NodeStatus {
    peer::NodeStatus {
        role: match status.role {
            None => 0,
            Some(Role::Leader) => 1,
            Some(Role::Follower) => 2,
            Some(Role::Candidate) => 3,
            Some(Role::Learner) => 4,
            Some(Role::Stopped) => 5,
        },
        term: status.term,
        last_log: status.last_log,
        applied: status.applied,
        snapshot: status.snapshot,
        ready: status.ready,
        revision: status.revision,
    }
}

pub(super) fn status_of(status: peer::NodeStatus) -> NodeStatus {
    NodeStatus {
        role: match status.role {
            1 => Some(Role::Leader),
            2 => Some(Role::Follower),
            3 => Some(Role::Candidate),
            4 => Some(Role::Learner),
            5 => Some(Role::Stopped),
            _ => None,
        },
        term: status.term,
        last_log: status.last_log,
        applied: status.applied,
        snapshot: status.snapshot,
        ready: status.ready,
        revision: status.revision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_word_survives_the_wire() {
        for role in [Role::Leader, Role::Follower, Role::Candidate, Role::Learner, Role::Stopped] {
            let status = NodeStatus {
                role: Some(role),
                term: 3,
                last_log: Some(9),
                applied: None,
                snapshot: Some(0),
                ready: true,
                revision: 7,
            };
            assert_eq!(status_of(status_to(&status)), status);
        }
        assert_eq!(status_of(peer::NodeStatus::default()), NodeStatus::default());
        let timing = Timing {
            heartbeat: Duration::from_millis(80),
            election_min: Duration::from_millis(240),
            election_max: Duration::from_millis(450),
        };
        assert_eq!(timing_of(timing_to(timing)), timing);
    }
}
