//! Proposing and reading, on whichever node: here if this node leads, else at the one that does.
//! In: commands. Out: what became of them, once it can be seen here.
//! Invariants: a command is sent again only because a repeat changes nothing: changesets carry a request id, by which `apply` answers a
//! repeat with the first result, and every other command is the same twice as once; whoever gets an answer finds its effect in this
//! node's view.
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{LinearizerOption, ReadPolicy};
use tokio::sync::watch;
use ursa_runtime::Backoff;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{self, Deadline};
use ursa_state::{Applied, Changeset, Command, HistoryId, RequestId, Revision, View};

use super::Store;
use super::room::Room;
use crate::codec::Proposal;
use crate::defects::{self, Defect};
use crate::error::Error;
use crate::net::peers::{CallError, Method};
use crate::net::wire::{self, Barrier, BarrierCall, ProposeHead, Proposed};
use crate::net::{Lane, Peers};
use crate::raft::TypeConfig;

/// Before a proposal or read is sent again. The usual cause is a change of leader, which a watch tells at once; this is for the
/// moments in which a new leader may not write yet.
const RETRY: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(50));

/// Longest wait for a leader that may be out of reach, before the same is asked through another member. Long against any answer of one
/// that is well; what is asked twice has its effect once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which way to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    leader: u64,
    /// The member to ask: the leader, or one that passes it on.
    via: u64,
}

/// How one try ended that did not end the matter.
enum Again {
    /// Nothing was changed. Whom to ask next, if known.
    Elsewhere(Option<u64>),
    /// It may have been taken in.
    Doubt(String),
    /// Nothing was changed, and this is why not.
    NotNow(String),
}

