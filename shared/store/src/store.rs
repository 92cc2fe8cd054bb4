//! The store: one node of the group, opened on its data folder.
//! In: changesets. Out: what became of them, views.
//! Invariants: a changeset that was acknowledged survives the loss of power of all nodes; whoever got an answer finds its effect in
//! [`Store::view`] of this node; nothing here assumes that the group has one member.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState};
use tokio::sync::{Notify, watch};
use ursa_runtime::CancellationToken;
use ursa_runtime::error::Chain;
use ursa_runtime::lease::{self, Deadline};
use ursa_runtime::tasks::Tasks;
use ursa_state::{Applied, Changeset, Command, HistoryId, Revision, View};

use crate::cache::Cache;
use crate::codec::{Peer, Proposal};
use crate::disk::Disk;
use crate::error::{Error, OpenError};
use crate::folder::Folder;
use crate::log::{self, Log};
use crate::raft::{self, Entries, Entry, Machine, Raft, Timings, TypeConfig};
use crate::snapshot::Snapshots;

/// What a node without any data does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstStart {
    /// It founds a group of which it is the only member.
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
    /// Where the other members reach this node, `host:port`. Default empty: there are none.
    pub address: String,
    /// Default: [`FirstStart::Found`].
    pub first_start: FirstStart,
    /// Periods of the group and between snapshots.
    pub timings: Timings,
    /// Sizes of the log.
    pub log: log::Options,
    /// Longest changeset, encoded. Default 3 MiB: with what is around it, it fits in one gRPC message of 4 MiB.
    pub max_changeset_bytes: usize,
    /// After this time without an answer a proposal's outcome is unknown. Default 10 s.
    pub propose_timeout: Duration,
    /// Longest wait for a read barrier. Default 5 s.
    pub read_timeout: Duration,
    /// Longest wait at open until everything that was stored here is applied. Default 60 s; after that the store opens all the same,
    /// with the view it has (the others may be away), and [`StoreStatus::recovered`] says so.
    pub recovery_timeout: Duration,
}

impl StoreConfig {
    /// The defaults.
    pub fn new(data_dir: impl Into<PathBuf>, node_id: u64) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id,
            address: String::new(),
            first_start: FirstStart::default(),
            timings: Timings::default(),
            log: log::Options::default(),
            max_changeset_bytes: 3 << 20,
            propose_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(5),
            recovery_timeout: Duration::from_secs(60),
        }
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    pub node_id: u64,
    pub role: Role,
    pub term: u64,
    pub leader: Option<u64>,
    /// All members with their addresses.
    pub members: BTreeMap<u64, String>,
    pub history: HistoryId,
    pub revision: Revision,
    /// Indexes of the log: newest entry, newest applied, newest in a snapshot, newest purged.
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    /// Everything that this node had stored before its start is applied.
    pub recovered: bool,
}

/// Handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: StoreConfig,
    pub(crate) raft: Raft,
    pub(crate) log: Log<Entry>,
    pub(crate) snapshots: Arc<Snapshots>,
    views: watch::Receiver<View>,
    pub(crate) cache: Option<Cache>,
    recovered: AtomicBool,
    /// Cancelled by [`Store::shutdown`].
    pub(crate) closing: CancellationToken,
    /// Told when a call found the core dead.
    pub(crate) fatal: Arc<Notify>,
    closed: tokio::sync::Mutex<bool>,
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
struct Stored {
    folder: Folder,
    log: Log<Entry>,
    snapshots: Arc<Snapshots>,
    machine: Machine,
}

