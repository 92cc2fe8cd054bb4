//! The nodes: each is a disk, and on it one life after the other of the real store.
//! In: crashes. Out: the stores that run at the moment.
//! Invariants: a node that ended is started again after a while, on the disk as its end left it; a store that does not open on a disk
//! that did nothing but lose what was not synced, or that stops without a reason, is a finding.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use ursa_runtime::CancellationToken;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::Deadline;
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_store::testing::SimDisk;
use ursa_store::{ClusterConfig, NodeTls, Store, StoreConfig, Timings, log};

use crate::judge::Judge;
use crate::network::{Life, Network};
use crate::note;
use crate::oracles::promises::Promises;
use crate::pause;
use crate::trace::Trace;

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process is killed. What it wrote is still there.
    Kill,
    /// The machine goes off. What was not synced may be gone.
    PowerLoss,
}

impl End {
    /// The disk as it is found afterwards.
    fn of(self, disk: &SimDisk) -> SimDisk {
        match self {
            Self::Kill => disk.process_kill(),
            Self::PowerLoss => disk.power_loss(),
        }
    }
}

/// A store that runs.
#[derive(Clone, Debug)]
pub struct Running {
    pub store: Store,
    pub life: Life,
}

/// What all nodes have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    pub nodes: u64,
    pub timings: Timings,
    pub log: log::Options,
    pub sync_time: std::ops::Range<Duration>,
    pub propose_timeout: Duration,
    pub tls: Arc<BTreeMap<u64, NodeTls>>,
}

/// Shared handle.
#[derive(Clone, Debug)]
pub struct World {
    pub settings: Arc<Settings>,
    pub network: Network,
    pub judge: Judge,
    pub trace: Trace,
    pub promises: Promises,
    /// What runs beside the nodes.
    pub tasks: Tasks,
    nodes: Arc<Mutex<BTreeMap<u64, Node>>>,
    /// Somebody asked for another leader.
    handing_over: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Node {
    disk: SimDisk,
    life: Option<Life>,
    /// Told of every store that opens, and of its end.
    running: watch::Sender<Option<Running>>,
    lives: u32,
    down_for: Duration,
    /// Faults of its disk at the moment: with one, an end of its own is no wonder.
    bad_disk: u32,
    /// Faults by which it takes nothing: no reason to end.
    full_disk: u32,
    tasks: Tasks,
}

impl World {
    /// Nodes 1 to n, none of which runs yet.
    pub fn new(seed: u64, settings: Settings, network: Network, judge: Judge, trace: Trace, promises: Promises) -> Self {
        let node = |id| {
            let disk = SimDisk::new(seed.wrapping_mul(31).wrapping_add(id));
            disk.set_sync_time(settings.sync_time.clone());
            let node = Node {
                disk,
                life: None,
                running: watch::Sender::new(None),
                lives: 0,
                down_for: Duration::ZERO,
                bad_disk: 0,
                full_disk: 0,
                tasks: Tasks::new(),
            };
            (id, node)
        };
        let nodes = (1..=settings.nodes).map(node).collect();
        Self {
            settings: Arc::new(settings),
            network,
            judge,
            trace,
            promises,
            tasks: Tasks::new(),
            nodes: Arc::new(Mutex::new(nodes)),
            handing_over: Arc::default(),
        }
    }

    pub fn ids(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.settings.nodes
    }

    /// Fewest nodes that decide.
    pub fn majority(&self) -> usize {
        usize::try_from(self.settings.nodes / 2 + 1).unwrap_or(usize::MAX)
    }

    /// Runs every node, for as long as the world lasts. The first starts are `apart` from each other.
    pub fn start(&self, apart: impl Fn(u64) -> Duration) {
        for id in self.ids() {
            let (world, first) = (self.clone(), apart(id));
            self.tasks.spawn("node", OnExit::Ignore, |cancel| async move {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = world.live(id, first) => {}
                }
            });
        }
    }

    /// The store of this node, if it runs.
    pub fn running(&self, id: u64) -> Option<Running> {
        self.nodes
            .lock()
            .get(&id)?
            .running
            .borrow()
            .clone()
            .filter(|running| !running.life.is_over())
    }

    /// The stores that run.
    pub fn all_running(&self) -> Vec<Running> {
        self.ids().filter_map(|id| self.running(id)).collect()
    }

    /// Follows the lives of a node.
    pub fn lives(&self, id: u64) -> Option<watch::Receiver<Option<Running>>> {
        Some(self.nodes.lock().get(&id)?.running.subscribe())
    }

    /// The disk as the present life has it.
    pub fn disk(&self, id: u64) -> Option<SimDisk> {
        Some(self.nodes.lock().get(&id)?.disk.clone())
    }

    /// Notes that the disk of a node is about to fail or be slow, or is well again.
    pub fn disk_is_bad(&self, id: u64, bad: bool) {
        if let Some(node) = self.nodes.lock().get_mut(&id) {
            node.bad_disk = if bad { node.bad_disk + 1 } else { node.bad_disk.saturating_sub(1) };
        }
    }

    /// Notes that the disk of a node is about to take nothing, or has taken writes again for a while.
    pub fn disk_refuses(&self, id: u64, refuses: bool) {
        if let Some(node) = self.nodes.lock().get_mut(&id) {
            node.full_disk = if refuses {
                node.full_disk + 1
            } else {
                node.full_disk.saturating_sub(1)
            };
        }
    }