impl Store {
    /// Proposes a changeset, through the leader. When it returns, the set is committed, and applied here. Concurrent proposals share a
    /// sync. A set without a request id gets one, so that it can be sent again when the leader changes.
    /// Cancel-safe as far as the store is concerned; a dropped call's outcome is unknown to its caller.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn propose(&self, mut set: Changeset) -> Result<Applied, Error> {
        if set.id == RequestId::default() {
            set.id = RequestId(uuid::Uuid::new_v4().as_u128());
        }
        let applied = self.submit(&Command::Change(set)).await?;
        match applied.rejected {
            Some((op, reason)) => Err(Error::Rejected {
                op,
                reason,
                revision: applied.revision,
            }),
            None => Ok(applied),
        }
    }

    /// Forgets history below `floor`, on all nodes.
    ///
    /// # Errors
    /// As [`Store::propose`].
    pub async fn compact(&self, floor: Revision) -> Result<Applied, Error> {
        self.submit(&Command::Compact { floor }).await
    }

    pub(crate) async fn submit(&self, command: &Command) -> Result<Applied, Error> {
        let proposal = self.proposal(command)?;
        let deadline = Deadline::after(self.inner.config.propose_timeout);
        match self.inner.peers.clone() {
            None => self.submit_alone(proposal, deadline).await,
            Some(peers) => self.submit_to_group(&peers, proposal, deadline).await,
        }
    }

    /// A command in the form in which it is proposed, if it may be, this node runs, and there is room for it.
    pub(super) fn proposal(&self, command: &Command) -> Result<Proposal, Error> {
        let proposal = Proposal::at(command, self.feature_level()).map_err(|error| Error::Invalid(error.to_string()))?;
        let (bytes, limit) = (proposal.size(), self.inner.config.max_changeset_bytes);
        if bytes > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        if let Some(why) = self.why_stopped() {
            return Err(Error::Stopped(why));
        }
        if let Some(why) = self.refusing() {
            return Err(Error::NoSpace(why));
        }
        if let Command::Change(set) = command {
            self.may_grow(set)?;
        }
        Ok(proposal)
    }

    /// In a group of one: there is nobody else to ask.
    async fn submit_alone(&self, proposal: Proposal, deadline: Deadline) -> Result<Applied, Error> {
        match self.submit_here(proposal, deadline, None).await {
            Ok(Proposed::Done { applied, .. }) => Ok(applied),
            Ok(Proposed::NotLeader { leader }) => Err(self.not_leader(leader)),
            Ok(Proposed::Unknown { reason }) => Err(Error::Unknown(reason)),
            Ok(Proposed::TooLarge { bytes, limit }) => Err(Error::TooLarge { bytes, limit }),
            Ok(Proposed::Invalid { reason }) => Err(Error::Invalid(reason)),
            Ok(Proposed::NoSpace { reason }) => Err(Error::NoSpace(reason)),
            // It may have been on its way.
            Err(fatal) => Err(Error::Unknown(self.died(&fatal))),
        }
    }

    async fn submit_to_group(&self, peers: &Peers, proposal: Proposal, deadline: Deadline) -> Result<Applied, Error> {
        let mut leads = peers.leader();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (mut doubt, mut hint, mut not_now) = (None, None, None);
        let mut detour = Detour::default();
        loop {
            if let Some(why) = self.why_stopped() {
                return Err(if doubt.is_some() {
                    Error::Unknown(why)
                } else {
                    Error::Stopped(why)
                });
            }
            let hinted = hint.is_some();
            let leader = hint.take().or(*leads.borrow_and_update());
            let again = match leader {
                None => Again::Elsewhere(None),
                Some(leader) => {
                    // Waiting on for a leader that is none any more could take until the deadline.
                    let way = detour.way(peers, leader);
                    #[cfg(feature = "defects")]
                    let proposal = match (&doubt, defects::on(Defect::ResentUnderNewId)) {
                        (Some(_), true) => defects::fresh(&proposal),
                        _ => proposal.clone(),
                    };
                    let attempt = self.attempt(peers, way, proposal.clone(), deadline);
                    tokio::select! {
                        biased;
                        done = attempt => match done {
                            Ok((index, applied)) => return self.seen_here(index, deadline).await.map(|()| applied),
                            Err(Ok(again)) => again,
                            // Refused now, but an earlier try may have been taken in.
                            Err(Err(Error::NoSpace(why))) if doubt.is_some() => Again::Doubt(why),
                            Err(Err(error)) => return Err(error),
                        },
                        () = replaced(&mut leads, leader) => Again::Doubt("the leader changed".to_owned()),
                    }
                }
            };
            match again {
                Again::Elsewhere(to) => hint = to.filter(|to| Some(*to) != leader),
                Again::Doubt(reason) => doubt = Some(reason),
                Again::NotNow(reason) => not_now = Some(reason),
            }
            if deadline.has_passed() {
                return Err(match (doubt, not_now) {
                    (Some(reason), _) => Error::Unknown(reason),
                    (None, Some(reason)) => Error::Unavailable(reason),
                    (None, None) => self.not_leader(*leads.borrow()),
                });
            }
            // One hint is followed at once. Two nodes that each take the other for the leader would be asked in turn without end.
            if hint.is_none() || hinted {
                self.pause(&mut leads, &mut backoff, deadline).await;
            }
        }
    }

    /// One try. An error is either a reason to try again or final.
    async fn attempt(
        &self,
        peers: &Peers,
        way: Way,
        proposal: Proposal,
        deadline: Deadline,
    ) -> Result<(u64, Applied), Result<Again, Error>> {
        let proposed = if way.via == peers.node_id() {
            let here = self.submit_here(proposal, deadline, None).await;
            here.map_err(|fatal| Ok(Again::Doubt(self.died(&fatal))))?
        } else {
            pass_on(peers, way, &proposal, deadline).await.map_err(|error| Ok(again(error)))?
        };
        match proposed {
            Proposed::Done { index, applied } => Ok((index, applied)),
            Proposed::NotLeader { leader } => Err(Ok(Again::Elsewhere(leader))),
            Proposed::Unknown { reason } => Err(Ok(Again::Doubt(reason))),
            Proposed::TooLarge { bytes, limit } => Err(Err(Error::TooLarge { bytes, limit })),
            Proposed::Invalid { reason } => Err(Err(Error::Invalid(reason))),
            Proposed::NoSpace { reason } => Err(Err(Error::NoSpace(reason))),
        }
    }

    /// For a node that passed a proposal on; with `relay`, for one that does not reach the leader that this one may reach.
    pub(crate) async fn submit_for(&self, proposal: Proposal, deadline: Deadline, relay: bool) -> Proposed {
        let (bytes, limit) = (proposal.size(), self.inner.config.max_changeset_bytes);
        if bytes > limit {
            return Proposed::TooLarge { bytes, limit };
        }
        if let Some((peers, way)) = self.onward(relay) {
            let passed = pass_on(&peers, way, &proposal, deadline).await;
            return passed.unwrap_or_else(|error| Proposed::Unknown { reason: error.to_string() });
        }
        match self.submit_here(proposal, deadline, None).await {
            Ok(proposed) => proposed,
            Err(fatal) => Proposed::Unknown { reason: self.died(&fatal) },
        }
    }

    /// As [`Store::barrier`], for another node.
    pub(crate) async fn barrier_for(&self, deadline: Deadline, relay: bool) -> Barrier {
        match self.onward(relay) {
            Some((peers, way)) => ask_barrier(&peers, way, deadline).await,
            None => match self.inner.peers.clone() {
                Some(peers) => {
                    let way = Way {
                        leader: peers.node_id(),
                        via: peers.node_id(),
                    };
                    self.barrier_by(&peers, way, deadline).await
                }
                None => self.barrier().await,
            },
        }
    }

    /// Where to pass on what another node asks to have passed on.
    fn onward(&self, relay: bool) -> Option<(Peers, Way)> {
        let peers = self.inner.peers.clone().filter(|_| relay)?;
        let leader = *self.inner.leader.borrow();
        let leader = leader.filter(|leader| *leader != peers.node_id())?;
        Some((peers, Way { leader, via: leader }))
    }

    /// Proposes to the core of this node; if a term is given, only as its leader.
    pub(super) async fn submit_here(
        &self,
        proposal: Proposal,
        deadline: Deadline,
        term: Option<u64>,
    ) -> Result<Proposed, Fatal<TypeConfig>> {
        if !self.is_named(&proposal, deadline).await {
            let leader = self.inner.leader.borrow().filter(|leader| *leader != self.inner.config.node_id);
            return Ok(Proposed::NotLeader { leader });
        }
        match self.room_known().await {
            Room::Enough | Room::NotKnown(_) => {}
            // It gives the lead away, see `keeper`.
            Room::Elsewhere(_) => return Ok(Proposed::NotLeader { leader: None }),
            Room::Nowhere(reason) => return Ok(Proposed::NoSpace { reason }),
        }
        let raft = &self.inner.raft;
        let write = async {
            match term {
                None => raft.client_write(proposal).await.map_err(Some),
                Some(term) => {
                    let (responder, answer) = ProgressResponder::complete_only();
                    let write = raft.write(proposal).with_leader(crate::raft::led_in(term)).responder(responder);
                    write.await.map_err(|fatal| Some(RaftError::Fatal(fatal)))?;
                    // The core drops what it cannot answer when it ends.
                    answer.await.map_err(|_| None)?.map_err(|error| Some(RaftError::APIError(error)))
                }
            }
        };
        let answer = match lease::within(deadline.remaining(), write).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Some(error))) => Err(error),
            Ok(Err(None)) => {
                return Ok(Proposed::Unknown {
                    reason: self.why_stopped().unwrap_or_else(|| "the node stopped meanwhile".to_owned()),
                });
            }
            Err(expired) => {
                return Ok(Proposed::Unknown {
                    reason: expired.to_string(),
                });
            }
        };
        Ok(match answer {
            Ok(answer) => match answer.data {
                Some(applied) => Proposed::Done {
                    index: answer.log_id.index,
                    applied,
                },
                None => Proposed::Unknown {
                    reason: "applied, but without a result".to_owned(),
                },
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Proposed::NotLeader { leader: elsewhere(&to) },
            Err(RaftError::APIError(
                error @ (ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_)),
            )) => Proposed::Unknown { reason: error.to_string() },
            Err(RaftError::Fatal(fatal)) => return Err(fatal),
        })
    }

    /// Nothing is proposed before it is committed which history it belongs to: a revision means nothing without. `false`: that is not known
    /// here in time, or for somebody else to say.
    async fn is_named(&self, proposal: &Proposal, deadline: Deadline) -> bool {
        let named = |view: &View| view.history_id() != HistoryId::default();
        if named(&self.inner.views.borrow()) || matches!(proposal.command(), Command::Init { .. }) {
            return true;
        }
        let (mut views, mut leads) = (self.inner.views.clone(), self.leader());
        let me = self.inner.config.node_id;
        tokio::select! {
            biased;
            named = async { views.wait_for(named).await.is_ok() } => named,
            () = async { drop(leads.wait_for(|leader| *leader != Some(me)).await) } => false,
            () = deadline.passed() => false,
        }
    }

    /// Waits until the entry at `index` is applied here.
    async fn seen_here(&self, index: u64, deadline: Deadline) -> Result<(), Error> {
        self.applied_here(index, deadline)
            .await
            .map_err(|error| Error::Unknown(format!("it is committed, but cannot be seen here yet: {error}")))
    }

    /// Waits until the entry at `index` is applied here, or says why it may take long.
    async fn applied_here(&self, index: u64, deadline: Deadline) -> Result<(), Error> {
        let mut applied = self.inner.applied.clone();
        let reached = applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= index));
        match lease::within(deadline.remaining(), reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped(self.why_stopped().unwrap_or_default())),
            Err(expired) => Err(Error::Unavailable(match self.refusing() {
                Some(why) => format!("this node is behind, for its disk takes nothing ({why}): ask another one"),
                None => expired.to_string(),
            })),
        }
    }

    /// Before the next try: until another leader is known, or a moment.
    async fn pause(&self, leads: &mut watch::Receiver<Option<u64>>, backoff: &mut Backoff, deadline: Deadline) {
        tokio::select! {
            biased;
            () = deadline.passed() => {}
            _ = leads.changed() => {}
            _ = backoff.wait(&self.inner.closing) => {}
        }
    }

    /// A view that holds everything that was acknowledged anywhere before this call.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Unavailable`] without a quorum, [`Error::Stopped`].
    pub async fn read(&self) -> Result<View, Error> {
        let deadline = Deadline::after(self.inner.config.read_timeout);
        let Some(peers) = self.inner.peers.clone() else {
            let barrier = lease::within(deadline.remaining(), self.barrier()).await;
            let index = match barrier.map_err(|expired| Error::Unavailable(expired.to_string()))? {
                Barrier::At { index } => index,
                Barrier::NotLeader { leader } => return Err(self.not_leader(leader)),
                Barrier::NoQuorum { reason } => return Err(self.stopped_or(Error::Unavailable(reason))),
            };
            self.applied_here(index, deadline).await?;
            return Ok(self.view());
        };
        let mut leads = peers.leader();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (mut hint, mut not_now) = (None, None);
        let mut detour = Detour::default();
        loop {
            if let Some(why) = self.why_stopped() {
                return Err(Error::Stopped(why));
            }
            let hinted = hint.is_some();
            let leader = hint.take().or(*leads.borrow_and_update());
            if let Some(leader) = leader {
                let way = detour.way(&peers, leader);
                let barrier = tokio::select! {
                    biased;
                    barrier = self.barrier_by(&peers, way, deadline) => barrier,
                    () = replaced(&mut leads, leader) => Barrier::NotLeader { leader: None },
                };
                match barrier {
                    Barrier::At { index } => {
                        if !defects::on(Defect::FollowerReadsEarly) {
                            self.applied_here(index, deadline).await?;
                        }
                        return Ok(self.view());
                    }
                    Barrier::NotLeader { leader: to } => hint = to.filter(|to| *to != leader),
                    Barrier::NoQuorum { reason } => not_now = Some(reason),
                }
            }
            if deadline.has_passed() {
                return Err(match not_now {
                    Some(reason) => Error::Unavailable(reason),
                    None => self.not_leader(*leads.borrow()),
                });
            }
            // One hint is followed at once. Two nodes that each take the other for the leader would be asked in turn without end.
            if hint.is_none() || hinted {
                self.pause(&mut leads, &mut backoff, deadline).await;
            }
        }
    }

    /// A barrier that is asked for after this call, together with others that want one.
    async fn barrier_by(&self, peers: &Peers, way: Way, deadline: Deadline) -> Barrier {
        let share = self.inner.barriers.lock().entry((way.leader, way.via)).or_default().clone();
        let shared = share.join(|| {
            let (inner, peers) = (Arc::downgrade(&self.inner), peers.clone());
            async move {
                let deadline = Deadline::after(PATIENCE);
                if way.via != peers.node_id() {
                    return ask_barrier(&peers, way, deadline).await;
                }
                let Some(store) = inner.upgrade().map(Self::from) else {
                    return expired("it was closed");
                };
                let barrier = lease::within(deadline.remaining(), store.barrier()).await;
                barrier.unwrap_or_else(expired)
            }
        });
        lease::within(deadline.remaining(), shared).await.unwrap_or_else(expired)
    }

    /// How far a node must have applied to read everything that was acknowledged so far, if this one leads. By read index, not by the
    /// leader's lease: a lease trusts the clocks, and a group of one pays nothing for this.
    pub(crate) async fn barrier(&self) -> Barrier {
        if defects::on(Defect::DeposedLeaderReads) && self.inner.raft.is_leader() {
            let index = self.inner.applied.borrow().map_or(0, |applied| applied.index);
            return Barrier::At { index };
        }
        let lease = crate::raft::lease(&self.inner.config.timings);
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(lease);
        match self.inner.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Barrier::At {
                index: linearizer.read_log_id().index(),
            },
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Barrier::NotLeader { leader: elsewhere(&to) },
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => Barrier::NoQuorum { reason: error.to_string() },
            Err(RaftError::Fatal(fatal)) => Barrier::NoQuorum { reason: self.died(&fatal) },
        }
    }

    fn stopped_or(&self, error: Error) -> Error {
        self.why_stopped().map_or(error, Error::Stopped)
    }

    fn not_leader(&self, leader: Option<u64>) -> Error {
        let addresses = self.inner.peers.as_ref().map(Peers::members).unwrap_or_default();
        let address = leader.and_then(|id| addresses.get(&id).cloned()).unwrap_or_default();
        Error::NotLeader { leader, address }
    }

    pub(crate) fn died(&self, fatal: &Fatal<TypeConfig>) -> String {
        self.inner.fatal.notify_one();
        self.why_stopped().unwrap_or_else(|| Chain(fatal).to_string())
    }
}

