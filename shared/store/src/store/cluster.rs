//! The store as one of several: its listener, who leads, contact with the majority, handing over.
//! In: the configured members. Out: routes for the listener, watches.
//! Invariant: nothing here is needed in a group of one, and everything works there all the same.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::server::NamedService;
use ursa_proto::peer::raft_server::RaftServer;
use ursa_runtime::lease::{self, Deadline};
use ursa_runtime::serve;
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_state::HistoryId;

use super::{FirstStart, Store, StoreConfig};
use crate::error::{Error, OpenError};
use crate::folder::Folder;
use crate::log::Log;
use crate::net::disks::Disks;
use crate::net::known::{Incarnation, Known};
use crate::net::peers::Parts;
use crate::net::roster::Roster;
use crate::net::server::Service;
use crate::net::tls::Identity;
use crate::net::{Peers, QuorumContact, serve_limits, serve_routes};
use crate::raft::{Entry, Machine};

/// Around the largest proposal or the entries of one request.
const MESSAGE_OVERHEAD: usize = 4 << 20;

/// This node's certificate, if it is one of several.
pub(super) fn identity(config: &StoreConfig) -> Result<Option<Arc<Identity>>, OpenError> {
    let Some(cluster) = &config.cluster else { return Ok(None) };
    let wrong = |reason: String| Err(OpenError::Members { reason });
    if !cluster.members.contains_key(&config.node_id) {
        return wrong(format!("node {} is not in it", config.node_id));
    }
    if let Some((id, address)) = cluster.members.iter().find(|(_, address)| !is_address(address)) {
        return wrong(format!("{address:?} of node {id} is not host:port"));
    }
    Identity::new(config.node_id, cluster.tls.clone()).map(Arc::new).map(Some)
}

pub(crate) fn is_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// What the calls to and from the others need.
pub(super) fn peers(
    config: &StoreConfig,
    identity: Arc<Identity>,
    folder: &Folder,
    known: Known,
    log: &Log<Entry>,
    machine: &Machine,
) -> Peers {
    let history = machine.subscribe().borrow().history_id();
    let refused = log.refused();
    let (id, start) = folder.id();
    let cluster = config.cluster.as_ref();
    let parts = Parts {
        me: Incarnation {
            folder: id,
            start,
            boot: folder.boots().last().copied().unwrap_or_default(),
        },
        history: folder.history().or((history != HistoryId::default()).then_some(history)),
        known,
        // A snapshot from elsewhere may have come after the newest entry of the log.
        log_end: log.state().last.max(*machine.applied().borrow()),
        levels: config.levels(),
        level: machine.level(),
        roster: Roster::new(
            config.node_id,
            cluster.map(|cluster| cluster.members.keys().copied().collect()).unwrap_or_default(),
        ),
        admitted: folder.is_formed(),
        addresses: cluster.map(|cluster| cluster.members.clone()).unwrap_or_default(),
        detours: cluster.map(|cluster| cluster.dial.clone()).unwrap_or_default(),
        identity,
        message_limit: config.max_changeset_bytes + MESSAGE_OVERHEAD,
        disks: Disks::new(config.data_dir.display().to_string(), refused),
        #[cfg(any(test, feature = "testing"))]
        carrier: config.carrier.clone(),
    };
    Peers::new(config.node_id, parts)
}