fn open_stored(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Stored, OpenError> {
    let (folder, lock) = Folder::open(disk.clone(), &config.data_dir, config.node_id)?;
    let (snapshots, loaded, mut damaged) = Snapshots::open(disk.clone(), &folder.part("snapshots"))?;
    let guard = lock.map(|lock| Box::new(lock) as log::Guard);
    let log: Log<Entry> = Log::open(disk.clone(), &folder.part("log"), config.log, guard)?;
    let state = log.state();
    // Whoever has a history has voted.
    if state.vote.is_none() && (folder.is_used() || loaded.is_some()) {
        return Err(OpenError::LogLost {
            dir: config.data_dir.clone(),
            log: folder.part("log"),
        });
    }
    let covered = loaded.as_ref().and_then(|loaded| loaded.meta.last);
    if let Some(purged) = state.purged
        && covered.is_none_or(|covered| covered.index < purged.index)
    {
        return Err(OpenError::Gap {
            purged: purged.index,
            damaged: damaged.pop(),
        });
    }
    let snapshots = Arc::new(snapshots);
    let machine = Machine::new(disk.clone(), snapshots.clone(), loaded).map_err(OpenError::Start)?;
    Ok(Stored {
        folder,
        log,
        snapshots,
        machine,
    })
}

impl Store {
    /// Opens the store, making it on first start, and waits until what was stored here is applied. In a group of one it leads on return.
    /// `tasks` owns what runs beside it; a disk that fails stops the process through it.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing that was acknowledged is given up silently.
    pub async fn open(config: StoreConfig, disk: Arc<dyn Disk>, tasks: &Tasks) -> Result<Self, OpenError> {
        let (at, on) = (config.clone(), disk.clone());
        let stored = if disk.waits() {
            tokio::task::spawn_blocking(move || open_stored(&at, &on))
                .await
                .map_err(|error| OpenError::Start(error.to_string()))??
        } else {
            open_stored(&at, &on)?
        };
        let Stored {
            folder,
            log,
            snapshots,
            machine,
        } = stored;
        let views = machine.subscribe();
        let started = raft::start(
            config.node_id,
            &config.timings,
            Entries::new(log.clone()),
            machine,
            raft::network::Factory,
        )
        .await;
        let raft = started.map_err(|error| OpenError::Start(Chain(&error).to_string()))?;
        let cache = Cache::open(&*disk, &folder.part("cache"), views.clone());
        let store = Self {
            inner: Arc::new(Inner {
                config,
                raft,
                log,
                snapshots,
                views,
                cache,
                recovered: AtomicBool::new(false),
                closing: CancellationToken::new(),
                fatal: Arc::new(Notify::new()),
                closed: tokio::sync::Mutex::new(false),
            }),
        };
        store.form_group().await?;
        store.recover(&*disk, folder).await?;
        crate::keeper::spawn(&store, tasks);
        Ok(store)
    }

    /// Founds the group if there is none, and takes the lead of a group of one: there is nobody to wait for.
    async fn form_group(&self) -> Result<(), OpenError> {
        let Inner { raft, config, .. } = &*self.inner;
        let failed = |error: &(dyn std::error::Error + 'static)| OpenError::Start(Chain(error).to_string());
        let is_member = raft.is_initialized().await.map_err(|error| failed(&error))?;
        if !is_member && config.first_start == FirstStart::Found {
            let peer = Peer {
                address: config.address.clone(),
            };
            raft.initialize(BTreeMap::from([(config.node_id, peer)]))
                .await
                .map_err(|error| failed(&error))?;
        }
        if raft.voter_ids().eq([config.node_id]) {
            raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    async fn recover(&self, disk: &dyn Disk, mut folder: Folder) -> Result<(), OpenError> {
        let Inner { raft, config, .. } = &*self.inner;
        let sole = raft.voter_ids().eq([config.node_id]);
        if config.first_start == FirstStart::WaitToBeAdded && raft.voter_ids().next().is_none() {
            return Ok(());
        }
        match raft.wait_for_recovery(Some(config.recovery_timeout)).await {
            Ok(_) => self.inner.recovered.store(true, Ordering::Release),
            Err(error) if sole => {
                return Err(OpenError::Start(format!(
                    "recovery: {}",
                    self.why_stopped().unwrap_or(error.to_string())
                )));
            }
            Err(error) => tracing::warn!(%error, "not recovered in time: the others do not answer, this node goes on with what it has"),
        }
        if self.view().history_id() == HistoryId::default() && raft.is_leader() {
            let history = HistoryId(uuid::Uuid::new_v4().as_u128());
            self.submit(&Command::Init { history })
                .await
                .map_err(|error| OpenError::Start(error.to_string()))?;
            tracing::info!(%history, "a new history begins");
        }
        let history = self.view().history_id();
        if history != HistoryId::default() {
            let path = folder.part("node.json");
            let noted = crate::disk::run(disk, move || folder.used_for(history)).await;
            noted.map_err(|source| OpenError::Io {
                action: "write",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Proposes a changeset. When it returns, the set is committed and applied here. Concurrent proposals share a sync.
    /// Cancel-safe as far as the store is concerned; a dropped call's outcome is unknown to its caller.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn propose(&self, set: Changeset) -> Result<Applied, Error> {
        let applied = self.submit(&Command::Change(set)).await?;
        match applied.rejected {
            Some((op, reason)) => Err(Error::Rejected {
                op,
                reason,
                revision: applied.revision,
            }),
            None => Ok(applied),
        }
    }

    /// Forgets history below `floor`, on all nodes.
    ///
    /// # Errors
    /// As [`Store::propose`].
    pub async fn compact(&self, floor: Revision) -> Result<Applied, Error> {
        self.submit(&Command::Compact { floor }).await
    }

    async fn submit(&self, command: &Command) -> Result<Applied, Error> {
        let Inner { raft, config, .. } = &*self.inner;
        let proposal = Proposal::new(command).map_err(|error| Error::Invalid(error.to_string()))?;
        let (bytes, limit) = (proposal.size(), config.max_changeset_bytes);
        if bytes > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        if let Some(why) = self.why_stopped() {
            return Err(Error::Stopped(why));
        }
        let answer = match lease::within(config.propose_timeout, raft.client_write(proposal)).await {
            Ok(answer) => answer,
            Err(expired) => return Err(Error::Unknown(expired.to_string())),
        };
        match answer {
            Ok(answer) => answer
                .data
                .ok_or_else(|| Error::Unknown("applied, but without a result".to_owned())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(not_leader(to)),
            Err(RaftError::APIError(error @ (ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::ChangeMembershipError(_)))) => {
                Err(Error::Unknown(error.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(error))) => Err(Error::Unavailable(error.to_string())),
            // It may have been on its way.
            Err(RaftError::Fatal(fatal)) => Err(Error::Unknown(self.died(&fatal))),
        }
    }

    /// The newest view here. It may be behind the group; its revision tells how far.
    pub fn view(&self) -> View {
        self.inner.views.borrow().clone()
    }

    /// A view that holds everything that was acknowledged anywhere before this call.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Unavailable`] without a quorum, [`Error::Stopped`].
    pub async fn read(&self) -> Result<View, Error> {
        let Inner { raft, config, .. } = &*self.inner;
        // Read index, not the leader's lease: a lease trusts the clocks, and a group of one pays nothing for this.
        let barrier = lease::within(config.read_timeout, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        match barrier.map_err(|expired| Error::Unavailable(expired.to_string()))? {
            Ok(_) => Ok(self.view()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Err(not_leader(to)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => Err(Error::Unavailable(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(Error::Stopped(self.died(&fatal))),
        }
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
        let view = self.inner.views.borrow();
        let role = match (&metrics.running_state, metrics.state) {
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
            leader: metrics.current_leader,
            members: metrics
                .membership_config
                .membership()
                .nodes()
                .map(|(id, peer)| (*id, peer.address.clone()))
                .collect(),
            history: view.history_id(),
            revision: view.revision(),
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            recovered: self.inner.recovered.load(Ordering::Acquire),
        }
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

    /// Ends the store in order: no more proposals, everything written, the log marked as closed, the folder free. Later calls find it closed.
    ///
    /// # Errors
    /// The log could not be closed; what was acknowledged is safe all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.inner.closing.cancel();
        let mut closed = self.inner.closed.lock().await;
        if *closed {
            return Ok(());
        }
        *closed = true;
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "the core of the store ended badly");
        }
        if let Some(cache) = &self.inner.cache {
            cache.close().await;
        }
        // Last: with the log goes the lock on the folder.
        self.inner
            .log
            .close()
            .await
            .map_err(|error| Error::Stopped(Chain(&error).to_string()))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Why nothing works any more, if so.
    pub(crate) fn why_stopped(&self) -> Option<String> {
        if self.inner.closing.is_cancelled() {
            return Some("it was closed".to_owned());
        }
        if let Some(failure) = &*self.inner.log.failure().borrow() {
            return Some(failure.to_string());
        }
        let metrics = self.inner.raft.metrics();
        let running = metrics.borrow_watched().running_state.clone();
        running.err().map(|fatal| Chain(&fatal).to_string())
    }

    fn died(&self, fatal: &Fatal<TypeConfig>) -> String {
        self.inner.fatal.notify_one();
        self.why_stopped().unwrap_or_else(|| Chain(fatal).to_string())
    }
}

fn not_leader(to: ForwardToLeader<TypeConfig>) -> Error {
    Error::NotLeader {
        leader: to.leader_id,
        address: to.leader_node.map(|peer| peer.address).unwrap_or_default(),
    }
}
