//! The nodes: each is a disk, and on it one life after the other of the real store.
//! In: crashes, changes of the members. Out: the stores that run at the moment.
//! Invariants: a node that ended is started again after a while, on the disk as its end left it; a store that does not open on a disk
//! that did nothing but lose what was not synced, or that stops without a reason, is a finding. A node that has left the group, or has lost
//! its folder, has a reason: it is told so, and stops.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use ursa_runtime::CancellationToken;
use ursa_runtime::config::Secret;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::Deadline;
use ursa_runtime::tasks::{OnExit, Tasks};
use ursa_store::testing::SimDisk;
use ursa_store::{ClusterConfig, FirstStart, NodeTls, Role, Store, StoreConfig, Timings, log};

pub use crate::changes::Changes;
use crate::judge::Judge;
use crate::network::{Life, Network};
use crate::note;
use crate::oracles::promises::Promises;
use crate::pause;
use crate::run::MOST;
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
    /// What is on the disks is encrypted.
    pub encrypted: bool,
    pub tls: Arc<BTreeMap<u64, NodeTls>>,
}

/// What a node is started with, beside its disk.
#[derive(Clone, Debug)]
struct SetUp {
    members: BTreeMap<u64, String>,
    /// It is to be let into the group that runs.
    token: Option<String>,
}

/// What is to be expected of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Member,
    /// It is on its way in; its token may be void.
    Coming,
    /// Somebody asked for its removal.
    Leaving,
    /// Its folder is lost. It is started all the same, again and again, and must be refused.
    Wiped,
    /// It has left, or never came.
    Gone,
}

/// Called for each node that comes into being.
type Follow = Arc<dyn Fn(&World, u64) + Send + Sync>;

/// Shared handle.
#[derive(Clone)]
pub struct World {
    pub settings: Arc<Settings>,
    pub network: Network,
    pub judge: Judge,
    pub trace: Trace,
    pub promises: Promises,
    /// What runs beside the nodes.
    pub tasks: Tasks,
    seed: u64,
    nodes: Arc<Mutex<BTreeMap<u64, Node>>>,
    /// Somebody asked for another leader.
    handing_over: Arc<AtomicU32>,
    /// One change of the members at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    changes: Arc<Mutex<Changes>>,
    follow: Arc<OnceLock<Follow>>,
}

#[derive(Debug)]
struct Node {
    set_up: SetUp,
    standing: Standing,
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

/// Before a node that was refused is started again.
const AGAIN: Duration = Duration::from_millis(1500);
/// Between two looks at one that must stay out.
const LOOK: Duration = Duration::from_millis(20);

/// Where a node is reached: nobody looks at it here but the list of members.
pub fn address(id: u64) -> String {
    format!("node-{id}:1")
}

fn new_disk(seed: u64, settings: &Settings) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.set_sync_time(settings.sync_time.clone());
    disk
}

impl Node {
    fn new(disk: SimDisk, set_up: SetUp, standing: Standing) -> Self {
        Self {
            set_up,
            standing,
            disk,
            life: None,
            running: watch::Sender::new(None),
            lives: 0,
            down_for: Duration::ZERO,
            bad_disk: 0,
            full_disk: 0,
            tasks: Tasks::new(),
        }
    }
}

impl World {
    /// Nodes 1 to n, none of which runs yet.
    pub fn new(seed: u64, settings: Settings, network: Network, judge: Judge, trace: Trace, promises: Promises) -> Self {
        let members: BTreeMap<u64, String> = (1..=settings.nodes).map(|id| (id, address(id))).collect();
        let node = |id| {
            let disk = new_disk(seed.wrapping_mul(31).wrapping_add(id), &settings);
            let set_up = SetUp {
                members: members.clone(),
                token: None,
            };
            (id, Node::new(disk, set_up, Standing::Member))
        };
        let nodes = (1..=settings.nodes).map(node).collect();
        Self {
            settings: Arc::new(settings),
            network,
            judge,
            trace,
            promises,
            tasks: Tasks::new(),
            seed,
            nodes: Arc::new(Mutex::new(nodes)),
            handing_over: Arc::default(),
            changing: Arc::default(),
            changes: Arc::default(),
            follow: Arc::default(),
        }
    }

