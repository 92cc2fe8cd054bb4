//! The store: one node of the group, opened on its data folder.
//! In: changesets. Out: what became of them, views.
//! Invariants: a changeset that was acknowledged survives the loss of power of all nodes; whoever got an answer finds its effect in
//! [`Store::view`] of this node; nothing here assumes that the group has one member.
mod close;
mod cluster;
pub mod early;
pub(crate) mod encryption;
pub mod members;
pub(crate) mod room;
mod share;
pub(crate) mod size;
mod submit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use ursa_runtime::CancellationToken;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{self, Deadline};
use ursa_runtime::tasks::Tasks;
use ursa_state::{Command, HistoryId, Revision, View};

use crate::backup;
use crate::cache::Cache;
use crate::codec::Peer;
use crate::disk::Disk;
use crate::error::{Error, OpenError};
use crate::folder::Folder;
use crate::level::{Levels, Noted};
use crate::log::{self, EntryId, Log};
use crate::net::known::{Known, Missing};
use crate::net::wire::Barrier;
use crate::net::{ClusterConfig, Contact, PeerStatus, Peers, QuorumContact};
use crate::raft::{self, Confirmed, Entries, Entry, Machine, Raft, Timings};
use crate::seal::{Encryption, Keys};
use crate::snapshot::Snapshots;

pub(crate) use cluster::is_address;
pub use encryption::EncryptionStatus;

/// What a node without any data does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstStart {
    /// It founds a group: of the configured members, or of itself alone.
    #[default]
    Found,
    /// It waits until a group adds it.
    WaitToBeAdded,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Folder of this node alone.
    pub data_dir: PathBuf,
    /// Unique in the group, for ever: never given again to a node that starts empty.
    pub node_id: u64,
    /// The group it belongs to. Default `None`: a group of one.
    pub cluster: Option<ClusterConfig>,
    /// Default: [`FirstStart::Found`].
    pub first_start: FirstStart,
    /// Periods of the group and between snapshots.
    pub timings: Timings,
    /// Sizes of the log.
    pub log: log::Options,
    /// Longest changeset, encoded. Default 3 MiB: with what is around it, it fits in one gRPC message of 4 MiB.
    pub max_changeset_bytes: usize,
    /// What would make all that is stored, without its history, longer than this many bytes is refused; what makes it shorter is not.
    /// Default 2 GiB. It is all in memory, where it takes a few times as much.
    pub max_bytes: u64,
    /// After this time without an answer a proposal's outcome is unknown. Default 10 s.
    pub propose_timeout: Duration,
    /// Longest wait for a read barrier. Default 5 s.
    pub read_timeout: Duration,
    /// Longest wait at open until everything that was stored here is applied, in a group of one. Default 60 s. With other members the
    /// store opens at once, with the view it has: see [`Store::wait_recovered`].
    pub recovery_timeout: Duration,
    /// How what is written is encrypted. Default: with keys that are made at first start and kept in the folder. `None`: not at all; a
    /// folder that is encrypted is refused then.
    pub encryption: Option<Encryption>,
    /// Stands in for the connections to the other members.
    #[cfg(any(test, feature = "testing"))]
    pub carrier: Option<Arc<dyn crate::testing::Carrier>>,
    /// Stands in for the feature levels of another build.
    #[cfg(any(test, feature = "testing"))]
    pub levels: Levels,
}

impl StoreConfig {
    /// The defaults.
    pub fn new(data_dir: impl Into<PathBuf>, node_id: u64) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id,
            cluster: None,
            first_start: FirstStart::default(),
            timings: Timings::default(),
            log: log::Options::default(),
            max_changeset_bytes: 3 << 20,
            max_bytes: 2 << 30,
            propose_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(5),
            recovery_timeout: Duration::from_secs(60),
            encryption: Some(Encryption::default()),
            #[cfg(any(test, feature = "testing"))]
            carrier: None,
            #[cfg(any(test, feature = "testing"))]
            levels: Levels::BUILT,
        }
    }

    /// The feature levels that this program knows.
    pub(crate) fn levels(&self) -> Levels {
        #[cfg(any(test, feature = "testing"))]
        return self.levels;
        #[cfg(not(any(test, feature = "testing")))]
        Levels::BUILT
    }
}

