//! Calls of Raft to the other nodes of the group.
//! In: openraft's requests. Out: the peer's answers.
//! Invariant: an error is never taken for an answer: no vote, pre-vote or acknowledgement counts that its node did not give. A group of one
//! makes no calls.
//! Source: `reference/openraft.md` 3.4: `Unreachable` makes the caller wait before it tries again, `Network` does not at first.
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use serde::de::DeserializeOwned;

use super::{TypeConfig, entry_id, from_vote, log_id, to_vote};
use crate::codec::Peer;
use crate::defects::{self, Defect};
use crate::log::Item;
use crate::net::peers::{CallError, Method};
use crate::net::wire::{AppendHead, Appended, Installed, SnapshotHead, Transfer, Transferred, VoteCall, Voted};
use crate::net::{Lane, Peers, snapshot, wire};
use crate::snapshot::{RaftSnapshot, Snapshots};

/// Makes a connection per peer and purpose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Factory {
    /// `None` in a group of one.
    pub(crate) peers: Option<Peers>,
    pub(crate) snapshots: Option<Arc<Snapshots>>,
    /// Longest wait for the answer to an append. Longer than the library's (a heartbeat's period): a slow sync is waited for, not asked for again.
    pub(crate) append_wait: Duration,
}

impl Factory {
    fn client(&self, target: u64, peer: &Peer, lane: Lane) -> Connection {
        if let Some(peers) = &self.peers {
            peers.learn(target, &peer.address);
        }
        Connection {
            factory: self.clone(),
            target,
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Connection {
        self.client(target, peer, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, peer: &Peer) -> Connection {
        self.client(target, peer, Lane::Signs)
    }

    async fn new_snapshot_client(&mut self, target: u64, peer: &Peer) -> Connection {
        self.client(target, peer, Lane::Bulk)
    }
}

/// The way to one peer for one purpose.
#[derive(Debug)]
pub(crate) struct Connection {
    factory: Factory,
    target: u64,
    lane: Lane,
}

impl Connection {
    fn peers(&self) -> Result<&Peers, Unreachable<TypeConfig>> {
        let none = || Unreachable::from_string(format!("no cluster is configured, so there is no way to node {}", self.target));
        self.factory.peers.as_ref().ok_or_else(none)
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.factory.peers.as_ref().map(Peers::node_id).unwrap_or_default(),
            target: self.target,
            timeout,
        }
    }

    fn failed(&self, action: RPCTypes, error: CallError) -> RPCError<TypeConfig> {
        match error {
            CallError::Unreachable(reason) => RPCError::Unreachable(Unreachable::from_string(reason)),
            CallError::Broken(reason) => RPCError::Network(NetworkError::from_string(reason)),
            CallError::Timeout(limit) => RPCError::Timeout(self.timeout(action, limit)),
            // Somebody must correct it, so there is no hurry.
            CallError::Refused(refusal) | CallError::Unheard(refusal) => RPCError::Unreachable(Unreachable::from_string(refusal)),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        lane: Lane,
        method: Method,
        action: RPCTypes,
        payload: Bytes,
        limit: Duration,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = self.peers()?.call(self.target, lane, method, payload, limit).await;
        let answer = answer.and_then(|bytes| wire::decode(&bytes).map_err(CallError::Unheard));
        answer.map_err(|error| self.failed(action, error))
    }

    async fn ask_vote(
        &self,
        method: Method,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = VoteCall {
            vote: from_vote(&request.vote),
            last: request.last_log_id.as_ref().map(entry_id),
            transfer: request.leadership_transfer,
        };
        let limit = option.soft_ttl();
        let answer: Voted = self.ask(Lane::Signs, method, RPCTypes::Vote, wire::encode(&call), limit).await?;
        Ok(VoteResponse::new(to_vote(answer.vote), answer.last.map(log_id), answer.granted))
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = RaftSnapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let shared = self.peers()?.shared.clone();
        if let (Some(reason), false) = (shared.disks.closed_of(self.target), request.entries.is_empty()) {
            // It would refuse them; its heartbeats will say when it takes them.
            return Err(RPCError::Unreachable(Unreachable::from_string(format!(
                "its disk takes nothing: {reason}"
            ))));
        }
        let contact = shared.contact.now();
        let vote = from_vote(&request.vote);
        let committed = request.leader_commit.as_ref().map(entry_id);
        // Before the question: what it has confirmed by then it has when it answers.
        let acked = shared.promises.acked(self.target, vote);
        let head = AppendHead {
            vote,
            prev: request.prev_log_id.as_ref().map(entry_id),
            committed,
            quorum_age_ms: Some(u64::try_from(contact.age().as_millis()).unwrap_or(u64::MAX)),
        };
        let entries = wire::encode_entries(request.entries.iter().map(|entry| (entry.id(), entry.encode())));
        let limit = match self.lane {
            Lane::Signs => option.soft_ttl(),
            _ => option.soft_ttl().max(self.factory.append_wait),
        };
        let payload = wire::encode_with(&head, &entries);
        let answer = self.ask(self.lane, Method::Append, RPCTypes::AppendEntries, payload, limit).await;
        if defects::on(Defect::StaleAppendAnswer) && matches!(answer, Err(RPCError::Timeout(_) | RPCError::Network(_))) {
            return Ok(AppendEntriesResponse::Success);
        }
        if answer.is_err() {
            shared.lost_sight(self.target, vote, committed).await;
        }
        let answer: Appended = answer?;
        let sent = request.entries.last().map(Item::id);
        let upto = match &answer {
            Appended::Success => sent.or(head.prev),
            Appended::Partial { upto } => *upto,
            Appended::Conflict | Appended::HigherVote { .. } => None,
        };
        if let Some(upto) = upto {
            shared.acked(self.target, vote, upto, committed);
        }
        Ok(match answer {
            Appended::Success => AppendEntriesResponse::Success,
            Appended::Partial { upto } => AppendEntriesResponse::PartialSuccess(upto.map(log_id)),
            // The library takes it for granted that a follower keeps what it confirmed, and would stop, or count on what is not there.
            Appended::Conflict
                if let (Some(had), Some(prev)) = (acked, head.prev)
                    && prev <= had =>
            {
                let refusal = shared.found_short(self.target, had, prev);
                return Err(RPCError::Unreachable(Unreachable::from_string(refusal)));
            }
            // The library takes it for granted that a conflict is about an entry that was named.
            Appended::Conflict if request.prev_log_id.is_none() => {
                return Err(RPCError::Network(NetworkError::from_string("a conflict before the first entry")));
            }
            Appended::Conflict => AppendEntriesResponse::Conflict,
            Appended::HigherVote { vote } => AppendEntriesResponse::HigherVote(to_vote(vote)),
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Method::Vote, request, option).await
    }

    // The library's own answer would be "granted", which switches Pre-Vote off without a word.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Method::PreVote, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, RaftSnapshot>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let peers = self.peers()?;
        let last = snapshot.meta.last_log_id.as_ref().map(entry_id);
        let held = self
            .factory
            .snapshots
            .as_ref()
            .map(|all| Sending::begin(all, self.target, &snapshot.snapshot));
        let failed = |error: CallError| StreamingError::<TypeConfig>::from(self.failed(RPCTypes::InstallSnapshot, error));
        let sending = async {
            let unread = |error: std::io::Error| StreamingError::<TypeConfig>::Network(NetworkError::new(&error));
            let (file, size) = snapshot::open(&snapshot.snapshot).await.map_err(unread)?;
            let disk = snapshot.snapshot.disk.clone();
            let id = snapshot::id(&disk, &file, size).await.map_err(unread)?;
            let offset = snapshot::arrived(peers, self.target, &id, size).await.map_err(failed)?;
            let head = wire::encode(&SnapshotHead {
                vote: from_vote(&vote),
                size,
                id,
                offset,
            });
            tracing::info!(peer = self.target, bytes = size, from = offset, "sending a snapshot");
            let sent = snapshot::send(peers, self.target, head, disk, file, (offset, size), option.hard_ttl()).await;
            sent.map_err(failed)
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = sending => answer?,
        };
        let answer: Installed = wire::decode(&answer).map_err(CallError::Unheard).map_err(failed)?;
        if let Some(last) = &last
            && answer.vote == from_vote(&vote)
        {
            if let Some(held) = held {
                held.arrived();
            }
            peers.shared.acked(self.target, answer.vote, *last, Some(*last));
        }
        Ok(SnapshotResponse::new(to_vote(answer.vote)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = Transfer {
            from: from_vote(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(entry_id),
        };
        let payload = wire::encode(&call);
        let limit = option.soft_ttl();
        let answer = self.ask(Lane::Signs, Method::TransferLeader, RPCTypes::TransferLeader, payload, limit);
        Ok(match answer.await? {
            Transferred::Accepted => Ok(()),
            Transferred::VoteChanged { expected, actual } => Err(TransferLeaderError::VoteChanged {
                expected: to_vote(expected),
                actual: to_vote(actual),
            }),
            Transferred::NotFlushed { expected, actual } => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(log_id),
                actual: actual.map(log_id),
            }),
        })
    }
}

/// A snapshot on its way, whose file stays for that.
struct Sending {
    snapshots: Arc<Snapshots>,
    target: u64,
    arrived: bool,
}

impl Sending {
    fn begin(snapshots: &Arc<Snapshots>, target: u64, snapshot: &RaftSnapshot) -> Self {
        snapshots.begin_sending(target, snapshot);
        Self {
            snapshots: snapshots.clone(),
            target,
            arrived: false,
        }
    }

    fn arrived(mut self) {
        self.arrived = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.snapshots.end_sending(self.target, self.arrived);
    }
}
