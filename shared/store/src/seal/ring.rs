//! The data keys of a folder: one that everything new is sealed with, and those of before, until nothing is left under them.
//! In: the folder, the key-encryption key. Out: keys. Invariants: a key is in `keys.json`, durably, before anything is sealed with it, and
//! leaves it only after the last byte under it is durably gone; the file is replaced whole, never half.
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::kek::BASE64;
use super::{BadKek, DataKey, Encryption, Error, KEK_FILE, Kek, KeyId, RING_FILE};
use crate::disk::{self, Disk};
use crate::folder::{Folder, Held};

/// Layout of `keys.json`.
const FORMAT: u32 = 1;
/// Longest of the two files.
const MAX_FILE: u64 = 64 << 10;
/// Keys at a time: rotations that come faster than the data is sealed anew wait.
const MAX_KEYS: usize = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct File {
    format: u32,
    /// Id of the key that wraps the others.
    kek: String,
    active: KeyId,
    keys: Vec<Wrapped>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Wrapped {
    id: KeyId,
    /// Base64.
    wrapped: String,
}

/// Handle to the data keys of a folder; clones share them. Without encryption there are none.
#[derive(Clone, Default)]
pub struct Keys(Option<Arc<Ring>>);

struct Ring {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: Held,
    kek: Kek,
    /// Held while the file changes; nobody who only wants a key waits for that.
    writing: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    file: File,
    keys: BTreeMap<KeyId, Arc<DataKey>>,
    active: Arc<DataKey>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Keys(off)"),
            Some(ring) => write!(
                f,
                "Keys({:?})",
                ring.state.lock().file.keys.iter().map(|k| k.id).collect::<Vec<_>>()
            ),
        }
    }
}

impl Keys {
    /// The keys of this folder, made on first start. What is wrapped by a previous key-encryption key is wrapped anew. Blocks on the disk.
    ///
    /// # Errors
    /// See [`Error`]: nothing was changed.
    pub fn open(folder: &mut Folder, encryption: Option<&Encryption>) -> Result<Self, Error> {
        let (disk, path) = (folder.disk().clone(), folder.part(RING_FILE));
        let found = read(&*disk, &path)?;
        let Some(encryption) = encryption else {
            return match found.is_some() || folder.is_encrypted() {
                true => Err(Error::SwitchedOff),
                false => Ok(Self::default()),
            };
        };
        if found.is_none() && folder.is_encrypted() {
            return Err(Error::RingLost { ring: path });
        }
        let file: Option<File> = found.map(|bytes| parse(&bytes, &path)).transpose()?;
        let keks = Keks::find(&*disk, folder, encryption, file.as_ref())?;
        let io = |source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        let state = match file {
            Some(file) => unwrap(file, &keks, &path)?,
            None => {
                let (key, wrapped) = keks.first.make_key().map_err(io)?;
                State::first(key, &wrapped, keks.first.id())
            }
        };
        let ring = Ring {
            held: folder.held(),
            disk,
            path: path.clone(),
            kek: keks.first.clone(),
            writing: Mutex::new(()),
            state: Mutex::new(state),
        };
        ring.settle_in(&keks).map_err(io)?;
        folder.note_encrypted().map_err(io)?;
        Ok(Self(Some(Arc::new(ring))))
    }

    /// The key for what is written from now on. `None`: encryption is off.
    pub(crate) fn active(&self) -> Option<Arc<DataKey>> {
        self.0.as_ref().map(|ring| ring.state.lock().active.clone())
    }

    /// Its id.
    pub fn active_id(&self) -> Option<KeyId> {
        self.0.as_ref().map(|ring| ring.state.lock().active.id())
    }

