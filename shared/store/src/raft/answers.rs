//! What Raft here answers to the calls of other nodes.
//! In: payloads of checked callers. Out: payloads. Invariant: a core that has stopped refuses, it never answers.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::type_config::alias::SnapshotOf;

use super::machine::to_meta;
use super::{Entry, Raft, TypeConfig, entry_id, from_vote, log_id, to_vote};
use crate::defects::{self, Defect};
use crate::disk;
use crate::log::Item;
use crate::net::wire::{self, AppendHead, Appended, Installed, Transfer, Transferred, VoteCall, Voted};
use crate::net::{Contact, Refusal};
use crate::snapshot::RaftSnapshot;

fn stopped(raft: &Raft) -> Refusal {
    Refusal::Stopped { node: *raft.node_id() }
}

fn malformed(reason: impl std::fmt::Display) -> Refusal {
    Refusal::Malformed {
        reason: reason.to_string(),
    }
}

/// Takes entries or a heartbeat. A leader that is accepted brings this node in contact with the quorum that it is itself in contact with.
/// If the log is closed for entries, for the reason given, they stay outside: inside they would wait for the disk, and votes behind them.
pub(crate) async fn append(raft: &Raft, contact: &Contact, closed: Option<String>, payload: &Bytes) -> Result<Bytes, Refusal> {
    let (head, rest) = wire::decode_with::<AppendHead>(payload)?;
    let entries = wire::decode_entries(&rest)?;
    if let (Some(reason), false) = (closed, entries.is_empty()) {
        let node = *raft.node_id();
        return Err(Refusal::DiskRefuses { node, reason });
    }
    let entries = entries
        .into_iter()
        .map(|(id, content)| Entry::decode(id, content))
        .collect::<Result<Vec<_>, _>>();
    let request = AppendEntriesRequest::<TypeConfig> {
        vote: to_vote(head.vote),
        prev_log_id: head.prev.map(log_id),
        entries: entries.map_err(malformed)?,
        leader_commit: head.committed.map(log_id),
    };
    if defects::on(Defect::EntriesDropped) && request.entries.iter().any(|entry| entry.log_id.index % 50 == 0) {
        return Ok(wire::encode(&Appended::Success));
    }
    let answer = match raft.append_entries(request).await.map_err(|_| stopped(raft))? {
        AppendEntriesResponse::Success => Appended::Success,
        AppendEntriesResponse::PartialSuccess(upto) => Appended::Partial {
            upto: upto.as_ref().map(entry_id),
        },
        AppendEntriesResponse::Conflict => Appended::Conflict,
        AppendEntriesResponse::HigherVote(vote) => Appended::HigherVote { vote: from_vote(&vote) },
    };
    match (&answer, head.quorum_age_ms) {
        (Appended::HigherVote { .. }, _) | (_, None) => {}
        (_, Some(age)) => contact.seen_ago(Duration::from_millis(age)),
    }
    Ok(wire::encode(&answer))
}

/// Answers a candidate, or, if `pre` is set, what it would answer.
pub(crate) async fn vote(raft: &Raft, payload: &Bytes, pre: bool) -> Result<Bytes, Refusal> {
    let call: VoteCall = wire::decode(payload)?;
    let mut request = VoteRequest::<TypeConfig>::new(to_vote(call.vote), call.last.map(log_id));
    request.leadership_transfer = call.transfer;
    let answer = if pre {
        raft.pre_vote(request).await
    } else {
        raft.vote(request).await
    };
    let VoteResponse {
        vote,
        vote_granted,
        last_log_id,
    } = answer.map_err(|_| stopped(raft))?;
    Ok(wire::encode(&Voted {
        vote: from_vote(&vote),
        granted: vote_granted || pre && defects::on(Defect::PreVoteGranted),
        last: last_log_id.as_ref().map(entry_id),
    }))
}

/// Takes over from the leader, or stops clinging to it.
pub(crate) async fn transfer(raft: &Raft, payload: &Bytes) -> Result<Bytes, Refusal> {
    let call: Transfer = wire::decode(payload)?;
    let request = TransferLeaderRequest::new(to_vote(call.from), call.to, call.last.map(log_id));
    let answer = raft.handle_transfer_leader(request).await.map_err(|_| stopped(raft))?;
    Ok(wire::encode(&match answer {
        Ok(()) => Transferred::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => Transferred::VoteChanged {
            expected: from_vote(&expected),
            actual: from_vote(&actual),
        },
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Transferred::NotFlushed {
            expected: expected.as_ref().map(entry_id),
            actual: actual.as_ref().map(entry_id),
        },
    }))
}

/// Checks a received file and installs it.
pub(crate) async fn install(raft: &Raft, vote: crate::log::Vote, snapshot: RaftSnapshot) -> Result<Bytes, Refusal> {
    let checked: Arc<RaftSnapshot> = Arc::new(snapshot.clone());
    let meta = disk::run(&*snapshot.disk, move || Ok(checked.check()?)).await.map_err(malformed)?;
    let meta = to_meta(&meta).map_err(malformed)?;
    tracing::info!(last = ?meta.last_log_id, "installing a snapshot from the leader");
    let snapshot = SnapshotOf::<TypeConfig, RaftSnapshot> { meta, snapshot };
    let answer = raft
        .install_full_snapshot(to_vote(vote), snapshot)
        .await
        .map_err(|_| stopped(raft))?;
    Ok(wire::encode(&Installed {
        vote: from_vote(&answer.vote),
    }))
}
