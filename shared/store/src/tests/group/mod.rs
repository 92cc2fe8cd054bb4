//! Several stores as one group: real files, real TLS over loopback, links that can be cut.
mod early;
mod faults;
mod full;
mod levels;
mod membership;
mod misuse;
mod rounds;
mod shortened;
mod transfer;
mod usual;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use ursa_pki::CaMaterial;
use ursa_pki::node::{ClusterCa, ClusterName, NODE_LIFE};
use ursa_runtime::lease::Deadline;
use ursa_runtime::tasks::Tasks;

use super::{PATIENCE, picture, write};
use crate::disk::{Disk, RealDisk};
use crate::net::faults::Cut;
use crate::{ClusterConfig, NodeTls, OpenError, Store, StoreConfig, Timings};

/// A CA that makes certificates for nodes.
struct Ca(CaMaterial);

impl Ca {
    fn new(cluster: &str) -> Self {
        let name: ClusterName = cluster.parse().unwrap();
        Self(ClusterCa::generate(&name, OffsetDateTime::now_utc()).unwrap())
    }

    fn tls(&self, node: u64) -> NodeTls {
        let ca = ClusterCa::load(&self.0).unwrap();
        let made = ca
            .issue(node, &["127.0.0.1".to_owned()], NODE_LIFE, OffsetDateTime::now_utc())
            .unwrap();
        NodeTls {
            ca_pem: self.0.cert_pem.clone(),
            cert_pem: made.cert_pem,
            key_pem: made.key_pem,
        }
    }
}

/// A node, running or not.
pub(super) struct Node {
    config: StoreConfig,
    disk: Arc<dyn Disk>,
    address: SocketAddr,
    /// Served beside the store's own calls.
    others: Router,
    running: Option<(Store, Tasks)>,
}

impl Node {
    /// Opens the store and serves the others. A folder that is about to be let go of is waited for.
    async fn start(&mut self) -> Result<(), OpenError> {
        self.start_after(|_| ()).await
    }

    /// As [`Node::start`]; before it is served this is done to it.
    async fn start_after(&mut self, first: impl FnOnce(&Store)) -> Result<(), OpenError> {
        let tasks = Tasks::new();
        let deadline = Deadline::after(PATIENCE);
        let store = loop {
            match Store::open(self.config.clone(), self.disk.clone(), &tasks).await {
                Err(OpenError::Locked(_)) if !deadline.has_passed() => tokio::task::yield_now().await,
                opened => break opened?,
            }
        };
        first(&store);
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Err(_) if !deadline.has_passed() => tokio::task::yield_now().await,
                bound => break bound.unwrap(),
            }
        };
        store.serve_peers(listener, self.others.clone(), &tasks);
        self.running = Some((store, tasks));
        Ok(())
    }

    pub(super) fn store(&self) -> &Store {
        &self.running.as_ref().unwrap().0
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.running.as_ref().unwrap().1
    }

    /// Ends it without a word: nothing is handed over, written or closed.
    pub(super) async fn kill(&mut self) {
        if let Some((store, tasks)) = self.running.take() {
            drop(store);
            tasks.shutdown(PATIENCE).await;
        }
    }
}

/// Nodes 1 to n.
pub(super) struct Group {
    pub(super) nodes: BTreeMap<u64, Node>,
    ca: Ca,
    _dir: TempDir,
    _turn: SemaphorePermit<'static>,
}

/// Groups at once: more would take the processor from each other until heartbeats are late.
static TURNS: Semaphore = Semaphore::const_new(4);

fn timings() -> Timings {
    Timings {
        snapshot_every: 1_000_000,
        ..Timings::default()
    }
}

/// For tests in which a busy machine must cause no election.
fn patient() -> Timings {
    Timings {
        election_min: Duration::from_millis(900),
        election_max: Duration::from_millis(1400),
        ..timings()
    }
}

/// An address that no other test uses, also of another process.
async fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let [_, _, c, d] = number.to_be_bytes();
    let ip = std::net::Ipv4Addr::new(127, 64 + u8::try_from(pid % 128).unwrap(), c.wrapping_add((pid >> 7) as u8), d);
    TcpListener::bind((ip, 0)).await.unwrap().local_addr().unwrap()
}