/// What this node is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    /// Gets everything, has no vote.
    Learner,
    /// Out of service.
    Stopped,
}

/// A picture of the node for status pages and metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreStatus {
    pub node_id: u64,
    pub role: Role,
    pub term: u64,
    pub leader: Option<u64>,
    /// All members with their addresses.
    pub members: BTreeMap<u64, String>,
    /// Who has a vote, as this node knows. Two sets while that changes: a majority of each is needed then.
    pub voters: Vec<BTreeSet<u64>>,
    pub history: HistoryId,
    pub revision: Revision,
    /// Indexes of the log: newest entry, newest applied, newest in a snapshot, newest purged.
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    /// What all members may do, as far as this node has applied; and what this one knows.
    pub level: u32,
    pub levels: Levels,
    /// Everything that this node had stored before its start is applied.
    pub recovered: bool,
    /// This node has taken its place in the group; before that it neither votes nor counts.
    pub admitted: bool,
    /// A majority was in contact with this node within the last lease.
    pub quorum: bool,
    /// How long ago it last was.
    pub quorum_age: Duration,
    /// Why the disk of this node takes nothing at the moment, if so.
    pub disk_refuses: Option<String>,
    /// How often the log was synced since the start, and how long all of that took.
    pub syncs: (u64, Duration),
    /// Bytes of what is stored, without its history, and their limit.
    pub bytes: u64,
    pub max_bytes: u64,
    /// Free bytes of the file system with the data folder, if that can be known.
    pub disk_free: Option<u64>,
    /// The other members as this node sees them.
    pub peers: BTreeMap<u64, PeerStatus>,
}

/// Handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

type Barriers = BTreeMap<(u64, u64), Arc<share::Share<Barrier>>>;

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) folder: Arc<Mutex<Folder>>,
    pub(crate) raft: Raft,
    pub(crate) log: Log<Entry>,
    confirmed: Arc<Confirmed>,
    /// Why the disk takes nothing at the moment.
    pub(crate) refused: watch::Receiver<Option<log::Refused>>,
    /// The term that this node leads in, and when all of its followers have had the time to answer.
    all_had_time: Mutex<Option<(u64, Deadline)>>,
    pub(crate) snapshots: Arc<Snapshots>,
    views: watch::Receiver<View>,
    applied: watch::Receiver<Option<EntryId>>,
    level: watch::Receiver<u32>,
    /// `None` in a group of one.
    pub(crate) peers: Option<Peers>,
    pub(crate) leader: watch::Sender<Option<u64>>,
    contact: watch::Receiver<QuorumContact>,
    pub(crate) cache: Option<Cache>,
    pub(crate) size: size::Size,
    pub(crate) keys: Keys,
    pub(crate) encryption: encryption::Progress,
    recovered: watch::Sender<bool>,
    /// Cancelled by [`Store::shutdown`].
    pub(crate) closing: CancellationToken,
    /// Told when a call found the core dead.
    pub(crate) fatal: Arc<Notify>,
    /// The core has ended, see `keeper`.
    pub(crate) core_ended: AtomicBool,
    closed: tokio::sync::Mutex<bool>,
    /// One change of the members at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Read barriers, by leader and the member that is asked.
    barriers: Mutex<Barriers>,
}

