//! This node among the others: its certificate, and whether it can answer.
//! In: the configured cluster, the store. Out: the store's configuration, readiness. Not here: what is shown ([`crate::status`]).
//! Invariant: a node is ready only while it can answer a linearizable read; it is healthy all the same when it cannot.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tracing::{error, info};
use ursa_runtime::{
    CancellationToken, Readiness,
    config::Secret,
    fs, heartbeat,
    tasks::{OnExit, Tasks},
};
use ursa_store::{ClusterConfig, NodeTls, PeerNode, QuorumContact, Store};
use ursa_sync::Quorum;

use crate::config::{Cluster, FirstStart, Timing};

/// A PEM file has some kilobytes.
const MAX_PEM: u64 = 1024 * 1024;
/// How often the certificate's files are looked at.
const RENEWAL: Duration = Duration::from_secs(60);
/// How often readiness is looked at, beside every change of the leader.
const READINESS: Duration = Duration::from_millis(500);
/// Without contact for so long, or for two election timeouts if that is longer, reads do not come back in time.
const CONTACT: Duration = Duration::from_secs(2);

/// How long contact with a majority, or with a node, counts.
pub(crate) fn contact(timing: Timing) -> Duration {
    CONTACT.max(timing.election_max * 2)
}

/// The node's certificate as its files say now.
pub(crate) fn node_tls(cluster: &Cluster) -> Result<NodeTls> {
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

/// The token with which this node joins; `None` if it does not, or if the file is gone, as it may be afterwards.
fn join_token(cluster: &Cluster) -> Result<Option<Secret<String>>> {
    let Some(path) = &cluster.join_token_file else { return Ok(None) };
    if !path.exists() {
        info!(file = %path.display(), "there is no join token: this node must have joined before");
        return Ok(None);
    }
    let bytes = fs::read_bounded(path, MAX_PEM).with_context(|| format!("cannot read {}", path.display()))?;
    let token = String::from_utf8(bytes).with_context(|| format!("{} is no token", path.display()))?;
    Ok(Some(Secret::new(token.trim().to_owned())))
}

/// What the node does while it has nothing.
pub(crate) fn first_start(cluster: &Cluster) -> ursa_store::FirstStart {
    match cluster.first_start {
        FirstStart::Found => ursa_store::FirstStart::Found,
        FirstStart::Wait | FirstStart::Join => ursa_store::FirstStart::WaitToBeAdded,
    }
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
        join: join_token(cluster)?,
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
pub(crate) async fn watch_readiness(store: Store, patience: Duration, readiness: Readiness, cancel: CancellationToken) {
    let (mut leader, contact) = (store.leader(), store.quorum_contact());
    let mut ticker = heartbeat::every(READINESS, &cancel);
    let mut guard = Some(readiness.guard("quorum"));
    let mut recovered = false;
    loop {
        // Contact counts from the start; only the first answer of a majority proves that there is one.
        recovered = recovered || store.status().recovered;
        // A change of leader is no reason: requests wait for the next one. Whoever is asked whether this node is ready would find none that
        // is, of all nodes at once, for something that takes less than a second.
        leader.mark_unchanged();
        let answers = recovered && contact.borrow().age() < patience;
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