    /// It neither fails nor is slow nor takes nothing.
    pub fn is_disk_well(&self, id: u64) -> bool {
        self.nodes.lock().get(&id).is_some_and(|node| node.bad_disk + node.full_disk == 0)
    }

    pub fn has_bad_disk(&self, id: u64) -> bool {
        self.nodes.lock().get(&id).is_some_and(|node| node.bad_disk > 0)
    }

    /// Gives the lead away, as before an orderly stop.
    pub async fn hand_over(&self, running: &Running, limit: Duration) {
        self.handing_over.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            biased;
            () = running.life.ended.cancelled() => {}
            _ = running.store.hand_over(Deadline::after(limit)) => {}
        }
        // Who takes over may still be on its way.
        pause(Duration::from_millis(1000)).await;
        self.handing_over.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the lead is being given away: an election is no wonder then.
    pub fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::Relaxed) > 0
    }

    /// Ends the present life of a node; the next begins after `down_for`.
    pub fn end(&self, id: u64, how: End, down_for: Duration) {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&id) else { return };
        let Some(life) = node.life.take() else {
            node.disk = how.of(&node.disk);
            return;
        };
        note!(self.trace, "n{id} ends: {how:?}, for {down_for:?}");
        node.disk = how.of(&node.disk);
        node.down_for = down_for;
        self.network.unplug(id);
        life.ended.cancel();
        node.tasks.cancel_token().cancel();
        let was = node.running.send_replace(None);
        drop(nodes);
        drop(was);
    }

    async fn live(&self, id: u64, first: Duration) {
        pause(first).await;
        loop {
            let (life, tasks) = self.begin(id);
            let opened = tokio::select! {
                biased;
                () = life.ended.cancelled() => None,
                opened = self.open(&life, &tasks) => Some(opened),
            };
            match opened {
                None => {}
                Some(Ok(store)) => self.up(&life, store),
                Some(Err(error)) if life.is_over() => note!(self.trace, "n{id} does not open: {error}"),
                Some(Err(error)) if !self.is_disk_well(id) => {
                    note!(self.trace, "n{id} does not open: {error}");
                    self.end(id, End::Kill, Duration::from_millis(200));
                }
                Some(Err(error)) => {
                    self.judge.report("opens", format!("node {id} does not open: {error}"));
                    return;
                }
            }
            let stopped = tasks.cancel_token();
            tokio::select! {
                biased;
                () = life.ended.cancelled() => {}
                () = stopped.cancelled() => self.stopped(&life, &tasks).await,
            }
            let down_for = self.nodes.lock().get(&id).map(|node| node.down_for).unwrap_or_default();
            pause(down_for).await;
        }
    }

    fn begin(&self, id: u64) -> (Life, Tasks) {
        let mut nodes = self.nodes.lock();
        let tasks = Tasks::new();
        let (number, disk) = match nodes.get_mut(&id) {
            Some(node) => {
                node.lives += 1;
                (node.lives, node.disk.clone())
            }
            None => (0, SimDisk::new(0)),
        };
        let life = Life {
            node: id,
            number,
            disk,
            ended: CancellationToken::new(),
        };
        if let Some(node) = nodes.get_mut(&id) {
            node.life = Some(life.clone());
            node.tasks = tasks.clone();
        }
        note!(self.trace, "n{id} begins its life {number}");
        (life, tasks)
    }

    async fn open(&self, life: &Life, tasks: &Tasks) -> Result<Store, String> {
        let id = life.node;
        let carrier = self.network.plug(life, tasks);
        let members = self.ids().map(|id| (id, format!("node-{id}:1"))).collect();
        let tls = self.settings.tls.get(&id).cloned().ok_or("no certificate")?;
        let mut config = StoreConfig::new("/node", id);
        config.cluster = Some(ClusterConfig::new(members, tls));
        config.timings = self.settings.timings;
        config.log = self.settings.log;
        config.propose_timeout = self.settings.propose_timeout;
        config.carrier = Some(carrier);
        let opened = Store::open(config, Arc::new(life.disk.clone()), tasks).await;
        // Its status is right once its core has begun.
        pause(Duration::from_millis(1)).await;
        opened.map_err(|error| Chain(&error).to_string())
    }

    fn up(&self, life: &Life, store: Store) {
        if life.is_over() {
            return;
        }
        let status = store.status();
        note!(
            self.trace,
            "n{} is open: term {}, log {:?}, applied {:?}",
            life.node,
            status.term,
            status.last_log,
            status.applied
        );
        if let Err(broken) = self.promises.opened(life.node, &status) {
            self.judge.report("promises", broken);
        }
        self.network.listen(life.node, store.listener());
        let running = Running { store, life: life.clone() };
        if let Some(node) = self.nodes.lock().get(&life.node) {
            node.running.send_replace(Some(running));
        }
    }

    /// The process ended by itself.
    async fn stopped(&self, life: &Life, tasks: &Tasks) {
        if life.is_over() {
            // Its machine is off; it will be ended when somebody notices.
            life.ended.cancelled().await;
            return;
        }
        let reason = tasks.stop_reason().map(|reason| reason.to_string()).unwrap_or_default();
        note!(self.trace, "n{} stops: {reason}", life.node);
        if !self.has_bad_disk(life.node) {
            self.judge.report("stops", format!("node {} stops: {reason}", life.node));
        }
        self.end(life.node, End::Kill, Duration::from_millis(200));
    }
}
