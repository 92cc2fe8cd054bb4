//! A file in sealed blocks, for whoever works with it a file like any other: what is read and written is the content.
//!
//! ```text
//! "URSASEAL"      8
//! format          4   a newer one is refused by name
//! block           4   bytes of content in each block but the last
//! key             16  id of the data key
//! file            16  drawn for this file
//! blocks              each nonce, ciphertext and tag; the last, which may be empty, is sealed as the last
//! length          8   of the content
//! crc32c          4   over everything before it
//! "SEAL"          4
//! ```
//! In: content from front to back. Out: content, anywhere. Invariants: a block opens only in this file, at its number; a file that is cut at
//! a block's end has no last one; the checksum is outside, so that damage is told from a wrong key without any key.
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DataKey, Error, KeyId, Keys, OVERHEAD, Place};
use crate::disk::DiskFile;

const MAGIC: &[u8; 8] = b"URSASEAL";
const END: &[u8; 4] = b"SEAL";
const FORMAT: u32 = 1;
const HEADER: u64 = 48;
const TRAILER: u64 = 16;
/// Content of a block: small enough to be opened for a few bytes of it, large enough that what sealing adds does not count.
const BLOCK: usize = 64 << 10;
/// Largest block that is read.
const MAX_BLOCK: u32 = 16 << 20;
/// Bytes per read of the checksum.
const CHUNK: usize = 1 << 20;

/// Why a sealed file does not open.
#[derive(Debug)]
pub(crate) enum Unopened {
    Io(io::Error),
    Damaged(&'static str),
    Newer { found: u32, known: u32 },
    Key(Error),
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug)]
struct Header {
    format: u32,
    block: u32,
    key: KeyId,
    file: [u8; 16],
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let parts: [&[u8]; 5] = [
            MAGIC,
            &self.format.to_le_bytes(),
            &self.block.to_le_bytes(),
            &self.key.0,
            &self.file,
        ];
        parts.concat()
    }

    /// `None`: the file is not sealed.
    fn read(file: &dyn DiskFile) -> Result<Option<Self>, Unopened> {
        let mut bytes = [0; 48];
        let read = file.read_at(0, &mut bytes)?;
        if !bytes.starts_with(MAGIC) {
            return Ok(None);
        }
        if read < bytes.len() {
            return Err(Unopened::Damaged("it is too short"));
        }
        let [_, _, _, _, _, _, _, _, f0, f1, f2, f3, b0, b1, b2, b3, rest @ ..] = bytes;
        let (key, file) = rest.split_at(16);
        Ok(Some(Self {
            format: u32::from_le_bytes([f0, f1, f2, f3]),
            block: u32::from_le_bytes([b0, b1, b2, b3]),
            key: KeyId(key.try_into().unwrap_or_default()),
            file: file.try_into().unwrap_or_default(),
        }))
    }
}

/// The key with which a file was sealed; `None` if it was not.
///
/// # Errors
/// It cannot be read.
pub(crate) fn key_of(file: &dyn DiskFile) -> io::Result<Option<KeyId>> {
    match Header::read(file) {
        Ok(header) => Ok(header.map(|header| header.key)),
        Err(Unopened::Io(error)) => Err(error),
        Err(other) => Err(io::Error::new(ErrorKind::InvalidData, format!("{other:?}"))),
    }
}

/// The content of a file, sealed or not; of a sealed one all bytes were checked.
///
/// # Errors
/// See [`Unopened`].
pub(crate) fn open(file: Arc<dyn DiskFile>, keys: &Keys) -> Result<Arc<dyn DiskFile>, Unopened> {
    let Some(header) = Header::read(&*file)? else { return Ok(file) };
    let size = file.size()?;
    let end = size
        .checked_sub(TRAILER)
        .filter(|end| *end >= HEADER)
        .ok_or(Unopened::Damaged("it is too short"))?;
    let mut trailer = [0; 16];
    if file.read_at(end, &mut trailer)? < trailer.len() || !trailer.ends_with(END) {
        return Err(Unopened::Damaged("its seal does not end as one"));
    }
    let [l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, ..] = trailer;
    let len = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    if sum(&*file, end + 8)? != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(Unopened::Damaged("the checksum of its seal does not match"));
    }
    if header.format > FORMAT {
        return Err(Unopened::Newer {
            found: header.format,
            known: FORMAT,
        });
    }
    if header.block == 0 || header.block > MAX_BLOCK || HEADER + sealed_len(len, header.block.into()) != end {
        return Err(Unopened::Damaged("the lengths of its seal do not add up"));
    }
    let key = keys.get(header.key).map_err(Unopened::Key)?;
    Ok(Arc::new(Reader {
        file,
        key,
        header,
        len,
        last: Mutex::new(None),
    }))
}

/// Bytes of all blocks.
fn sealed_len(len: u64, block: u64) -> u64 {
    len.saturating_add(blocks(len, block).saturating_mul(OVERHEAD as u64))
}

fn blocks(len: u64, block: u64) -> u64 {
    len.div_ceil(block).max(1)
}

fn sum(file: &dyn DiskFile, len: u64) -> io::Result<u32> {
    let mut buf = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    let (mut crc, mut offset) = (0, 0);
    while offset < len {
        let want = buf.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        let read = file.read_at(offset, buf.get_mut(..want).unwrap_or_default())?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        crc = crc32c::crc32c_append(crc, buf.get(..read).unwrap_or_default());
        offset += read as u64;
    }
    Ok(crc)
}

fn read_only() -> io::Error {
    io::Error::new(ErrorKind::Unsupported, "a sealed file is written from front to back, once")
}