impl Group {
    /// Folders and certificates for `size` nodes, none of which runs.
    async fn new(size: u64, timings: Timings) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("test");
        let mut addresses = BTreeMap::new();
        for id in 1..=size {
            addresses.insert(id, free_address().await);
        }
        let members: BTreeMap<u64, String> = addresses.iter().map(|(id, address)| (*id, address.to_string())).collect();
        let nodes = addresses.into_iter().map(|(id, address)| {
            let mut config = StoreConfig::new(dir.path().join(id.to_string()), id);
            config.cluster = Some(ClusterConfig::new(members.clone(), ca.tls(id)));
            config.timings = timings;
            let node = Node {
                config,
                disk: Arc::new(RealDisk),
                address,
                others: Router::new(),
                running: None,
            };
            (id, node)
        });
        Self {
            nodes: nodes.collect(),
            ca,
            _dir: dir,
            _turn: turn,
        }
    }

    /// Three nodes that run and have a leader.
    pub(super) async fn of_three() -> Self {
        Self::of_three_with(timings()).await
    }

    async fn of_three_with(timings: Timings) -> Self {
        let mut group = Self::new(3, timings).await;
        group.start_all().await;
        group.leader().await;
        group
    }

    async fn start_all(&mut self) {
        for node in self.nodes.values_mut() {
            node.start().await.unwrap();
        }
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub(super) fn store(&self, id: u64) -> &Store {
        self.nodes[&id].store()
    }

    fn folder(&self, id: u64) -> PathBuf {
        self.nodes[&id].config.data_dir.clone()
    }

    fn running(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.running.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Nothing gets from `from` to `to`, or no answers back.
    fn cut(&self, from: u64, to: u64, cut: Option<Cut>) {
        self.store(from).peers().unwrap().shared.faults.set(to, cut);
    }

    /// Cuts all links of a node, or mends them.
    pub(super) fn isolate(&self, id: u64, cut: Option<Cut>) {
        for other in self.running().into_iter().filter(|other| *other != id) {
            self.cut(id, other, cut);
            self.cut(other, id, cut);
        }
    }

    /// A node that leads, that most running nodes hold for the leader, and that can write.
    pub(super) async fn leader(&self) -> u64 {
        self.leader_other_than(0).await
    }

    pub(super) async fn leader_other_than(&self, not: u64) -> u64 {
        self.wait("there is a leader", || {
            let running = self.running();
            running.iter().copied().find(|id| {
                let agree = running
                    .iter()
                    .filter(|other| *self.store(**other).leader().borrow() == Some(*id))
                    .count();
                *id != not && self.store(*id).is_leader() && agree * 2 > self.nodes.len()
            })
        })
        .await
    }

    /// Waits until all running nodes show the same.
    async fn level(&self) {
        self.level_of(&self.running()).await;
    }

    /// Waits until these nodes show the same.
    async fn level_of(&self, running: &[u64]) {
        self.wait("all nodes show the same", || {
            let newest = running.iter().map(|id| self.store(*id).status().applied).max().unwrap();
            let level = running.iter().all(|id| self.store(*id).status().applied == newest);
            level.then_some(())
        })
        .await;
        let first = picture(&self.store(running[0]).view());
        for id in &running[1..] {
            assert_eq!(picture(&self.store(*id).view()), first, "node {id}");
        }
    }

    fn term(&self) -> u64 {
        self.running().iter().map(|id| self.store(*id).status().term).max().unwrap()
    }

    /// As [`wait`], and says what every node is at when it was in vain.
    async fn wait<T>(&self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        wait_or(what, ask, || self.report()).await
    }

    /// What every running node knows of itself and the others, a line each.
    fn report(&self) -> String {
        use std::sync::atomic::Ordering::Acquire;
        let mut report = String::new();
        for id in self.running() {
            let (status, shared) = (self.store(id).status(), &self.store(id).peers().unwrap().shared);
            let peers: Vec<String> = status
                .peers
                .iter()
                .map(|(id, peer)| format!("{id}: {:?} {:?} {:?}", peer.answered_ago, peer.unreachable, peer.problem))
                .collect();
            report += &format!(
                "\n  node {id}: {:?}, term {}, leader {:?}, log {:?}, applied {:?}, quorum {:?} ago, admitted {}, muted {}, replaced {}, {:?}, peers {peers:?}",
                status.role,
                status.term,
                status.leader,
                status.last_log,
                status.applied,
                status.quorum_age,
                status.admitted,
                shared.muted.load(Acquire),
                shared.replaced.load(Acquire),
                shared.faults,
            );
        }
        report
    }
}

/// Takes a folder away. What a node that was killed still has in hand ends up in the folder aside: a process that dies takes its threads
/// with it, a test does not.
fn lose(folder: &Path) {
    std::fs::rename(folder, folder.with_extension("lost")).unwrap();
}

/// Polls until there is an answer, or fails.
pub(super) async fn wait<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_or(what, ask, String::new).await
}

async fn wait_or<T>(what: &str, mut ask: impl FnMut() -> Option<T>, report: impl Fn() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}{}", report());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
