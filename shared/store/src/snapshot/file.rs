//! The bytes of a snapshot file. Integers are little-endian.
//!
//! ```text
//! "URSASNAP"      8
//! format          4   a newer one is refused by name
//! length of meta  4
//! meta            JSON, see [`Meta`]
//! content         the state's own document
//! length          8   of the content
//! crc32c          4   over everything before it
//! "END\n"         4
//! ```
//! In: meta and state. Out: the same. Invariant: a file that is not whole and intact is never taken for one.
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ursa_state::{HistoryId, Revision, State};

use super::Error;
use crate::codec::StoredMembers;
use crate::disk::{Disk, DiskFile};
use crate::log::EntryId;
use crate::seal::file::Unopened;
use crate::seal::{self, Keys};

const MAGIC: &[u8; 8] = b"URSASNAP";
const END: &[u8; 4] = b"END\n";
/// 2: the content is a document of format 2, which a program that knows 1 would take for damaged. 1 is read all the same.
const FORMAT: u32 = 2;
const HEADER: usize = 16;
const TRAILER: usize = 16;
/// Longest meta: names and addresses of a few nodes.
const MAX_META: usize = 1 << 20;
/// Bytes per write and read.
const CHUNK: usize = 1 << 20;

/// What a snapshot covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Newest entry in it.
    pub last: Option<EntryId>,
    /// Members of the group at that point.
    pub members: StoredMembers,
    /// For people who look at the file; the document in it decides.
    pub history: HistoryId,
    /// As `history`.
    pub revision: Revision,
}

/// The content of a file, sealed or not.
pub(super) fn open(disk: &dyn Disk, path: &Path, keys: &Keys) -> Result<Arc<dyn DiskFile>, Error> {
    let path = path.to_owned();
    let opened = disk.open(&path).map_err(|source| (Unopened::Io(source), "open"));
    match opened.and_then(|file| seal::file::open(file, keys).map_err(|error| (error, "read"))) {
        Ok(content) => Ok(content),
        Err((Unopened::Io(source), action)) => Err(Error::Io { action, path, source }),
        Err((Unopened::Damaged(reason), _)) => Err(Error::Damaged {
            path,
            reason: reason.to_owned(),
        }),
        Err((Unopened::Newer { found, known }, _)) => Err(Error::Newer { path, found, known }),
        Err((Unopened::Key(source), _)) => Err(Error::Key { path, source }),
    }
}

/// Writes a snapshot into an empty file. Does not sync.
pub(super) fn write(file: &dyn DiskFile, path: &Path, meta: &Meta, state: &State) -> Result<(), Error> {
    let io = |source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let encoded = serde_json::to_vec(meta).map_err(|error| io(error.into()))?;
    let mut out = Framed {
        file,
        buf: Vec::with_capacity(CHUNK + HEADER),
        written: 0,
        crc: 0,
    };
    let mut begin = Vec::with_capacity(HEADER + encoded.len());
    begin.extend_from_slice(MAGIC);
    begin.extend_from_slice(&FORMAT.to_le_bytes());
    begin.extend_from_slice(&u32::try_from(encoded.len()).unwrap_or(u32::MAX).to_le_bytes());
    begin.extend_from_slice(&encoded);
    out.write_all(&begin).map_err(io)?;
    let before = out.len();
    state.write_snapshot(&mut out).map_err(|source| Error::State {
        path: path.to_owned(),
        source,
    })?;
    let content = out.len() - before;
    out.write_all(&content.to_le_bytes()).map_err(io)?;
    out.flush().map_err(io)?;
    let crc = out.crc;
    out.write_all(&crc.to_le_bytes()).map_err(io)?;
    out.write_all(END).map_err(io)?;
    out.flush().map_err(io)
}

/// Collects bytes into large writes and sums them up.
struct Framed<'a> {
    file: &'a dyn DiskFile,
    buf: Vec<u8>,
    written: u64,
    crc: u32,
}

impl Framed<'_> {
    fn len(&self) -> u64 {
        self.written + self.buf.len() as u64
    }
}

