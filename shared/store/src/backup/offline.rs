//! A data folder without a running store: what is in it, and how it becomes the first node of a new history.
//! In: a folder that is opened as a store opens it. Out: its state, or the same folder with another past.
//! Invariant: one rename decides. Before it the folder is what it was; after it, it is the new one, and whatever is left to do is done when
//! a store opens it, if it was not done here.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ursa_runtime::error::Chain;
use ursa_state::{Anew, State};

use crate::codec::{Members, Peer, StoredMembers};
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::folder::Folder;
use crate::log::{EntryId, Log, Vote};
use crate::raft::{Entry, blank};
use crate::snapshot::{Meta, Snapshots};

/// Who goes on alone.
pub(super) struct Alone {
    pub(super) node_id: u64,
    /// Where the others will reach it; empty if there never are any.
    pub(super) address: String,
}

impl Alone {
    fn members(&self, since: EntryId) -> StoredMembers {
        let nodes = BTreeMap::from([(self.node_id, Peer::at(&self.address))]);
        let voters = vec![BTreeSet::from([self.node_id])];
        StoredMembers {
            since: Some(since),
            members: Members { voters, nodes },
        }
    }
}

/// Makes the folder that of a group of one that goes on from `state` in another history; `term` is one that the old group has reached.
/// Gives the state that it has now.
pub(super) async fn go_on(
    disk: &Arc<dyn Disk>,
    (snapshots, log): (&Arc<Snapshots>, &Log<Entry>),
    state: &State,
    (alone, term): (Alone, u64),
    anew: Anew,
) -> Result<State, OpenError> {
    let known = log.state();
    let last = known.last.map_or(0, |last| last.index).max(state.applied_index());
    let terms = [known.vote.map(|vote| vote.term), known.last.map(|last| last.term)];
    let term = terms.into_iter().flatten().max().unwrap_or_default().max(term) + 1;
    let first = EntryId { term, index: last + 1 };
    let second = EntryId { term, index: last + 2 };
    // A higher term alone changes nothing.
    let vote = Vote {
        term,
        node_id: alone.node_id,
        committed: false,
    };
    log.save_vote(vote).await?;
    let anew = Anew {
        index: first.index,
        ..anew
    };
    let state = state.begin_anew(&anew);
    save(disk, snapshots, &alone, first, &state).await?;
    // From here on it is the new one. The rest makes a second generation: the log goes on from the first, up to the second.
    log.purge(first).await?;
    let (sender, written) = tokio::sync::oneshot::channel();
    log.append(
        vec![blank(second)],
        Box::new(move |result| {
            let _ = sender.send(result);
        }),
    )
    .await?;
    match written.await {
        Ok(result) => result.map_err(crate::log::Error::from)?,
        Err(_) => return Err(OpenError::Start("the log's writer has ended".to_owned())),
    }
    let mut newest = state.clone();
    newest.skip(second.index);
    save(disk, snapshots, &alone, second, &newest).await?;
    Ok(newest)
}

async fn save(disk: &Arc<dyn Disk>, snapshots: &Arc<Snapshots>, alone: &Alone, last: EntryId, state: &State) -> Result<(), OpenError> {
    let meta = Meta {
        last: Some(last),
        members: alone.members(last),
        history: state.history_id(),
        revision: state.view().revision(),
    };
    let (snapshots, state) = (snapshots.clone(), state.clone());
    let mut failed = None;
    let saved = disk::run(&**disk, move || Ok(snapshots.save(&meta, &state))).await;
    match saved {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => failed = Some(OpenError::Snapshot(error)),
        Err(error) => failed = Some(OpenError::Start(Chain(&error).to_string())),
    }
    failed.map_or(Ok(()), Err)
}

/// If the newest snapshot is of another history than the folder knows, and says that it goes on from one, the folder is its now: it has an
/// id of its own, and has met nobody. Blocks on the disk.
pub(crate) fn settle(disk: &dyn Disk, folder: &mut Folder, state: Option<&State>) -> Result<(), OpenError> {
    let Some(state) = state else { return Ok(()) };
    let other = folder.history().is_some_and(|known| known != state.history_id());
    if !other || state.view().origin().is_none() {
        return Ok(());
    }
    tracing::info!(history = %state.history_id(), "the data folder goes on in another history");
    let met = folder.part("peers.json");
    let io = |action, path| move |source| OpenError::Io { action, path, source };
    match disk.remove(&met) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", met)(error)),
        _ => {}
    }
    // Before the folder says that it is another one: otherwise it would find nobody and miss them.
    disk.sync_dir(&folder.part("")).map_err(io("sync", folder.part("")))?;
    let file = folder.part("node.json");
    folder.renewed(state.history_id()).map_err(io("write", file))
}
