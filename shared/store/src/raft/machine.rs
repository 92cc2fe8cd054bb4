//! Our state as openraft's state machine, and the builder of snapshots.
//! In: committed entries. Out: the newest [`View`] to everyone who watches, then the answers to those who proposed.
//! Invariants: whoever has an answer finds its effect in the newest view; one view per batch, never half of a changeset; a snapshot is
//! built from a clone of the persistent maps, beside the running store.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;
use ursa_runtime::error::Chain;
use ursa_runtime::{Backoff, CancellationToken};
use ursa_state::{Command, State, View};

use super::{TypeConfig, entry_id, from_stored, log_id, to_stored};
use crate::codec::StoredMembers;
#[cfg(feature = "defects")]
use crate::defects::{self, Defect};
use crate::disk;
use crate::level::{self, Noted};
use crate::log::EntryId;
use crate::snapshot::{self, Loaded, Meta, RaftSnapshot, Snapshots};

/// Entries applied before the view is published and answers go out: many under load, for one publication wakes every watcher.
const BATCH: usize = 256;
/// Before a snapshot that the disk did not take is written again. No file system tells when it has room.
const NO_SPACE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// See the module's text.
pub(crate) struct Machine {
    state: State,
    applied: Option<EntryId>,
    members: StoredMembershipOf<TypeConfig>,
    snapshots: Arc<Snapshots>,
    views: watch::Sender<View>,
    /// Newest entry whose effect is in the newest view.
    seen: watch::Sender<Option<EntryId>>,
    disk: Arc<dyn disk::Disk>,
    noted: Noted,
    /// Feature level of what was applied.
    level: watch::Sender<u32>,
    ended: Ended,
    /// Nothing was applied since the start.
    #[cfg(feature = "defects")]
    fresh: bool,
}

/// Cancels its token when it goes.
#[derive(Default)]
struct Ended(CancellationToken);

