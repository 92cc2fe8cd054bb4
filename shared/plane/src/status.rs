//! What a node shows of itself and the group: `GET /cluster`, and the same as metrics.
//! In: the store's status, what the other nodes say of themselves. Out: JSON; gauges, read when they are asked for.
//! Invariant: every node answers, with or without a quorum; of another node only its own word and what was heard of it is shown.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use ursa_runtime::Readiness;
use ursa_store::{Levels, Role, Store};

use crate::{
    cluster,
    config::Timing,
    encryption::EncryptionView,
    group::{Group, NodeStatus},
};

/// What it is answered from.
pub(crate) struct Parts {
    pub(crate) store: Store,
    /// `None` in a zone.
    pub(crate) group: Option<Group>,
    pub(crate) readiness: Readiness,
    pub(crate) timing: Timing,
}

/// [`Parts`], once there is a store.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<OnceLock<Parts>>);

impl Shown {
    pub(crate) fn set(&self, parts: Parts) {
        let _ = self.0.set(parts);
    }

    pub(crate) fn view(&self) -> Option<ClusterView> {
        self.0.get().map(view)
    }

    /// `GET /cluster`.
    pub(crate) fn router(&self) -> Router {
        Router::new().route("/cluster", get(show)).with_state(self.clone())
    }
}

async fn show(State(shown): State<Shown>) -> Response {
    match shown.view() {
        Some(view) => Json(view).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet\n").into_response(),
    }
}

/// Indexes of the log, as far as they are known.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Logs {
    pub(crate) last_log: Option<u64>,
    pub(crate) applied: Option<u64>,
    pub(crate) snapshot: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterView {
    pub(crate) node_id: u64,
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    pub(crate) leader: Option<u64>,
    history: String,
    /// Which history this one goes on from, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<ursa_state::Origin>,
    pub(crate) revision: u64,
    #[serde(flatten)]
    pub(crate) logs: Logs,
    pub(crate) purged: Option<u64>,
    /// What all nodes may do, for all of them can.
    pub(crate) feature_level: u32,
    /// Entries that are stored and not applied.
    pub(crate) lag: u64,
    pub(crate) quorum: bool,
    pub(crate) quorum_age_ms: u64,
    recovered: bool,
    admitted: bool,
    /// Why the disk of this node takes nothing, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_refuses: Option<String>,
    /// How often this node has synced its log since its start, and how long all of that took.
    pub(crate) log_syncs: u64,
    pub(crate) log_sync_micros: u64,
    /// What is stored, without its history, and the limit of it.
    pub(crate) store_bytes: u64,
    pub(crate) store_max_bytes: u64,
    /// Free bytes of the file system with the data folder, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_free_bytes: Option<u64>,
    /// What keeps this node from being ready.
    pub(crate) not_ready: Vec<String>,
    heartbeat_ms: u64,
    election_timeout_min_ms: u64,
    election_timeout_max_ms: u64,
    encryption: EncryptionView,
    pub(crate) members: Vec<MemberView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberView {
    pub(crate) id: u64,
    address: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    this_node: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leader: bool,
    /// It was heard within the last seconds, or is this node.
    pub(crate) healthy: bool,
    /// By its own word, as everything in the next four.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(flatten)]
    logs: Option<Logs>,
    /// Entries between the newest that any member is known to have and the newest that this one has applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag: Option<u64>,
    /// The feature levels that its version knows, by its own word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) feature_levels: Option<Levels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_ago_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<String>,
    /// What keeps the two apart, or is configured otherwise there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    /// Its stream of observed state is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_connected: Option<bool>,
    /// It is not heard, but through this member.
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_through: Option<u64>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    }
}

fn logs(status: &NodeStatus) -> Logs {
    Logs {
        last_log: status.last_log,
        applied: status.applied,
        snapshot: status.snapshot,
    }
}

fn view(parts: &Parts) -> ClusterView {
    let Parts {
        store,
        group,
        readiness,
        timing,
    } = parts;
    let status = store.status();
    let not_ready = readiness.unready();
    let mine = NodeStatus::of(&status, not_ready.is_empty());
    let observed = group.as_ref().map(Group::peers).unwrap_or_default();
    let told = |id: u64| match observed.get(&id) {
        _ if id == status.node_id => Some(mine.clone()),
        Some(peer) if peer.connected || peer.through.is_some() => peer.status.clone(),
        _ => None,
    };
    let newest = status.members.keys().filter_map(|id| told(*id)?.last_log).max().unwrap_or(0);
    let members = status.members.iter().map(|(id, address)| {
        let this_node = *id == status.node_id;
        let peer = status.peers.get(id);
        let hears = observed.get(id);
        let answered = peer.and_then(|p| p.answered_ago);
        let heard = hears.is_some_and(|p| p.connected) || answered.is_some_and(|ago| ago < cluster::contact(*timing));
        let refused = peer.and_then(|p| p.problem.as_ref());
        let full = match this_node {
            true => status.disk_refuses.clone(),
            false => peer.and_then(|p| p.disk_refuses.clone()),
        };
        let word = told(*id);
        MemberView {
            id: *id,
            address: address.clone(),
            this_node,
            leader: status.leader == Some(*id),
            healthy: this_node || heard && refused.is_none(),
            role: word.as_ref().and_then(|w| w.role).map(role),
            term: word.as_ref().map(|w| w.term),
            ready: word.as_ref().map(|w| w.ready),
            revision: word.as_ref().map(|w| w.revision),
            lag: word.as_ref().map(|w| newest.saturating_sub(w.applied.unwrap_or(0))),
            logs: word.as_ref().map(logs),
            feature_levels: match this_node {
                true => Some(status.levels),
                false => peer.and_then(|p| p.levels),
            },
            answered_ago_ms: answered.map(millis),
            unreachable: peer.and_then(|p| p.unreachable.clone()),
            problem: refused
                .map(ToString::to_string)
                .or_else(|| full.map(|reason| format!("its disk takes nothing: {reason}")))
                .or_else(|| hears.and_then(|p| p.differs.clone())),
            observed_connected: (!this_node && group.is_some()).then(|| hears.is_some_and(|p| p.connected)),
            heard_through: hears.filter(|p| !p.connected).and_then(|p| p.through),
        }
    });
    ClusterView {
        node_id: status.node_id,
        role: role(status.role),
        term: status.term,
        leader: status.leader,
        history: status.history.to_string(),
        origin: store.view().origin().cloned(),
        revision: status.revision,
        logs: logs(&mine),
        purged: status.purged,
        feature_level: status.level,
        lag: status.last_log.unwrap_or(0).saturating_sub(status.applied.unwrap_or(0)),
        quorum: status.quorum,
        quorum_age_ms: millis(status.quorum_age),
        disk_refuses: status.disk_refuses.clone(),
        log_syncs: status.syncs.0,
        log_sync_micros: u64::try_from(status.syncs.1.as_micros()).unwrap_or(u64::MAX),
        store_bytes: status.bytes,
        store_max_bytes: status.max_bytes,
        disk_free_bytes: status.disk_free,
        recovered: status.recovered,
        admitted: status.admitted,
        not_ready,
        heartbeat_ms: millis(timing.heartbeat),
        election_timeout_min_ms: millis(timing.election_min),
        election_timeout_max_ms: millis(timing.election_max),
        encryption: store.encryption().into(),
        members: members.collect(),
    }
}
