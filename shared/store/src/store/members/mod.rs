//! Who is in the group, and how that changes while it runs: a node joins by a one-time token, listens until it has caught up, votes, moves
//! to another address, takes the lead, leaves.
//! In: what an operator asks for, on any node. Out: what was done, or the reason why it was not.
//! Invariants: one change at a time, decided by the leader; no change leaves fewer voters that answer than a majority needs; an id that
//! left never comes back. Every request may be repeated: what is done already is reported as done.
//!
//! - [`ledger`]: what is stored beside the list of members in the log. - [`judge`]: what may be done (pure). - [`carry`]: the leader's side.
//! - [`follow`]: what every node does about it. - [`join`]: the side of a node that joins.
mod carry;
mod follow;
mod join;
mod judge;
mod ledger;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ursa_model::Timestamp;
use ursa_runtime::Backoff;
use ursa_runtime::lease::Deadline;
use uuid::Uuid;

pub(crate) use follow::run as follow;
pub(crate) use join::run as join;
use ledger::Ledger;
pub(crate) use ledger::NAME as LEDGER;

use super::Store;
use crate::error::Error;
use crate::level::Levels;
use crate::net::peers::{CallError, Method};
use crate::net::{Lane, wire};

/// Before a request is sent again, when nobody leads at the moment.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum MemberChange {
    /// A node that does not exist yet may join. The answer is its token; one that was given for this node before is void.
    Invite {
        /// An id that was never used.
        node: u64,
        /// Where the others will reach it: `host:port`.
        address: String,
        valid_ms: u64,
    },
    /// A node that has joined gets a vote, once it has caught up.
    Promote {
        node: u64,
        /// This one leaves in the same step: at no moment are there fewer who can vote than before.
        #[serde(default)]
        instead_of: Option<u64>,
    },
    /// A node leaves for good.
    Remove { node: u64 },
    /// A member is reached elsewhere from now on.
    Move { node: u64, address: String },
    /// This voter takes the lead; without a name the one that is furthest.
    Transfer { to: Option<u64> },
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum MemberDone {
    Invited {
        /// For the new node alone; it is not stored anywhere.
        token: String,
        until: Timestamp,
    },
    Promoted,
    Removed,
    Moved,
    Leads {
        node: u64,
    },
}

/// Without the token.
impl std::fmt::Debug for MemberDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invited { until, .. } => f.debug_struct("Invited").field("until", until).finish_non_exhaustive(),
            Self::Promoted => f.write_str("Promoted"),
            Self::Removed => f.write_str("Removed"),
            Self::Moved => f.write_str("Moved"),
            Self::Leads { node } => f.debug_struct("Leads").field("node", node).finish(),
        }
    }
}

/// Why a change is not made. Nothing was changed; each text says the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "objection", rename_all = "snake_case")]
pub enum Objection {
    #[error("node {node} is a member already")]
    IsMember { node: u64 },
    #[error("node {node} is no member: its members are those of GET /cluster; a new node joins with a token first")]
    NoMember { node: u64 },
    #[error("node {node} has no vote: promote it first")]
    NoVoter { node: u64 },
    #[error(
        "node {node} has left the group, and an id is never used twice: give the new node an id that was never used, and an empty folder"
    )]
    HasLeft { node: u64 },
    #[error("{address:?} is not host:port")]
    NoAddress { address: String },
    #[error("{address} is the address of node {node}: give each node its own, or move that node first")]
    AddressTaken { address: String, node: u64 },
    #[error(
        "the voters would be {voters:?}, of which a majority of {needed} must answer, and of them only {answering:?} do: bring a voter back, or add \
         and promote a new node first"
    )]
    LosesQuorum {
        voters: Vec<u64>,
        answering: Vec<u64>,
        needed: usize,
    },
    #[error("node {node} is the only voter: add and promote another node first")]
    LastVoter { node: u64 },
    #[error(
        "node {node} lacks {behind} entries of the log and did not catch up in time: wait until it has, and see that it runs and is reached"
    )]
    Lags { node: u64, behind: u64 },
    #[error("node {node} does not answer the leader: see that it runs and is reached")]
    Silent { node: u64 },
    #[error("another change of the members is under way: try again when it is done")]
    UnderWay,
    #[error("node {node} was given no token: an administrator adds it first, with this id (POST /cluster/members)")]
    NotInvited { node: u64 },
    #[error("the token is not the one that node {node} was given last: use that one, or have a new one made")]
    WrongToken { node: u64 },
    #[error(
        "the token of node {node} was used already, by a node with another data folder: have a new one made, for an id that was never used"
    )]
    TokenUsed { node: u64 },
    #[error("the token of node {node} was valid until {}: have a new one made", until.rfc3339())]
    TokenExpired { node: u64, until: Timestamp },
    #[error(
        "node {node} runs a version that knows feature levels {min} to {max}, and the group is at level {level}: install the version that the \
         members run, then start it again"
    )]
    OtherLevel { node: u64, level: u32, min: u32, max: u32 },
    #[error("a token is valid for at least a second and at most 30 days")]
    BadValidity,
    #[error("this is a group of one without a cluster configuration: configure `cluster` on this node first")]
    Alone,
}

