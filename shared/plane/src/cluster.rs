//! This node among the others: its certificate, whether it can answer, and what it shows of the group.
//! In: the configured cluster, the store, the streams between nodes. Out: the store's configuration, readiness, `GET /cluster`.
//! Invariant: a node is ready only while it can answer a linearizable read; it is healthy all the same when it cannot.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::sync::watch;
use tracing::{error, info};
use ursa_runtime::{
    CancellationToken, Readiness, fs, heartbeat,
    tasks::{OnExit, Tasks},
};
use ursa_store::{ClusterConfig, NodeTls, PeerNode, QuorumContact, Role, Store};
use ursa_sync::Quorum;

use crate::{config::Cluster, group::Group};

/// A PEM file has some kilobytes.
const MAX_PEM: u64 = 1024 * 1024;
/// How often the certificate's files are looked at.
const RENEWAL: Duration = Duration::from_secs(60);
/// How often readiness is looked at, beside every change of the leader.
const READINESS: Duration = Duration::from_millis(500);
/// Without contact for so long, reads do not come back in time.
const CONTACT: Duration = Duration::from_secs(2);

/// The node's certificate as its files say now.
fn node_tls(cluster: &Cluster) -> Result<NodeTls> {
    let read = |path: &Path| -> Result<String> {
        let bytes = fs::read_bounded(path, MAX_PEM).with_context(|| format!("cannot read {}", path.display()))?;
        String::from_utf8(bytes).with_context(|| format!("{} is no PEM file", path.display()))
    };
    Ok(NodeTls {
        ca_pem: read(&cluster.ca_file)?,
        cert_pem: read(&cluster.cert_file)?,
        key_pem: read(&cluster.key_file)?,
    })
}

/// The store's part of the configuration. Certificate files that change are taken up while the process runs.
pub(crate) fn store_config(cluster: &Cluster, tasks: &Tasks) -> Result<ClusterConfig> {
    let (sender, tls) = watch::channel(Arc::new(node_tls(cluster)?));
    let files = cluster.clone();
    tasks.spawn("node-certificate", OnExit::Shutdown, |cancel| async move {
        let mut ticker = heartbeat::every(RENEWAL, &cancel);
        while ticker.tick().await {
            let files = files.clone();
            match tokio::task::spawn_blocking(move || node_tls(&files)).await {
                Ok(Ok(read)) => {
                    sender.send_if_modified(|current| {
                        let changed = **current != read;
                        if changed {
                            info!("a new node certificate is taken up");
                            *current = Arc::new(read);
                        }
                        changed
                    });
                }
                Ok(Err(error)) => error!(error = format!("{error:#}"), "the node certificate cannot be read again"),
                Err(error) => error!(%error, "the node certificate cannot be read again"),
            }
        }
    });
    Ok(ClusterConfig {
        members: cluster.addresses(),
        dial: cluster.detours(),
        tls,
    })
}

/// Who calls on the listener of the other nodes.
pub(crate) fn node_of(extensions: &tonic::Extensions) -> Option<u64> {
    extensions.get::<PeerNode>().map(|peer| peer.id)
}

/// Contact with the quorum, for those who serve zones.
pub(crate) struct StoreQuorum(pub(crate) watch::Receiver<QuorumContact>);

impl Quorum for StoreQuorum {
    fn since_contact(&self) -> Duration {
        self.0.borrow().age()
    }
}

/// Keeps the process unready while it cannot answer linearizable reads, until cancelled.
pub(crate) async fn watch_readiness(store: Store, readiness: Readiness, cancel: CancellationToken) {
    let (mut leader, contact) = (store.leader(), store.quorum_contact());
    let mut ticker = heartbeat::every(READINESS, &cancel);
    let mut guard = Some(readiness.guard("quorum"));
    let mut recovered = false;
    loop {
        // Contact counts from the start; only the first answer of a majority proves that there is one.
        recovered = recovered || store.status().recovered;
        let answers = recovered && leader.borrow_and_update().is_some() && contact.borrow().age() < CONTACT;
        match (answers, &guard) {
            (true, Some(_)) => guard = None,
            (false, None) => {
                info!("no contact with a majority of the nodes: not ready");
                guard = Some(readiness.guard("quorum"));
            }
            _ => {}
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = leader.changed() => {}
            _ = ticker.tick() => {}
        }
    }
}

/// What `GET /cluster` is answered from, once there is a store.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<OnceLock<(Store, Option<Group>, Readiness)>>);

impl Shown {
    pub(crate) fn set(&self, store: Store, group: Option<Group>, readiness: Readiness) {
        let _ = self.0.set((store, group, readiness));
    }

    /// `GET /cluster`.
    pub(crate) fn router(&self) -> Router {
        Router::new().route("/cluster", get(show)).with_state(self.clone())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterView {
    node_id: u64,
    role: &'static str,
    term: u64,
    leader: Option<u64>,
    history: String,
    revision: u64,
    last_log: Option<u64>,
    applied: Option<u64>,
    snapshot: Option<u64>,
    purged: Option<u64>,
    /// Entries that are stored and not applied.
    lag: u64,
    quorum: bool,
    quorum_age_ms: u64,
    recovered: bool,
    admitted: bool,
    /// What keeps this node from being ready.
    not_ready: Vec<String>,
    members: Vec<MemberView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberView {
    id: u64,
    address: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    this_node: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leader: bool,
    /// It was heard within the last seconds, or is this node.
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_ago_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Its stream of observed state is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_connected: Option<bool>,
}

async fn show(State(shown): State<Shown>) -> Response {
    match shown.0.get() {
        Some((store, group, readiness)) => Json(view(store, group.as_ref(), readiness)).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the store is not open yet\n").into_response(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn view(store: &Store, group: Option<&Group>, readiness: &Readiness) -> ClusterView {
    let status = store.status();
    let observed = group.map(Group::peers).unwrap_or_default();
    let members = status.members.iter().map(|(id, address)| {
        let this_node = *id == status.node_id;
        let peer = status.peers.get(id);
        let answered = peer.and_then(|p| p.answered_ago);
        let heard = observed.get(id).is_some_and(|p| p.connected) || answered.is_some_and(|ago| ago < CONTACT);
        MemberView {
            id: *id,
            address: address.clone(),
            this_node,
            leader: status.leader == Some(*id),
            healthy: this_node || heard && peer.is_some_and(|p| p.problem.is_none()),
            answered_ago_ms: answered.map(millis),
            unreachable: peer.and_then(|p| p.unreachable.clone()),
            problem: peer.and_then(|p| p.problem.as_ref()).map(ToString::to_string),
            observed_connected: (!this_node && group.is_some()).then(|| observed.get(id).is_some_and(|p| p.connected)),
        }
    });
    ClusterView {
        node_id: status.node_id,
        role: match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        },
        term: status.term,
        leader: status.leader,
        history: status.history.to_string(),
        revision: status.revision,
        last_log: status.last_log,
        applied: status.applied,
        snapshot: status.snapshot,
        purged: status.purged,
        lag: status.last_log.unwrap_or(0).saturating_sub(status.applied.unwrap_or(0)),
        quorum: status.quorum,
        quorum_age_ms: millis(status.quorum_age),
        recovered: status.recovered,
        admitted: status.admitted,
        not_ready: readiness.unready(),
        members: members.collect(),
    }
}
