//! Our state as openraft's state machine, and the builder of snapshots.
//! In: committed entries. Out: the newest [`View`] to everyone who watches, then the answers to those who proposed.
//! Invariants: whoever has an answer finds its effect in the newest view; one view per batch, never half of a changeset; a snapshot is
//! built from a clone of the persistent maps, beside the running store.
use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;
use ursa_state::{State, View};

use super::{TypeConfig, entry_id, from_stored, log_id, to_stored};
use crate::disk;
use crate::log::EntryId;
use crate::snapshot::{Loaded, Meta, RaftSnapshot, Snapshots};

/// Entries applied before the view is published and answers go out: many under load, for one publication wakes every watcher.
const BATCH: usize = 256;

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
}

impl Machine {
    /// A machine that holds what the snapshot holds, or nothing.
    ///
    /// # Errors
    /// The members in the snapshot are no group.
    pub(crate) fn new(disk: Arc<dyn disk::Disk>, snapshots: Arc<Snapshots>, loaded: Option<Loaded>) -> Result<Self, String> {
        let views = watch::Sender::new(View::default());
        let mut machine = Self {
            state: State::default(),
            applied: None,
            members: StoredMembershipOf::<TypeConfig>::default(),
            snapshots,
            views,
            seen: watch::Sender::new(None),
            disk,
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

    fn load(&mut self, loaded: Loaded) -> Result<(), String> {
        self.members = to_stored(&loaded.meta.members)?;
        self.applied = loaded.meta.last;
        self.state = loaded.state;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.views.send_replace(self.state.view().clone());
        self.seen.send_replace(self.applied);
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
            for item in batch {
                let (entry, responder) = item?;
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
        Builder {
            meta,
            state: self.state.clone(),
            snapshots: self.snapshots.clone(),
            disk: self.disk.clone(),
        }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<TypeConfig>, snapshot: RaftSnapshot) -> Result<(), io::Error> {
        let snapshots = self.snapshots.clone();
        // What the file says about itself counts: it is checksummed, the sender's words are not.
        let loaded = disk::run(&*self.disk, move || Ok(snapshots.adopt(&snapshot)?)).await?;
        self.load(loaded).map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, RaftSnapshot>>, io::Error> {
        let Some((meta, snapshot)) = self.snapshots.newest() else {
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

/// Writes one snapshot.
pub(crate) struct Builder {
    meta: Meta,
    state: State,
    snapshots: Arc<Snapshots>,
    disk: Arc<dyn disk::Disk>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = RaftSnapshot;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, RaftSnapshot>, io::Error> {
        let (snapshots, meta, state) = (self.snapshots.clone(), self.meta.clone(), self.state.clone());
        let snapshot = disk::run(&*self.disk, move || Ok(snapshots.save(&meta, &state)?)).await?;
        Ok(SnapshotOf::<TypeConfig, _> {
            meta: to_meta(&self.meta)?,
            snapshot,
        })
    }
}
