//! The content of a file: chunks of 64 KiB, each sealed under its number; the last one says that it is.
use std::io::{self, BufRead, Read, Write};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};

use super::header::{self, FileKey};
use super::{Error, Identity, Recipient, derive, random};

const CHUNK: usize = 64 << 10;
const TAG: usize = 16;
const SALT: usize = 16;

struct Sealing {
    key: LessSafeKey,
    number: u64,
}

impl Sealing {
    fn new(key: &FileKey, salt: &[u8; SALT]) -> Result<Self, Error> {
        let key = header::cipher(&derive(key, salt, b"payload")?)?;
        Ok(Self { key, number: 0 })
    }

    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        let (number, mark) = nonce.split_at_mut(11);
        // Eleven bytes, big-endian: the upper three stay zero.
        if let Some(low) = number.get_mut(3..) {
            low.copy_from_slice(&self.number.to_be_bytes());
        }
        mark.fill(u8::from(last));
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Encrypts what is written to it. What is not [`Writer::finish`]ed is cut short, and seen to be by whoever reads it.
pub struct Writer<W: Write> {
    out: W,
    sealing: Sealing,
    chunk: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Too few or too many recipients, no random bytes, or the writer's.
    pub fn new(recipients: &[Recipient], mut out: W) -> Result<Self, Error> {
        let (key, header) = header::write(recipients)?;
        let salt = random()?;
        out.write_all(&header)?;
        out.write_all(&salt)?;
        let sealing = Sealing::new(&key, &salt)?;
        let chunk = Vec::with_capacity(CHUNK + TAG);
        Ok(Self { out, sealing, chunk })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.sealing.nonce(last);
        self.sealing
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.chunk)
            .map_err(|_| Error::Crypto)?;
        self.sealing.number += 1;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// Ends the file. Does not flush the writer below.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until something follows: the last one may be full too.
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Decrypts a file. Each chunk is given out only once it was found to be the one that was written; the end only if it is the end.
pub struct Reader<R: BufRead> {
    input: R,
    sealing: Sealing,
    /// What is not given out yet, from the second on.
    chunk: Vec<u8>,
    given: usize,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Opens a file.
    ///
    /// # Errors
    /// It is none, it is for somebody else, or its header was changed.
    pub fn new(identities: &[Identity], mut input: R) -> Result<Self, Error> {
        let key = header::read(&mut input, identities)?;
        let mut salt = [0; SALT];
        input.read_exact(&mut salt).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::CutShort,
            _ => Error::Io(error),
        })?;
        let sealing = Sealing::new(&key, &salt)?;
        Ok(Self {
            input,
            sealing,
            chunk: Vec::new(),
            given: 0,
            ended: false,
        })
    }

    fn next(&mut self) -> Result<(), Error> {
        self.chunk.clear();
        self.given = 0;
        let most = (CHUNK + TAG) as u64;
        self.input.by_ref().take(most).read_to_end(&mut self.chunk)?;
        let last = self.input.fill_buf()?.is_empty();
        if self.chunk.len() < TAG {
            return Err(Error::CutShort);
        }
        let opened = self.open(last);
        let Some(len) = opened else {
            // Nothing follows, and yet it is none that says it is the last: whole chunks are missing.
            let cut = last && (self.chunk.len() < CHUNK + TAG || self.open(false).is_some());
            return Err(if cut {
                Error::CutShort
            } else {
                Error::Damaged("a part of it is not the one that was written")
            });
        };
        if last && len == 0 && self.sealing.number > 0 {
            return Err(Error::Damaged("it has an empty last part"));
        }
        self.chunk.truncate(len);
        self.sealing.number += 1;
        self.ended = last;
        Ok(())
    }

    /// Decrypts the chunk in its place. What did not fit is as it was.
    fn open(&mut self, last: bool) -> Option<usize> {
        let nonce = self.sealing.nonce(last);
        let mut opened = self.chunk.clone();
        let len = self.sealing.key.open_in_place(nonce, Aad::empty(), &mut opened).ok()?.len();
        self.chunk = opened;
        Some(len)
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.given == self.chunk.len() {
            if self.ended {
                return Ok(0);
            }
            self.next().inspect_err(|_| {
                // Nothing of it is given out later either.
                self.given = self.chunk.len();
            })?;
        }
        let rest = self.chunk.get(self.given..).unwrap_or_default();
        let taken = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..taken), rest.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.given += taken;
        Ok(taken)
    }
}