impl Store {
    /// Runs beside the store what waits for the other members.
    pub(super) fn join_group(&self, peers: &Peers, tasks: &Tasks) {
        let inner = &self.inner;
        let Some(cluster) = &inner.config.cluster else { return };
        let (weak, closing) = (Arc::downgrade(inner), inner.closing.clone());
        if !peers.shared.admitted.load(Ordering::Acquire) {
            let (peers, members, owner, closing) = (peers.clone(), cluster.members.clone(), tasks.clone(), closing.clone());
            let weak = weak.clone();
            tasks.spawn("store-admission", OnExit::Ignore, |cancel| {
                let work = crate::net::admission::run(weak, peers, members, owner, cancel.clone());
                crate::keeper::until(cancel, closing, work)
            });
        } else {
            let voters: Vec<u64> = inner.raft.voter_ids().collect();
            if !voters.is_empty() && !voters.iter().eq(cluster.members.keys()) {
                tracing::warn!(
                    group = ?voters,
                    configured = ?cluster.members.keys().collect::<Vec<_>>(),
                    "the configured members are not those of the group; the group's own list counts"
                );
            }
        }
        let (members, views, known) = (inner.raft.server_metrics(), inner.views.clone(), peers.clone());
        let ending = closing.clone();
        tasks.spawn("store-roster", OnExit::Ignore, |cancel| {
            crate::keeper::until(cancel, ending, super::members::follow(members, views, known))
        });
        let mut metrics = inner.raft.metrics();
        tasks.spawn("store-recovery", OnExit::Ignore, |cancel| {
            let recovery = async move {
                // As `wait_for_recovery`, but without keeping the core alive.
                loop {
                    let (reached, target) = {
                        let now = metrics.borrow_watched();
                        let committed = now.cluster_committed.as_ref().map(|id| id.index);
                        (committed.is_some() && committed >= now.last_log_index, committed)
                    };
                    if reached {
                        let Some(store) = weak.upgrade().map(Store::from) else { return };
                        let mut applied = store.inner.applied.clone();
                        drop(store);
                        if applied.wait_for(|applied| applied.map(|id| id.index) >= target).await.is_ok()
                            && let Some(inner) = weak.upgrade()
                        {
                            inner.recovered.send_replace(true);
                        }
                        return;
                    }
                    if metrics.changed().await.is_err() {
                        return;
                    }
                }
            };
            crate::keeper::until(cancel, closing, recovery)
        });
    }

    /// The other members; `None` in a group of one.
    pub fn peers(&self) -> Option<&Peers> {
        self.inner.peers.as_ref()
    }

    /// Who leads, as far as this node knows. A new leader may refuse writes for a few milliseconds; proposals wait for it.
    pub fn leader(&self) -> watch::Receiver<Option<u64>> {
        self.inner.leader.subscribe()
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        *self.inner.leader.borrow() == Some(self.inner.config.node_id)
    }

    /// When this node was last known to be in contact with a majority. Counts from the start of the store before the first time.
    pub fn quorum_contact(&self) -> watch::Receiver<QuorumContact> {
        self.inner.contact.clone()
    }

    /// The calls of the other nodes. They do not keep the store alive. Empty in a group of one.
    pub fn peer_routes(&self) -> Router {
        let Some(peers) = &self.inner.peers else { return Router::new() };
        let service = RaftServer::new(Service::new(peers.clone(), Arc::downgrade(&self.inner)))
            .max_decoding_message_size(peers.shared.message_limit)
            .max_encoding_message_size(peers.shared.message_limit);
        // Not `tonic::service::Routes`: its fallback would keep these routes from being merged with others.
        let path = format!("/{}/{{*call}}", <RaftServer<Service> as NamedService>::NAME);
        Router::new().route_service(&path, service)
    }

    /// Serves the other nodes, as a task: this store's calls and `others`, each request with a [`crate::PeerNode`] in its extensions. Over
    /// TLS 1.3, with certificates of the cluster on both sides; to `others` comes who is a member of the group, and nobody else. Nothing
    /// happens in a group of one.
    pub fn serve_peers(&self, listener: TcpListener, others: Router, tasks: &Tasks) {
        let Some(peers) = &self.inner.peers else { return };
        let routes = serve_routes(self.peer_routes(), others, peers);
        let (tls, owner) = (peers.identity().server_config(), tasks.clone());
        tasks.spawn("peers", OnExit::Shutdown, |cancel| {
            serve::https(listener, tls, routes, serve_limits(), owner, cancel)
        });
    }

