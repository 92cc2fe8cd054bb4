//! Writes a closed file of the log anew, under another key: beside the writer, which then only puts it in the place of the old one.
//! In: a file and its key. Out: the same records, sealed with the active key. Invariants: at any moment the one or the other is whole under
//! its name; the new file is durable before it gets it; who reads the old one at that moment goes on reading.
//! The next file knows how long this one was, so the head of the new one says for which length it stands.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::memory::{Memory, Place};
use super::part::{self, Part};
use super::record::{self, Content, Invalid};
use super::segment::{self, Head, Sealing};
use super::{EntryId, Error};
use crate::disk::{self, Disk};
use crate::seal::DataKey;

/// What is being written has this behind its name.
const NEW: &str = ".new";
/// Longest file that is read.
const MAX_FILE: u64 = 1 << 32;

/// A new file, durable beside the old one.
pub(super) struct Rewritten {
    pub seq: u64,
    aside: PathBuf,
    part: Part,
    /// Old and new places of the entries.
    places: Vec<(EntryId, Place, Place)>,
    /// Told what became of it.
    pub done: Option<oneshot::Sender<io::Result<()>>>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

fn aside(dir: &Path, seq: u64) -> PathBuf {
    let mut name = segment::path(dir, seq).into_os_string();
    name.push(NEW);
    name.into()
}

/// Removes what an earlier process did not finish.
pub(super) fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for name in disk.list(dir)? {
        if name.strip_suffix(NEW).and_then(segment::number).is_some() {
            disk.remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Writes the new file. Blocks on the disk.
pub(super) fn rewrite(disk: &dyn Disk, dir: &Path, seq: u64, old: &Part, key: Arc<DataKey>) -> Result<Rewritten, Error> {
    let path = segment::path(dir, seq);
    let bytes = disk::read_all(&*old.file, MAX_FILE).map_err(failed("read", &path))?;
    let (content, places) = reseal(&bytes, &path, seq, old, &key)?;
    let aside = aside(dir, seq);
    match disk.remove(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &aside)(error)),
        _ => {}
    }
    let file = disk.create(&aside).map_err(failed("make", &aside))?;
    if let Err(source) = file.write_at(0, &content).and_then(|()| file.sync_data()) {
        // It takes room that may be what is wanting. One that stays is removed at the next try.
        let _ = disk.remove(&aside);
        return Err(failed("write", &aside)(source));
    }
    Ok(Rewritten {
        seq,
        aside,
        part: Part { file, key: Some(key) },
        places,
        done: None,
    })
}

type Resealed = (Vec<u8>, Vec<(EntryId, Place, Place)>);

fn reseal(bytes: &[u8], path: &Path, seq: u64, old: &Part, key: &DataKey) -> Result<Resealed, Error> {
    let damaged = |at: usize, reason: &str| Error::Damaged {
        path: path.to_owned(),
        offset: at as u64,
        reason: reason.to_owned(),
    };
    let mut buf = segment::header(seq, true).to_vec();
    let mut head = None;
    let mut places = Vec::new();
    let mut at = segment::HEADER;
    while at < bytes.len() {
        let record = match record::decode(bytes, seq, at) {
            Ok(record) => record,
            Err(Invalid::NotARecord(_)) if bytes.iter().skip(at).all(|byte| *byte == 0) => break,
            Err(invalid) => return Err(damaged(at, &format!("{invalid:?}"))),
        };
        match record.content {
            Content::Head(payload) if head.is_none() => {
                let (known, sealing) = Head::decode(payload).ok_or_else(|| damaged(at, "the head cannot be read"))?;
                put_head(&mut buf, seq, &known, key, (0, 0));
                head = Some((known, sealing));
            }
            Content::Entry(id, payload) => {
                let content = part::unseal(old.key.as_deref(), id, seq, at as u64, payload);
                let content = content.map_err(|error| damaged(at, &error.to_string()))?;
                let sealed = part::seal(Some(key), id, seq, buf.len() as u64, content).map_err(failed("encrypt", path))?;
                let (offset, size) = record::encode(&mut buf, seq, 0, 0, &Content::Entry(id, &sealed));
                let place = |offset, size| Place {
                    segment: seq,
                    offset,
                    size,
                };
                places.push((id, place(at as u64, record.size), place(offset, size)));
            }
            content => {
                record::encode(&mut buf, seq, 0, 0, &content);
            }
        }
        at += record.size;
    }
    let Some((head, sealing)) = head else {
        return Err(damaged(segment::HEADER, "the head is missing"));
    };
    let known_as = sealing.and_then(|sealing| sealing.instead).map_or(at as u64, |(_, of)| of);
    let mut first = segment::header(seq, true).to_vec();
    put_head(&mut first, seq, &head, key, (buf.len() as u64, known_as));
    match buf.get_mut(..first.len()) {
        Some(place) => place.copy_from_slice(&first),
        None => return Err(damaged(segment::HEADER, "the head is missing")),
    }
    Ok((buf, places))
}

fn put_head(buf: &mut Vec<u8>, seq: u64, head: &Head, key: &DataKey, instead: (u64, u64)) {
    let sealing = Sealing {
        key: key.id(),
        instead: Some(instead),
    };
    let payload = [head.encode(), sealing.encode()].concat();
    record::encode(buf, seq, 0, 0, &Content::Head(&payload));
}

impl Rewritten {
    /// Puts the new file in the place of the old one, unless that is gone by now. Called by the writer, between batches.
    pub(super) fn take_place<E>(self, disk: &dyn Disk, dir: &Path, is_there: bool, memory: &parking_lot::Mutex<Memory<E>>) {
        let path = segment::path(dir, self.seq);
        let done = if is_there {
            let renamed = disk.rename(&self.aside, &path);
            if renamed.is_ok() {
                memory.lock().moved(self.seq, self.part, &self.places);
            }
            renamed.and_then(|()| disk.sync_dir(dir))
        } else {
            disk.remove(&self.aside)
        };
        if let Some(told) = self.done {
            // Whoever waited may be gone.
            let _ = told.send(done);
        }
    }
}
