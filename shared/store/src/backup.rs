//! A backup: the whole state at one revision, history included, as one file that is encrypted to recipients (`ursa_pki::age`).
//!
//! ```text
//! "URSABACK"       8
//! format           4   a newer one is refused by name
//! length of head   4
//! head             JSON, see [`Head`]
//! content          the state's own document
//! length           8   of the content
//! sha256          32   over everything before it
//! "URSAEND\n"      8
//! ```
//! Integers are little-endian. In: a state. Out: the file, and the state again.
//! Invariants: plaintext never leaves the process that writes it; what is not whole, was changed, or is of a newer version is refused
//! with the way out, before anything is made of it; memory is bounded by the state itself, which is shared and not copied.
//!
//! - [`Export`]: the writing side, beside a running store. - [`restore`]: a new node from it. - [`recover`]: what is left of a group.
mod disk;
mod export;
mod offline;
pub mod recover;
pub mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ursa_model::Timestamp;
use ursa_pki::age;
use ursa_state::{HistoryId, Origin, Revision, SnapshotError, State};

pub use export::Export;
pub(crate) use offline::settle;
pub(crate) use restore::is_finished;

const MAGIC: &[u8; 8] = b"URSABACK";
const END: &[u8; 8] = b"URSAEND\n";
/// Version that is written.
const FORMAT: u32 = 1;
/// Longest head: names and addresses of a few nodes, counts of some dozen kinds.
const MAX_HEAD: u32 = 1 << 20;
const TRAILER: usize = 8 + 32 + 8;
/// Bytes per read.
const CHUNK: usize = 64 << 10;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Version of the program that wrote it.
    pub program: String,
    pub history: HistoryId,
    pub revision: Revision,
    /// Oldest revision that can be read of it.
    pub oldest: Revision,
    /// Of the newest change.
    pub changed: Timestamp,
    pub taken: Timestamp,
    /// By which node, and its term then.
    pub node: u64,
    pub term: u64,
    /// Of the group that it is from.
    pub members: BTreeMap<u64, String>,
    pub feature_level: u32,
    /// Resources of each kind.
    pub kinds: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl Head {
    /// Of all kinds together.
    pub fn resources(&self) -> u64 {
        self.kinds.values().sum()
    }
}

/// Why a backup cannot be written or used. Each text says the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is no backup ({0}): name a file that `global-cp backup` made")]
    NotABackup(&'static str),
    #[error("the backup has format {found}, this program knows up to {known}: use the version that wrote it, or a newer one")]
    Newer { found: u32, known: u32 },
    #[error(
        "the backup ends too early: it was cut short, or its end was changed; use another copy or another backup, this one cannot be trusted"
    )]
    CutShort,
    #[error("the backup was changed or damaged ({0}): use another copy or another backup, this one cannot be trusted")]
    Damaged(String),
    /// It is encrypted to others, the recipients cannot be used, or there is no random.
    #[error(transparent)]
    Sealed(age::Error),
    /// The file or the connection.
    #[error("the backup cannot be read or written")]
    Io(#[source] io::Error),
}

impl From<age::Error> for Error {
    fn from(error: age::Error) -> Self {
        match error {
            age::Error::CutShort => Self::CutShort,
            age::Error::Damaged(what) => Self::Damaged(what.to_owned()),
            age::Error::Format(_) => Self::NotABackup("it is no age file"),
            age::Error::Io(error) => error.into(),
            error => Self::Sealed(error),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if !error.get_ref().is_some_and(|inner| inner.is::<age::Error>()) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::CutShort,
                _ => Self::Io(error),
            };
        }
        match error.into_inner().map(|inner| inner.downcast::<age::Error>()) {
            Some(Ok(inner)) => (*inner).into(),
            _ => Self::Damaged("it cannot be decrypted".to_owned()),
        }
    }
}

impl From<SnapshotError> for Error {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Io(error) => error.into(),
            SnapshotError::Format { found, known } => Self::Newer { found, known },
            error @ (SnapshotError::Json(_) | SnapshotError::History(_)) => Self::Damaged(error.to_string()),
        }
    }
}

/// Writes a backup; does not flush. What breaks off has no end mark, and is refused by whoever reads it.
///
/// # Errors
/// See [`Error`].
pub fn write(head: &Head, state: &State, recipients: &[age::Recipient], out: impl Write) -> Result<(), Error> {
    let mut out = Summed {
        out: age::Writer::new(recipients, out)?,
        sum: Sha256::new(),
        written: 0,
    };
    let encoded = serde_json::to_vec(head).map_err(|error| Error::Io(error.into()))?;
    let length = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&encoded)?;
    let before = out.written;
    state.write_snapshot(&mut out)?;
    let content = out.written - before;
    out.write_all(&content.to_le_bytes())?;
    let Summed { mut out, sum, .. } = out;
    out.write_all(&sum.finalize())?;
    out.write_all(END)?;
    out.finish()?;
    Ok(())
}

