//! Which life of each member this node has met: kept durably, so that a node that lost its folder is never taken for the one it was.
//! In: who speaks. Out: whether to listen. File: `peers.json` in the data folder.
//! Invariant: what a member says counts only after its folder was durably noted here; a folder once noted is never replaced.
//! Source: why a wiped node must not vote, Raft dissertation 11.7.3 ("loss of state"), and "Protocol-Aware Recovery" (FAST 2018).
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Refusal;
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::folder::Held;

/// A few members; more is something else.
const MAX_FILE: u64 = 1 << 20;
/// Members remembered at the most: ids are bounded by the CA that certifies them, this bounds the file all the same.
const MAX_KNOWN: usize = 1024;

/// One life of a node: a data folder, how often it was opened, and the process that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incarnation {
    pub(crate) folder: Uuid,
    pub(crate) start: u64,
    pub(crate) boot: Uuid,
}

/// What to make of a member that shows itself as `found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Same,
    /// Not met before, or a later start of the same folder: to be noted.
    Note,
    OtherFolder,
    OlderCopy,
    Doubled,
}

fn judge(known: Option<&Incarnation>, found: &Incarnation) -> Judged {
    match known {
        None => Judged::Note,
        Some(known) if known.folder != found.folder => Judged::OtherFolder,
        Some(known) if known.start < found.start => Judged::Note,
        Some(known) if known.start > found.start => Judged::OlderCopy,
        Some(known) if known.boot != found.boot => Judged::Doubled,
        Some(_) => Judged::Same,
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Known {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: Held,
    met: Mutex<BTreeMap<u64, Incarnation>>,
    /// One writer of the file at a time.
    writing: tokio::sync::Mutex<()>,
}

impl Known {
    /// Reads the file. Blocks on the disk.
    ///
    /// # Errors
    /// It is there but cannot be read or understood.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: PathBuf, held: Held) -> Result<Self, OpenError> {
        let met = match disk::read_file(&*disk, &path, MAX_FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| OpenError::Folder {
                path: path.clone(),
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => {
                return Err(OpenError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        Ok(Self {
            disk,
            path,
            held,
            met: Mutex::new(met),
            writing: tokio::sync::Mutex::new(()),
        })
    }

    /// The folder under which `node` is known.
    pub(crate) fn folder_of(&self, node: u64) -> Option<Uuid> {
        self.met.lock().get(&node).map(|known| known.folder)
    }

    /// Whether to listen to `node`. What is new is durable on return.
    ///
    /// # Errors
    /// It is not the node that is known; or it cannot be noted.
    pub(crate) async fn meet(&self, node: u64, found: Incarnation) -> Result<(), Refusal> {
        if self.admit(node, &found)? {
            return Ok(());
        }
        let _writing = self.writing.lock().await;
        if self.admit(node, &found)? {
            return Ok(());
        }
        let mut met = self.met.lock().clone();
        if met.len() >= MAX_KNOWN && !met.contains_key(&node) {
            return Err(Refusal::Malformed {
                reason: "too many members".to_owned(),
            });
        }
        met.insert(node, found);
        let (disk, path, held) = (self.disk.clone(), self.path.clone(), self.held.clone());
        let text = serde_json::to_vec_pretty(&met).unwrap_or_default();
        let written = disk::run(&*self.disk, move || {
            let _held = held.keep()?;
            disk::write_atomic(&*disk, &path, &text)
        })
        .await;
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "cannot note who the members are");
            return Err(Refusal::Malformed {
                reason: "it cannot be noted who calls".to_owned(),
            });
        }
        *self.met.lock() = met;
        Ok(())
    }

    /// `true`: nothing to note.
    fn admit(&self, node: u64, found: &Incarnation) -> Result<bool, Refusal> {
        match judge(self.met.lock().get(&node), found) {
            Judged::Same => Ok(true),
            Judged::Note => Ok(false),
            Judged::OtherFolder => Err(Refusal::OtherFolder { node }),
            Judged::OlderCopy => Err(Refusal::OlderCopy { node }),
            Judged::Doubled => Err(Refusal::Doubled { node }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn life(folder: u128, start: u64, boot: u128) -> Incarnation {
        Incarnation {
            folder: Uuid::from_u128(folder),
            start,
            boot: Uuid::from_u128(boot),
        }
    }

    fn open(disk: &SimDisk) -> Known {
        disk.create_dir("/node".as_ref()).unwrap();
        let (folder, _) = crate::folder::Folder::open(Arc::new(disk.clone()), "/node".as_ref(), 1).unwrap();
        Known::open(Arc::new(disk.clone()), "/node/peers.json".into(), folder.held()).unwrap()
    }

    #[tokio::test]
    async fn a_folder_once_met_is_the_only_one_ever_after() {
        let disk = SimDisk::new(1);
        let known = open(&disk);
        known.meet(2, life(20, 1, 1)).await.unwrap();
        known.meet(2, life(20, 1, 1)).await.unwrap();
        assert_eq!(known.meet(2, life(21, 9, 1)).await, Err(Refusal::OtherFolder { node: 2 }));
        known.meet(2, life(20, 3, 2)).await.unwrap();
        assert_eq!(known.meet(2, life(20, 2, 9)).await, Err(Refusal::OlderCopy { node: 2 }));
        assert_eq!(known.meet(2, life(20, 3, 9)).await, Err(Refusal::Doubled { node: 2 }));
        let known = open(&disk.power_loss());
        assert_eq!(known.folder_of(2), Some(Uuid::from_u128(20)));
        assert_eq!(known.meet(2, life(21, 9, 1)).await, Err(Refusal::OtherFolder { node: 2 }));
        known.meet(2, life(20, 3, 2)).await.unwrap();
    }
}
