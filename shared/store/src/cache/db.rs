//! The keys of the cache: one tree, a prefix byte per kind of content, each change one atomic batch.
//!
//! ```text
//! m                              meta: history, revision, count and digest of the resources
//! o kind 00 mesh 00 name         a resource
//! h revision (8, big-endian)     what a revision changed
//! ```
//! A value is a crc32c (4 bytes, over key and content) and JSON, which is sealed for its key where there are data keys, but for `m`. The digest is the XOR of these sums over all resources, so that a
//! missing or doubled key is noticed too.
//! Invariant: after any return, `m` says what the rest holds.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ursa_model::{Resource, ResourceKey};
use ursa_state::{HistoryId, Revision, RevisionChanges, View};

use super::Error;
use crate::seal::{DataKey, KeyId, Place};

/// Memory that sled may use for pages, bytes. The state is in memory anyway.
const PAGE_CACHE: u64 = 16 << 20;
/// Changes per batch: sled holds a batch in memory.
const BATCH: usize = 512;
const META: &[u8] = b"m";
const OBJECT: u8 = b'o';
const HISTORY: u8 = b'h';
/// Layout of the above.
/// 2: values may be sealed.
const FORMAT: u32 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    format: u32,
    pub history: HistoryId,
    pub revision: Revision,
    pub floor: Revision,
    pub objects: u64,
    digest: u32,
    /// The values are sealed with it.
    pub key: Option<KeyId>,
}

pub(super) struct Db {
    key: Option<Arc<DataKey>>,
    db: sled::Db,
    meta: Meta,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("meta", &self.meta).finish_non_exhaustive()
    }
}

fn object_key(key: &ResourceKey) -> Vec<u8> {
    let kind = key.kind().to_string();
    let mut bytes = Vec::with_capacity(kind.len() + key.mesh().len() + key.name().len() + 3);
    bytes.push(OBJECT);
    for part in [kind.as_str(), "\0", key.mesh(), "\0", key.name()] {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

fn history_key(revision: Revision) -> [u8; 9] {
    let [a, b, c, d, e, f, g, h] = revision.to_be_bytes();
    [HISTORY, a, b, c, d, e, f, g, h]
}

fn frame(key: &[u8], content: &[u8]) -> (u32, Vec<u8>) {
    let mut value = [&[0; 4][..], content].concat();
    let sum = crc32c::crc32c_append(crc32c::crc32c(key), value.get(4..).unwrap_or_default());
    if let Some(place) = value.first_chunk_mut() {
        *place = sum.to_le_bytes();
    }
    (sum, value)
}

fn encode(content: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(content).map_err(|error| Error::Damaged(error.to_string()))
}

/// Checks a value; returns its sum and what it frames.
fn unframe<'a>(key: &[u8], value: &'a [u8]) -> Result<(u32, &'a [u8]), Error> {
    let damaged = || Error::Damaged(format!("the value of {}", String::from_utf8_lossy(key)));
    let (sum, content) = value.split_first_chunk().ok_or_else(damaged)?;
    let sum = u32::from_le_bytes(*sum);
    if crc32c::crc32c_append(crc32c::crc32c(key), content) == sum {
        Ok((sum, content))
    } else {
        Err(damaged())
    }
}

fn parse<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, Error> {
    let (_, content) = unframe(key, value)?;
    decode(content)
}

fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(content).map_err(|error| Error::Damaged(error.to_string()))
}

/// sled panics on some damage; here that is an error like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::Damaged("sled panicked".to_owned())))
}

impl Db {
    /// Opens what is there, sealed with `key`, and checks every value.
    pub(super) fn open(path: &Path, key: Option<Arc<DataKey>>) -> Result<Self, Error> {
        guarded(|| {
            let db = sled::Config::new()
                .path(path)
                .flush_every_ms(None)
                .cache_capacity(PAGE_CACHE)
                .open()?;
            let meta = match db.get(META)? {
                Some(value) => parse(META, &value)?,
                None => Meta {
                    format: FORMAT,
                    key: key.as_ref().map(|key| key.id()),
                    ..Meta::default()
                },
            };
            let db = Self { key, db, meta };
            db.check()?;
            Ok(db)
        })
    }

