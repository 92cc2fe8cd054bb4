//! The list of members, as the core keeps it: what the leader sees of it, and changing it.
//! In: plain ids and addresses. Out: the same. Invariant: whatever the core answers has a meaning for the caller: done, not the leader,
//! another change is under way, or unknown.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{self, Deadline};

use super::{Raft, TypeConfig};
use crate::codec::Peer;

/// The group as one node sees it; the last three fields as its leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    /// Voters and learners, with addresses.
    pub(crate) nodes: BTreeMap<u64, String>,
    pub(crate) voters: BTreeSet<u64>,
    /// Those that were heard lately, this node included.
    pub(crate) answering: BTreeSet<u64>,
    /// Voters that were never heard since this node leads.
    pub(crate) unheard: BTreeSet<u64>,
    /// How far the others are known to be.
    pub(crate) matched: BTreeMap<u64, u64>,
    pub(crate) last: u64,
}

/// How a change ended that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    NotLeader(Option<u64>),
    UnderWay,
    /// It may or may not be made.
    Unknown(String),
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AddLearner(u64, Peer),
    /// These are the voters; whoever was one and is none now is no member at all.
    Voters(BTreeSet<u64>),
    RemoveLearner(u64),
    Set(u64, Peer),
}

/// See [`Picture`]. Who was heard within the last `patience` answers.
pub(crate) fn picture(raft: &Raft, patience: Duration) -> Picture {
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let heard = metrics.heartbeat.iter().flatten();
    let ever = |id: &u64| heard.clone().any(|(node, at)| node == id && at.is_some());
    let unheard = membership.voter_ids().filter(|id| *id != metrics.id && !ever(id)).collect();
    let heard = heard.filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < patience));
    let replication = metrics.replication.iter().flatten();
    Picture {
        nodes: membership.nodes().map(|(id, peer)| (*id, peer.address.clone())).collect(),
        voters: membership.voter_ids().collect(),
        answering: heard.map(|(id, _)| *id).chain([metrics.id]).collect(),
        unheard,
        matched: replication.filter_map(|(id, at)| Some((*id, at.as_ref()?.index))).collect(),
        last: metrics.last_log_index.unwrap_or_default(),
    }
}

/// Waits until `node` has the entry at `index`, this node leads no more, or the deadline. Whether it has it.
pub(crate) async fn caught_up(raft: &Raft, node: u64, index: u64, deadline: Deadline) -> bool {
    let mut metrics = raft.metrics();
    loop {
        {
            let now = metrics.borrow_watched();
            let at = now.replication.as_ref().and_then(|all| all.get(&node).cloned().flatten());
            if at.is_some_and(|at| at.index >= index) {
                return true;
            }
            if now.replication.is_none() {
                return false;
            }
        }
        match lease::within(deadline.remaining(), metrics.changed()).await {
            Ok(Ok(())) => {}
            _ => return false,
        }
    }
}

/// Makes a change, and waits until it is committed.
pub(crate) async fn change(raft: &Raft, step: Step, deadline: Deadline) -> Result<(), Failed> {
    let (change, retain) = match step {
        Step::AddLearner(node, peer) => (ChangeMembers::AddNodes(BTreeMap::from([(node, peer)])), true),
        Step::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), false),
        Step::RemoveLearner(node) => (ChangeMembers::RemoveNodes(BTreeSet::from([node])), false),
        Step::Set(node, peer) => (ChangeMembers::SetNodes(BTreeMap::from([(node, peer)])), true),
    };
    match lease::within(deadline.remaining(), raft.change_membership(change, retain)).await {
        Err(expired) => Err(Failed::Unknown(expired.to_string())),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::Fatal(fatal))) => Err(Failed::Unknown(Chain(&fatal).to_string())),
        Ok(Err(RaftError::APIError(error))) => Err(failed(error)),
    }
}

fn failed(error: ClientWriteError<TypeConfig>) -> Failed {
    match error {
        ClientWriteError::ForwardToLeader(to) => Failed::NotLeader(to.leader_id),
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)) => {
            Failed::UnderWay
        }
        error => Failed::Unknown(Chain(&error).to_string()),
    }
}