    /// Waits until everything that this node had stored before its start is applied: from then on its view is never older than one it
    /// showed before. Needs a majority of the members.
    ///
    /// # Errors
    /// [`Error::Unavailable`] at the deadline, [`Error::Stopped`].
    pub async fn wait_recovered(&self, deadline: Deadline) -> Result<(), Error> {
        let mut recovered = self.inner.recovered.subscribe();
        let waited = tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => return Err(Error::Stopped(self.why_stopped().unwrap_or_default())),
            waited = lease::within(deadline.remaining(), recovered.wait_for(|recovered| *recovered)) => waited.map(|_| ()),
        };
        match self.why_stopped() {
            Some(why) => Err(Error::Stopped(why)),
            None => waited.map_err(|expired| Error::Unavailable(format!("the other members do not answer: {expired}"))),
        }
    }

    /// Gives the lead to the member that is furthest, before this node is stopped, so that no write waits for a fail-over. Returns who
    /// leads then; at once if this node does not lead.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody took over in time. Writes are refused here all the same from then on, until somebody else leads.
    pub async fn hand_over(&self, deadline: Deadline) -> Result<Option<u64>, Error> {
        self.hand_over_to(None, deadline).await
    }

    /// As [`Store::hand_over`], to this voter if one is named.
    pub(crate) async fn hand_over_to(&self, to: Option<u64>, deadline: Deadline) -> Result<Option<u64>, Error> {
        let me = self.inner.config.node_id;
        let mut leads = self.leader();
        let try_for = self.inner.config.timings.sane().election_min;
        let mut tried = Vec::new();
        loop {
            let leader = *leads.borrow_and_update();
            if leader != Some(me) {
                return Ok(leader);
            }
            if let Some(why) = self.why_stopped() {
                return Err(Error::Stopped(why));
            }
            let Some(next) = to.or_else(|| self.furthest(&tried)) else {
                if tried.is_empty() {
                    return Ok(leader); // a group of one
                }
                tried.clear();
                continue;
            };
            tracing::info!(to = next, "handing over the lead");
            let begun = self.inner.raft.trigger().transfer_leader(next).await;
            begun.map_err(|fatal| Error::Stopped(self.died(&fatal)))?;
            tried.push(next);
            let other = leads.wait_for(|now| now.is_some_and(|now| now != me));
            let _ = lease::within(try_for.min(deadline.remaining()), other).await;
            if deadline.has_passed() && self.is_leader() {
                // The core takes no more writes once it has begun to hand over. Silence lets the others elect somebody.
                self.silence_until_replaced();
                return Err(Error::Unavailable("no other member took over the lead in time".to_owned()));
            }
        }
    }

    fn silence_until_replaced(&self) {
        if let Some(peers) = &self.inner.peers {
            peers.shared.replaced.store(true, std::sync::atomic::Ordering::Release);
        }
    }

    /// The voter with the newest entries, without those already tried.
    pub(crate) fn furthest(&self, tried: &[u64]) -> Option<u64> {
        let me = self.inner.config.node_id;
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let matched = |id: &u64| {
            let replication = metrics.replication.as_ref();
            replication.and_then(|all| all.get(id).cloned().flatten()).map(|id| id.index)
        };
        let candidates = voters.into_iter().filter(|id| *id != me && !tried.contains(id));
        candidates.max_by_key(|id| matched(id))
    }

    /// The members that this node founds a group with, if it is to found one.
    pub(crate) fn founders(&self) -> Option<&BTreeMap<u64, String>> {
        let config = &self.inner.config;
        let cluster = config.cluster.as_ref().filter(|_| config.first_start == FirstStart::Found)?;
        Some(&cluster.members)
    }

    /// The members in the log, with their addresses there.
    pub(crate) fn group_members(&self) -> BTreeMap<u64, String> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.map(|(id, peer)| (*id, peer.address.clone())).collect()
    }

    /// Whether this node holds more than the list of first members.
    pub(crate) fn is_founded(&self) -> bool {
        let state = self.inner.log.state();
        state.last.is_some_and(|last| last.index > 0) || state.purged.is_some() || self.inner.snapshots.newest().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn an_address_has_host_and_port() {
        for good in ["127.0.0.1:5690", "node-1:1", "[::1]:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "node-1", ":1", "node-1:0", "node-1:65536", "node-1:x"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
