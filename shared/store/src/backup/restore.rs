//! The data folder of the first node of a new cluster, from a backup.
//! In: an empty folder, the state of a backup. Out: a folder that a store opens and leads alone, in a history of its own.
//! Invariant: the folder is either refused untouched, or whole; a folder that was left half made is refused by every store.
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ursa_model::{Kind, ResourceKey, Timestamp};
use ursa_state::{Anew, By, GAP, HistoryId, Origin, State};
use uuid::Uuid;

use super::Head;
use super::offline::{Alone, go_on};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::store::{StoreConfig, open_stored};

/// There as long as a restore works in the folder.
const MARK: &str = "restore-unfinished";
/// What may be there all the same: the servers' own certificates, and what a file system puts into its root.
const HARMLESS: [&str; 2] = ["tls", "lost+found"];

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "{} is not empty, there is {}: name a new folder, or move what is there away; nothing was changed",
        dir.display(), found.join(", ")
    )]
    NotEmpty { dir: PathBuf, found: Vec<String> },
    #[error("an earlier restore into {} was cut short: remove everything in it and restore again", dir.display())]
    Unfinished { dir: PathBuf },
    #[error("the list of members cannot be used: {reason}; correct it and restore again, nothing was changed")]
    Members { reason: String },
    #[error(
        "the backup is at feature level {level}, and this program knows levels {known}: restore it with the version that wrote it, or a newer one; \
         nothing was changed"
    )]
    Level { level: u32, known: crate::Levels },
    #[error("the folder cannot be made")]
    Folder(#[source] OpenError),
}

impl From<OpenError> for RestoreError {
    fn from(error: OpenError) -> Self {
        Self::Folder(error)
    }
}

/// The resources that belong to one group of nodes: whoever has left it, and who was invited.
pub(super) fn of_the_group() -> Vec<ResourceKey> {
    ResourceKey::new(Kind::Config, "", crate::store::members::LEDGER)
        .into_iter()
        .collect()
}

/// Where this node is reached, if it is one of several.
pub(super) fn own_address(config: &StoreConfig) -> Result<String, String> {
    let Some(cluster) = &config.cluster else {
        return Ok(String::new());
    };
    match cluster.members.get(&config.node_id) {
        Some(address) if crate::store::is_address(address) => Ok(address.clone()),
        Some(address) => Err(format!("{address:?} of node {} is not host:port", config.node_id)),
        None => Err(format!("node {} is not in it", config.node_id)),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

/// What is in the folder; nothing if it does not exist.
fn names(disk: &dyn Disk, dir: &Path) -> std::io::Result<Vec<String>> {
    let listed = match disk.real_path(dir) {
        None => disk.list(dir),
        // Folders too.
        Some(path) => std::fs::read_dir(path).and_then(|entries| {
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect()
        }),
    };
    let mut names = match listed {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    names.retain(|name| !HARMLESS.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// Refuses a folder in which a restore was cut short. Blocks on the disk.
pub(crate) fn is_finished(disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(MARK);
    match disk.open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(OpenError::Unfinished { dir: dir.to_owned() }),
        Err(error) => Err(io("read", &path)(error)),
    }
}

/// Whether a backup could be restored there, before it is read. Blocks on the disk.
///
/// # Errors
/// See [`RestoreError`].
pub fn is_possible(config: &StoreConfig, disk: &dyn Disk) -> Result<(), RestoreError> {
    own_address(config).map_err(|reason| RestoreError::Members { reason })?;
    let dir = &config.data_dir;
    let found = names(disk, dir).map_err(io("read", dir))?;
    if found.iter().any(|name| name == MARK) {
        return Err(RestoreError::Unfinished { dir: dir.clone() });
    }
    if !found.is_empty() {
        return Err(RestoreError::NotEmpty { dir: dir.clone(), found });
    }
    Ok(())
}

/// Makes the folder of `config`. Tells where its history comes from, and its name.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
    head: &Head,
    state: &State,
    at: Timestamp,
) -> Result<(HistoryId, Origin), RestoreError> {
    is_possible(config, &**disk)?;
    let address = own_address(config).map_err(|reason| RestoreError::Members { reason })?;
    let (level, known) = (crate::level::of(state.feature_level()), config.levels());
    if level > known.max {
        return Err(RestoreError::Level { level, known });
    }
    let dir = &config.data_dir;
    let mark = dir.join(MARK);
    disk.create_dir(dir).map_err(io("make", dir))?;
    disk.create(&mark).map_err(io("make", &mark))?;
    disk.sync_dir(dir).map_err(io("sync", dir))?;
    let (at_config, on) = (config.clone(), disk.clone());
    let stored = crate::disk::run(&**disk, move || Ok(open_stored(&at_config, &on)));
    let mut stored = stored.await.map_err(io("make", dir))??;
    let alone = Alone {
        node_id: config.node_id,
        address,
    };
    let anew = Anew {
        by: By::Restore,
        history: HistoryId(Uuid::new_v4().as_u128()),
        index: 0,
        gap: GAP,
        at,
        forget: of_the_group(),
    };
    let state = go_on(disk, (&stored.snapshots, &stored.log), state, (alone, head.term), anew).await?;
    let node_file = stored.folder.part("node.json");
    stored.folder.used_for(state.history_id()).map_err(io("write", &node_file))?;
    stored.log.close().await.map_err(OpenError::from)?;
    disk.remove(&mark).map_err(io("remove", &mark))?;
    disk.sync_dir(dir).map_err(io("sync", dir))?;
    let origin = state
        .view()
        .origin()
        .cloned()
        .ok_or_else(|| OpenError::Start("a history without an origin".to_owned()))?;
    Ok((state.history_id(), origin))
}
