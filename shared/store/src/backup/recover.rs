//! What is left of a group whose majority is lost: looked at, compared, and made the first node of a new history.
//! In: data folders of nodes that do not run. Out: what is in them and what may be missing; one of them as a group of one.
//! Invariants: looking changes nothing; a folder is the old one or the new one, whenever the power goes; nothing goes on in the history
//! of a majority that is not asked.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use ursa_model::Timestamp;
use ursa_runtime::lease;
use ursa_state::{Anew, By, GAP, HistoryId, Origin, State};
use uuid::Uuid;

use super::disk::Unchanged;
use super::offline::{Alone, go_on};
use super::restore::{of_the_group, own_address};
use crate::codec::{Members, Payload};
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::log::{EntryId, Item};
use crate::net::tls::Identity;
use crate::raft::payload;
use crate::store::{StoreConfig, Stored, open_stored};

/// Bytes of entries that are read at a time.
const PIECE: usize = 4 << 20;
/// Longest `node.json`.
const MAX_NODE: u64 = 64 << 10;
/// A member that runs answers much sooner.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(3);

/// A state, as far as it matters to whoever decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub revision: u64,
    /// Of its newest change.
    pub changed: Timestamp,
    pub resources: usize,
}

impl Point {
    fn of(state: &State) -> Self {
        let view = state.view();
        Self {
            revision: view.revision(),
            changed: view.time(),
            resources: view.len(),
        }
    }
}

/// What a folder holds.
#[derive(Clone, Debug)]
pub struct Survey {
    pub dir: PathBuf,
    pub node: u64,
    pub history: HistoryId,
    pub term: u64,
    /// Newest entry, and the newest that is known here to be committed.
    pub last: Option<EntryId>,
    pub committed: Option<EntryId>,
    /// The state at both. What lies between may or may not have been acknowledged to anybody; it would be taken for committed.
    pub sure: Point,
    pub all: Point,
    /// Changesets between the two.
    pub doubtful: u64,
    /// Of the group, with their addresses.
    pub members: BTreeMap<u64, String>,
    pub voters: BTreeSet<u64>,
    pub origin: Option<Origin>,
}

/// Why a folder cannot be looked at or used.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{} is no data folder of a node ({reason}); name the one that its configuration has as data_dir", dir.display())]
    NoFolder { dir: PathBuf, reason: String },
    #[error("there is nothing in {}: no entry and no snapshot; recover from another node, or restore a backup", dir.display())]
    Empty { dir: PathBuf },
    #[error("the list of members cannot be used: {reason}; correct it and try again, nothing was changed")]
    Members { reason: String },
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Whose folder it is.
fn node_of(disk: &dyn Disk, dir: &Path) -> Result<u64, RecoverError> {
    let refused = |reason: String| RecoverError::NoFolder {
        dir: dir.to_owned(),
        reason,
    };
    let path = dir.join("node.json");
    let bytes = disk::read_file(disk, &path, MAX_NODE).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    let node: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    let id = node.get("node_id").and_then(serde_json::Value::as_u64);
    id.ok_or_else(|| refused(format!("{} names no node", path.display())))
}

/// Everything in an open folder: the state that is surely committed, and the one with all entries.
async fn read(dir: &Path, node: u64, stored: &Stored) -> Result<(Survey, State), RecoverError> {
    let (log, machine) = (&stored.log, &stored.machine);
    let known = log.state();
    let snapshot = machine.state().clone();
    let Members { mut voters, mut nodes } = machine.stored_members().members;
    let committed_index = known.committed.map_or(0, |id| id.index).max(snapshot.applied_index());
    let (mut state, mut sure, mut doubtful) = (snapshot.clone(), Point::of(&snapshot), 0);
    let mut committed = known.committed;
    // The first members are entry 0.
    let mut next = machine.applied().borrow().map_or(0, |applied| applied.index + 1);
    let end = known.last.map_or(0, |last| last.index + 1);
    while next < end {
        let entries = log.read(next..end, PIECE).await.map_err(OpenError::from)?;
        let Some(newest) = entries.last().map(|entry| entry.id().index) else {
            break;
        };
        for entry in &entries {
            let id = entry.id();
            match payload(entry) {
                Payload::Command(proposal) => {
                    state.apply(id.index, proposal.command());
                    doubtful += u64::from(id.index > committed_index);
                }
                Payload::Blank => state.skip(id.index),
                Payload::Members(members) => {
                    state.skip(id.index);
                    (voters, nodes) = (members.voters, members.nodes);
                }
            }
            if id.index <= committed_index {
                (sure, committed) = (Point::of(&state), committed.max(Some(id)));
            }
        }
        next = newest + 1;
    }
    if state.history_id() == HistoryId::default() {
        return Err(RecoverError::Empty { dir: dir.to_owned() });
    }
    let survey = Survey {
        dir: dir.to_owned(),
        node,
        history: state.history_id(),
        term: known.vote.map_or(0, |vote| vote.term),
        last: known.last,
        committed,
        sure,
        all: Point::of(&state),
        doubtful,
        members: nodes.into_iter().map(|(id, peer)| (id, peer.address)).collect(),
        voters: voters.into_iter().flatten().collect(),
        origin: state.view().origin().cloned(),
    };
    Ok((survey, state))
}

