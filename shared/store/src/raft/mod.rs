//! What openraft needs to run on our log, snapshots and state. The one module that names its types.
//! In: [`Config`], an open log and snapshots. Out: a running [`Raft`].
//! Invariant: openraft never sees a byte of a file, and our files never hold a byte of its making.
//! Source: openraft 0.10.0-alpha.37, pinned exactly.
pub(crate) mod answers;
mod config;
mod confirmed;
mod entries;
mod machine;
pub(crate) mod members;
mod network;
mod runtime;
#[cfg(test)]
mod suite;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::type_config::alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf, WatchReceiverOf};
use openraft::vote::RaftLeaderId;
use ursa_runtime::CancellationToken;
use ursa_runtime::error::Chain;
use ursa_state::Applied;

pub use config::Timings;
pub(crate) use config::config;
pub(crate) use confirmed::Confirmed;
pub(crate) use entries::Entries;
pub(crate) use machine::Machine;
pub use runtime::Runtime;

use crate::codec::{Members, Payload, Peer, Proposal, StoredMembers};
use crate::log::{EntryId, Item, Vote};
use crate::net::Peers;

openraft::declare_raft_types!(
    /// Standard leader ids: one leader per term, so that the term alone orders leaders. Epochs leave the process (fences of
    /// streams), and the choice is part of what is stored: it can never be changed.
    pub TypeConfig:
        D = Proposal,
        R = Option<Applied>,
        NodeId = u64,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

/// Who leads, as the core tells it.
pub(crate) type ServerMetrics = WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;
pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type Entry = EntryOf<TypeConfig>;
type LogId = LogIdOf<TypeConfig>;
type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

pub(crate) fn log_id(id: EntryId) -> LogId {
    LogId::new(led_in(id.term), id.index)
}

/// Whoever leads in `term`.
pub(crate) fn led_in(term: u64) -> openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig> {
    LeaderId::new(term, 0).to_committed()
}

pub(crate) fn entry_id(id: &LogId) -> EntryId {
    EntryId {
        term: id.leader_id.term,
        index: id.index,
    }
}

fn to_vote(vote: Vote) -> VoteOf<TypeConfig> {
    VoteOf::<TypeConfig> {
        leader_id: LeaderId::new(vote.term, vote.node_id),
        committed: vote.committed,
    }
}

fn from_vote(vote: &VoteOf<TypeConfig>) -> Vote {
    Vote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

type Membership = openraft::Membership<u64, Peer>;

fn to_membership(members: &Members) -> Result<Membership, String> {
    if members.voters.is_empty() && members.nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(members.voters.clone(), members.nodes.clone()).map_err(|error| format!("these members are no group: {error}"))
}

fn from_membership(membership: &Membership) -> Members {
    let nodes: BTreeMap<u64, Peer> = membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
    Members {
        voters: membership.get_joint_config().clone(),
        nodes,
    }
}

fn to_stored(stored: &StoredMembers) -> Result<StoredMembershipOf<TypeConfig>, String> {
    Ok(StoredMembershipOf::<TypeConfig>::new(
        stored.since.map(log_id),
        to_membership(&stored.members)?,
    ))
}

fn from_stored(stored: &StoredMembershipOf<TypeConfig>) -> StoredMembers {
    StoredMembers {
        since: stored.log_id().as_ref().map(entry_id),
        members: from_membership(stored.membership()),
    }
}

/// An entry without content.
pub(crate) fn blank(id: EntryId) -> Entry {
    Entry {
        log_id: log_id(id),
        payload: openraft::EntryPayload::Blank,
    }
}

/// What an entry is.
pub(crate) fn payload(entry: &Entry) -> Payload {
    match &entry.payload {
        openraft::EntryPayload::Blank => Payload::Blank,
        openraft::EntryPayload::Normal(proposal) => Payload::Command(proposal.clone()),
        openraft::EntryPayload::Membership(membership) => Payload::Members(from_membership(membership)),
    }
}

impl Item for Entry {
    fn id(&self) -> EntryId {
        entry_id(&self.log_id)
    }

    fn encode(&self) -> bytes::Bytes {
        match &self.payload {
            openraft::EntryPayload::Blank => Payload::Blank.encode(),
            openraft::EntryPayload::Normal(proposal) => Payload::Command(proposal.clone()).encode(),
            openraft::EntryPayload::Membership(membership) => Payload::Members(from_membership(membership)).encode(),
        }
    }

    fn decode(id: EntryId, bytes: &[u8]) -> Result<Self, String> {
        let payload = match Payload::decode(bytes)? {
            Payload::Blank => openraft::EntryPayload::Blank,
            Payload::Command(proposal) => openraft::EntryPayload::Normal(proposal),
            Payload::Members(members) => openraft::EntryPayload::Membership(to_membership(&members)?),
        };
        Ok(Self {
            log_id: log_id(id),
            payload,
        })
    }
}

/// How long a leader may lead, and followers keep others from it, after a majority last answered.
pub(crate) fn lease(timings: &Timings) -> std::time::Duration {
    timings.sane().election_max
}

/// Adds the members to a group of one that `raft` leads: first as listeners, until they have caught up, then all at once as voters.
/// A raft that is shut down meanwhile ends this with an error.
pub(crate) async fn grow(raft: &Raft, closing: &CancellationToken, members: &BTreeMap<u64, String>) -> Result<(), String> {
    let me = *raft.node_id();
    let all = async {
        for (id, address) in members.iter().filter(|(id, _)| **id != me) {
            let peer = Peer::at(address);
            let added = raft.add_learner(*id, peer, true).await;
            added.map_err(|error| Chain(&error).to_string())?;
        }
        let ids: BTreeSet<u64> = members.keys().copied().collect();
        let changed = raft.change_membership(ids, false).await;
        changed.map(|_| ()).map_err(|error| Chain(&error).to_string())
    };
    tokio::select! {
        biased;
        () = closing.cancelled() => Err("the store is closed".to_owned()),
        done = all => done,
    }
}

/// Starts a node on what is stored. Its state machine already holds the newest snapshot; openraft applies the committed entries after it.
pub(crate) async fn start(
    node_id: u64,
    timings: &Timings,
    entries: Entries,
    machine: Machine,
    peers: Option<Peers>,
) -> Result<Raft, openraft::errors::Fatal<TypeConfig>> {
    let network = network::Factory {
        peers,
        snapshots: Some(machine.snapshots()),
        append_wait: timings.sane().election_min,
    };
    Raft::new(node_id, Arc::new(config(timings)), network, entries, machine).await
}