    fn check(&self) -> Result<(), Error> {
        if self.meta.format != FORMAT {
            return Err(Error::Damaged(format!("format {}", self.meta.format)));
        }
        if self.meta.key != self.key.as_ref().map(|key| key.id()) {
            return Err(Error::Damaged("it is not encrypted with the key of now".to_owned()));
        }
        let (mut objects, mut digest) = (0, 0);
        for item in self.db.iter() {
            let (key, value) = item?;
            let (sum, _) = unframe(&key, &value)?;
            match key.first() {
                Some(&OBJECT) => {
                    objects += 1;
                    digest ^= sum;
                }
                Some(&HISTORY) => {}
                _ if &*key == META => {}
                _ => return Err(Error::Damaged("a key of no kind".to_owned())),
            }
        }
        if (objects, digest) == (self.meta.objects, self.meta.digest) {
            Ok(())
        } else {
            Err(Error::Damaged(format!(
                "{objects} resources instead of {}, or other ones",
                self.meta.objects
            )))
        }
    }

    pub(super) fn meta(&self) -> Meta {
        self.meta
    }

    pub(super) fn is_empty(&self) -> bool {
        self.meta.history == HistoryId::default()
    }

    pub(super) fn get(&self, key: &ResourceKey) -> Result<Option<Resource>, Error> {
        guarded(|| self.read(&object_key(key)))
    }

    pub(super) fn changes(&self, revision: Revision) -> Result<Option<RevisionChanges>, Error> {
        guarded(|| self.read(&history_key(revision)))
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        let Some(value) = self.db.get(key)? else { return Ok(None) };
        let (_, content) = unframe(key, &value)?;
        match &self.key {
            None => decode(content).map(Some),
            Some(sealed) => {
                let opened = sealed.open(&Place::Value(key), content);
                decode(&opened.map_err(|error| Error::Damaged(error.to_string()))?).map(Some)
            }
        }
    }

    /// The value for a key, and its sum.
    fn seal(&self, key: &[u8], content: &impl Serialize) -> Result<(u32, Vec<u8>), Error> {
        let content = encode(content)?;
        match &self.key {
            None => Ok(frame(key, &content)),
            Some(seal) => {
                let sealed = seal.seal(&Place::Value(key), &content);
                Ok(frame(key, &sealed.map_err(|error| Error::Damaged(error.to_string()))?))
            }
        }
    }

    /// Brings the content from whatever it is to what `view` shows, by its changes if it knows them all.
    pub(super) fn catch_up(&mut self, view: &View) -> Result<(), Error> {
        let here = (self.meta.history, self.meta.revision, self.meta.floor);
        if here == (view.history_id(), view.revision(), view.floor()) || view.history_id() == HistoryId::default() {
            return Ok(());
        }
        let before = self.meta;
        let done = guarded(|| {
            let same_history = self.meta.history == view.history_id() && self.meta.revision <= view.revision();
            match view.changes_since(self.meta.revision) {
                Ok(changes) if same_history => self.replay(view, changes.map(AsRef::as_ref)),
                _ => self.refill(view),
            }
        });
        if done.is_err() {
            self.meta = before;
        }
        done
    }

