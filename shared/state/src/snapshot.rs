//! The snapshot document: the whole state, history included, as bytes. The caller adds a checksum around it.
//!
//! ```text
//! "URSASTAT"        8
//! format            4   little-endian; 2
//! length of JSON    8
//! JSON              everything but packed history, see [`Document`]
//! number of blocks  8
//! blocks                packed history, oldest first, see [`crate::history`]
//! ```
//! Format 1 was the JSON alone; it is read, never written. A newer format is refused by name.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use ursa_model::{Resource, Timestamp};

use crate::{
    change::{Applied, GlobalRevision, HistoryId, RequestId, Revision, RevisionChanges},
    history::{Block, Damaged, History},
    origin::Origin,
    state::State,
    view::View,
};

const MAGIC: &[u8; 8] = b"URSASTAT";
/// Version that is written.
const FORMAT: u32 = 2;
/// Version of a document that is JSON alone.
const FORMAT_JSON: u32 = 1;
/// Bytes of JSON that are written at a time.
const PIECE: usize = 64 << 10;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is no such document.
    #[error("snapshot document: {0}")]
    Json(serde_json::Error),
    /// Its packed history is none.
    #[error("snapshot history: {0}")]
    History(String),
    #[error("snapshot: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "snapshot format {found} is not known here (this program knows {known}); use the program version that wrote it, or a newer one"
    )]
    Format { found: u32, known: u32 },
}

impl From<Damaged> for SnapshotError {
    fn from(damaged: Damaged) -> Self {
        Self::History(damaged.0)
    }
}

impl State {
    /// Writes the snapshot document.
    pub fn write_snapshot(&self, mut out: impl Write) -> Result<(), SnapshotError> {
        let history = &self.view.history;
        let document = DocumentRef {
            format: FORMAT,
            history: self.view.history_id,
            revision_base: self.revision_base,
            applied_index: self.applied_index,
            revision: self.view.revision,
            floor: history.floor(),
            time: self.view.time,
            global: self.view.global,
            feature_level: self.feature_level,
            objects: self.view.objects.values().collect(),
            changes: history.recent().collect(),
            requests: self.requests.iter().map(|(index, id, _, answer)| (index, id, answer)).collect(),
            request_times: self.requests.iter().map(|(.., at, _)| at).collect(),
            origin: self.view.origin.as_deref(),
        };
        // Measured first and written then: in memory it would be as large again as the state.
        let mut length = Counter(0);
        serde_json::to_writer(&mut length, &document).map_err(SnapshotError::Json)?;
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        out.write_all(&length.0.to_le_bytes())?;
        let mut buffered = std::io::BufWriter::with_capacity(PIECE, &mut out);
        serde_json::to_writer(&mut buffered, &document).map_err(of_writer)?;
        buffered.flush()?;
        drop(buffered);
        out.write_all(&(history.blocks().count() as u64).to_le_bytes())?;
        for block in history.blocks() {
            block.write(&mut out)?;
        }
        Ok(())
    }

    /// Reads what [`State::write_snapshot`] wrote, in this version or an older one. Errors on a newer format or a damaged document.
    pub fn read_snapshot(mut input: impl Read) -> Result<Self, SnapshotError> {
        let mut begin = Vec::with_capacity(MAGIC.len());
        input.by_ref().take(MAGIC.len() as u64).read_to_end(&mut begin)?;
        if begin != MAGIC {
            let document = serde_json::from_reader(begin.as_slice().chain(input)).map_err(SnapshotError::Json)?;
            return Self::of_document(document, FORMAT_JSON);
        }
        let mut format = [0; 4];
        input.read_exact(&mut format)?;
        let format = u32::from_le_bytes(format);
        if format != FORMAT {
            return Err(SnapshotError::Format {
                found: format,
                known: FORMAT,
            });
        }
        let mut json = Vec::new();
        let len = length(&mut input)?;
        input.by_ref().take(len).read_to_end(&mut json)?;
        let document = serde_json::from_slice(&json).map_err(SnapshotError::Json)?;
        drop(json);
        let mut state = Self::of_document(document, FORMAT)?;
        let mut newest = 0;
        for _ in 0..length(&mut input)? {
            let block = Block::read_from(&mut input)?;
            if block.head.first <= newest {
                return Err(SnapshotError::History("its blocks are not in order".to_owned()));
            }
            newest = block.head.last;
            state.view.history.insert_block(Arc::new(block));
        }
        if input.read(&mut [0])? != 0 {
            return Err(SnapshotError::History("it goes on after its end".to_owned()));
        }
        Ok(state)
    }

    fn of_document(document: Document, format: u32) -> Result<Self, SnapshotError> {
        if document.format != format {
            return Err(SnapshotError::Format {
                found: document.format,
                known: FORMAT,
            });
        }
        let mut state = Self {
            view: View {
                history_id: document.history,
                revision: document.revision,
                time: document.time,
                global: document.global,
                history: History::starting_at(document.floor),
                origin: document.origin,
                ..View::default()
            },
            revision_base: document.revision_base,
            applied_index: document.applied_index,
            feature_level: document.feature_level,
            ..Self::default()
        };
        for object in document.objects {
            if let Some(owner) = &object.owner {
                state.owned.insert_mut((owner.clone(), object.key.clone()), ());
            }
            state.view.objects.insert_mut(object.key.clone(), object);
        }
        for changes in document.changes {
            state.view.history.restore(changes);
        }
        // The first versions did not write the times: then they count from the newest.
        let times = document.request_times.into_iter().chain(std::iter::repeat(document.time));
        for ((index, id, answer), at) in document.requests.into_iter().zip(times) {
            state.requests.remember(index, id, at, Arc::new(answer));
        }
        Ok(state)
    }
}

/// What the disk or the network said comes as what it is: it says nothing about the document.
fn of_writer(error: serde_json::Error) -> SnapshotError {
    if error.is_io() {
        SnapshotError::Io(error.into())
    } else {
        SnapshotError::Json(error)
    }
}

/// Takes bytes and only counts them.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn length(input: &mut impl Read) -> Result<u64, SnapshotError> {
    let mut len = [0; 8];
    input.read_exact(&mut len)?;
    Ok(u64::from_le_bytes(len))
}

#[derive(Serialize)]
struct DocumentRef<'a> {
    format: u32,
    history: HistoryId,
    revision_base: u64,
    applied_index: u64,
    revision: Revision,
    floor: Revision,
    time: Timestamp,
    global: Option<GlobalRevision>,
    feature_level: u32,
    objects: Vec<&'a Arc<Resource>>,
    changes: Vec<&'a Arc<RevisionChanges>>,
    requests: Vec<(u64, RequestId, &'a Applied)>,
    /// Of the requests, in the same order.
    request_times: Vec<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a Origin>,
}

#[derive(Deserialize)]
struct Document {
    format: u32,
    history: HistoryId,
    revision_base: u64,
    applied_index: u64,
    revision: Revision,
    floor: Revision,
    time: Timestamp,
    global: Option<GlobalRevision>,
    feature_level: u32,
    objects: Vec<Arc<Resource>>,
    changes: Vec<Arc<RevisionChanges>>,
    requests: Vec<(u64, RequestId, Applied)>,
    #[serde(default)]
    request_times: Vec<Timestamp>,
    #[serde(default)]
    origin: Option<Arc<Origin>>,
}