/// The way to a leader: straight first, and when that was in vain, in turn through the other members and straight again.
#[derive(Debug, Default)]
struct Detour {
    leader: Option<u64>,
    tried: usize,
}

impl Detour {
    fn way(&mut self, peers: &Peers, leader: u64) -> Way {
        if self.leader.replace(leader) != Some(leader) {
            self.tried = 0;
        }
        let mut ways = vec![leader];
        if leader != peers.node_id() {
            ways.extend(peers.others().into_iter().filter(|id| *id != leader));
        }
        let via = ways.get(self.tried % ways.len()).copied().unwrap_or(leader);
        self.tried += 1;
        Way { leader, via }
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

async fn pass_on(peers: &Peers, way: Way, proposal: &Proposal, deadline: Deadline) -> Result<Proposed, CallError> {
    let wait = deadline.remaining().min(PATIENCE);
    let head = ProposeHead {
        wait_ms: millis(wait),
        relay: way.via != way.leader,
    };
    let payload = wire::encode_with(&head, proposal.encoded());
    let answer = peers.call(way.via, Lane::Calls, Method::Propose, payload, wait).await?;
    wire::decode(&answer).map_err(CallError::Unheard)
}

async fn ask_barrier(peers: &Peers, way: Way, deadline: Deadline) -> Barrier {
    let wait = deadline.remaining().min(PATIENCE);
    let call = BarrierCall {
        wait_ms: millis(wait),
        relay: way.via != way.leader,
    };
    let answer = peers.call(way.via, Lane::Calls, Method::Barrier, wire::encode(&call), wait).await;
    let answer = answer.and_then(|bytes| wire::decode(&bytes).map_err(CallError::Unheard));
    answer.unwrap_or_else(|error| Barrier::NoQuorum { reason: error.to_string() })
}

fn expired(reason: impl ToString) -> Barrier {
    Barrier::NoQuorum {
        reason: reason.to_string(),
    }
}

/// Returns when another one than `leader` is found to lead.
pub(super) async fn replaced(leads: &mut watch::Receiver<Option<u64>>, leader: u64) {
    loop {
        if leads.changed().await.is_err() {
            return std::future::pending().await;
        }
        if leads.borrow_and_update().is_some_and(|now| now != leader) {
            return;
        }
    }
}

/// Where to go instead, if the core knows.
fn elsewhere(to: &ForwardToLeader<TypeConfig>) -> Option<u64> {
    to.leader_id
}

fn again(error: CallError) -> Again {
    match error {
        CallError::Refused(refusal) => Again::NotNow(refusal.to_string()),
        // Also `Unreachable`: tonic says it of a connection that timed out under a call.
        error @ (CallError::Unreachable(_) | CallError::Broken(_) | CallError::Timeout(_) | CallError::Unheard(_)) => {
            Again::Doubt(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refusal;

    /// "Nothing was changed" is said only on the word of the other side.
    #[test]
    fn an_answer_that_does_not_count_is_a_doubt() {
        let refusal = Refusal::NotReady { node: 2 };
        assert!(matches!(again(CallError::Refused(refusal.clone())), Again::NotNow(_)));
        let doubtful = [
            CallError::Unheard(refusal),
            CallError::Unreachable(String::new()),
            CallError::Broken(String::new()),
            CallError::Timeout(PATIENCE),
        ];
        assert!(doubtful.into_iter().all(|error| matches!(again(error), Again::Doubt(_))));
    }
}