    /// The ids of all there are.
    pub fn ids(&self) -> Vec<KeyId> {
        self.0
            .as_ref()
            .map(|ring| ring.state.lock().keys.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Id of the key-encryption key.
    pub fn kek_id(&self) -> Option<String> {
        self.0.as_ref().map(|ring| ring.kek.id().to_owned())
    }

    /// The key with which something was sealed.
    ///
    /// # Errors
    /// [`Error::UnknownKey`].
    pub(crate) fn get(&self, id: KeyId) -> Result<Arc<DataKey>, Error> {
        let known = self.0.as_ref().and_then(|ring| ring.state.lock().keys.get(&id).cloned());
        known.ok_or(Error::UnknownKey { id })
    }

    /// Makes a new key the active one, durably. Blocks on the disk.
    ///
    /// # Errors
    /// Nothing was changed.
    pub(crate) fn rotate(&self) -> Result<KeyId, Error> {
        let ring = self.0.as_ref().ok_or(Error::Off)?;
        let io = |source| Error::Io {
            action: "write",
            path: ring.path.clone(),
            source,
        };
        let _writing = ring.writing.lock();
        let mut file = ring.state.lock().file.clone();
        if file.keys.len() >= MAX_KEYS {
            return Err(Error::Busy { keys: file.keys.len() });
        }
        let (key, wrapped) = ring.kek.make_key().map_err(io)?;
        file.active = key.id();
        file.keys.push(Wrapped {
            id: key.id(),
            wrapped: BASE64.encode(wrapped),
        });
        ring.write(&file).map_err(io)?;
        let key = Arc::new(key);
        let mut state = ring.state.lock();
        state.file = file;
        state.keys.insert(key.id(), key.clone());
        state.active = key.clone();
        Ok(key.id())
    }

    /// Drops all keys but this one, durably: nothing is left under them. Nothing happens if it is not the active one any more.
    ///
    /// # Errors
    /// They are still there.
    pub(crate) fn keep_only(&self, id: KeyId) -> io::Result<usize> {
        let Some(ring) = &self.0 else { return Ok(0) };
        let _writing = ring.writing.lock();
        let mut file = ring.state.lock().file.clone();
        if file.active != id || file.keys.len() < 2 {
            return Ok(0);
        }
        file.keys.retain(|key| key.id == id);
        ring.write(&file)?;
        let mut state = ring.state.lock();
        let dropped = state.keys.len() - 1;
        state.file = file;
        state.keys.retain(|have, _| *have == id);
        Ok(dropped)
    }
}

impl Ring {
    fn write(&self, file: &File) -> io::Result<()> {
        let _held = self.held.keep()?;
        let text = serde_json::to_string_pretty(file)?;
        disk::write_atomic(&*self.disk, &self.path, (text + "\n").as_bytes())
    }

    /// Makes the file what it should be, and removes the folder's own key-encryption key once another one has taken its place.
    fn settle_in(&self, keks: &Keks) -> io::Result<()> {
        let file = self.state.lock().file.clone();
        if keks.rewrapped || !keks.has_ring {
            self.write(&file)?;
        }
        if keks.rewrapped {
            tracing::info!(kek = keks.first.id(), "the data keys are wrapped by another key-encryption key now");
        }
        let Some(own) = keks.own.as_ref().filter(|own| own.id() != keks.first.id()) else {
            return Ok(());
        };
        let path = self.path.with_file_name(KEK_FILE);
        tracing::info!(path = %path.display(), kek = own.id(), "the key-encryption key in the folder is no longer needed: removed");
        self.disk.remove(&path)?;
        self.disk.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }
}

impl State {
    fn first(key: DataKey, wrapped: &[u8], kek: &str) -> Self {
        let key = Arc::new(key);
        let wrapped = Wrapped {
            id: key.id(),
            wrapped: BASE64.encode(wrapped),
        };
        let file = File {
            format: FORMAT,
            kek: kek.to_owned(),
            active: key.id(),
            keys: vec![wrapped],
        };
        Self {
            file,
            keys: BTreeMap::from([(key.id(), key.clone())]),
            active: key,
        }
    }
}

/// The key-encryption keys at hand.
struct Keks {
    /// The one that wraps from now on.
    first: Kek,
    /// The one in the folder.
    own: Option<Kek>,
    /// The one that wraps what is there.
    wraps: Option<Kek>,
    has_ring: bool,
    rewrapped: bool,
}

impl Keks {
    fn find(disk: &dyn Disk, folder: &Folder, encryption: &Encryption, file: Option<&File>) -> Result<Self, Error> {
        let (path, ring) = (folder.part(KEK_FILE), folder.part(RING_FILE));
        let own = own(disk, &path)?;
        let first = match (&encryption.kek, &own, file) {
            (Some(given), ..) => given.clone(),
            (None, Some(own), _) => own.clone(),
            (None, None, Some(file)) => {
                return Err(Error::KekLost {
                    path,
                    ring,
                    wanted: file.kek.clone(),
                });
            }
            (None, None, None) => make_own(disk, &path)?,
        };
        let candidates = || [&first].into_iter().chain(&encryption.previous).chain(&own);
        let wraps = match file {
            None => None,
            Some(file) => Some(
                candidates()
                    .find(|kek| kek.id() == file.kek)
                    .cloned()
                    .ok_or_else(|| Error::WrongKek {
                        ring,
                        wanted: file.kek.clone(),
                        given: candidates().map(Kek::id).collect::<Vec<_>>().join(" and "),
                    })?,
            ),
        };
        Ok(Self {
            has_ring: file.is_some(),
            rewrapped: wraps.as_ref().is_some_and(|wraps| wraps.id() != first.id()),
            first,
            own,
            wraps,
        })
    }
}

/// The key-encryption key in the folder, if there is one.
fn own(disk: &dyn Disk, path: &Path) -> Result<Option<Kek>, Error> {
    let Some(bytes) = read(disk, path)?.map(Zeroizing::new) else {
        return Ok(None);
    };
    let parsed = std::str::from_utf8(&bytes).map_err(|_| BadKek::NotAKey).and_then(Kek::parse);
    parsed.map(Some).map_err(|reason| Error::BadKek {
        path: path.to_owned(),
        reason,
    })
}

fn make_own(disk: &dyn Disk, path: &Path) -> Result<Kek, Error> {
    let made = Kek::make().and_then(|(kek, text)| disk::write_atomic(disk, path, text.as_bytes()).map(|()| kek));
    let kek = made.map_err(|source| Error::Io {
        action: "make",
        path: path.to_owned(),
        source,
    })?;
    tracing::info!(
        path = %path.display(), kek = kek.id(),
        "a key-encryption key was made: keep a copy of it elsewhere, or give this node one from elsewhere with encryption.key_file"
    );
    Ok(kek)
}

/// Opens the ring, wrapped by the first key from here on.
fn unwrap(mut file: File, keks: &Keks, path: &Path) -> Result<State, Error> {
    let damaged = |reason: String| Error::RingDamaged {
        ring: path.to_owned(),
        reason,
    };
    let wraps = keks.wraps.as_ref().unwrap_or(&keks.first);
    let mut keys = BTreeMap::new();
    for entry in &mut file.keys {
        let wrapped = BASE64.decode(&entry.wrapped).map_err(|error| damaged(error.to_string()))?;
        let key = wraps
            .unwrap(entry.id, &wrapped)
            .map_err(|error| damaged(format!("key {}: {error}", entry.id)))?;
        if keks.rewrapped {
            let again = keks
                .first
                .rewrap(wraps, entry.id, &wrapped)
                .map_err(|error| damaged(error.to_string()))?;
            entry.wrapped = BASE64.encode(again);
        }
        keys.insert(entry.id, Arc::new(key));
    }
    keks.first.id().clone_into(&mut file.kek);
    let active = keys
        .get(&file.active)
        .cloned()
        .ok_or_else(|| damaged("the active key is missing".to_owned()))?;
    Ok(State { file, keys, active })
}

fn parse(bytes: &[u8], path: &Path) -> Result<File, Error> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |error: serde_json::Error| Error::RingDamaged {
        ring: path.to_owned(),
        reason: error.to_string(),
    };
    let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format > FORMAT {
        return Err(Error::Newer {
            ring: path.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match disk::read_file(disk, path, MAX_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}
