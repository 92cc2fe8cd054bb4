//! The data folder of a node: `VERSION`, `node.json`, `log/`, `snapshots/`, `cache/`.
//! In: the folder and who we are. Out: a folder that is ours, and the lock on it.
//! Invariant: a folder of a newer version, of another node, or one that has lost its log is refused before anything in it is changed.
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use ursa_runtime::lock::DataLock;
use ursa_state::HistoryId;
use uuid::Uuid;

use crate::disk::{self, Disk};
use crate::error::OpenError;

/// Version of the layout written here. 2: the folder has an id and counts its starts. 3: what is in it may be encrypted. Older ones are taken
/// over.
pub const VERSION: u32 = 3;
/// Longest of the two small files.
const MAX_FILE: u64 = 64 << 10;
/// Own boots that are remembered, to tell a member that has gone back in time from our having done so. What members may know of this
/// node does not depend on it, see `net::known`.
const MAX_BOOTS: usize = 64;

/// Content of `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    node_id: u64,
    /// Known once the first entry was applied. From then on the log cannot be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<HistoryId>,
    /// Drawn when the folder was made: tells it from any other folder of the same node.
    #[serde(default = "Uuid::new_v4")]
    folder: Uuid,
    /// How often the folder was opened.
    #[serde(default)]
    start: u64,
    /// Drawn by the processes that did, oldest first, this one last.
    #[serde(default)]
    boots: Vec<Uuid>,
    /// The node has taken its place in a group of several.
    #[serde(default)]
    formed: bool,
    /// It did so by writing down the first members. From then on the log cannot be empty.
    #[serde(default)]
    founder: bool,
    /// What is written here is encrypted. From then on the keys must be there.
    #[serde(default)]
    encrypted: bool,
}

/// A folder that was found to be ours. It stays so for as long as the lock lives that comes with it; whoever writes the log holds it.
#[derive(Debug)]
pub struct Folder {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    node: Node,
    held: Held,
}

/// Whether the folder is still ours. A write that comes late, after the folder was let go of, must not touch what the next owner wrote.
#[derive(Clone, Debug)]
pub struct Held(Option<Weak<DataLock>>);

impl Held {
    /// Keeps the folder ours for as long as the answer lives.
    ///
    /// # Errors
    /// It is not any more.
    pub fn keep(&self) -> std::io::Result<Option<Arc<DataLock>>> {
        match &self.0 {
            None => Ok(None),
            Some(lock) => match lock.upgrade() {
                None => Err(std::io::Error::other("the data folder was let go of")),
                held => Ok(held),
            },
        }
    }
}