/// Opens one block that is on disk.
fn open_block(file: &dyn DiskFile, key: &DataKey, header: &Header, number: u64, len: usize, last: bool) -> io::Result<Vec<u8>> {
    let offset = HEADER + number * (u64::from(header.block) + OVERHEAD as u64);
    let mut sealed = vec![0; len + OVERHEAD];
    if file.read_at(offset, &mut sealed)? < sealed.len() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let place = Place::Block {
        file: &header.file,
        number,
        last,
    };
    Ok(key.open(&place, &sealed)?)
}

/// Copies from a block what belongs at `offset`. Returns how many bytes that were.
fn copy(block: &[u8], skip: usize, to: &mut [u8]) -> usize {
    let from = block.get(skip..).unwrap_or_default();
    let count = from.len().min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

/// A sealed file that is whole.
struct Reader {
    file: Arc<dyn DiskFile>,
    key: Arc<DataKey>,
    header: Header,
    /// Of the content.
    len: u64,
    /// The block that was opened last: who reads a little reads on.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({:?})", self.file)
    }
}

impl DiskFile for Reader {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let block = u64::from(self.header.block);
        let count = blocks(self.len, block);
        let mut done = 0;
        let mut opened = self.last.lock();
        while offset < self.len && done < buf.len() {
            let number = offset / block;
            if opened.as_ref().is_none_or(|(have, _)| *have != number) {
                let len = usize::try_from(block.min(self.len - number * block)).map_err(io::Error::other)?;
                let content = open_block(&*self.file, &self.key, &self.header, number, len, number + 1 == count)?;
                *opened = Some((number, content));
            }
            let Some((_, content)) = &*opened else { break };
            let skip = usize::try_from(offset % block).map_err(io::Error::other)?;
            let copied = copy(content, skip, buf.get_mut(done..).unwrap_or_default());
            if copied == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            done += copied;
            offset += copied as u64;
        }
        Ok(done)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A sealed file in the making, in an empty file. What was written so far can be read; the file is whole after [`Writer::finish`].
pub(crate) struct Writer {
    file: Arc<dyn DiskFile>,
    key: Arc<DataKey>,
    header: Header,
    state: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// Whole blocks in the file.
    blocks: u64,
    /// What follows them.
    tail: Vec<u8>,
    /// Bytes in the file, and their checksum.
    bytes: u64,
    crc: u32,
}

impl Writer {
    /// Begins.
    ///
    /// # Errors
    /// The header cannot be written.
    pub(crate) fn new(file: Arc<dyn DiskFile>, key: Arc<DataKey>) -> io::Result<Self> {
        let header = Header {
            format: FORMAT,
            block: u32::try_from(BLOCK).unwrap_or(MAX_BLOCK),
            key: key.id(),
            file: *super::key::random()?,
        };
        let writer = Self {
            file,
            key,
            header,
            state: Mutex::default(),
        };
        writer.put(&mut writer.state.lock(), &header.encode())?;
        Ok(writer)
    }

    fn put(&self, state: &mut Written, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(state.bytes, bytes)?;
        state.crc = crc32c::crc32c_append(state.crc, bytes);
        state.bytes += bytes.len() as u64;
        Ok(())
    }

    fn seal(&self, number: u64, content: &[u8], last: bool) -> io::Result<Vec<u8>> {
        let place = Place::Block {
            file: &self.header.file,
            number,
            last,
        };
        self.key.seal(&place, content)
    }

    fn len(state: &Written) -> u64 {
        state.blocks * BLOCK as u64 + state.tail.len() as u64
    }

    /// Writes the last block and the end. Does not sync.
    ///
    /// # Errors
    /// The file is not whole then.
    pub(crate) fn finish(self) -> io::Result<()> {
        let mut state = std::mem::take(&mut *self.state.lock());
        let len = Self::len(&state);
        let tail = std::mem::take(&mut state.tail);
        let last = self.seal(state.blocks, &tail, true)?;
        self.put(&mut state, &last)?;
        self.put(&mut state, &len.to_le_bytes())?;
        let crc = state.crc;
        self.put(&mut state, &[crc.to_le_bytes(), *END].concat())
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BeingSealed({:?})", self.file)
    }
}

impl DiskFile for Writer {
    fn size(&self) -> io::Result<u64> {
        Ok(Self::len(&self.state.lock()))
    }

    fn read_at(&self, mut offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let state = self.state.lock();
        let (block, mut done) = (BLOCK as u64, 0);
        while offset < Self::len(&state) && done < buf.len() {
            let number = offset / block;
            let skip = usize::try_from(offset % block).map_err(io::Error::other)?;
            let rest = buf.get_mut(done..).unwrap_or_default();
            let copied = if number < state.blocks {
                copy(&open_block(&*self.file, &self.key, &self.header, number, BLOCK, false)?, skip, rest)
            } else {
                copy(&state.tail, skip, rest)
            };
            done += copied;
            offset += copied as u64;
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        if offset != Self::len(&state) {
            return Err(read_only());
        }
        state.tail.extend_from_slice(data);
        // One block more than is there must follow: it may be the last.
        let whole = state.tail.len().saturating_sub(1) / BLOCK;
        if whole == 0 {
            return Ok(());
        }
        let tail = std::mem::take(&mut state.tail);
        let (full, rest) = tail.split_at(whole * BLOCK);
        let mut sealed = Vec::with_capacity(whole * (BLOCK + OVERHEAD));
        for (nth, content) in full.chunks(BLOCK).enumerate() {
            sealed.extend(self.seal(state.blocks + nth as u64, content, false)?);
        }
        self.put(&mut state, &sealed)?;
        state.blocks += whole as u64;
        state.tail = rest.to_vec();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == Self::len(&self.state.lock()) {
            Ok(())
        } else {
            Err(read_only())
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