impl Write for Framed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buf.extend_from_slice(bytes);
        if self.buf.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.buf);
        self.file.write_at(self.written, &self.buf)?;
        self.written += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}

/// A file whose bytes are intact.
pub(super) struct Intact {
    pub meta: Meta,
    file: Arc<dyn DiskFile>,
    content: (u64, u64),
}

impl Intact {
    /// Checks the whole file.
    pub(super) fn check(file: Arc<dyn DiskFile>, path: &Path) -> Result<Self, Error> {
        let io = |source: io::Error| match source.kind() {
            // Its bytes are those that were written, but not here.
            io::ErrorKind::InvalidData => Error::Damaged {
                path: path.to_owned(),
                reason: source.to_string(),
            },
            _ => Error::Io {
                action: "read",
                path: path.to_owned(),
                source,
            },
        };
        let damaged = |reason: &str| Error::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let len = file.size().map_err(io)?;
        let mut header = [0; HEADER];
        if file.read_at(0, &mut header).map_err(io)? < HEADER || !header.starts_with(MAGIC) {
            return Err(damaged("it does not begin as a snapshot"));
        }
        let end = len
            .checked_sub(TRAILER as u64)
            .filter(|end| *end >= HEADER as u64)
            .ok_or_else(|| damaged("it is too short"))?;
        let mut trailer = [0; TRAILER];
        if file.read_at(end, &mut trailer).map_err(io)? < TRAILER || !trailer.ends_with(END) {
            return Err(damaged("it does not end as a snapshot"));
        }
        if sum(&*file, len - 8).map_err(io)? != u32_at(&trailer, 8) {
            return Err(damaged("the checksum does not match"));
        }
        let format = u32_at(&header, 8);
        if format > FORMAT {
            return Err(Error::Newer {
                path: path.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        let meta_len = usize::try_from(u32_at(&header, 12))
            .ok()
            .filter(|len| *len <= MAX_META)
            .ok_or_else(|| damaged("its meta is too long"))?;
        let content = (HEADER + meta_len) as u64;
        let content_len = trailer.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        if content.checked_add(content_len) != Some(end) {
            return Err(damaged("its lengths do not add up"));
        }
        let mut meta = vec![0; meta_len];
        file.read_at(HEADER as u64, &mut meta).map_err(io)?;
        let meta = serde_json::from_slice(&meta).map_err(|error| damaged(&format!("its meta cannot be read: {error}")))?;
        Ok(Self {
            meta,
            file,
            content: (content, content_len),
        })
    }

    /// The state in it.
    pub(super) fn state(&self, path: &Path) -> Result<State, Error> {
        let (offset, len) = self.content;
        let reader = At {
            file: &*self.file,
            offset,
            end: offset + len,
        };
        State::read_snapshot(BufReader::with_capacity(CHUNK.min(usize::try_from(len).unwrap_or(CHUNK)), reader)).map_err(|source| {
            Error::State {
                path: path.to_owned(),
                source,
            }
        })
    }

    /// Copies the bytes into an empty file.
    pub(super) fn copy_to(&self, to: &dyn DiskFile) -> io::Result<()> {
        let len = self.file.size()?;
        let mut offset = 0;
        let mut buf = vec![0; CHUNK];
        while offset < len {
            let read = self.file.read_at(offset, &mut buf)?;
            to.write_at(
                offset,
                buf.get(..read)
                    .filter(|bytes| !bytes.is_empty())
                    .ok_or(io::ErrorKind::UnexpectedEof)?,
            )?;
            offset += read as u64;
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn sum(file: &dyn DiskFile, len: u64) -> io::Result<u32> {
    let mut reader = At { file, offset: 0, end: len };
    let mut buf = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let mut crc = 0;
    loop {
        match reader.read(&mut buf)? {
            0 => return Ok(crc),
            read => crc = crc32c::crc32c_append(crc, buf.get(..read).unwrap_or_default()),
        }
    }
}

/// Part of a file as a stream.
struct At<'a> {
    file: &'a dyn DiskFile,
    offset: u64,
    end: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        let read = self.file.read_at(self.offset, buf.get_mut(..want).unwrap_or_default())?;
        self.offset += read as u64;
        Ok(read)
    }
}