impl Folder {
    /// Takes the folder, making it if it is not there. Blocks on the disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, node_id: u64) -> Result<(Self, Option<Arc<DataLock>>), OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        disk.create_dir(dir).map_err(io("make", dir))?;
        // In the folder of the log: a program may hold the data folder itself.
        let lock = disk
            .real_path(&dir.join("log"))
            .map(|path| DataLock::acquire(&path))
            .transpose()?
            .map(Arc::new);
        let version = dir.join("VERSION");
        let node_file = dir.join("node.json");
        let known = match read(&*disk, &version)? {
            Some(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let found: u32 = text.trim().parse().map_err(|_| OpenError::Folder {
                    path: version.clone(),
                    reason: "it is no number".to_owned(),
                })?;
                if found > VERSION {
                    return Err(OpenError::Newer {
                        dir: dir.to_owned(),
                        found,
                        known: VERSION,
                    });
                }
                Some(found)
            }
            None => None,
        };
        let mut node = match read(&*disk, &node_file)? {
            Some(bytes) => {
                let node: Node = serde_json::from_slice(&bytes).map_err(|error| OpenError::Folder {
                    path: node_file.clone(),
                    reason: error.to_string(),
                })?;
                if node.node_id != node_id {
                    return Err(OpenError::OtherNode {
                        dir: dir.to_owned(),
                        found: node.node_id,
                        given: node_id,
                    });
                }
                if known.is_none() {
                    return Err(OpenError::Folder {
                        path: version,
                        reason: "it is missing".to_owned(),
                    });
                }
                node
            }
            None => {
                if has_log(&*disk, &dir.join("log")) {
                    return Err(OpenError::Folder {
                        path: node_file,
                        reason: "it is missing".to_owned(),
                    });
                }
                Node {
                    node_id,
                    history: None,
                    folder: Uuid::new_v4(),
                    start: 0,
                    boots: Vec::new(),
                    formed: false,
                    founder: false,
                    encrypted: false,
                }
            }
        };
        // In this order: whatever else there is, there is a version.
        if known != Some(VERSION) || node.start == 0 {
            disk::write_atomic(&*disk, &version, format!("{VERSION}\n").as_bytes()).map_err(io("write", &version))?;
        }
        node.start += 1;
        node.boots.push(Uuid::new_v4());
        let excess = node.boots.len().saturating_sub(MAX_BOOTS);
        node.boots.drain(..excess);
        let folder = Self {
            disk,
            dir: dir.to_owned(),
            node,
            held: Held(lock.as_ref().map(Arc::downgrade)),
        };
        folder.write_node().map_err(io("write", &node_file))?;
        Ok((folder, lock))
    }

    /// A part of the folder.
    pub fn part(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What it is on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether what is written here is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.node.encrypted
    }

    /// Notes that from now on it is. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_encrypted(&mut self) -> std::io::Result<()> {
        if self.node.encrypted {
            return Ok(());
        }
        self.node.encrypted = true;
        self.write_node()
    }

    /// Whether a log was ever written here.
    pub fn is_used(&self) -> bool {
        self.node.history.is_some()
    }

    /// The history of what is stored here, once it was noted.
    pub fn history(&self) -> Option<HistoryId> {
        self.node.history
    }

    /// The folder's id, and how often it was opened, this time included.
    pub fn id(&self) -> (Uuid, u64) {
        (self.node.folder, self.node.start)
    }

    /// What its last openings drew, this one last.
    pub fn boots(&self) -> &[Uuid] {
        &self.node.boots
    }

    /// Whether the node has taken its place in a group of several.
    pub fn is_formed(&self) -> bool {
        self.node.formed || self.node.history.is_some()
    }

    /// Whether it has noted who the others of its group are; from then on that note must be there.
    pub fn has_place(&self) -> bool {
        self.node.formed
    }

    /// Whether it wrote down the first members, so that there must be a log.
    pub fn is_founder(&self) -> bool {
        self.node.founder
    }

    /// Notes that it has, as a founder or not. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn formed(&mut self, founder: bool) -> std::io::Result<()> {
        self.node.formed = true;
        self.node.founder = founder;
        self.write_node()
    }

    /// Notes the history, after which an empty log is refused. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn used_for(&mut self, history: HistoryId) -> std::io::Result<()> {
        if self.node.history == Some(history) {
            return Ok(());
        }
        let before = self.node.history.replace(history);
        let written = self.write_node();
        if written.is_err() {
            // It is not noted, and may be asked for again.
            self.node.history = before;
        }
        written
    }

    /// It goes on in another history, as another folder that has met nobody. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn renewed(&mut self, history: HistoryId) -> std::io::Result<()> {
        // Everything else stays: what is written here is encrypted as before.
        self.node.history = Some(history);
        self.node.folder = Uuid::new_v4();
        self.node.start = 1;
        let before = self.node.boots.len().saturating_sub(1);
        self.node.boots.drain(..before);
        (self.node.formed, self.node.founder) = (false, false);
        self.write_node()
    }

    /// To be asked before anything in the folder is written.
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    fn write_node(&self) -> std::io::Result<()> {
        let _held = self.held.keep()?;
        let text = serde_json::to_string_pretty(&self.node)?;
        disk::write_atomic(&*self.disk, &self.dir.join("node.json"), (text + "\n").as_bytes())
    }
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match disk::read_file(disk, path, MAX_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn has_log(disk: &dyn Disk, dir: &Path) -> bool {
    disk.list(dir).is_ok_and(|names| names.iter().any(|name| name.ends_with(".log")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    const DIR: &str = "/node";

    fn open(disk: &SimDisk, node_id: u64) -> Result<Folder, OpenError> {
        Folder::open(Arc::new(disk.clone()), Path::new(DIR), node_id).map(|(folder, _)| folder)
    }

    #[test]
    fn a_folder_stays_with_its_node() {
        let disk = SimDisk::new(1);
        assert!(!open(&disk, 1).unwrap().is_used());
        let disk = disk.power_loss();
        let error = open(&disk, 2).unwrap_err();
        assert!(error.to_string().contains("belongs to node 1"), "{error}");
        open(&disk, 1).unwrap().used_for(HistoryId(5)).unwrap();
        assert!(open(&disk.power_loss(), 1).unwrap().is_used());
    }

    #[test]
    fn a_folder_counts_its_starts_and_keeps_its_id() {
        let disk = SimDisk::new(1);
        let (id, start) = open(&disk, 1).unwrap().id();
        let disk = disk.power_loss();
        assert_eq!((start, open(&disk, 1).unwrap().id()), (1, (id, 2)));
        assert_ne!(open(&SimDisk::new(1), 1).unwrap().id().0, id);
    }

    #[test]
    fn it_remembers_a_bounded_number_of_openings() {
        let mut disk = SimDisk::new(1);
        let mut last = None;
        for start in 1..=MAX_BOOTS + 5 {
            let folder = open(&disk, 1).unwrap();
            let boots = folder.boots();
            assert_eq!(boots.len(), start.min(MAX_BOOTS));
            assert_eq!(last, boots.len().checked_sub(2).map(|before| boots[before]));
            last = boots.last().copied();
            disk = disk.power_loss();
        }
    }

    #[test]
    fn a_folder_of_the_first_version_is_taken_over() {
        let disk = SimDisk::new(1);
        drop(open(&disk, 1).unwrap());
        disk.damage(Path::new("/node/VERSION"), |bytes| *bytes = b"1\n".to_vec()).unwrap();
        disk.damage(Path::new("/node/node.json"), |bytes| *bytes = b"{\"node_id\":1}".to_vec())
            .unwrap();
        let (id, start) = open(&disk, 1).unwrap().id();
        let disk = disk.power_loss();
        assert_eq!((start, open(&disk, 1).unwrap().id()), (1, (id, 2)));
        assert_eq!(disk.files(Path::new(DIR)).unwrap()["VERSION"], b"3\n");
    }

    #[test]
    fn a_newer_folder_is_refused_unchanged() {
        let disk = SimDisk::new(1);
        drop(open(&disk, 1).unwrap());
        disk.damage(Path::new("/node/VERSION"), |bytes| *bytes = b"4\n".to_vec()).unwrap();
        let before = disk.files(Path::new(DIR)).unwrap();
        let error = open(&disk, 1).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 4, known: 3, .. }), "{error}");
        assert!(error.to_string().contains("run the version that wrote it"), "{error}");
        assert_eq!(disk.files(Path::new(DIR)).unwrap(), before);
    }

    #[test]
    fn files_that_cannot_be_understood_are_named() {
        for (file, content) in [("VERSION", "one"), ("node.json", "{"), ("node.json", "{\"node_id\":-1}")] {
            let disk = SimDisk::new(1);
            drop(open(&disk, 1).unwrap());
            disk.damage(&Path::new(DIR).join(file), |bytes| *bytes = content.as_bytes().to_vec())
                .unwrap();
            let error = open(&disk, 1).unwrap_err();
            assert!(matches!(&error, OpenError::Folder { path, .. } if path.ends_with(file)), "{error}");
        }
        for missing in ["VERSION", "node.json"] {
            let disk = SimDisk::new(1);
            drop(open(&disk, 1).unwrap());
            disk.create_dir(Path::new("/node/log")).unwrap();
            disk.create(Path::new("/node/log/00000000000000000001.log")).unwrap();
            disk.remove(&Path::new(DIR).join(missing)).unwrap();
            let error = open(&disk, 1).unwrap_err();
            assert!(
                matches!(&error, OpenError::Folder { path, .. } if path.ends_with(missing)),
                "{error}"
            );
        }
    }

    #[test]
    fn making_it_can_be_cut_short_anywhere() {
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            disk.power_off_in(seed % 14);
            let _ = open(&disk, 1);
            open(&disk.power_loss(), 1).unwrap();
        }
    }
}