    /// The nodes that are to be well in the end.
    pub fn ids(&self) -> Vec<u64> {
        self.those(|standing| !matches!(standing, Standing::Wiped | Standing::Gone))
    }

    /// All nodes that anybody starts, also those that are to be refused.
    pub fn all_ids(&self) -> Vec<u64> {
        self.those(|standing| standing != Standing::Gone)
    }

    /// The nodes that lost their folder and are in nobody's place so far.
    pub fn wiped_ids(&self) -> Vec<u64> {
        self.those(|standing| standing == Standing::Wiped)
    }

    fn those(&self, wanted: impl Fn(Standing) -> bool) -> Vec<u64> {
        let nodes = self.nodes.lock();
        nodes.iter().filter(|(_, node)| wanted(node.standing)).map(|(id, _)| *id).collect()
    }

    /// Runs every node, for as long as the world lasts. The first starts are `apart` from each other. `follow` is called for each, also for
    /// those that join later.
    pub fn start(&self, apart: impl Fn(u64) -> Duration, follow: impl Fn(&Self, u64) + Send + Sync + 'static) {
        let _ = self.follow.set(Arc::new(follow));
        for id in self.ids() {
            self.run(id, apart(id));
        }
    }

    fn run(&self, id: u64, first: Duration) {
        if let Some(follow) = self.follow.get() {
            follow(self, id);
        }
        let world = self.clone();
        self.tasks.spawn("node", OnExit::Ignore, |cancel| async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = world.live(id, first) => {}
            }
        });
    }

    /// The turn of whoever changes the members; `None` while somebody else does.
    pub fn turn(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.changing.clone().try_lock_owned().ok()
    }

    pub fn changes(&self) -> Changes {
        *self.changes.lock()
    }

    /// Whether it is a member, and nothing that was asked for is open about it.
    pub fn is_settled(&self, id: u64) -> bool {
        self.is(id, Standing::Member)
    }

    /// Counts something.
    pub fn count(&self, of: impl FnOnce(&mut Changes)) {
        of(&mut self.changes.lock());
    }

    /// An id that was never used, if there is one left.
    pub fn new_id(&self) -> Option<u64> {
        let next = self.nodes.lock().keys().next_back()? + 1;
        (next <= MOST).then_some(next)
    }

    /// A node with an empty disk is started, to be let into the group by this token.
    pub fn add(&self, id: u64, token: String) {
        let members = self.ids().into_iter().chain([id]).map(|id| (id, address(id))).collect();
        let set_up = SetUp {
            members,
            token: Some(token),
        };
        let disk = new_disk(self.seed.wrapping_mul(31).wrapping_add(id), &self.settings);
        note!(self.trace, "n{id} comes");
        self.nodes.lock().insert(id, Node::new(disk, set_up, Standing::Coming));
        self.run(id, Duration::ZERO);
    }

    /// The node came in.
    pub fn is_in(&self, id: u64) {
        self.stands(id, Standing::Member);
    }

    /// Somebody is about to ask for the removal of this node.
    pub fn leaves(&self, id: u64) {
        self.stands(id, Standing::Leaving);
    }

    /// It stays: its removal was refused.
    pub fn stays(&self, id: u64) {
        self.stands(id, Standing::Member);
    }

    fn stands(&self, id: u64, standing: Standing) {
        if let Some(node) = self.nodes.lock().get_mut(&id).filter(|node| node.standing != Standing::Gone) {
            node.standing = standing;
        }
    }

    /// The node is no part of the world any more.
    pub fn gone(&self, id: u64) {
        note!(self.trace, "n{id} is gone");
        self.stands(id, Standing::Gone);
        self.end(id, End::Kill, Duration::ZERO);
    }

    /// The folder of a node is lost; whoever runs it does not know, and starts it again and again.
    pub fn wipe(&self, id: u64, down_for: Duration) {
        note!(self.trace, "n{id} loses its folder");
        self.count(|changes| changes.wiped += 1);
        self.promises.lost(id);
        self.end(id, End::Kill, down_for);
        let disk = new_disk(self.seed.wrapping_mul(37).wrapping_add(id), &self.settings);
        if let Some(node) = self.nodes.lock().get_mut(&id) {
            node.disk = disk;
            node.standing = Standing::Wiped;
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
        self.ids().into_iter().filter_map(|id| self.running(id)).collect()
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
        self.elections_are_asked_for(true);
        tokio::select! {
            biased;
            () = running.life.ended.cancelled() => {}
            _ = running.store.hand_over(Deadline::after(limit)) => {}
        }
        // Who takes over may still be on its way.
        pause(Duration::from_millis(1000)).await;
        self.elections_are_asked_for(false);
    }

    /// Somebody is about to ask for something that may take another leader, or has been answered.
    pub fn elections_are_asked_for(&self, begins: bool) {
        match begins {
            true => self.handing_over.fetch_add(1, Ordering::Relaxed),
            false => self.handing_over.fetch_sub(1, Ordering::Relaxed),
        };
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
            if self.is(id, Standing::Gone) {
                return;
            }
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
        let set_up = self.nodes.lock().get(&id).map(|node| node.set_up.clone());
        let SetUp { members, token } = set_up.ok_or("there is no such node")?;
        let tls = self.settings.tls.get(&id).cloned().ok_or("no certificate")?;
        let mut config = StoreConfig::new("/node", id);
        let mut cluster = ClusterConfig::new(members, tls);
        if let Some(token) = token {
            cluster.join = Some(Secret::new(token));
            config.first_start = FirstStart::WaitToBeAdded;
        }
        config.cluster = Some(cluster);
        config.timings = self.settings.timings;
        config.log = self.settings.log;
        config.propose_timeout = self.settings.propose_timeout;
        config.encryption = self.settings.encrypted.then(Default::default);
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
        if self.is(life.node, Standing::Wiped) {
            return self.must_stay_out(life, store);
        }
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
        let id = life.node;
        let reason = tasks.stop_reason().map(|reason| reason.to_string()).unwrap_or_default();
        note!(self.trace, "n{id} stops: {reason}");
        let standing = self.nodes.lock().get(&id).map(|node| node.standing);
        match standing {
            Some(Standing::Leaving | Standing::Wiped) if reason.contains("was removed from the group") => return self.gone(id),
            Some(Standing::Coming) if reason.contains("is not let into the group") => return self.gone(id),
            Some(Standing::Wiped) if reason.contains("with another data folder") => {
                self.count(|changes| changes.refused += 1);
                return self.end(id, End::Kill, AGAIN);
            }
            Some(Standing::Gone) => {}
            _ if self.has_bad_disk(id) => {}
            _ => self.judge.report("stops", format!("node {id} stops: {reason}")),
        }
        self.end(id, End::Kill, Duration::from_millis(200));
    }

    fn is(&self, id: u64, standing: Standing) -> bool {
        self.nodes.lock().get(&id).is_some_and(|node| node.standing == standing)
    }

    /// A node without its folder runs: it may wait, or be refused, but take no part.
    fn must_stay_out(&self, life: &Life, store: Store) {
        let (world, life) = (self.clone(), life.clone());
        let tasks = self.nodes.lock().get(&life.node).map(|node| node.tasks.clone());
        let Some(tasks) = tasks else { return };
        tasks.spawn("stays-out", OnExit::Contain, |cancel| async move {
            while !life.is_over() && !cancel.is_cancelled() {
                let status = store.status();
                if status.admitted || status.role == Role::Leader {
                    let text = format!("node {} takes part again without what it had promised: {status:?}", life.node);
                    return world.judge.report("wiped", text);
                }
                pause(LOOK).await;
            }
        });
    }
}