/// Why there is no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MemberError {
    /// It must not be done; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Objection),
    /// It cannot be done now, or it is not known whether it was: ask again, a repeat does no harm.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A node that wants to be let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    pub(crate) node: u64,
    pub(crate) folder: Uuid,
    pub(crate) levels: Levels,
}

/// What goes from node to node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum MemberCall {
    Change {
        wanted: MemberChange,
        /// Milliseconds that the caller waits.
        wait_ms: u64,
    },
    /// Of a node that is no member yet.
    Join { token: String },
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum MemberAnswer {
    Done {
        done: MemberDone,
    },
    Joined,
    Objected {
        objection: Objection,
    },
    NotLeader {
        leader: Option<u64>,
        address: String,
    },
    /// Not now, or not known.
    NotNow {
        reason: String,
    },
}

impl Store {
    /// Of the configured members those that have not left; `None` while that cannot be read.
    pub(crate) async fn without_left(&self, members: &BTreeMap<u64, String>) -> Option<BTreeMap<u64, String>> {
        let ledger = Ledger::of(&self.read().await.ok()?).ok()?;
        let members = members.iter().filter(|(id, _)| !ledger.left().contains(id));
        Some(members.map(|(id, address)| (*id, address.clone())).collect())
    }

    /// Changes who is in the group, through the leader. Returns once it is done.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn change_members(&self, wanted: MemberChange, deadline: Deadline) -> Result<MemberDone, MemberError> {
        let Some(peers) = self.peers().cloned() else {
            return Err(Objection::Alone.into());
        };
        let mut leads = peers.leader();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (mut hint, mut last) = (None, "nobody leads".to_owned());
        loop {
            if let Some(why) = self.why_stopped() {
                return Err(Error::Stopped(why).into());
            }
            let leader: Option<u64> = hint.take().or(*leads.borrow_and_update());
            let answer = match leader {
                None => MemberAnswer::NotLeader {
                    leader: None,
                    address: String::new(),
                },
                Some(leader) if leader == peers.node_id() => self.carry_out(&wanted, deadline).await,
                Some(leader) => {
                    let call = MemberCall::Change {
                        wanted: wanted.clone(),
                        wait_ms: u64::try_from(deadline.remaining().as_millis()).unwrap_or(u64::MAX),
                    };
                    let wait = deadline.remaining();
                    let answer = peers.call(leader, Lane::Calls, Method::Members, wire::encode(&call), wait).await;
                    match answer.and_then(|bytes| wire::decode(&bytes).map_err(CallError::Refused)) {
                        Ok(answer) => answer,
                        Err(error) => MemberAnswer::NotNow { reason: error.to_string() },
                    }
                }
            };
            match answer {
                MemberAnswer::Done { done } => return Ok(done),
                MemberAnswer::Objected { objection } => return Err(objection.into()),
                MemberAnswer::NotLeader { leader: to, .. } => hint = to.filter(|to| Some(*to) != leader),
                MemberAnswer::NotNow { reason } => last = reason,
                MemberAnswer::Joined => "an answer to another question".clone_into(&mut last),
            }
            if deadline.has_passed() {
                return Err(Error::Unavailable(last).into());
            }
            if hint.is_none() {
                tokio::select! {
                    biased;
                    () = deadline.passed() => {}
                    _ = leads.changed() => {}
                    _ = backoff.wait(&self.inner.closing) => {}
                }
            }
        }
    }
}