/// Looks at the folder of `config`, or, with `dir`, at that of another node. Nothing in it is changed; what runs on it must not.
///
/// # Errors
/// See [`RecoverError`].
pub async fn survey(config: &StoreConfig, disk: &Arc<dyn Disk>, dir: Option<&Path>) -> Result<Survey, RecoverError> {
    let mut config = config.clone();
    if let Some(dir) = dir {
        config.data_dir = dir.to_owned();
        config.node_id = node_of(&**disk, dir)?;
    } else {
        node_of(&**disk, &config.data_dir)?;
    }
    let log = config.data_dir.join("log");
    let lock = disk.real_path(&log).map(|log| ursa_runtime::lock::DataLock::acquire(&log));
    let _lock = lock.transpose().map_err(OpenError::from)?;
    let unchanged: Arc<dyn Disk> = Arc::new(Unchanged::new(disk.clone()));
    let stored = opened(&config, &unchanged).await?;
    let (survey, _) = read(&config.data_dir, config.node_id, &stored).await?;
    Ok(survey)
}

async fn opened(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Stored, OpenError> {
    let (at, on) = (config.clone(), disk.clone());
    let dir = config.data_dir.clone();
    let opened = disk::run(&**disk, move || {
        Ok(super::is_finished(&*on, &at.data_dir).and_then(|()| open_stored(&at, &on)))
    });
    opened.await.map_err(|source| OpenError::Io {
        action: "read",
        path: dir,
        source,
    })?
}

/// The one to recover from: by the rule by which a leader is elected, whoever has more than all others lacks nothing that any majority of
/// them had acknowledged. `None` if they are not of one history.
pub fn best(surveys: &[Survey]) -> Option<&Survey> {
    let first = surveys.first()?;
    if surveys.iter().any(|other| other.history != first.history) {
        return None;
    }
    surveys
        .iter()
        .rev()
        .max_by_key(|survey| survey.last.map(|last| (last.term, last.index)))
}

/// Makes the folder of `config` a group of one, in a new history that goes on from everything in its log. Tells where that comes from, and
/// its name.
///
/// # Errors
/// See [`RecoverError`].
pub async fn recover(config: &StoreConfig, disk: &Arc<dyn Disk>, at: Timestamp) -> Result<(HistoryId, Origin), RecoverError> {
    node_of(&**disk, &config.data_dir)?;
    let address = own_address(config).map_err(|reason| RecoverError::Members { reason })?;
    let mut stored = opened(config, disk).await?;
    let (survey, state) = read(&config.data_dir, config.node_id, &stored).await?;
    let alone = Alone {
        node_id: config.node_id,
        address,
    };
    let anew = Anew {
        by: By::Recover,
        history: HistoryId(Uuid::new_v4().as_u128()),
        index: 0,
        gap: GAP,
        at,
        forget: of_the_group(),
    };
    let state = go_on(disk, (&stored.snapshots, &stored.log), &state, (alone, survey.term), anew).await?;
    super::settle(&**disk, &mut stored.folder, Some(&state))?;
    stored.log.close().await.map_err(OpenError::from)?;
    let origin = state.view().origin().cloned();
    let origin = origin.ok_or_else(|| OpenError::Start("a history without an origin".to_owned()))?;
    Ok((state.history_id(), origin))
}

/// The other configured members that run: something answers at their address with their certificate of the cluster.
///
/// # Errors
/// This node's certificate cannot be used, so that none can be asked.
pub async fn answering(config: &StoreConfig) -> Result<BTreeSet<u64>, OpenError> {
    let Some(cluster) = &config.cluster else {
        return Ok(BTreeSet::new());
    };
    let identity = Arc::new(Identity::new(config.node_id, cluster.tls.clone())?);
    let others = cluster.members.iter().filter(|(id, _)| **id != config.node_id);
    let asked = others.map(|(id, address)| {
        let (id, address) = (*id, cluster.dial.get(id).unwrap_or(address).clone());
        let tls = identity.client_config(id);
        async move {
            let shaken = async {
                let stream = TcpStream::connect(&address).await.ok()?;
                let name = rustls::pki_types::ServerName::try_from("ursa-node").ok()?;
                TlsConnector::from(tls).connect(name, stream).await.ok()
            };
            lease::within(ANSWER, shaken).await.ok().flatten().map(|_| id)
        }
    });
    let answered = futures::future::join_all(asked).await;
    Ok(answered.into_iter().flatten().collect())
}