impl From<Arc<Inner>> for Store {
    fn from(inner: Arc<Inner>) -> Self {
        Self { inner }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// What is on disk, checked.
pub(crate) struct Stored {
    pub(crate) folder: Folder,
    keys: Keys,
    known: Known,
    pub(crate) log: Log<Entry>,
    confirmed: Arc<Confirmed>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) machine: Machine,
}

pub(crate) fn open_stored(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Stored, OpenError> {
    let (mut folder, lock) = Folder::open(disk.clone(), &config.data_dir, config.node_id)?;
    let keys = Keys::open(&mut folder, config.encryption.as_ref())?;
    let noted = Noted::open(disk.clone(), &folder, config.levels())?;
    let (snapshots, loaded, mut damaged) = Snapshots::open(disk.clone(), &folder.part("snapshots"), &keys)?;
    backup::settle(&**disk, &mut folder, loaded.as_ref().map(|loaded| &loaded.state))?;
    let missing = match &config.cluster {
        None => Missing::Fine,
        Some(_) if folder.has_place() => Missing::Lost,
        Some(_) => Missing::Made,
    };
    let known = Known::open(disk.clone(), &folder, missing)?;
    if missing == Missing::Made && folder.is_used() {
        // It was alone so far, and has its place by that.
        let founder = folder.is_founder();
        folder.formed(founder).map_err(|source| OpenError::Io {
            action: "write",
            path: folder.part("node.json"),
            source,
        })?;
    }
    let guard = lock.map(|lock| Box::new(lock) as log::Guard);
    let log: Log<Entry> = Log::open(disk.clone(), &folder.part("log"), config.log, &keys, guard)?;
    let state = log.state();
    // Whoever has a history has voted, and whoever took part in founding the group knows its members.
    let founder = folder.is_founder() && state.last.is_none();
    // A snapshot may be asked for before there is anything.
    let covered = loaded.as_ref().and_then(|loaded| loaded.meta.last);
    if state.vote.is_none() && (folder.is_used() || covered.is_some() || founder) {
        return Err(OpenError::LogLost {
            dir: config.data_dir.clone(),
            log: folder.part("log"),
        });
    }
    let confirmed = Confirmed::open(&**disk, &config.data_dir, &state)?;
    if let Some(purged) = state.purged
        && covered.is_none_or(|covered| covered.index < purged.index)
    {
        return Err(OpenError::Gap {
            purged: purged.index,
            damaged: damaged.pop(),
        });
    }
    let snapshots = Arc::new(snapshots);
    let machine = Machine::new(disk.clone(), snapshots.clone(), loaded, noted).map_err(OpenError::Start)?;
    Ok(Stored {
        folder,
        keys,
        known,
        log,
        confirmed: Arc::new(confirmed),
        snapshots,
        machine,
    })
}

impl Store {
    /// Opens the store, making it on first start. In a group of one it waits until what was stored here is applied, and leads on return.
    /// With other members it returns at once: serve its calls next ([`Store::serve_peers`]), for the others wait for them.
    /// `tasks` owns what runs beside it; a disk that fails stops the process through it, and so does a group that knows this node with
    /// another data folder.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing that was acknowledged is given up silently.
    pub async fn open(config: StoreConfig, disk: Arc<dyn Disk>, tasks: &Tasks) -> Result<Self, OpenError> {
        let identity = cluster::identity(&config)?;
        let (at, on) = (config.clone(), disk.clone());
        let stored = if disk.waits() {
            tokio::task::spawn_blocking(move || backup::is_finished(&*on, &at.data_dir).and_then(|()| open_stored(&at, &on)))
                .await
                .map_err(|error| OpenError::Start(error.to_string()))??
        } else {
            backup::is_finished(&*on, &at.data_dir)?;
            open_stored(&at, &on)?
        };
        let Stored {
            folder,
            keys,
            known,
            log,
            confirmed,
            snapshots,
            machine,
        } = stored;
        let (views, applied, level) = (machine.subscribe(), machine.applied(), machine.level());
        let refused = log.refused();
        let peers = identity.map(|identity| cluster::peers(&config, identity, &folder, known, &log, &machine));
        let (leader, contact) = match &peers {
            Some(peers) => (peers.shared.leader.clone(), peers.shared.contact.subscribe()),
            None => (watch::Sender::new(None), Contact::new(true).subscribe()),
        };
        let entries = Entries::new(log.clone(), confirmed.clone(), disk.clone());
        let encryption = encryption::Progress::new(&keys);
        let started = raft::start(config.node_id, &config.timings, entries, machine, peers.clone()).await;
        let raft = started.map_err(|error| OpenError::Start(Chain(&error).to_string()))?;
        let cache = Cache::open(&*disk, &folder.part("cache"), &keys, views.clone());
        let store = Self {
            inner: Arc::new(Inner {
                config,
                disk,
                folder: Arc::new(Mutex::new(folder)),
                raft,
                log,
                confirmed,
                refused,
                all_had_time: Mutex::default(),
                snapshots,
                views,
                applied,
                level,
                peers,
                leader,
                contact,
                cache,
                size: size::Size::default(),
                keys,
                encryption,
                recovered: watch::Sender::new(false),
                closing: CancellationToken::new(),
                fatal: Arc::new(Notify::new()),
                core_ended: AtomicBool::new(false),
                closed: tokio::sync::Mutex::new(false),
                changing: tokio::sync::Mutex::default(),
                barriers: Mutex::default(),
            }),
        };
        match &store.inner.peers {
            None => {
                store.form_alone().await?;
                store.recover_alone().await?;
                if store.is_leader_alone()
                    && let Err(error) = store.raise_level().await
                {
                    return Err(OpenError::Start(error.to_string()));
                }
            }
            Some(peers) => store.join_group(peers, tasks),
        }
        crate::keeper::spawn(&store, tasks);
        Ok(store)
    }

    /// Founds the group if there is none, and takes the lead of a group of one: there is nobody to wait for.
    async fn form_alone(&self) -> Result<(), OpenError> {
        let Inner { raft, config, .. } = &*self.inner;
        let failed = |error: &(dyn std::error::Error + 'static)| OpenError::Start(Chain(error).to_string());
        let is_member = raft.is_initialized().await.map_err(|error| failed(&error))?;
        if !is_member && config.first_start == FirstStart::Found {
            raft.initialize(BTreeMap::from([(config.node_id, Peer::default())]))
                .await
                .map_err(|error| failed(&error))?;
        }
        if raft.voter_ids().eq([config.node_id]) {
            raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    async fn recover_alone(&self) -> Result<(), OpenError> {
        let Inner { raft, config, .. } = &*self.inner;
        let sole = raft.voter_ids().eq([config.node_id]);
        if config.first_start == FirstStart::WaitToBeAdded && raft.voter_ids().next().is_none() {
            return Ok(());
        }
        match raft.wait_for_recovery(Some(config.recovery_timeout)).await {
            Ok(_) => {
                self.inner.recovered.send_replace(true);
            }
            Err(error) if sole => {
                return Err(OpenError::Start(format!(
                    "recovery: {}",
                    self.why_stopped().unwrap_or(error.to_string())
                )));
            }
            Err(error) => tracing::warn!(
                %error,
                "not recovered: the log names other members, but no cluster is configured; this node goes on with what it has"
            ),
        }
        if self.view().history_id() == HistoryId::default() && raft.is_leader() {
            self.begin_history().await.map_err(|error| OpenError::Start(error.to_string()))?;
        }
        self.note_history().await
    }

    fn is_leader_alone(&self) -> bool {
        *self.inner.recovered.borrow() && self.inner.raft.is_leader()
    }

    /// Gives what is stored its name. Nothing happens if it has one by then.
    pub(crate) async fn begin_history(&self) -> Result<(), Error> {
        let history = HistoryId(uuid::Uuid::new_v4().as_u128());
        self.submit(&Command::Init { history }).await?;
        tracing::info!(history = %self.view().history_id(), "a new history begins");
        Ok(())
    }

    /// Writes the history, if there is one, where it is found before anything else is read.
    pub(crate) async fn note_history(&self) -> Result<(), OpenError> {
        let history = self.view().history_id();
        if history == HistoryId::default() {
            return Ok(());
        }
        if let Some(peers) = &self.inner.peers {
            *peers.shared.history.write() = Some(history);
        }
        let folder = self.inner.folder.clone();
        let path = folder.lock().part("node.json");
        let noted = crate::disk::run(&*self.inner.disk, move || folder.lock().used_for(history)).await;
        noted.map_err(|source| OpenError::Io {
            action: "write",
            path,
            source,
        })
    }

    /// What all members of the group may do, as far as this node has applied.
    pub fn feature_level(&self) -> u32 {
        *self.inner.level.borrow()
    }

    /// The newest view here. It may be behind the group; its revision tells how far.
    pub fn view(&self) -> View {
        self.inner.views.borrow().clone()
    }

    /// The newest view, as it changes. Intermediate ones are skipped if the receiver is slow.
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.inner.views.clone()
    }

    /// Waits until `revision` is applied here. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`] at the deadline, [`Error::Stopped`].
    pub async fn wait_applied(&self, revision: Revision, deadline: Deadline) -> Result<View, Error> {
        let mut views = self.inner.views.clone();
        let applied = views.wait_for(|view| view.revision() >= revision);
        match lease::within(deadline.remaining(), applied).await {
            Ok(Ok(view)) => Ok(view.clone()),
            Ok(Err(_)) => Err(Error::Stopped(
                self.why_stopped().unwrap_or_else(|| "its state machine has ended".to_owned()),
            )),
            Err(_) => Err(Error::Unavailable(format!(
                "revision {revision} was not applied in time, the newest is {}",
                self.view().revision()
            ))),
        }
    }

    /// See [`StoreStatus`].
    pub fn status(&self) -> StoreStatus {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let view = self.view();
        let contact = *self.inner.contact.borrow();
        let peers = self.inner.peers.as_ref();
        let role = match (&metrics.running_state, metrics.state) {
            _ if self.inner.core_ended.load(Ordering::Acquire) => Role::Stopped,
            (Err(_), _) | (_, ServerState::Shutdown) => Role::Stopped,
            (Ok(()), ServerState::Leader) => Role::Leader,
            (Ok(()), ServerState::Follower) => Role::Follower,
            (Ok(()), ServerState::Candidate) => Role::Candidate,
            (Ok(()), ServerState::Learner) => Role::Learner,
        };
        StoreStatus {
            node_id: metrics.id,
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.filter(|_| role != Role::Stopped),
            voters: metrics.membership_config.membership().get_joint_config().clone(),
            members: self.members_of(metrics.membership_config.membership().nodes()),
            history: view.history_id(),
            revision: view.revision(),
            last_log: metrics.last_log_index,
            applied: self.inner.applied.borrow().map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            level: self.feature_level(),
            levels: self.inner.config.levels(),
            recovered: *self.inner.recovered.borrow(),
            admitted: peers.is_none_or(|peers| peers.shared.admitted.load(Ordering::Acquire)),
            quorum: contact.age() <= raft::lease(&self.inner.config.timings),
            quorum_age: contact.age(),
            disk_refuses: self.refusing(),
            syncs: self.inner.log.syncs(),
            bytes: self.inner.size.bytes(),
            max_bytes: self.inner.config.max_bytes,
            disk_free: self.inner.disk.free(&self.inner.config.data_dir),
            peers: peers.map(Peers::status).unwrap_or_default(),
        }
    }

    /// Ids with addresses: the configured ones, else, or if they have moved, those in the log.
    fn members_of<'a>(&self, nodes: impl Iterator<Item = (&'a u64, &'a Peer)>) -> BTreeMap<u64, String> {
        let configured = self.inner.config.cluster.as_ref().map(|cluster| &cluster.members);
        nodes
            .map(|(id, peer)| {
                let configured = configured.and_then(|members| members.get(id)).filter(|_| !peer.moved);
                (*id, configured.unwrap_or(&peer.address).clone())
            })
            .collect()
    }

    /// What can be read key by key without a view; `None` where there are no files to keep it in.
    pub fn cache(&self) -> Option<&Cache> {
        self.inner.cache.as_ref()
    }

    /// Builds a snapshot now, beside the running store. Returns once that has begun.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.inner
            .raft
            .trigger()
            .snapshot()
            .await
            .map_err(|fatal| Error::Stopped(self.died(&fatal)))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Why nothing works any more, if so.
    pub(crate) fn why_stopped(&self) -> Option<String> {
        if self.inner.closing.is_cancelled() {
            return Some("it was closed".to_owned());
        }
        if let Some(refusal) = self.inner.peers.as_ref().and_then(Peers::disowned) {
            return Some(refusal.to_string());
        }
        if let Some(failure) = &*self.inner.log.failure().borrow() {
            return Some(failure.to_string());
        }
        let metrics = self.inner.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        match running {
            Err(fatal) => Some(Chain(&fatal).to_string()),
            // A panic leaves no word.
            Ok(()) if self.inner.core_ended.load(Ordering::Acquire) => Some("its core has ended by a defect".to_owned()),
            Ok(()) => None,
        }
    }
}
