//! One file of the log, with the key of its entries: from an entry's content to a record's payload and back.
//! In: entries, payloads. Out: the other. Invariant: a payload opens only as the entry it was sealed as, where it was written.
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::memory::Place;
use super::record::{self, Content};
use super::{EntryId, Error, Item};
use crate::disk::DiskFile;
use crate::seal::{self, DataKey, KeyId, OVERHEAD};

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub file: Arc<dyn DiskFile>,
    /// `None`: the entries are in the clear.
    pub key: Option<Arc<DataKey>>,
}

impl Part {
    pub(super) fn key_id(&self) -> Option<KeyId> {
        self.key.as_ref().map(|key| key.id())
    }

    /// Reads the entry back from its place.
    pub(super) fn read<E: Item>(&self, id: EntryId, place: Place, path: &Path) -> Result<E, Error> {
        let mut bytes = vec![0; place.size];
        let read = self.file.read_at(place.offset, &mut bytes);
        read.map_err(|source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let damaged = |reason: String| Error::Damaged {
            path: path.to_owned(),
            offset: place.offset,
            reason,
        };
        match record::decode_at(&bytes, place.segment, place.offset).map(|record| record.content) {
            Ok(Content::Entry(found, payload)) if found == id => {
                let content = unseal(self.key.as_deref(), id, place.segment, place.offset, payload);
                E::decode(id, &content.map_err(|error| damaged(error.to_string()))?).map_err(damaged)
            }
            Ok(_) => Err(damaged(format!("this is not entry {id}"))),
            Err(invalid) => Err(damaged(format!("entry {id}: {invalid:?}"))),
        }
    }
}

/// The payload of an entry whose record will begin at `offset`.
pub(super) fn seal(key: Option<&DataKey>, id: EntryId, segment: u64, offset: u64, content: Bytes) -> io::Result<Bytes> {
    match key {
        None => Ok(content),
        Some(key) => Ok(key.seal(&seal::Place::Entry { id, segment, offset }, &content)?.into()),
    }
}

/// Reverses [`seal`].
pub(super) fn unseal(key: Option<&DataKey>, id: EntryId, segment: u64, offset: u64, payload: &[u8]) -> Result<Bytes, seal::Sealed> {
    match key {
        None => Ok(Bytes::copy_from_slice(payload)),
        Some(key) => Ok(key.open(&seal::Place::Entry { id, segment, offset }, payload)?.into()),
    }
}

/// Bytes of the content of a payload.
pub(super) fn content_len(sealed: bool, payload: &[u8]) -> usize {
    payload.len().saturating_sub(if sealed { OVERHEAD } else { 0 })
}