    fn replay<'a>(&mut self, view: &View, changes: impl Iterator<Item = &'a RevisionChanges>) -> Result<(), Error> {
        let mut pending = Pending::default();
        for revision in changes {
            for change in &revision.changes {
                let key = object_key(&change.key);
                self.forget(&key, &mut pending)?;
                match &change.after {
                    Some(after) => self.put(key, after.as_ref(), &mut pending)?,
                    None => pending.batch.remove(key),
                }
            }
            let key = history_key(revision.revision);
            pending.batch.insert(&key[..], self.seal(&key, revision)?.1);
            self.meta.revision = revision.revision;
            pending.count += revision.changes.len() + 1;
            if pending.count >= BATCH {
                self.apply(&mut pending)?;
            }
        }
        for item in self.db.range(history_key(0)..=history_key(view.floor())) {
            pending.batch.remove(item?.0);
        }
        (self.meta.revision, self.meta.floor) = (view.revision(), view.floor());
        self.apply(&mut pending)
    }

    fn refill(&mut self, view: &View) -> Result<(), Error> {
        self.db.clear()?;
        // Until the last batch it says that it holds nothing: a start in between fills it anew.
        self.meta = Meta {
            format: FORMAT,
            key: self.meta.key,
            ..Meta::default()
        };
        let mut filled = self.meta;
        let mut pending = Pending::default();
        for resource in view.iter() {
            let key = object_key(&resource.key);
            let (sum, value) = self.seal(&key, resource.as_ref())?;
            filled.objects += 1;
            filled.digest ^= sum;
            pending.batch.insert(key, value);
            pending.count += 1;
            if pending.count >= BATCH {
                self.db.apply_batch(std::mem::take(&mut pending).batch)?;
            }
        }
        let changes = view
            .changes_since(view.floor())
            .map_err(|error| Error::Damaged(error.to_string()))?;
        for revision in changes {
            let key = history_key(revision.revision);
            pending.batch.insert(&key[..], self.seal(&key, revision.as_ref())?.1);
            pending.count += 1;
            if pending.count >= BATCH {
                self.db.apply_batch(std::mem::take(&mut pending).batch)?;
            }
        }
        self.meta = Meta {
            history: view.history_id(),
            revision: view.revision(),
            floor: view.floor(),
            ..filled
        };
        self.apply(&mut pending)
    }

    /// Takes what is under `key` out of count and digest.
    fn forget(&mut self, key: &[u8], pending: &mut Pending) -> Result<(), Error> {
        let sum = match pending.sums.get(key) {
            Some(sum) => *sum,
            None => self
                .db
                .get(key)?
                .map(|value| unframe(key, &value).map(|(sum, _)| sum))
                .transpose()?,
        };
        if let Some(sum) = sum {
            self.meta.objects = self.meta.objects.saturating_sub(1);
            self.meta.digest ^= sum;
        }
        pending.sums.insert(key.to_owned(), None);
        Ok(())
    }

    fn put(&mut self, key: Vec<u8>, resource: &Resource, pending: &mut Pending) -> Result<(), Error> {
        let (sum, value) = self.seal(&key, resource)?;
        self.meta.objects += 1;
        self.meta.digest ^= sum;
        pending.sums.insert(key.clone(), Some(sum));
        pending.batch.insert(key, value);
        Ok(())
    }

    fn apply(&mut self, pending: &mut Pending) -> Result<(), Error> {
        let mut pending = std::mem::take(pending);
        pending.batch.insert(META, frame(META, &encode(&self.meta)?).1);
        self.db.apply_batch(pending.batch)?;
        Ok(())
    }

    /// Lets go of it, whatever becomes of it: sled writes once more as it ends.
    pub(super) fn let_go(self) {
        let _ = guarded(|| {
            drop(self);
            Ok(())
        });
    }

    /// Hands everything to the system. Not durable yet.
    pub(super) fn close(self) -> Result<(), Error> {
        guarded(|| {
            self.db.flush()?;
            Ok(())
        })
    }
}

/// A batch in the making.
#[derive(Default)]
struct Pending {
    batch: sled::Batch,
    count: usize,
    /// Sums of the resources in it; `None`: removed.
    sums: std::collections::BTreeMap<Vec<u8>, Option<u32>>,
}