/// Sums up what passes.
struct Summed<W> {
    out: W,
    sum: Sha256,
    written: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.sum.update(bytes.get(..taken).unwrap_or_default());
        self.written += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A backup that is being read: its head is known, and that the file was encrypted to us; nothing else is yet.
pub struct Backup<R: BufRead> {
    pub head: Head,
    body: Body<age::Reader<R>>,
}

impl<R: BufRead> std::fmt::Debug for Backup<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("head", &self.head).finish_non_exhaustive()
    }
}

impl<R: BufRead> Backup<R> {
    /// Begins to read. Blocks on the reader, as everything here.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(identities: &[age::Identity], input: R) -> Result<Self, Error> {
        let mut body = Body {
            input: age::Reader::new(identities, input)?,
            ahead: Vec::new(),
            given: 0,
            sum: Sha256::new(),
            passed: 0,
            ended: false,
        };
        let mut begin = [0; 16];
        body.read_exact(&mut begin)?;
        if !begin.starts_with(MAGIC) {
            return Err(Error::NotABackup("it begins otherwise"));
        }
        let number = |at: usize| {
            begin
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |b| u32::from_le_bytes(*b))
        };
        let (found, length) = (number(8), number(12));
        if found > FORMAT {
            return Err(Error::Newer { found, known: FORMAT });
        }
        if length > MAX_HEAD {
            return Err(Error::Damaged("its head is too long".to_owned()));
        }
        let mut head = vec![0; usize::try_from(length).unwrap_or_default()];
        body.read_exact(&mut head)?;
        let head = serde_json::from_slice(&head).map_err(|error| Error::Damaged(format!("its head: {error}")))?;
        body.passed = 0;
        Ok(Self { head, body })
    }

    /// Reads all of it, and tells how long the content is. Needs no memory to speak of.
    ///
    /// # Errors
    /// It is not whole.
    pub fn check(mut self) -> Result<u64, Error> {
        io::copy(&mut self.body, &mut io::sink())?;
        self.body.end()
    }

    /// The state in it, once all of it was found to be what was written.
    ///
    /// # Errors
    /// It is not whole, or of a newer version.
    pub fn state(mut self) -> Result<State, Error> {
        let read = State::read_snapshot(&mut self.body);
        // What is damaged is often found by its sum only, and by the document before: the first is the better name.
        let state = match read {
            Ok(state) => state,
            Err(SnapshotError::Io(error)) => return Err(error.into()),
            Err(error) => {
                io::copy(&mut self.body, &mut io::sink())?;
                self.body.end()?;
                return Err(error.into());
            }
        };
        self.body.end()?;
        let view = state.view();
        if (view.history_id(), view.revision()) != (self.head.history, self.head.revision) {
            return Err(Error::Damaged("its head is that of another state".to_owned()));
        }
        Ok(state)
    }
}

/// Everything but the trailer, which is held back until the end.
struct Body<R> {
    input: R,
    ahead: Vec<u8>,
    given: usize,
    sum: Sha256,
    /// Bytes given out.
    passed: u64,
    ended: bool,
}

impl<R: Read> Body<R> {
    /// Whether the trailer is the right one. Everything must have been read.
    fn end(mut self) -> Result<u64, Error> {
        if self.read(&mut [0])? != 0 {
            return Err(Error::Damaged("it goes on after its end".to_owned()));
        }
        let trailer: [u8; TRAILER] = self
            .ahead
            .get(self.given..)
            .and_then(|rest| rest.try_into().ok())
            .ok_or(Error::CutShort)?;
        let (length, rest) = trailer.split_at(8);
        let (sum, end) = rest.split_at(32);
        self.sum.update(length);
        if end != END {
            return Err(Error::CutShort);
        }
        if self.sum.finalize().as_slice() != sum || length != self.passed.to_le_bytes() {
            return Err(Error::Damaged("its sum is another one".to_owned()));
        }
        Ok(self.passed)
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.ended && self.ahead.len() - self.given <= TRAILER {
            self.ahead.drain(..self.given);
            self.given = 0;
            let before = self.ahead.len();
            self.ahead.resize(before + CHUNK, 0);
            let read = self.input.read(self.ahead.get_mut(before..).unwrap_or_default());
            self.ahead.truncate(before + *read.as_ref().unwrap_or(&0));
            self.ended = read? == 0;
        }
        let room = (self.ahead.len() - self.given).saturating_sub(TRAILER);
        let taken = room.min(buf.len());
        let from = self.ahead.get(self.given..self.given + taken).unwrap_or_default();
        if let Some(to) = buf.get_mut(..taken) {
            to.copy_from_slice(from);
        }
        self.sum.update(from);
        self.given += taken;
        self.passed += taken as u64;
        Ok(taken)
    }
}