impl Ended {
    fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Machine {
    /// A machine that holds what the snapshot holds, or nothing.
    ///
    /// # Errors
    /// The members in the snapshot are no group; it is of a feature level that is not known here.
    pub(crate) fn new(disk: Arc<dyn disk::Disk>, snapshots: Arc<Snapshots>, loaded: Option<Loaded>, noted: Noted) -> Result<Self, String> {
        let views = watch::Sender::new(View::default());
        let mut machine = Self {
            state: State::default(),
            applied: None,
            members: StoredMembershipOf::<TypeConfig>::default(),
            snapshots,
            views,
            seen: watch::Sender::new(None),
            disk,
            noted,
            level: watch::Sender::new(level::FIRST),
            ended: Ended::default(),
            #[cfg(feature = "defects")]
            fresh: true,
        };
        if let Some(loaded) = loaded {
            machine.load(loaded)?;
        }
        Ok(machine)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<View> {
        self.views.subscribe()
    }

    /// The newest entry whose effect is in the newest view.
    pub(crate) fn applied(&self) -> watch::Receiver<Option<EntryId>> {
        self.seen.subscribe()
    }

    /// The feature level of what was applied.
    pub(crate) fn level(&self) -> watch::Receiver<u32> {
        self.level.subscribe()
    }

    pub(crate) fn snapshots(&self) -> Arc<Snapshots> {
        self.snapshots.clone()
    }

    fn load(&mut self, loaded: Loaded) -> Result<(), String> {
        self.noted.may_hold(loaded.state.feature_level())?;
        self.members = to_stored(&loaded.meta.members)?;
        self.applied = loaded.meta.last;
        self.state = loaded.state;
        self.publish();
        Ok(())
    }

    /// Notes the level. A disk that takes nothing is waited for, as for snapshots.
    async fn rise(&mut self, level: u32) -> io::Result<()> {
        let (mut backoff, ended) = (Backoff::new(NO_SPACE.0, NO_SPACE.1), self.ended.token());
        loop {
            match self.noted.rise(level).await {
                Err(error) if disk::is_refusal(&error) => tracing::warn!(%error, level, "the feature level cannot be noted yet"),
                done => return done,
            }
            if !backoff.wait(&ended).await {
                return Err(io::Error::other("the store was closed"));
            }
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The members that the newest snapshot names.
    pub(crate) fn stored_members(&self) -> StoredMembers {
        from_stored(&self.members)
    }

    fn publish(&self) {
        let level = level::of(self.state.feature_level());
        self.level.send_if_modified(|known| std::mem::replace(known, level) != level);
        self.views.send_replace(self.state.view().clone());
        self.seen.send_replace(self.applied);
    }
}

#[cfg(feature = "defects")]
impl Machine {
    /// Whether to pass over an entry; otherwise notes what is to be applied once more.
    fn wrong_from_the_start(&mut self, entry: &super::Entry, twice: &mut Vec<(u64, ursa_state::Command)>) -> bool {
        let EntryPayload::Normal(proposal) = &entry.payload else {
            return false;
        };
        if self.fresh && defects::on(Defect::EntrySkippedAtRestart) {
            self.fresh = false;
            self.state.skip(entry.log_id.index);
            self.applied = Some(entry_id(&entry.log_id));
            return true;
        }
        twice.push((entry.log_id.index, proposal.command().clone()));
        false
    }

    fn wrong_after(&mut self, entries: Vec<(u64, ursa_state::Command)>) {
        if defects::on(Defect::AppliedTwice) && std::mem::take(&mut self.fresh) {
            self.state = defects::again(&self.state, &entries);
        }
        let compacts = |(_, command): &(u64, ursa_state::Command)| matches!(command, ursa_state::Command::Compact { .. });
        if defects::on(Defect::WatchSkipsAtCompaction) && entries.iter().any(compacts) {
            self.state = defects::without_oldest_change(&self.state);
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = RaftSnapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>), io::Error> {
        Ok((self.applied.map(log_id), self.members.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut answers = Vec::with_capacity(batch.len());
            #[cfg(feature = "defects")]
            let mut twice = Vec::new();
            for item in batch {
                let (entry, responder) = item?;
                #[cfg(feature = "defects")]
                if self.wrong_from_the_start(&entry, &mut twice) {
                    continue;
                }
                if let EntryPayload::Normal(proposal) = &entry.payload
                    && let Command::RaiseFeatureLevel { level } = proposal.command()
                {
                    self.rise(*level).await?;
                }
                let reply = match &entry.payload {
                    EntryPayload::Normal(proposal) => Some(self.state.apply(entry.log_id.index, proposal.command())),
                    EntryPayload::Blank => {
                        self.state.skip(entry.log_id.index);
                        None
                    }
                    EntryPayload::Membership(membership) => {
                        self.state.skip(entry.log_id.index);
                        self.members = StoredMembershipOf::<TypeConfig>::new(Some(entry.log_id), membership.clone());
                        None
                    }
                };
                self.applied = Some(entry_id(&entry.log_id));
                answers.extend(responder.map(|responder| (responder, reply)));
            }
            #[cfg(feature = "defects")]
            self.wrong_after(twice);
            self.publish();
            for (responder, reply) in answers {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let view = self.state.view();
        let meta = Meta {
            last: self.applied,
            members: from_stored(&self.members),
            history: view.history_id(),
            revision: view.revision(),
        };
        #[cfg_attr(not(feature = "defects"), expect(unused_mut, reason = "for defects"))]
        let mut state = self.state.clone();
        #[cfg(feature = "defects")]
        if defects::on(Defect::TombstonesLost) {
            state = defects::without_tombstones(&state);
        } else if defects::on(Defect::RequestsLostInSnapshot) {
            state = defects::without_requests(&state);
        }
        Builder {
            meta,
            state,
            snapshots: self.snapshots.clone(),
            disk: self.disk.clone(),
            ended: self.ended.token(),
        }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<TypeConfig>, snapshot: RaftSnapshot) -> Result<(), io::Error> {
        // What the file says about itself counts: it is checksummed, the sender's words are not.
        let adopt = || {
            let (snapshots, snapshot) = (self.snapshots.clone(), snapshot.clone());
            move || snapshots.adopt(&snapshot)
        };
        let loaded = stored(&*self.disk, &self.ended.token(), adopt).await?;
        self.rise(loaded.state.feature_level()).await?;
        self.load(loaded).map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, RaftSnapshot>>, io::Error> {
        let Some((meta, snapshot)) = self.snapshots.to_send() else {
            return Ok(None);
        };
        Ok(Some(SnapshotOf::<TypeConfig, _> {
            meta: to_meta(&meta)?,
            snapshot,
        }))
    }
}

pub(super) fn to_meta(meta: &Meta) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    let last_membership = to_stored(&meta.members).map_err(io::Error::other)?;
    Ok(SnapshotMetaOf::<TypeConfig> {
        last_log_id: meta.last.map(log_id),
        last_membership,
    })
}

/// Stores a snapshot. A disk that takes nothing is waited for: to the core a snapshot that cannot be written is the end.
async fn stored<T, W>(disk: &dyn disk::Disk, ended: &CancellationToken, work: impl Fn() -> W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, snapshot::Error> + Send + 'static,
{
    let mut backoff = Backoff::new(NO_SPACE.0, NO_SPACE.1);
    loop {
        let work = work();
        let done = disk::run(disk, move || match work() {
            Err(error) if error.is_refusal() => Ok(Err(error)),
            done => Ok(Ok(done?)),
        });
        let error = match done.await? {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        tracing::warn!(error = %Chain(&error), "a snapshot cannot be stored: tried again in a while");
        if !backoff.wait(ended).await {
            return Err(error.into());
        }
    }
}

/// Writes one snapshot.
pub(crate) struct Builder {
    meta: Meta,
    state: State,
    snapshots: Arc<Snapshots>,
    disk: Arc<dyn disk::Disk>,
    /// The machine is gone.
    ended: CancellationToken,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = RaftSnapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, RaftSnapshot>, io::Error> {
        let save = || {
            let (snapshots, meta, state) = (self.snapshots.clone(), self.meta.clone(), self.state.clone());
            move || snapshots.save(&meta, &state)
        };
        let snapshot = stored(&*self.disk, &self.ended, save).await?;
        Ok(SnapshotOf::<TypeConfig, _> {
            meta: to_meta(&self.meta)?,
            snapshot,
        })
    }
}
